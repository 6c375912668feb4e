"""Backtests without leaks: past windows forecast by a forecaster that could see nothing after each cutoff."""

from .plan import rows_until
from .run import backtest, iterate, plan_panel

__all__ = ["backtest", "iterate", "plan_panel", "rows_until"]

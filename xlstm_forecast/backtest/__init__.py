"""Backtests without leaks: past windows forecast by a forecaster that could see nothing after each cutoff."""

from .plan import rows_until
from .run import backtest, plan_panel

__all__ = ["backtest", "plan_panel", "rows_until"]

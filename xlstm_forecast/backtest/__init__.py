"""Backtests without leaks: past windows forecast by a forecaster that could see nothing after each cutoff."""

from .plan import rows_until
from .run import backtest, fit_and_backtest, iterate, plan_panel

__all__ = ["backtest", "fit_and_backtest", "iterate", "plan_panel", "rows_until"]

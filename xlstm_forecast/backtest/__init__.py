"""Backtests without leaks: past windows forecast by a forecaster that could see nothing after each cutoff."""

from .run import backtest

__all__ = ["backtest"]

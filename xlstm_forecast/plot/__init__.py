"""Pictures of forecasts, backtests and what moved them (needs the extra "plot": matplotlib)."""

from .attribution import attribute, plot_attribution
from .figures import (
    plot_backtest,
    plot_error_by_step,
    plot_forecast,
    plot_leaderboard,
    plot_pit,
    plot_reliability,
)

__all__ = [
    "attribute",
    "plot_attribution",
    "plot_backtest",
    "plot_error_by_step",
    "plot_forecast",
    "plot_leaderboard",
    "plot_pit",
    "plot_reliability",
]

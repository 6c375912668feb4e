"""Scores of tidy forecast frames: point, quantile and interval metrics, scaled by what each forecast could see.

A tidy frame has the columns id (absent for a single series), time, `cutoff`, `target` (several targets only), the
label, `forecast`, and one column per quantile level (`q0.1`, ...).
"""

from .paired import Comparison, compare
from .scale import seasonal_scale
from .scores import (
    GROUPS,
    METRICS,
    crps_normal,
    crps_samples,
    crps_student_t,
    evaluate,
    interval_score,
    leaderboard,
    pit,
    pit_values,
)
from .tidy import Columns, as_pandas, band_name, columns_of, common_rows, like, quantile_name, steps, to_utilsforecast

__all__ = [
    "GROUPS",
    "METRICS",
    "Columns",
    "Comparison",
    "as_pandas",
    "band_name",
    "columns_of",
    "common_rows",
    "compare",
    "crps_normal",
    "crps_samples",
    "crps_student_t",
    "evaluate",
    "interval_score",
    "leaderboard",
    "like",
    "pit",
    "pit_values",
    "quantile_name",
    "seasonal_scale",
    "steps",
    "to_utilsforecast",
]

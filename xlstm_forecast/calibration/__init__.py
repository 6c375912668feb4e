"""Conformal calibration: bands that cover what they promise, learnt from backtest windows, online where wanted."""

from .conformal import METHODS, POOLS, Calibration, conformal_quantile, scores_needed
from .forecaster import CalibratedForecaster, calibrate
from .rolling import calibrated, fit_calibration, reliability

__all__ = [
    "METHODS",
    "POOLS",
    "CalibratedForecaster",
    "Calibration",
    "calibrate",
    "calibrated",
    "conformal_quantile",
    "fit_calibration",
    "reliability",
    "scores_needed",
]

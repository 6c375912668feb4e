"""The closed-form backbone: a forecaster by itself, and the start of the residual network.

Numpy arrays only. `values` is one flat float64 column, NaN = missing; series s is values[offsets[s] : offsets[s + 1]].

    config = BackboneConfig(horizon=24, freq="h")               # freq: pandas alias, None for integer time
    fitted = Backbone(config).fit(values, offsets)              # deterministic, seconds; no random state is touched
    fitted = Backbone(config).fit(values, offsets, starts, known)   # first stamps (S,); known-future inputs (N, K)

    fitted.forecast(values, offsets, series, origin, levels)    # (n, H, Q): windows of flat columns, rows before origin
    fitted.quantiles(history, levels, series)                   # (n, H, Q): histories (n, L) that end before the origin
    fitted.paths(history, series)                               # Paths(median (n, H), sigma (n, H)), true units
    fitted.offsets(series, levels)                              # (n, H, Q): y_q = median + sigma * offset
    fitted.climate(history, levels)                             # (n, H, Q): climatology, NaN where too little history
    fitted.blend, fitted.floor                                  # (S + 1, H) weight of climatology; (S,) clip from below
    fitted.history, fitted.known_behind, fitted.needs_stamps    # what a forecast reads
    fitted.report                                               # list of dicts: what each stage decided
    Recent(fitted.sizes.shape).quantiles(history, known, levels)    # (H, Q): solved anew on one history, or None
    arrays, text = fitted.to_arrays()                           # dict of arrays, JSON text
    fitted = FittedBackbone.from_arrays(arrays, text)

`series` (n,) is the index of the series in the fit, -1 (None: all -1) for one that was not in it. `quantiles` is
(1 - blend) * (median + sigma * offsets) + blend * climate, ordered, clipped at the floor. Where the fit accepted a
calendar profile (`needs_stamps`), forecasts take `when` (n,), the stamp of the first forecast step (`forecast` takes
`starts`); where it had known inputs, `known` (n, known_behind + H, K) (`forecast`: the flat columns). Everything but
the calendar and bands of new series of up to eight values is equivariant: forecasting a * y + b (a > 0) gives
a * forecast + b.
"""

from xlstm_forecast.backbone.fit import Backbone
from xlstm_forecast.backbone.median import slices
from xlstm_forecast.backbone.model import BackboneConfig, FittedBackbone, Paths, brief
from xlstm_forecast.backbone.recent import Recent
from xlstm_forecast.backbone.shifts import joined_history
from xlstm_forecast.backbone.windows import gather, gather_labels

__all__ = [
    "Backbone",
    "BackboneConfig",
    "FittedBackbone",
    "Paths",
    "Recent",
    "brief",
    "gather",
    "gather_labels",
    "joined_history",
    "slices",
]

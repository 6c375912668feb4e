"""The closed-form backbone: a forecaster by itself, and the start of the residual network.

Interface (numpy arrays only; `values` is one flat float64 column, NaN = missing; series s is values[offsets[s]:offsets[s+1]])

    config = BackboneConfig(horizon=24, freq="h")            # freq: pandas alias, None for integer time
    fitted = Backbone(config).fit(values, offsets)           # seconds; deterministic, no random state is touched

    fitted.history                                           # rows before the origin that a forecast reads (shorter is fine)
    fitted.forecast(values, offsets, series, origin, levels) # (n, H, Q): windows of flat columns, rows before origin only
    fitted.quantiles(history, levels, series=None)           # (n, H, Q): histories (n, L) ending directly before the origin
    fitted.paths(history, series=None)                       # Paths(median (n, H), sigma (n, H)) in true units
    fitted.offsets(series, levels)                           # (n, H, Q): standardised quantiles, y_q = median + sigma * offset
    fitted.climate(history, levels)                          # (n, H, Q): climatological quantiles, NaN where too little history
    fitted.blend, fitted.floor                               # (S + 1, H) weight of climatology; (S,) clip from below
    fitted.report                                            # list of dicts: what each stage decided
    arrays, text = fitted.to_arrays()                        # dict of float64 arrays, JSON text
    fitted = FittedBackbone.from_arrays(arrays, text)

`series` (n,) is the index of the series in the fit, -1 (None: all -1) for one that was not in it. quantiles() is
(1 - blend) * (median + sigma * offsets) + blend * climate, ordered, clipped at the floor. Everything but the calendar
profile is equivariant: forecasting a * y + b (a > 0) gives a * forecast + b.
"""

from xlstm_forecast.backbone.fit import Backbone
from xlstm_forecast.backbone.model import BackboneConfig, FittedBackbone, Paths
from xlstm_forecast.backbone.windows import gather, gather_labels

__all__ = ["Backbone", "BackboneConfig", "FittedBackbone", "Paths", "gather", "gather_labels"]

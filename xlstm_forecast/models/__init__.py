"""Forecasting models: `Batch` in, forecast out; plain nn.Modules that know neither Lightning nor pandas."""

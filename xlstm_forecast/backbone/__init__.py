"""The closed-form part: seasons, structured features, ridge, spread, climatology, calendar; a forecaster by itself."""

"""Generates the demo panel: daily sales of 20 products with prices, promotions, holidays, categories and gaps.

Run `python data/make_panel.py` to write panel.csv, panel_static.csv and panel_future.csv: the same bytes every time.
What drives the sales is known, so that a model can be asked whether it has found it: a weekly pattern by category, a
yearly swing, price elasticity, an uplift by promotion, holidays, visitors of the store (known of the past only),
a slowly moving level and counting noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

DAYS, HORIZON, SEED = 600, 28, 20240101
START = pd.Timestamp("2022-03-07")  # a Monday
STORES = {"north": 1.0, "south": 0.7, "east": 1.4, "west": 0.5}
# category: mean daily sales, price, price elasticity, uplift by promotion, yearly swing, Monday to Sunday
CATEGORIES: dict[str, tuple[float, float, float, float, float, tuple[float, ...]]] = {
    "bread": (90.0, 2.2, -0.8, 0.25, 0.03, (0.95, 0.9, 0.95, 1.0, 1.15, 1.35, 0.7)),
    "drinks": (60.0, 1.5, -1.6, 0.6, 0.35, (0.85, 0.85, 0.9, 1.0, 1.3, 1.45, 0.65)),
    "soup": (35.0, 3.1, -1.2, 0.45, -0.4, (1.1, 1.1, 1.05, 1.0, 0.95, 1.0, 0.8)),
    "flowers": (14.0, 6.5, -1.0, 0.3, 0.15, (0.8, 0.85, 0.9, 1.0, 1.4, 1.5, 0.55)),
    "candles": (3.0, 4.9, -0.7, 0.8, -0.5, (0.9, 0.9, 0.95, 1.0, 1.1, 1.4, 0.75)),
}
HOLIDAYS = {
    (1, 1): "new_year",
    (5, 1): "may_day",
    (6, 24): "midsummer",
    (10, 3): "autumn_feast",
    (11, 11): "lantern_day",
    (12, 24): "christmas",
    (12, 25): "christmas",
}
HOLIDAY_FACTOR = {
    "none": 1.0,
    "new_year": 0.25,
    "may_day": 0.5,
    "midsummer": 1.6,
    "autumn_feast": 1.5,
    "lantern_day": 1.4,
    "christmas": 1.9,
}


def static_table() -> pd.DataFrame:
    """One row a product: its category, its store, the floor area of the store in m2."""
    rows = [
        (f"{store}_{name}", name, store, round(800 * size)) for store, size in STORES.items() for name in CATEGORIES
    ]
    return pd.DataFrame(rows, columns=["unique_id", "category", "store", "area"])


def holidays(days: pd.DatetimeIndex) -> np.ndarray:
    return np.array([HOLIDAYS.get((day.month, day.day), "none") for day in days], dtype=object)


def product(store: str, category: str, visitors: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """All days of one product, the last HORIZON of them the future; sales follow from the other columns."""
    mean, price, elasticity, uplift, swing, week = CATEGORIES[category]
    total = DAYS + HORIZON
    days = pd.date_range(START, periods=total, freq="D")
    list_price = price * np.repeat(1 + 0.06 * rng.standard_normal(total // 90 + 1), 90)[:total]
    promotion = np.zeros(total, dtype=np.int64)
    for first in np.flatnonzero(rng.random(total) < 0.025):
        promotion[first : first + 6] = 1
    paid = np.round(list_price * np.where(promotion == 1, 0.85, 1.0), 2)
    holiday = holidays(days)
    level = 0.15 * np.cumsum(rng.standard_normal(total)) / np.sqrt(120)
    rate = mean * STORES[store] * np.array(week)[days.dayofweek] * np.exp(level)
    rate *= 1 + swing * np.cos(2 * np.pi * (days.dayofyear.to_numpy() - 200) / 365.25)
    rate *= (paid / price) ** elasticity * (1 + uplift * promotion)
    rate *= np.array([HOLIDAY_FACTOR[name] for name in holiday]) * visitors
    sales = rng.poisson(rate * rng.gamma(60.0, 1 / 60.0, total)).astype(float)
    columns = {"ds": days, "sales": sales, "price": paid, "promotion": promotion, "holiday": holiday}
    frame = pd.DataFrame(columns).assign(visitors=np.round(900 * STORES[store] * visitors))
    frame.insert(0, "unique_id", f"{store}_{category}")
    return frame


def spoil(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The history as it would be recorded: a late start, a closure without rows, single missing values."""
    history = frame.iloc[:-HORIZON].copy()
    history.loc[rng.random(len(history)) < 0.01, "sales"] = np.nan
    history.loc[rng.random(len(history)) < 0.01, "visitors"] = np.nan
    keep = np.ones(len(history), dtype=bool)
    if rng.random() < 0.3:
        keep[: rng.integers(100, 350)] = False
    if rng.random() < 0.4:
        closed = rng.integers(370, 500)
        keep[closed : closed + rng.integers(3, 15)] = False
    return history[keep]


def make_panel(seed: int = SEED) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(history, static, future): `future` holds the known columns of the HORIZON days after the history."""
    rng = np.random.default_rng(seed)
    table = static_table()
    total = DAYS + HORIZON
    visitors = {store: np.exp(0.12 * smooth(rng.standard_normal(total), 0.8)) for store in STORES}
    whole = [
        product(store, name, visitors[store], rng) for name, store in zip(table.category, table.store, strict=True)
    ]
    history = pd.concat([spoil(frame, rng) for frame in whole], ignore_index=True)
    future = pd.concat(
        [frame.iloc[-HORIZON:].drop(columns=["sales", "visitors"]) for frame in whole], ignore_index=True
    )
    return history, table, future


def smooth(noise: np.ndarray, keep: float) -> np.ndarray:
    """A stationary first-order autoregression of unit variance."""
    out = np.empty_like(noise)
    state = noise[0]
    for t, shock in enumerate(noise):
        state = keep * state + np.sqrt(1 - keep**2) * shock
        out[t] = state
    return out


if __name__ == "__main__":
    for name, frame in zip(("panel", "panel_static", "panel_future"), make_panel(), strict=True):
        path = Path(__file__).with_name(f"{name}.csv")
        frame.to_csv(path, index=False, lineterminator="\n", float_format="%g")

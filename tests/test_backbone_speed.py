"""What was made fast in the backbone and around it gives the same bits as what it is defined by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from xlstm_forecast import XLSTMForecaster, linear
from xlstm_forecast.backbone.calendar import Calendar, indicators
from xlstm_forecast.backbone.climatology import climatology, quantiles
from xlstm_forecast.backbone.shifts import _median
from xlstm_forecast.backbone.windows import fill
from xlstm_forecast.layers.masks import picked
from xlstm_forecast.linear import Remembered


def by_definition(row: np.ndarray, season: int) -> np.ndarray:
    """One row of `fill`, value by value."""
    out, length = row.copy(), len(row)
    seen = np.isfinite(row)
    if not seen.any():
        return np.zeros(length)
    first = int(seen.argmax())
    for t in range(first, length):
        if not seen[t]:
            out[t] = out[t - season] if t - season >= first else out[t - 1]
    period = season if length - first >= season else 1
    for t in range(first):
        out[t] = out[first + (t - first) % period]
    return out


@pytest.mark.parametrize("season", [1, 2, 7, 24, 90])
@pytest.mark.parametrize("missing", [0.0, 0.1, 0.9])
def test_gaps_are_filled_as_defined_value_by_value(season, missing):
    rng = np.random.default_rng(season)
    rows = rng.standard_normal((30, 67))
    rows[rng.random(rows.shape) < missing] = np.nan
    rows[np.arange(67) < rng.integers(0, 68, 30)[:, None]] = np.nan  # ragged starts, one row empty at least
    rows[0] = np.nan
    rows[1, [3, 50]] = np.inf
    given = rows.copy()
    out, available = fill(rows, season)
    np.testing.assert_array_equal(rows, given)
    seen = np.isfinite(rows)
    np.testing.assert_array_equal(available, np.where(seen.any(1), 67 - seen.argmax(1), 0))
    np.testing.assert_array_equal(out, [by_definition(row, season) for row in rows])


@pytest.mark.parametrize("count", [1, 2, 5, 63])
def test_quantiles_of_few_samples_are_numpys_to_the_bit(count):
    rng = np.random.default_rng(count)
    samples = rng.standard_normal((4, 6, count)).round(1)  # with ties
    levels = np.array([0.9, 0.1, 0.5, 0.25, 0.01, 0.99, 0.333])
    expected = np.moveaxis(np.quantile(samples, levels, axis=2), 0, 2)
    np.testing.assert_array_equal(quantiles(samples, levels), expected)


@pytest.mark.parametrize(("season", "horizon"), [(1, 5), (7, 3), (7, 20), (24, 10), (24, 60)])
def test_climatology_takes_the_phases_of_the_horizon_and_their_neighbours(season, horizon):
    rows = np.random.default_rng(0).standard_normal((3, 200))
    levels = np.array([0.1, 0.5, 0.9])
    found = climatology(rows, np.array([200, 130, 199]), np.zeros(3), season, horizon, levels)
    for i, available in enumerate((200, 130, 199)):
        count = min(available // season, 21) if season > 1 else 60
        for h in range(horizon):
            phases = [h % season] if season < 20 else [(h + k) % season for k in (-1, 0, 1)]
            past = rows[i, 200 - count * season :].reshape(count, season)
            np.testing.assert_array_equal(found[i, h], np.quantile(past[:, phases], levels))


def test_daily_calendar_factors_are_those_of_all_indicators():
    rng = np.random.default_rng(0)
    coefficients = rng.standard_normal(12 * 31 + 12 * 35) / 10
    dates = np.datetime64("2019-11-03") + rng.integers(0, 3000, (5, 40)).astype("timedelta64[D]")
    calendar = Calendar("D", 0, coefficients, np.zeros_like(coefficients))
    expected = np.clip(1 + indicators(dates.ravel(), "D", 0) @ coefficients, 0.2, 4.0).reshape(dates.shape)
    np.testing.assert_array_equal(calendar.at(dates), expected)


def test_each_weekday_of_a_month_has_a_place_of_its_own():
    fridays = np.array(["2021-01-01", "2021-01-08", "2021-01-15", "2021-01-22", "2021-01-29"], "datetime64[D]")
    for dates in (fridays, fridays + 1, fridays + 2):
        places = indicators(dates, "D", 0)
        assert (places.sum(1) == 2).all()
        assert len({tuple(np.flatnonzero(row)) for row in places[:, 372:]}) == 5


@pytest.mark.parametrize("count", [3, 4, 21])
def test_medians_over_real_seasons_are_numpys_to_the_bit(count):
    rng = np.random.default_rng(count)
    values = rng.standard_normal((20, count, 5))
    real = rng.random((20, count)) < 0.6
    real[:, -1] = True
    expected = np.nanmedian(np.where(real[..., None], values, np.nan), 1)
    np.testing.assert_array_equal(_median(values, real), expected)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 5, 2, 3)])
def test_picked_steps_and_their_gradients_are_those_of_gather(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    steps = torch.tensor([[4, 0, 0], [1, 2, 3], [3, 3, 3]])  # the same one again, too
    index = steps.view(3, 3, *(1,) * (len(shape) - 2)).expand(-1, -1, *shape[2:])

    def with_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.arange(y.numel(), dtype=torch.float64).view(y.shape)
        return y, torch.autograd.grad((y * weight).sum(), x)[0]

    for found, expected in zip(with_gradient(picked(x, steps)), with_gradient(x.gather(1, index)), strict=True):
        assert torch.equal(found, expected)


def waves(series: int = 3, rows: int = 60) -> pd.DataFrame:
    step = np.arange(rows)
    noise = np.random.default_rng(0).standard_normal((series, rows))
    parts = [pd.DataFrame({"unique_id": f"s{i}", "ds": step, "y": np.sin(step / 2) + noise[i]}) for i in range(series)]
    return pd.concat(parts, ignore_index=True)


class Counted:
    """A base of two steps, two variates and two levels that notes which windows it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, series: np.ndarray, origin: np.ndarray) -> np.ndarray:
        self.asked += zip(series.tolist(), origin.tolist(), strict=True)
        return (1000.0 * series + origin)[:, None, None, None] + np.arange(8.0).reshape(2, 2, 2)


def test_a_base_is_asked_once_for_each_window_in_training(monkeypatch):
    panel = XLSTMForecaster(horizon=2)._read(waves())
    base, fresh = Counted(), Counted()
    kept = Remembered(base, panel)
    rng = np.random.default_rng(0)
    wanted = set()
    assert kept(np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0, 2, 2, 2)
    for _ in range(20):  # a series' last origin and the next one's first have the same row
        series, origin = rng.integers(0, 3, 8), rng.choice([0, 1, 59, 60], 8)
        np.testing.assert_array_equal(kept(series, origin), fresh(series, origin))
        wanted |= set(zip(series.tolist(), origin.tolist(), strict=True))
    assert set(base.asked) == wanted
    assert len(base.asked) < 20 < len(fresh.asked)
    monkeypatch.setattr(linear, "KEPT", 100)  # bytes: nothing is kept
    base.asked.clear()
    kept = Remembered(base, panel)
    series, origin = np.array([1, 2]), np.array([5, 5])
    for _ in range(2):
        np.testing.assert_array_equal(kept(series, origin), fresh(series, origin))
    assert len(base.asked) == 4


def test_training_on_remembered_forecasts_gives_the_same_bits(monkeypatch):
    fitted = [XLSTMForecaster(horizon=4, max_steps=30, networks=2).fit(waves(), verbose=False)]
    monkeypatch.setattr(linear, "KEPT", 0)
    fitted.append(XLSTMForecaster(horizon=4, max_steps=30, networks=2).fit(waves(), verbose=False))
    losses = [[result.train_loss for result in one.training_] for one in fitted]
    assert losses[0] == losses[1]
    assert len(losses[0][0]) == 30
    pd.testing.assert_frame_equal(fitted[0].predict(), fitted[1].predict(), check_exact=True)

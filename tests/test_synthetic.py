"""The generator of diverse series: reproducible, finite, as told, and diverse indeed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import synthetic
from xlstm_forecast.synthetic import frame, generate


def autocorrelation(values: torch.Tensor, lag: int) -> float:
    x = values - values.mean()
    return float((x[lag:] * x[:-lag]).sum() / x.square().sum())


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    first, again, other = generate(20, 300, seed=4), generate(20, 300, seed=4), generate(20, 300, seed=5)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_first_series_do_not_depend_on_how_many_are_asked_for():
    few, many = generate(10, 200, seed=1, missing=0.5), generate(300, 200, seed=1, missing=0.5)
    torch.testing.assert_close(few.values, many.values[:10], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(few.period, many.period[:10])


def test_the_chunks_do_not_repeat_each_other():
    values = generate(512, 100, seed=0).values
    assert not torch.equal(values[:256], values[256:])
    assert len({tuple(row) for row in values.tolist()}) == 512


def test_values_are_finite_for_lengths_from_one_to_thousands():
    for length in (1, 2, 3, 50, 3000):
        assert generate(256, length, seed=2).values.isfinite().all()


def test_the_period_told_is_the_period_found():
    series = generate(256, 1500, seed=3, simple=True)
    season = [(values, int(p)) for values, p in zip(series.values, series.period, strict=True) if 4 <= p <= 100]
    at_period = np.array([autocorrelation(values.diff(), p) for values, p in season])
    off_period = np.array([autocorrelation(values.diff(), p + max(1, p // 3)) for values, p in season])
    assert (at_period > off_period).mean() > 0.8
    assert np.median(at_period) > 0.15


def test_the_simple_form_has_neither_counts_nor_spikes():
    plain, full = generate(512, 500, seed=0, simple=True).values, generate(512, 500, seed=0).values

    def rounded(values: torch.Tensor) -> float:
        return float(np.mean([len(row.unique()) < 250 for row in values]))

    assert rounded(plain) < 0.01
    assert 0.08 < rounded(full) < 0.4


def test_series_differ_in_scale_sign_memory_and_season():
    series = generate(1024, 600, seed=0)
    x, spread = series.values, series.values.std(1)
    memory = torch.tensor([autocorrelation(row, 1) for row in x])
    assert torch.log10(spread.quantile(0.95) / spread.quantile(0.05)) > 3
    assert 0.05 < (x.min(1).values < 0).double().mean() < 0.6
    assert (memory > 0.97).double().mean() > 0.1
    assert (memory < 0.3).double().mean() > 0.1
    assert 0.1 < (series.period == 0).double().mean() < 0.3
    assert ((series.second > 0) <= (series.period > 0)).all()


def by_season(values: torch.Tensor, period: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Level and deviation of each whole season, (n, K) both."""
    rows = values[:, : values.shape[1] // period * period].unflatten(1, (-1, period))
    return rows.mean(-1), rows.std(-1)


def proportional(series: synthetic.Synthetic, period: int) -> float:
    """The share of a season's series whose level and season have grown alike, by a third at least."""
    level, deviation = by_season(series.values[series.period == period], period)
    logs = torch.stack((level.clamp(min=1e-9).log(), deviation.clamp(min=1e-9).log()))
    grown, swollen = logs[..., -1] - logs[..., 0]
    alike = (level > 0).all(1) & (grown.abs() > 0.3) & ((swollen - grown).abs() < 0.35)
    return float(alike.double().mean())


def test_series_of_months_grow_and_their_seasons_with_them_those_of_hours_mostly_do_not():
    with_growth, without = (generate(4096, 480, seed=6, growing=growing) for growing in (True, False))
    assert proportional(with_growth, 12) > 1.5 * proportional(without, 12)
    assert proportional(with_growth, 4) > 2 * proportional(without, 4)
    assert proportional(with_growth, 24) < 1.3 * proportional(without, 24)
    assert torch.equal(with_growth.period, without.period)


def test_growing_series_are_positive_and_walk():
    period = torch.full((512,), 12)
    values = synthetic._growing(synthetic._Draw(512, 3), 600, period, torch.zeros_like(period))
    assert (values > 0).all()
    level, _ = by_season(values.log(), 12)
    a_year, ten_years = (level[:, k:] - level[:, :-k] for k in (1, 10))
    assert 0.05 < a_year.std() < 0.3  # a tenth or two a year
    assert 2.5 < ten_years.std() / a_year.std() < 10  # more than a walk of independent years, less than a line
    assert 0.005 < a_year.mean() < 0.05  # upwards, if anything


def test_the_simple_form_does_not_grow():
    assert torch.equal(generate(300, 50, simple=True).values, generate(300, 50, simple=True, growing=True).values)


def test_missing_values_are_in_the_share_of_series_asked_for_and_never_all_of_one():
    nan = generate(512, 100, seed=0, missing=0.4).values.isnan()
    assert 0.3 < nan.any(1).double().mean() < 0.45
    assert not nan.all(1).any()
    assert not generate(64, 100, seed=0).values.isnan().any()


@pytest.mark.parametrize("freq", ["D", "MS", "h", None])
def test_the_frame_holds_the_same_values_at_regular_times(freq):
    long = frame(3, 40, freq=freq, seed=9)
    assert list(long.columns) == ["unique_id", "ds", "y"]
    np.testing.assert_array_equal(long.y.to_numpy().reshape(3, 40), generate(3, 40, seed=9).values.numpy())
    times = long.ds[long.unique_id == "s0001"]
    assert list(times) == (list(range(40)) if freq is None else list(pd.date_range("2000", periods=40, freq=freq)))


@pytest.mark.parametrize(("arguments", "told"), [((0, 5), "found 0 and 5"), ((5, 0), "found 5 and 0")])
def test_an_empty_request_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        generate(*arguments)


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"found 1\.5"):
        generate(3, 3, missing=1.5)


def test_the_default_dtype_changes_nothing():
    from xlstm_forecast import synthetic

    expected = generate(6, 200, seed=3).values
    synthetic._profiles.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        other = generate(6, 200, seed=3).values
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(other, expected)
    assert torch.equal(generate(6, 200, seed=3).values, expected)

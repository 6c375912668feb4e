"""Windows against a slow, obvious oracle in plain pandas; samplers and loaders; frames drawn at random."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlstm_forecast.batch import Batch, Labels
from xlstm_forecast.data import Loader, Panel, Roles, Sampler, WindowDataset, Windows, to_panel
from xlstm_forecast.data.loader import _shuffled

EXAMPLES = int(os.environ.get("XLSTM_FORECAST_EXAMPLES", "1000"))
ROLES = Roles(
    target=("y", "z"), past=("p", "pc"), future=("k", "kc"), static=("s",), categorical=("pc", "kc", "sc"), weight="w"
)


def frame(lengths=(40, 9, 25), missing=0.0, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for i, n in enumerate(lengths):
        hide = lambda x: np.where(rng.random(len(x)) < missing, np.nan, x)  # noqa: E731
        columns: dict[str, Any] = {
            "unique_id": f"s{i}",
            "ds": np.arange(n) + 3 * i,
            "y": hide(1e8 + 100.0 * i + rng.normal(size=n)),
            "z": hide(rng.normal(size=n)),
            "p": hide(rng.normal(5, 3, n)),
            "pc": rng.choice(np.array(["u", "v", None], object), n),
            "k": rng.normal(-3, 2, n),
            "kc": rng.choice(["a", "b"], n),
            "s": float(i) if i != 1 else np.nan,
            "sc": "pq"[i % 2],
            "w": rng.uniform(0, 2, n),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def panel_of(y: Any, **roles: Any) -> Panel:
    return to_panel(pd.DataFrame({"ds": np.arange(len(y)), "y": y}), Roles(id=None, **roles))


def oracle(
    df: pd.DataFrame, roles: Roles, encoding: Any, context: int, horizon: int, least: int
) -> list[dict[str, Any]]:
    """Every window of a sorted frame with integer times, gaps as missing values, by loops over rows."""

    def real(row: Any, column: str) -> float:
        return (row[column] - encoding.location[column]) / encoding.scale[column]

    def index(row: Any, column: str) -> int:
        values = encoding.categories[column]
        return values.index(row[column]) + 1 if row[column] in values else 0

    out = []
    ids = sorted(df[roles.id].unique()) if roles.id else [None]
    for number, name in enumerate(ids):
        own = df if name is None else df[df[roles.id] == name]
        own = own.sort_values(roles.time)
        by_time = {row[roles.time]: row for _, row in own.iterrows()}
        first, last = own[roles.time].iloc[0], own[roles.time].iloc[-1]
        for origin in range(first + least, last + 2 - horizon):
            window: dict[str, Any] = {"series": number, "origin": origin - first}
            before, after = range(origin - context, origin), range(origin, origin + horizon)
            row_of: Any = by_time.get
            target = np.array(
                [[row_of(t)[c] if row_of(t) is not None else np.nan for c in roles.target] for t in before]
            )
            ahead = np.array([[row_of(t)[c] if row_of(t) is not None else np.nan for c in roles.target] for t in after])
            if np.isnan(target).all() or np.isnan(ahead).all():
                continue
            carried: Any = None
            known, known_categories = [], []
            for t in range(min(first, origin - context), origin + horizon):
                carried = row_of(t) if row_of(t) is not None else carried
                inside = t >= first
                if t >= origin - context:
                    known.append([real(carried, c) if inside else 0.0 for c in roles.reals("future")])
                    there = row_of(t) is not None
                    known_categories.append([index(row_of(t), c) if there else 0 for c in roles.categories("future")])
            past = [
                [real(row_of(t), c) if row_of(t) is not None else np.nan for c in roles.reals("past")] for t in before
            ]
            window |= {
                "target": target,
                "labels": np.where(np.isnan(target).all(axis=0), np.nan, ahead),
                "present": [t >= first for t in before],
                "known": known,
                "past": np.array(past).reshape(context, -1),
                "known_categories": np.array(known_categories).reshape(context + horizon, -1),
                "past_categories": [
                    [index(row_of(t), c) if row_of(t) is not None else 0 for c in roles.categories("past")]
                    for t in before
                ],
                "static": [real(own.iloc[0], c) for c in roles.reals("static")],
                "static_categories": [index(own.iloc[0], c) for c in roles.categories("static")],
                "weight": [row_of(t)[roles.weight] if roles.weight and row_of(t) is not None else 1.0 for t in after],
            }
            out.append(window)
    return out


def assert_like_oracle(windows: Windows, df: pd.DataFrame, roles: Roles, least: int) -> None:
    expected = oracle(df, roles, windows.panel.encoding, windows.input_length, windows.horizon, least)
    assert len(windows) == len(expected)
    if not expected:
        return
    batch, labels = windows.gather(torch.arange(len(windows)))
    offset = batch.offset[:, None]
    target = torch.where(batch.observed, batch.target.double() + offset, torch.nan)
    future = torch.where(labels.observed, labels.target.double() + offset, torch.nan)
    past = torch.where(batch.past_observed, batch.past, torch.nan)
    static = torch.where(batch.static_observed, batch.static, torch.nan)
    got = {
        **{name: getattr(batch, name) for name in ("series", "origin", "present", "known", "known_categories")},
        **{name: getattr(batch, name) for name in ("past_categories", "static_categories")},
        **{"target": target, "labels": future, "past": past, "static": static, "weight": labels.weight},
    }
    for name, values in got.items():
        wanted = np.stack([np.asarray(w[name], float) for w in expected]).reshape(values.shape)
        np.testing.assert_allclose(values.numpy(), wanted, rtol=1e-5, atol=2e-5, err_msg=name)
    assert (batch.target[~batch.observed] == 0).all()
    assert (batch.past[~batch.past_observed] == 0).all()
    assert (labels.target[~labels.observed] == 0).all()
    assert batch.offset.dtype == torch.float64


@pytest.mark.parametrize("missing", [0.0, 0.15, 0.7])
@pytest.mark.parametrize("least", [1, 5, 8])
def test_windows_equal_the_slow_oracle(missing, least):
    df = frame(missing=missing)
    windows = Windows(to_panel(df, ROLES), 8, 3, least)
    assert_like_oracle(windows, df, ROLES, least)


def test_gaps_that_are_masked_equal_the_slow_oracle():
    df = frame(missing=0.1).drop([2, 3, 4, 20, 30, 31, 41, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69])
    assert_like_oracle(Windows(to_panel(df, ROLES, on_gap="mask"), 5, 3), df, ROLES, 1)


def test_a_series_that_counts_its_own_position_shows_the_arithmetic():
    windows = Windows(panel_of(np.arange(50.0)), 12, 4, min_context=12)
    batch, labels = windows.gather(torch.arange(len(windows)))
    assert len(windows) == 50 - 12 - 4 + 1
    positions = (batch.target.double() + batch.offset[:, None])[:, :, 0]
    np.testing.assert_array_equal(positions, torch.arange(12.0)[None] + torch.arange(len(windows))[:, None])
    ahead = (labels.target.double() + batch.offset[:, None])[:, :, 0]
    np.testing.assert_array_equal(ahead, torch.arange(12.0, 16)[None] + torch.arange(len(windows))[:, None])


def test_a_level_of_1e8_keeps_every_digit_and_a_constant_is_exactly_zero():
    y = 1e8 + np.sin(np.arange(200)) * 50
    windows = Windows(panel_of(y), 32, 8)
    batch, labels = windows.gather(torch.arange(len(windows)))
    series = (
        np.concatenate([batch.target[-1, :, 0].double(), labels.target[-1, :, 0].double()]) + batch.offset[-1].item()
    )
    np.testing.assert_allclose(series, y[-40:], rtol=0, atol=1e-5)
    batch, _ = Windows(panel_of(np.full(60, 0.1)), 32, 8).gather(torch.arange(5))
    assert (batch.target == 0).all()
    spoilt = y.copy()
    spoilt[-9] = 0.0
    batch, _ = Windows(panel_of(spoilt), 32, 8).gather_at([0], [192], labels=False)
    assert abs(batch.offset.item() - 1e8) < 60


def test_a_window_is_the_same_alone_and_in_any_company():
    windows = Windows(to_panel(frame(missing=0.1), ROLES), 8, 3)
    together = windows.gather(torch.arange(len(windows)))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:1], order[5:6], order[:7]):
        alone = windows.gather(rows)
        for whole, part in zip(together, alone, strict=True):
            for field in fields(whole):  # type: ignore[arg-type]
                a, b = getattr(whole, field.name), getattr(part, field.name)
                assert (a is None and b is None) or torch.equal(a[rows], b), field.name


def test_only_windows_with_something_to_see_and_to_learn_are_counted():
    y = np.arange(40.0)
    y[:3] = np.nan
    y[15:27] = np.nan
    windows = Windows(panel_of(y), 6, 4)
    _, origins = windows.locate(torch.arange(len(windows)))
    wanted = [o for o in range(1, 37) if not np.isnan(y[max(0, o - 6) : o]).all() and not np.isnan(y[o : o + 4]).all()]
    assert origins.tolist() == wanted


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_steps_keep_the_last_origin_and_bounds_keep_the_horizon_inside(step):
    windows = Windows(to_panel(frame((40, 9, 25)), ROLES), 8, 3, 2, step, start=10, end=30)
    for series, length, shift in ((0, 40, 0), (1, 9, 3), (2, 25, 6)):
        high = min(length, 30 - shift) - 3
        wanted = [o for o in range(max(2, 10 - shift), high + 1) if (high - o) % step == 0]
        found = [(s, o) for s, o in zip(*(x.tolist() for x in windows.locate(torch.arange(len(windows)))), strict=True)]
        assert [o for s, o in found if s == series] == wanted
    assert windows.per_series.sum() == len(windows)


def test_training_before_a_cut_and_validation_after_it_share_no_label():
    panel = to_panel(frame((60, 50, 30)), ROLES)
    cut = panel.history - 10
    train, late = Windows(panel, 8, 5, end=cut), Windows(panel, 8, 5, start=cut)
    for windows, inside in ((train, lambda o, c: o + 5 <= c), (late, lambda o, c: o >= c)):
        series, origin = windows.locate(torch.arange(len(windows)))
        assert all(inside(o, cut[s]) for s, o in zip(series.tolist(), origin.tolist(), strict=True))
    assert train.per_series.tolist() == [45, 35, 15]
    assert late.per_series.tolist() == [6, 6, 6]


def test_a_number_bounds_the_rows_of_every_series_where_time_is_a_date():
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=80), "y": np.arange(80.0)})
    panel = to_panel(frame, Roles(id=None))
    for bound in (40, np.int64(40), [40], np.array([40]), frame.ds[40]):
        assert len(Windows(panel, 8, 4, start=bound)) == 37
        assert len(Windows(panel, 8, 4, end=bound)) == 36
    with pytest.raises(ValueError, match=r"time 40.5 is a number, and the time column holds dates"):
        Windows(panel, 8, 4, start=40.5)
    with pytest.raises(ValueError, match=r"start has datetime64.* for each series: pass numbers of rows"):
        Windows(panel, 8, 4, start=frame.ds[[40]].to_numpy())
    with pytest.raises(ValueError, match="start has 2 rows for 1 series"):
        Windows(panel, 8, 4, start=[40, 41])
    counted = to_panel(frame.assign(ds=np.arange(100, 180)), Roles(id=None))
    assert len(Windows(counted, 8, 4, start=140)) == 37  # there it is a time


def test_nothing_after_the_origin_reaches_the_inputs():
    df = frame(missing=0.1)
    late = df.groupby("unique_id").cumcount() >= 8
    spoilt = df.assign(**{c: df[c].mask(late, 1e6) for c in ("y", "z", "p")}, pc=df["pc"].mask(late, "v"))
    encoding = to_panel(df, ROLES).encoding
    a, b = (
        Windows(to_panel(d, ROLES, encoding=encoding), 6, 1).gather_at([0, 1, 2], [8, 8, 8], False)
        for d in (df, spoilt)
    )
    for field in fields(Batch):
        x, y = getattr(a[0], field.name), getattr(b[0], field.name)
        assert x is y is None or torch.equal(x, y), field.name


def test_last_windows_need_no_future_and_asking_beyond_the_rows_is_refused():
    panel = to_panel(frame(), Roles(target=("y",)))
    windows = Windows(panel, 12, 4)
    batch = windows.last()
    assert batch.origin.tolist() == [40, 9, 25]
    assert batch.present.sum(1).tolist() == [12, 9, 12]
    with pytest.raises(ValueError, match="1 window needs labels outside the rows; first: unique_id='s1', origin 7"):
        windows.gather_at([0, 1], [20, 7])
    with pytest.raises(ValueError, match=r"3 windows need known-future columns \(see with_future\) outside the rows"):
        Windows(to_panel(frame(), ROLES), 12, 4).last()
    with pytest.raises(IndexError, match="outside the"):
        windows.gather(torch.tensor([len(windows)]))


def test_too_short_a_panel_says_what_would_do():
    windows = Windows(panel_of(np.arange(6.0)), 4, 5, 2)
    assert len(windows) == 0
    with pytest.raises(
        ValueError, match=r"min_context=2 and horizon=5 need at least 7 rows .* the longest series has 6"
    ):
        Sampler(windows, 4)
    wrong: Any
    for wrong in ({"horizon": 0}, {"min_context": 5}, {"step": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Windows(panel_of(np.arange(9.0)), **{"input_length": 4, "horizon": 2, **wrong})


def test_lags_calendar_and_relative_time_are_what_they_say():
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    df = pd.concat(
        [pd.DataFrame({"unique_id": i, "ds": times[i:], "y": np.arange(60.0)[i:]}) for i in (0, 7)], ignore_index=True
    )
    roles = Roles(calendar=("hour",), lags=(2, 6), relative_time=True)
    windows = Windows(to_panel(df, roles), 5, 4)
    assert windows.known_names == ["hour_sin", "hour_cos", "y_lag6", "y_lag6_observed", "relative_time"]
    assert windows.past_names == ["y_lag2"]
    batch, _ = windows.gather(torch.arange(len(windows)))
    assert batch.known.shape[-1] == 5
    for row, (series, origin) in enumerate(zip(batch.series.tolist(), batch.origin.tolist(), strict=True)):
        begin, offset = (0, 7)[series], batch.offset[row].item()
        for j in range(9):
            t = origin - 5 + j  # row of the series
            sin, cos, lagged, there, relative = batch.known[row, j].tolist()
            if t < 0:
                assert [sin, cos, lagged, there, relative] == [0, 0, 0, 0, 0]
                continue
            angle = 2 * np.pi * ((begin + t) % 24) / 24
            assert (sin, cos) == pytest.approx((np.sin(angle), np.cos(angle)), abs=1e-6)
            assert (lagged, there) == ((begin + t - 6 - offset, 1) if t >= 6 else (0, 0))
            assert relative == pytest.approx((j - 4) / 5)
            if j < 5:
                wanted = (begin + t - 2 - offset, True) if t >= 2 else (0, False)
                assert (batch.past[row, j, 0].item(), batch.past_observed[row, j, 0].item()) == wanted


def test_uniform_sampling_sees_each_window_once_on_one_of_the_ranks():
    windows = Windows(to_panel(frame((200, 150, 33)), ROLES), 8, 3)
    for world, size in ((1, 16), (3, 16), (4, 7)):
        samplers = [Sampler(windows, size, seed=5, rank=r, world_size=world) for r in range(world)]
        epochs = [[torch.cat(list(s)) for s in samplers] for _ in range(2)]
        for shares in epochs:
            seen = torch.cat(shares)
            assert len(seen.unique()) == len(seen) == len(windows) - len(windows) % world
            assert {len(s) for s in shares} == {len(windows) // world}
        assert not torch.equal(epochs[0][0], epochs[1][0])
    ranks = [list(Sampler(windows, 8, seed=5, rank=r, world_size=2)) for r in range(2)]
    alone = list(Sampler(windows, 16, seed=5))
    for a, b, both in zip(*ranks, alone, strict=False):
        assert sorted([*a.tolist(), *b.tolist()]) == sorted(both.tolist()[: len(a) + len(b)])


def test_balanced_and_weighted_sampling_follow_the_series():
    windows = Windows(to_panel(frame((900, 60, 300)), Roles(target=("y",))), 8, 3)
    balanced = torch.cat(
        [windows.locate(b)[0] for _ in range(20) for b in [torch.cat(list(Sampler(windows, 64, "balanced", seed=_)))]]
    )
    np.testing.assert_allclose(np.bincount(balanced) / len(balanced), 1 / 3, atol=0.02)
    weighted = Sampler(windows, 64, "weighted", weights=[0, 1, 3])
    series = windows.locate(torch.cat([b for _ in range(20) for b in weighted]))[0]
    np.testing.assert_allclose(np.bincount(series) / len(series), [0, 0.25, 0.75], atol=0.02)
    for wrong in ([1, 2], [0, 0, 0], [1, -1, 1], [1, np.nan, 1]):
        with pytest.raises(ValueError, match="weights"):
            Sampler(windows, 64, "weighted", weights=wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 4097])
def test_a_computed_permutation_is_one(count):
    values = _shuffled(count, seed=3, epoch=1, positions=np.arange(count))
    assert sorted(values) == list(range(count))
    if count >= 1000:
        assert abs(np.corrcoef(values, np.arange(count))[0, 1]) < 0.1
        assert not np.array_equal(values, _shuffled(count, seed=3, epoch=2, positions=np.arange(count)))


def numbers(pair: tuple[Batch, Labels]) -> list[tuple[int, int]]:
    return list(zip(pair[0].series.tolist(), pair[0].origin.tolist(), strict=True))


def test_an_epoch_that_is_left_early_is_over():
    windows = Windows(to_panel(frame(), ROLES), 8, 3)
    loader = Loader(Sampler(windows, 7, shuffle=False))
    whole = [numbers(b) for b in loader]
    for _ in range(2):
        assert numbers(next(iter(loader))) == whole[0]
    for batch in loader:
        if numbers(batch) != whole[0]:
            break
    assert [numbers(b) for b in loader] == whole
    shuffled = Loader(Sampler(windows, 7, seed=3))
    next(iter(shuffled))
    again = Loader(Sampler(windows, 7, seed=3))
    again.set_epoch(1)
    assert [numbers(b) for b in shuffled] == [numbers(b) for b in again]
    next(iter(shuffled))
    rest = Loader(Sampler(windows, 7, seed=3))
    rest.load_state_dict(shuffled.state_dict())
    assert len(list(rest)) == len(rest) - 1
    assert len(list(rest)) == len(rest)


@pytest.mark.parametrize("mode", ["uniform", "balanced"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_resumes_in_the_middle_of_an_epoch(mode, prefetch):
    windows = Windows(to_panel(frame(), ROLES), 8, 3)
    whole = [numbers(b) for b in Loader(Sampler(windows, 7, mode), steps=25)]
    first = Loader(Sampler(windows, 7, mode), steps=25, prefetch=prefetch)
    seen, stream = [], iter(first)
    for _ in range(11):
        seen.append(numbers(next(stream)))
    state = first.state_dict()
    stream.close()  # type: ignore[attr-defined]
    second = Loader(Sampler(windows, 7, mode), steps=14, prefetch=prefetch)
    second.load_state_dict(state)
    assert seen + [numbers(b) for b in second] == whole
    with pytest.raises(ValueError, match="saved with batch_size=7; it is 8 now"):
        Sampler(windows, 8, mode).load_state_dict(state)


def test_lightning_takes_a_loader_for_training_validation_test_and_prediction():
    import lightning.pytorch as pl_

    class Mean(pl_.LightningModule):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(()))
            self.seen = []

        def training_step(self, pair, index):
            return (pair[1].target - self.level).square().mean()

        def validation_step(self, pair, index):
            self.seen.append(numbers(pair))

        test_step = validation_step

        def predict_step(self, pair, index):
            return numbers(pair)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    windows = Windows(to_panel(frame(), ROLES), 8, 3)
    loaders = [Loader(Sampler(windows, 16, shuffle=mix)) for mix in (True, False)]
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl_.Trainer(max_epochs=1, num_sanity_val_steps=2, enable_checkpointing=False, **quiet)
    module = Mean()
    trainer.fit(module, loaders[0], loaders[1])
    every = [numbers(b) for b in loaders[1]]
    assert module.seen[2:] == every
    module.seen.clear()
    trainer.test(module, loaders[1], verbose=False)
    assert module.seen == every
    assert trainer.predict(module, loaders[1]) == every


def test_prefetching_hands_over_the_same_batches_and_errors_of_its_thread():
    windows = Windows(to_panel(frame(), ROLES), 8, 3)
    plain, ahead = (list(Loader(Sampler(windows, 16), prefetch=n)) for n in (0, 3))
    assert len(plain) == len(ahead) == len(Sampler(windows, 16))
    for (a, x), (b, y) in zip(plain, ahead, strict=True):
        assert torch.equal(a.target, b.target)
        assert torch.equal(x.target, y.target)
    loader = Loader(Sampler(windows, 16), prefetch=2)
    loader.sampler.numbers = lambda epoch, batch: torch.tensor([10**9])  # type: ignore[method-assign]
    with pytest.raises(IndexError):
        list(loader)


def test_small_batches_that_share_a_gather_equal_their_own():
    windows = Windows(to_panel(frame(missing=0.2), ROLES), 8, 3)
    sampler = Sampler(windows, 5, seed=2)
    for i, (batch, labels) in enumerate(Loader(Sampler(windows, 5, seed=2))):
        own, own_labels = windows.gather(sampler.numbers(0, i))
        assert torch.equal(batch.target, own.target)
        assert torch.equal(labels.observed, own_labels.observed)


def test_the_global_generator_is_left_alone():
    windows = Windows(to_panel(frame(), ROLES), 8, 3)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    list(Loader(Sampler(windows, 16, "balanced"), steps=5))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_the_dataset_in_other_words_gives_the_same_windows():
    df = frame()
    roles = Roles(
        target=("y",),
        past=("p", "pc"),
        future=("k", "kc"),
        static=("s", "sc"),
        categorical=("sc", "kc", "pc"),
        weight="w",
    )
    ours = Windows(to_panel(df, roles), 8, 3, min_context=8)
    theirs = WindowDataset(
        df,
        time_idx="ds",
        target="y",
        group_ids=["unique_id"],
        weight="w",
        max_encoder_length=8,
        max_prediction_length=3,
        static_categoricals=["sc"],
        static_reals=["s"],
        time_varying_known_categoricals=["kc"],
        time_varying_known_reals=["k"],
        time_varying_unknown_categoricals=["pc"],
        time_varying_unknown_reals=["y", "p"],
    )
    assert len(theirs) == len(ours)
    (a, x), (b, y) = theirs.windows.gather(torch.arange(len(ours))), ours.gather(torch.arange(len(ours)))
    for left, right in ((a, b), (x, y)):
        for field in fields(left):  # type: ignore[arg-type]
            p, q = getattr(left, field.name), getattr(right, field.name)
            assert p is q is None or torch.equal(p, q), field.name
    loader = theirs.to_dataloader(train=False, batch_size=4)
    assert [n for pair in loader for n in numbers(pair)] == numbers((b, y))
    assert sum(len(pair[0]) for pair in theirs.to_dataloader(train=True, batch_size=4)) == len(ours) // 4 * 4
    last = WindowDataset.from_dataset(theirs, df, predict=True)
    assert [(s, o) for s, o in numbers(last.windows.gather(torch.arange(len(last))))] == [(0, 37), (2, 22)]
    with pytest.raises(ValueError, match="lags names 'k'"):
        WindowDataset(df, "ds", "y", ["unique_id"], lags={"k": [1]})


def test_several_groups_make_one_series_each_and_time_can_be_an_input():
    df = frame((30, 30, 30, 30)).assign(
        a=lambda d: d["unique_id"].isin(["s0", "s1"]), b=lambda d: d["unique_id"].isin(["s0", "s2"])
    )
    data = WindowDataset(
        df, "ds", "y", ["a", "b"], max_encoder_length=6, max_prediction_length=2, time_varying_known_reals=["ds"]
    )
    assert len(data.panel) == 4
    assert len(data) == 4 * (30 - 8 + 1)
    batch, _ = data.windows.gather(torch.tensor([0]))
    location, scale = data.panel.encoding.location["__time_value__"], data.panel.encoding.scale["__time_value__"]
    start = int(data.panel.start[0])
    np.testing.assert_allclose(batch.known[0, :, 0] * scale + location, np.arange(start, start + 8), atol=1e-4)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[pd.DataFrame, Roles, bool, str]:
    """A frame, its roles, whether gaps are masked, and the fault put into it ("" for none)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(2, 14), min_size=1, max_size=4))
    many = len(lengths) > 1 or draw(st.booleans())
    targets = draw(st.sampled_from([("y",), ("y", "z")]))
    past = draw(st.sampled_from([(), ("p",), ("p", "pc")]))
    future = draw(st.sampled_from([(), ("k",), ("kc",), ("k", "kc")]))
    static = draw(st.sampled_from([(), ("s",), ("s", "sc")]))
    weight = draw(st.sampled_from([None, "w"]))
    categorical = tuple(c for c in ("pc", "kc", "sc") if c in (*past, *future, *static))
    roles = Roles(
        id="unique_id" if many else None,
        target=targets, past=past, future=future, static=static, categorical=categorical, weight=weight,
    )  # fmt: skip
    df = frame(tuple(lengths), missing=draw(st.sampled_from([0.0, 0.0, 0.3])), seed=int(rng.integers(2**31)))
    for _, rows in df.groupby("unique_id"):
        df.loc[rows.index[0], ["y", "z"]] = 1e8, 0.5  # every series has something observed
    df["unique_id"] = df["unique_id"].map(draw(st.sampled_from([str, lambda s: int(s[1:]) * 7 - 3, lambda s: s[::-1]])))
    masked = draw(st.booleans())
    if masked:
        inner = df.groupby("unique_id").cumcount().between(1, 1e9) & df.duplicated("unique_id", keep="last")
        df = df[~(inner & (rng.random(len(df)) < 0.25))]
    fault = draw(st.sampled_from(["", "", "", *FAULTS]))
    df = FAULTS[fault](df.reset_index(drop=True), roles, rng) if fault else df
    if draw(st.booleans()):
        df = df.sample(frac=1, random_state=int(rng.integers(2**31)))
    return df, roles, masked, fault


def at_random(df: pd.DataFrame, column: str, value: Any, rng: np.random.Generator) -> pd.DataFrame:
    return df.assign(**{column: df[column].astype(float).mask(df.index == rng.integers(len(df)), value)})


FAULTS: dict[str, Any] = {
    "repeated row": lambda d, r, g: pd.concat([d, d.iloc[[g.integers(len(d))]]], ignore_index=True),
    "infinite target": lambda d, r, g: at_random(d, r.target[0], np.inf, g),
    "text target": lambda d, r, g: d.assign(**{r.target[0]: "7"}),
    "boolean target": lambda d, r, g: d.assign(**{r.target[-1]: True}),
    "missing time": lambda d, r, g: at_random(d, "ds", np.nan, g),
    "no column": lambda d, r, g: d.drop(columns=r.target[-1]),
    "two columns": lambda d, r, g: pd.concat([d, d[["ds"]]], axis=1),
    "empty": lambda d, r, g: d.iloc[:0],
    "all missing": lambda d, r, g: d.assign(**{r.target[0]: np.nan}),
    "a series missing": lambda d, r, g: d.assign(
        **{t: d[t].mask(d["unique_id"] == d["unique_id"].iloc[0]) for t in r.target}
    ),
    "known missing": lambda d, r, g: at_random(d, "k", np.nan, g) if "k" in r.future else d.drop(columns="ds"),
    "static changes": lambda d, r, g: (
        d.assign(s=np.arange(len(d)) + 0.5) if "s" in r.static and len(d) > d["unique_id"].nunique() else d.iloc[:0]
    ),
    "negative weight": lambda d, r, g: at_random(d, "w", -1.0, g) if r.weight else d.drop(columns="ds"),
    "off the grid": lambda d, r, g: d.assign(
        ds=pd.Timestamp("2024-01-01") + pd.to_timedelta(d["ds"] + (d.index == 1) / 3, "D")
    ),
}


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
@given(drawn(), st.integers(1, 6), st.integers(1, 4), st.data())
def test_any_frame_is_read_like_the_oracle_or_refused(case, context, horizon, data):
    df, roles, masked, fault = case
    least = data.draw(st.integers(1, context))
    before = df.copy()
    if fault:
        with pytest.raises(ValueError, match=r"\w"):
            to_panel(df, roles, on_gap="mask" if masked else "error", freq=None if "grid" not in fault else "D")
        return
    freq = data.draw(st.sampled_from([1, "D", "h", "MS", "ME", "B", "W-SUN", "QE-DEC"]))
    shown: Any = df
    if freq != 1:
        zone = data.draw(st.sampled_from([None, "Europe/Berlin"]))
        times = pd.date_range("2024-03-20", periods=40, freq=freq, tz=zone)
        shown = df.assign(ds=times[df["ds"]])
    if data.draw(st.booleans()):
        shown = pl.from_pandas(shown)
    panel = to_panel(shown, roles, on_gap="mask" if masked else "error", freq=freq)
    pd.testing.assert_frame_equal(df, before)
    assert_like_oracle(Windows(panel, context, horizon, least), df, roles, least)


def test_the_examples_of_the_data_page_run():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("print(", "("), names)
    assert names["batch"].target.shape == (2, 56, 1)
    assert len(names["latest"]) == 2
    assert (names["panel"].freq, names["panel"].axis.tz) == ("D", "Europe/Berlin")

"""What every mixer, head and model must hold: add one to the lists and it gets all tests.

The frames are read, windowed and forecast as a user would; models are built untrained, with random weights throughout,
so that no zero-initialised part hides a fault.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.batch import Batch, Labels
from xlstm_forecast.data.frame import Roles, to_panel
from xlstm_forecast.data.windows import Windows
from xlstm_forecast.encoder import MIXERS, EncoderConfig
from xlstm_forecast.heads import HEADS
from xlstm_forecast.models import MODELS, ForecastModel, build_model

L, H = 23, 7
LEVELS = (0.1, 0.5, 0.9)


def frame(seed: int = 0, series: int = 4, steps: int = 60, gaps: bool = True) -> pd.DataFrame:
    """Series with a known-future, a past-only, a static and a categorical column, missing values and ragged starts."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(series):
        n = steps - 15 * i
        t = np.arange(steps - n, steps)
        y = 5 * i + np.sin(2 * np.pi * t / 7) + 0.3 * rng.normal(size=n)
        if gaps:
            y[rng.random(n) < 0.1] = np.nan
        parts.append(
            pd.DataFrame(
                {
                    "unique_id": f"s{i}",
                    "ds": pd.Timestamp("2024-01-01") + pd.to_timedelta(t, "D"),
                    "y": y,
                    "price": rng.normal(size=n),
                    "visits": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
                    "size": float(i),
                    "colour": ["red", "blue", "green"][i % 3],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


ROLES = Roles(
    past=("visits",), future=("price",), static=("size", "colour"), categorical=("colour",), calendar=("dayofweek",)
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to test: its encoder's blocks, its head, its patch length, whether it corrects a base forecast."""

    blocks: str = "ms"
    head: str = "quantile"
    patch: int = 1
    scaling: str = "window"
    backbone: bool = False
    kind: str = "patch"

    def model(self, windows: Windows) -> ForecastModel:
        torch.manual_seed(1)
        values = {
            "input_length": L,
            "horizon": H,
            "patch_length": self.patch,
            "known": len(windows.known_names),
            "past": 1,
            "static": 1,
            "static_sizes": (4,),
            "series": 4,
            "season": 7,
            "head": self.head,
            "levels": LEVELS,
            "scaling": self.scaling,
            "backbone": self.backbone,
            "encoder": EncoderConfig(d_model=16, num_heads=2, blocks=self.blocks),
        }
        model = build_model(self.kind, values)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    def windows(self, df: pd.DataFrame) -> Windows:
        return Windows(to_panel(df, ROLES), L, H, base=_base if self.backbone else None)


def _base(series: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """A base forecast that depends on the window's place only."""
    centre = 5.0 * series[:, None] + np.sin(origin[:, None] + np.arange(H))
    return centre[:, :, None, None] + np.array([-0.5, 0.0, 0.5])


CASES = [
    *(Case(blocks=letter) for letter in MIXERS),
    *(Case(head=head) for head in HEADS if head != "quantile"),
    Case(patch=5),
    Case(patch=5, backbone=True),
    Case(scaling="causal"),
    Case(blocks="msms", patch=3),
    *(Case(blocks="s", kind=kind) for kind in MODELS if kind != "patch"),
]


def name(case: Case) -> str:
    return "-".join(str(v) for v in dataclasses.astuple(case))


@pytest.fixture(params=CASES, ids=name)
def case(request):
    return request.param


def levels_of(case: Case) -> tuple[float, ...]:
    return LEVELS if HEADS[case.head].has_quantiles else (0.5,)


def forecast(case: Case, model: ForecastModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.quantiles(batch, levels_of(case))


def some_batch(case: Case) -> tuple[ForecastModel, Batch, Labels]:
    windows = case.windows(frame())
    batch, labels = windows.gather(torch.arange(0, len(windows), 5))
    return case.model(windows), batch, labels


def test_a_row_is_forecast_alike_alone_in_any_batch_and_in_any_order(case):
    model, batch, _ = some_batch(case)
    whole = forecast(case, model, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(forecast(case, model, batch[order]), whole[order], atol=1e-5)
    for row in (0, len(batch) // 2, len(batch) - 1):
        assert torch.allclose(forecast(case, model, batch[row : row + 1]), whole[row : row + 1], atol=1e-5)


def test_values_under_a_false_mask_do_not_matter(case):
    model, batch, _ = some_batch(case)
    poison = {}
    for field, mask in (
        ("target", batch.observed),
        ("past", batch.past_observed),
        ("static", batch.static_observed),
    ):
        value = getattr(batch, field).clone()
        value[~mask] = 1e6
        poison[field] = value
    known = batch.known.clone()
    known[:, :L][~batch.present] = 1e6
    spoiled = dataclasses.replace(batch, known=known, **poison)
    assert not batch.observed.all()
    assert torch.equal(forecast(case, model, spoiled), forecast(case, model, batch))


def test_padding_on_the_left_does_not_matter(case):
    df = frame(gaps=False, series=1)
    model = case.model(case.windows(df))
    short = df.tail(12)
    padded = Windows(to_panel(short, ROLES), L, H, base=_base if case.backbone else None)
    batch, _ = padded.gather_at([0], [5])
    assert batch.present[0].sum() == 5
    values = {f: getattr(batch, f) for f in ("target", "observed", "past", "past_observed", "known", "present")}
    assert all((values[f][:, : L - 5] == 0).all() for f in ("target", "observed", "past", "known"))
    noise = {f: values[f].clone() for f in ("target", "past", "known")}
    for value in noise.values():
        value[:, : L - 5] = 7.0
    assert torch.equal(forecast(case, model, dataclasses.replace(batch, **noise)), forecast(case, model, batch))


def test_a_padded_row_equals_the_row_in_a_model_whose_context_it_fills(case):
    if case.kind != "patch" or case.patch > 1:
        pytest.skip("the context is part of the weights of this model")
    df = frame(gaps=False, series=1)
    whole = case.model(case.windows(df))
    rows = 6
    config = dataclasses.replace(whole.config, input_length=rows)
    short = type(whole)(config).eval()
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("linear.")}
    short.load_state_dict(state, strict=False)
    for model in (whole, short):
        if model.linear is not None:
            torch.nn.init.zeros_(model.linear.weight)
            torch.nn.init.zeros_(model.linear.bias)
    panel = to_panel(df, ROLES)
    base = _base if case.backbone else None
    padded, full = (Windows(panel, n, H, base=base).gather_at([0], [rows])[0] for n in (L, rows))
    assert torch.allclose(forecast(case, short, full), forecast(case, whole, padded), atol=1e-5)


def test_the_forecast_moves_and_stretches_with_the_series(case):
    df = frame()
    plain = case.windows(df)
    a, b = 3.5, -20.0
    changed = df.assign(y=a * df.y + b)
    moved = Windows(to_panel(changed, ROLES), L, H, base=(lambda s, o: a * _base(s, o) + b) if case.backbone else None)
    model = case.model(plain)
    index = torch.arange(0, len(plain), 5)
    before, after = (forecast(case, model, w.gather(index)[0]) for w in (plain, moved))
    assert torch.allclose(after, a * before + b, atol=2e-4)


def test_a_step_ignores_known_covariates_after_its_own_patch(case):
    if case.kind != "patch":
        pytest.skip("a model that mixes over variates reads the whole horizon at once")
    model, batch, _ = some_batch(case)
    before = forecast(case, model, batch)
    for step in (0, H // 2):
        end = (step // case.patch + 1) * case.patch
        known = batch.known.clone()
        known[:, L + end :] += 3.0
        after = forecast(case, model, dataclasses.replace(batch, known=known))
        assert torch.equal(after[:, : step + 1], before[:, : step + 1])
        if end < H:
            assert not torch.equal(after, before)


def test_quantiles_are_ordered_also_untrained(case):
    model, batch, _ = some_batch(case)
    if HEADS[case.head].has_quantiles:
        with torch.no_grad():
            model.head.projection.weight.mul_(20)
            wide = model.quantiles(batch, (0.01, 0.1, 0.3, 0.5, 0.9, 0.999))
        assert (wide.diff(dim=-1) >= 0).all()
        assert (forecast(case, model, batch).diff(dim=-1) >= 0).all()
        assert (wide[..., -1] > wide[..., 0])[batch.origin > 4].all()  # a constant context has no spread


def test_every_parameter_gets_a_gradient_within_two_steps_and_the_input_matters(case):
    windows = case.windows(frame())
    torch.manual_seed(0)
    model = case.model(windows)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    touched = dict.fromkeys((n for n, _ in model.named_parameters()), False)
    batch, labels = windows.gather(torch.arange(len(windows)))
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(batch, labels).backward()
        for n, parameter in model.named_parameters():
            touched[n] |= parameter.grad is not None and bool((parameter.grad != 0).any())
        optimizer.step()
    assert [n for n, seen in touched.items() if not seen] == []
    other = dataclasses.replace(batch, target=batch.target.flip(1) * batch.observed)
    model.eval()
    assert not torch.allclose(forecast(case, model, other), forecast(case, model, batch), atol=1e-3)


def test_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(case):
    model, batch, labels = some_batch(case)
    even = len(batch) // 2 * 2
    whole = model.loss(batch[:even], labels[:even])
    halves = [model.loss(batch[r:even:2], labels[r:even:2]) for r in (0, 1)]
    assert torch.allclose(whole, (halves[0] + halves[1]) / 2, rtol=1e-5)


def test_finite_forward_and_backward_at_extreme_inputs(case):
    windows = case.windows(frame())
    model = case.model(windows)
    batch, labels = windows.gather(torch.arange(0, len(windows), 5))
    wild = dataclasses.replace(batch, target=batch.target * 1e20, known=batch.known * 1e4, past=batch.past * 1e4)
    loss = model.loss(wild, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(forecast(case, model, wild)).all()


def test_labels_are_the_steps_that_follow_the_context():
    steps = 50
    df = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=steps), "y": np.arange(steps, dtype=float)})
    windows = Windows(to_panel(df, Roles(id=None)), L, H)
    batch, labels = windows.gather(torch.arange(len(windows)))
    context = batch.target[..., 0] + batch.offset
    future = labels.target[..., 0] + batch.offset
    assert torch.equal(future[:, 0], context[:, -1] + 1)
    assert torch.equal(future, context[:, -1:] + torch.arange(1, H + 1))
    assert torch.equal(batch.origin.double(), context[:, -1] + 1)


@pytest.mark.parametrize("model", ["patch", "linear"])
def test_the_frames_row_order_and_index_do_not_matter(model):
    df = frame(steps=80, gaps=False)[["unique_id", "ds", "y"]]
    mixed = df.sample(frac=1, random_state=0)
    mixed.index = pd.RangeIndex(100, 100 + len(mixed))

    def run(data):
        f = XLSTMForecaster(horizon=H, model=model, max_steps=3, seed=1).fit(data, verbose=False)
        return f.predict(data)

    pd.testing.assert_frame_equal(run(df), run(mixed))


@pytest.mark.parametrize("model", ["patch", "linear"])
def test_poisoning_the_future_leaves_earlier_forecasts_bit_equal(model):
    df = frame(steps=90, series=2)[["unique_id", "ds", "y", "price"]]
    f = XLSTMForecaster(horizon=H, model=model, future=("price",), max_steps=3).fit(df, verbose=False)
    cut = df.ds.max() - pd.Timedelta(days=20)
    spoiled = df.copy()
    spoiled.loc[spoiled.ds > cut, "y"] = 1e9
    panels = [f._to_panel(d) for d in (df, spoiled)]
    origin = panels[0].rows_before(cut + pd.Timedelta(days=1))
    series = np.arange(len(origin))
    before, after = (f._forecast(p, series, origin, (0.1, 0.5, 0.9)) for p in panels)
    assert before.shape == (2, H, 1, 3)
    assert np.isfinite(before).all()
    assert np.array_equal(before, after)

"""Other devices than the CPU: what every layer and model does there, as far as a machine without one can tell, and,
where there is a GPU, that it computes what the reference computes.

torch's "meta" device knows shapes, types and places but no values: on it every operation is one that a GPU would
start, and a tensor left on the CPU, or a value that is looked at, is found out.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xlstm_forecast
from xlstm_forecast import ops
from xlstm_forecast.batch import Batch, Labels
from xlstm_forecast.encoder import MIXERS, VARIANTS, Encoder, EncoderConfig
from xlstm_forecast.heads import HEADS
from xlstm_forecast.models import MODELS, ForecastModel, build_model
from xlstm_forecast.ops import MLSTMState, SLSTMState

GPUS = [
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
every_gpu = pytest.mark.parametrize(
    "device", GPUS or [pytest.param("cuda", marks=pytest.mark.skip(reason="there is no GPU"))]
)
L, H = 19, 6


class OnePlace(TorchDispatchMode):
    """Counts operations; fails on one that mixes devices, and on a value that is copied to the CPU."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {x.device.type for x in given if x.ndim or x.device.type == self.device}
        assert len(places) <= 1, f"{func} mixes tensors on {' and '.join(sorted(places))}"
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is looked at, which stops a GPU"
        results = func._schema.returns
        view = bool(results) and all(r.alias_info is not None and not r.alias_info.is_write for r in results)
        self.count += self.device in places and not view  # a view starts nothing
        return func(*args, **(kwargs or {}))


@pytest.fixture
def meta() -> str:
    """The device; torch has no autocast there, and asking for it is an error."""
    return "meta"


def assert_there(device: str, *found: Any) -> None:
    assert {x.device.type for x in tree_leaves(found)} == {device}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("letter", MIXERS)
def test_an_encoder_stays_on_its_device_and_never_waits_for_it(
    meta: str, letter: str, variant: str, bidirectional: bool
) -> None:
    config = EncoderConfig(d_model=32, blocks=letter, variant=variant, bidirectional=bidirectional, dropout=0.1)
    encoder = Encoder(config).to(meta)
    x = torch.randn(3, 9, 32, device=meta, requires_grad=True)
    masks = (
        [None] if letter in "lg" else [None, torch.ones(3, 9, device=meta, dtype=torch.bool)]
    )  # packing needs lengths
    with OnePlace(meta):
        for mask in masks:
            y, state = encoder(x, None, mask)
            z, state = encoder(x, state, mask, last=2)
            (y.sum() + z.sum()).backward()
            assert_there(meta, y, z, state, x.grad, [p.grad for p in encoder.parameters()])
        if not bidirectional:
            with torch.no_grad():
                assert_there(meta, encoder.step(x[:, 0], state))


def windows(rows: int, device: str) -> tuple[Batch, Labels]:
    """Windows with every role, by their shapes."""
    shapes: dict[str, Any] = {
        "target": (L, 2), "offset": (2,), "known": (L + H, 1), "past": (L, 1), "static": (1,),
    }  # fmt: skip
    values: dict[str, Any] = {key: torch.randn(rows, *shape) for key, shape in shapes.items()}
    values["offset"] = values["offset"].double()
    flags = {"observed": (L, 2), "present": (L,), "past_observed": (L, 1), "static_observed": (1,)}
    values |= {key: torch.ones(rows, *shape, dtype=torch.bool) for key, shape in flags.items()}
    codes = {
        "known_categories": (L + H, 1),
        "past_categories": (L, 1),
        "static_categories": (1,),
        "series": (),
        "origin": (),
    }
    values |= {key: torch.ones(rows, *shape, dtype=torch.int64) for key, shape in codes.items()}
    labels = Labels(
        target=torch.randn(rows, H, 2), observed=torch.ones(rows, H, 2, dtype=torch.bool), weight=torch.ones(rows, H)
    )
    return Batch(**values).to(device), labels.to(device)


def model_of(kind: str, head: str) -> ForecastModel:
    sizes = {"known": 1, "past": 1, "static": 1, "known_sizes": (3,), "past_sizes": (3,), "static_sizes": (3,)}
    encoder = EncoderConfig(d_model=16, num_heads=2, blocks="ms")
    values = {"input_length": L, "horizon": H, "targets": 2, "series": 3, "season": 4, "dropout": 0.1} | sizes
    return build_model(kind, values | {"head": head, "levels": (0.1, 0.5, 0.9), "encoder": encoder})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_trains_and_forecasts_on_its_device_without_waiting_for_it(meta: str, kind: str, head: str) -> None:
    model = model_of(kind, head).to(meta)
    batch, labels = windows(4, meta)
    with OnePlace(meta):
        loss = model.loss(batch, labels)
        loss.backward()
    assert_there(meta, loss, [p.grad for p in model.parameters() if p.grad is not None])
    if head == "student_t":
        return  # its quantiles are computed by scipy, from values
    with OnePlace(meta), torch.no_grad():
        forecast = model.quantiles(batch, (0.5,))
    assert_there(meta, forecast)
    assert forecast.shape == (4, H, 2, 1)


@pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
def test_operations_of_a_recurrence_grow_with_its_steps_as_they_must(meta: str, kind: str) -> None:
    """What a GPU starts: a bounded number a step for sLSTM, and for mLSTM one set for every chunk of steps."""
    layer = getattr(xlstm_forecast, kind)(32, 32, batch_first=True).to(meta)

    def operations(steps: int) -> tuple[int, int]:
        x = torch.randn(4, steps, 32, device=meta, requires_grad=True)
        with OnePlace(meta) as forward:
            y, _ = layer(x)
        with OnePlace(meta) as backward:
            y.sum().backward()
        return forward.count, backward.count

    short, long = operations(64), operations(128)
    each = [(b - a) / 64 for a, b in zip(short, long, strict=True)]
    assert each[0] <= (16 if kind == "sLSTM" else 0.25)
    assert each[1] <= (14.1 if kind == "sLSTM" else 1)


def recurrences(dtype: torch.dtype, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of sLSTM and mLSTM with states, the same numbers for every dtype and device."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scalar = [draw(5, 70, 2, 4, 24), draw(2, 24, 4, 24) / 5, draw(2, 4, 24), draw(5, 2, 24), draw(5, 2, 24)]
    scalar += [draw(5, 2, 24).abs() + 0.1, draw(5, 2, 24)]
    matrix = [*(draw(5, 2, 70, 24) for _ in range(3)), draw(5, 2, 70), draw(5, 2, 70) + 2]
    matrix += [draw(5, 2, 24, 24), draw(5, 2, 24), draw(5, 2)]
    return tuple([x.to(device, dtype).requires_grad_() for x in part] for part in (scalar, matrix))  # type: ignore[return-value]


def results(dtype: torch.dtype, device: str, backend: str) -> list[Tensor]:
    """Outputs, last states and all gradients of both recurrences, on the CPU in float64."""
    scalar, matrix = recurrences(dtype, device)
    mask = (torch.arange(70)[None] < torch.tensor([70, 40, 1, 0, 69])[:, None]).to(device)
    op: Any = ops
    h, s = op.slstm(*scalar[:3], SLSTMState(*scalar[3:]), mask=mask, backend=backend)
    y, c = op.mlstm(*matrix[:5], MLSTMState(*matrix[5:]), mask=mask, backend=backend)
    loss: Any = sum(x.square().sum() for x in (h, *s, y, *c))
    grads = torch.autograd.grad(loss, [*scalar, *matrix])
    return [x.detach().double().cpu() for x in (h, *s, y, *c, *grads)]


@every_gpu
def test_a_gpu_computes_what_the_reference_computes(device: str) -> None:
    truth = results(torch.float64, "cpu", "reference")
    for number, (x, y) in enumerate(zip(results(torch.float32, device, "auto"), truth, strict=True)):
        worst = (x - y).abs().max() / y.abs().max().clamp(min=0.1)
        assert worst <= 2e-4, f"result {number} differs by {worst:.2e} of its largest value"


@every_gpu
@pytest.mark.parametrize("letter", ["m", "s", "c"])
def test_autocast_on_a_gpu_keeps_states_in_float32(device: str, letter: str) -> None:
    encoder = Encoder(EncoderConfig(d_model=32, blocks=letter)).to(device)
    x = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(0)).to(device)
    exact, _ = encoder(x)
    with torch.autocast(device, dtype=torch.bfloat16):
        y, state = encoder(x)
        y.float().sum().backward()
    assert all(part.dtype == torch.float32 for part in tree_leaves(state) if part.is_floating_point() and part.numel())
    assert (y.float() - exact).abs().max() < 0.15 * exact.abs().max()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@every_gpu
def test_models_on_a_gpu_forecast_what_they_forecast_on_the_cpu(device: str) -> None:
    batch, labels = windows(4, "cpu")
    for kind, head in itertools.product(MODELS, HEADS):
        model = model_of(kind, head).eval()
        with torch.no_grad():
            expected, loss = model.quantiles(batch, (0.5,)), model.loss(batch, labels)
            model.to(device)
            found, there = model.quantiles(batch.to(device), (0.5,)), model.loss(batch.to(device), labels.to(device))
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(there.cpu(), loss, rtol=1e-3, atol=1e-3)

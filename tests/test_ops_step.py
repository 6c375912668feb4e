"""One step of whole layers as one kernel, against the same layers put together from other operations."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_forecast import ops
from xlstm_forecast.layers import MLSTMMixer, SLSTMMixer, mLSTM
from xlstm_forecast.ops import step_cpu, threads

pytest.importorskip("numba", reason="without numba there are no compiled steps")

# batch, width, heads: heads of 8, 24, 32, 48, 64; one row, few, as many as fill vectors, more
SIZES = [(1, 32, 4), (3, 48, 2), (16, 128, 4), (33, 48, 1), (5, 64, 1)]
LAYERS = {
    "sLSTM layer": lambda width, heads, backend: SLSTMMixer(width, heads, backend=backend),
    "mLSTM layer": lambda width, heads, backend: MLSTMMixer(width, heads, backend=backend),
    "mLSTM": lambda width, heads, backend: mLSTM(width, width, num_heads=heads, batch_first=True, backend=backend),
}
every_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


def draws(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(build: Any, width: int, heads: int, dtype: torch.dtype, gates: float = 1.0) -> tuple[Any, Any]:
    """A layer of the given dtype and its twin in float64 on the reference recurrence."""
    draw, layer, twin = draws(0), build(width, heads, "auto").double(), build(width, heads, "reference").double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.add_(draw(*parameter.shape) * 0.3)
            if name.endswith(("gates.bias", "cell.bias")):
                parameter.mul_(gates)
    twin.load_state_dict(layer.state_dict())
    return layer.to(dtype), twin


def tensors(state: Any) -> list[Tensor]:
    """All parts of a state, nested or not."""
    return [state] if isinstance(state, Tensor) else [x for part in state for x in tensors(part)]


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the compiled steps as they are called."""
    calls: list[str] = []

    def noted(name: str, run: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            calls.append(name)
            return run(*given, **more)

        return call

    for name in ("mixer", "mlstm", "slstm"):
        monkeypatch.setattr(step_cpu, name, noted(name, getattr(step_cpu, name)))
    return calls


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_steps_are_those_of_the_reference(
    build: Any, size: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, width, heads = size
    layer, twin = pair(build, width, heads, dtype)
    single = 1e-3 if isinstance(layer, MLSTMMixer) else 2e-4  # twice as wide inside, and random maps one upon another
    x, tolerance, calls = (
        draws(1)(batch, 7, width),
        1e-10 if dtype == torch.float64 else single,
        count_calls(monkeypatch),
    )
    with torch.no_grad():
        _, state = layer(x[:, :2].to(dtype))
        _, truth = twin(x[:, :2])
        first, before = state, [part.clone() for part in tensors(state)]
        for t in range(2, 7):
            y, state = layer(x[:, t : t + 1].to(dtype), state)
            z, truth = twin(x[:, t : t + 1], truth)
            found, expected = [y, *tensors(state)], [z, *tensors(truth)]
            torch.testing.assert_close([part.double() for part in found], expected, rtol=tolerance, atol=tolerance)
    assert len(calls) == 5
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(first), strict=True))


@every_layer
@pytest.mark.parametrize("gates", [40.0, -40.0])
def test_extreme_gates_neither_overflow_nor_differ(build: Any, gates: float) -> None:
    layer, twin = pair(build, 32, 4, torch.float64, gates)
    x = draws(2)(3, 6, 32)
    with torch.no_grad():
        (_, state), (_, truth) = layer(x[:, :2]), twin(x[:, :2])
        for t in range(2, 6):
            y, state = layer(x[:, t : t + 1], state)
            z, truth = twin(x[:, t : t + 1], truth)
            torch.testing.assert_close([y, *tensors(state)], [z, *tensors(truth)], rtol=1e-9, atol=1e-9)


@every_layer
@pytest.mark.usefixtures("poisoned_memory")
def test_a_step_reads_no_memory_that_was_not_written(build: Any) -> None:
    for batch, width, heads in SIZES:
        layer, _ = pair(build, width, heads, torch.float32)
        x = draws(3)(batch, 4, width).float()
        with torch.no_grad():
            _, state = layer(x[:, :3])
            y, state = layer(x[:, 3:], state)
        assert all(part.isfinite().all() for part in (y, *tensors(state)))


@every_layer
def test_the_number_of_threads_changes_no_bit_of_a_step(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALL", 1)
    layer, _ = pair(build, 64, 2, torch.float32)
    x, before, results = draws(4)(37, 4, 64).float(), torch.get_num_threads(), []
    with torch.no_grad():
        _, state = layer(x[:, :3])
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                y, end = layer(x[:, 3:], state)
                results.append([y, *tensors(end)])
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_layer
def test_a_step_that_is_trained_masked_watched_or_changed_takes_the_other_way(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, twin = pair(build, 32, 4, torch.float64)
    x, calls = draws(5)(3, 4, 32), count_calls(monkeypatch)
    with torch.no_grad():
        _, state = layer(x[:, :3])
        expected, _ = layer(x[:, 3:], state)
    assert len(calls) == 1
    y, _ = layer(x[:, 3:], state)
    y.sum().backward()  # with gradients
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=1e-11)
    norm, seen = next(part for part in layer.modules() if hasattr(part, "head_dim")), []
    with torch.no_grad():
        y, _ = layer(x[:, 3:], state, mask=torch.tensor([[True], [False], [True]]))
        torch.testing.assert_close(y[0], expected[0], rtol=0, atol=1e-11)
        handle = norm.register_forward_pre_hook(lambda module, given: seen.append(given))
        torch.testing.assert_close(layer(x[:, 3:], state)[0], expected, rtol=0, atol=1e-11)
        handle.remove()
        for other in (layer, twin):
            parent = with_norm(other)
            parent.norm = nn.Sequential(parent.norm, nn.Tanh())
        changed, _ = twin(x[:, 3:], state)
        assert (changed - expected).abs().max() > 0.1
        torch.testing.assert_close(layer(x[:, 3:], state)[0], changed, rtol=0, atol=1e-11)
    assert len(seen) == 1
    assert len(calls) == 1


def with_norm(layer: Any) -> Any:
    """The part of a layer that holds the per-head norm."""
    return next(part for part in layer.modules() if hasattr(getattr(part, "norm", None), "head_dim"))


CHANGES: dict[str, Any] = {
    "eps": lambda part: setattr(part.norm, "eps", 0.5),
    "offset": lambda part: setattr(part.norm, "offset", 0.0),
    "norm's forward": lambda part: setattr(part.norm, "forward", lambda h: h.flatten(-2).tanh()),
    "no dropout": lambda part: setattr(part, "dropout", nn.Identity()),
    "other dropout": lambda part: setattr(part, "dropout", nn.Tanh()),
    "dropout's forward": lambda part: setattr(part.dropout, "forward", torch.tanh),
    "watched dropout": lambda part: part.dropout.register_forward_hook(lambda module, given, y: y.tanh()),
}


@every_layer
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_part_is_heard_over_one_step_and_over_several(
    build: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, twin = pair(build, 32, 4, torch.float64)
    if "dropout" in change and isinstance(layer, mLSTM):
        pytest.skip("it has no dropout around its recurrence")
    x, calls = draws(8)(3, 4, 32), count_calls(monkeypatch)
    with torch.no_grad():
        before, state = layer(x)
        for other in (layer, twin):
            CHANGES[change](with_norm(other))
        expected = twin(x), twin(x[:, :1], state)
        torch.testing.assert_close((layer(x), layer(x[:, :1], state)), expected, rtol=0, atol=1e-10)
    assert change == "no dropout" or (expected[0][0] - before).abs().max() > 0.01
    assert not calls


@every_layer
def test_weights_of_any_strides_will_do(build: Any) -> None:
    layer, _ = pair(build, 32, 4, torch.float64)
    x = draws(7)(5, 4, 32)
    with torch.no_grad():
        _, state = layer(x[:, :3])
        expected = layer(x[:, 3:], state)
        for parameter in layer.parameters():
            parameter.data = parameter.data.mT.contiguous().mT if parameter.ndim > 1 else parameter.data
        found = layer(x[:, 3:], state)
    assert any(not parameter.is_contiguous() for parameter in layer.parameters())
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=0, atol=0)


def test_steps_with_autocast_or_mixed_dtypes_are_computed_by_other_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = pair(LAYERS["mLSTM"], 32, 4, torch.float32)
    x, calls = draws(6)(2, 4, 32).float(), count_calls(monkeypatch)
    with torch.no_grad():
        _, state = layer(x[:, :3])
        expected, _ = layer(x[:, 3:], state)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = layer(x[:, 3:], state)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
        y, _ = layer(x[:, 3:], type(state)(*(part.double() for part in state)))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert calls == ["mlstm"]


def test_wrong_shapes_of_a_step_are_refused_by_name() -> None:
    layer, _ = pair(LAYERS["mLSTM"], 32, 4, torch.float32)
    cell, x = layer.directions[0], torch.zeros(2, 1, 32)
    weights = ops.MLSTMStepWeights(cell.qkv.weight, cell.gates.weight, cell.gates.bias, cell.norm.weight)
    state = ops.MLSTMState(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"state.n must be \(2, 4, 8\)"):
        ops.mlstm_step(x, weights, state._replace(n=state.n[:1]), heads=4)
    with pytest.raises(ValueError, match=r"gates must be \(8, 32\)"):
        ops.mlstm_step(x, weights._replace(gates=weights.gates[:, :31]), state, heads=4)
    mixer, _ = pair(LAYERS["sLSTM layer"], 32, 4, torch.float32)
    with torch.no_grad():
        _, state = mixer(x)
        with pytest.raises(ValueError, match=r"past must be \(2, 3, 32\)"):
            mixer(x, state._replace(conv=state.conv[:, 1:]))


CARRIED = """
import resource, torch
from xlstm_forecast.layers import MLSTMMixer
torch.set_num_threads(1)
mixer, x = MLSTMMixer(128, 4), torch.zeros(32, 1, 128)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with torch.no_grad():
    state = mixer(x)[1]
    for step in range(120):
        if step == 20:
            before = faults()
        state = mixer(x, state)[1]
print((faults() - before) / 100)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how memory is kept is the C library's affair")
def test_a_state_of_megabytes_is_not_mapped_anew_at_every_step() -> None:
    done = subprocess.run([sys.executable, "-c", CARRIED], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50  # pages of four kilobytes; the state has 512

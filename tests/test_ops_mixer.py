"""The compiled mLSTM layer against the same layer put together from torch operations and the reference recurrence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_forecast import ops
from xlstm_forecast.layers import MLSTMMixer, MLSTMMixerState
from xlstm_forecast.ops import MLSTMState, product_cpu, threads

pytest.importorskip("numba", reason="without numba there is no compiled layer")

# batch, steps, model width, heads; inner widths 64, 64, 64, 192, 128 make heads of 16, 32, 8, 48, 64
SIZES = [(3, 1, 32, 4), (1, 2, 32, 2), (9, 63, 32, 8), (2, 100, 96, 4), (19, 17, 64, 2)]


def draws(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def build(width: int, heads: int, *, spread: float = 0.3, gates: float = 1.0, dtype: Any = torch.float64) -> Any:
    """A mixer with every parameter off its initial value; gates: the size of the gates' biases."""
    draw, mixer = draws(0), MLSTMMixer(width, heads, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(draw(*parameter.shape) * spread)
        mixer.gates.bias.mul_(gates)
    return mixer.to(dtype)


def inputs(mixer: Any, batch: int, steps: int, state: bool) -> list[Tensor]:
    """x, and the state of the convolution and of the recurrence."""
    draw, inner, heads = draws(1), len(mixer.skip), mixer.num_heads
    dim = inner // heads
    parts = [draw(batch, steps, mixer.up.weight.shape[1])]
    if state:
        parts += [draw(batch, 3, inner), draw(batch, heads, dim, dim), draw(batch, heads, dim), draw(batch, heads)]
    return parts


def lengths(batch: int, steps: int) -> Tensor:
    """A mask with the valid steps first; one row has none, one all."""
    counts = torch.randint(0, steps + 1, (batch,), generator=torch.Generator().manual_seed(3))
    counts[:1], counts[-1:] = 0, steps
    return torch.arange(steps) < counts[:, None]


def as_state(parts: list[Tensor]) -> MLSTMMixerState | None:
    return MLSTMMixerState(parts[0], MLSTMState(*parts[1:])) if parts else None


def outcome(run: Any, mixer: nn.Module, given: list[Tensor], mask: Tensor | None, dtype: Any) -> list[Tensor]:
    """Outputs, the next states, and the gradients of everything, of a loss on all of the former."""
    leaves = [x.to(dtype).requires_grad_() for x in given]
    y, state = run(leaves[0], as_state(leaves[1:]), mask)
    if mask is not None:
        y = torch.where(mask[..., None], y, 0)
    found, draw = [y, state.conv, *state.cell], draws(2)
    loss = sum((x * draw(*x.shape).to(dtype)).sum() for x in found)
    return [x.detach() for x in (*found, *torch.autograd.grad(loss, [*leaves, *mixer.parameters()]))]


def assert_close(found: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for number, (x, y) in enumerate(zip(found, truth, strict=True)):
        worst = (x.double() - y).abs().max() / y.abs().max().clamp(min=0.1)
        assert worst <= tolerance, f"result {number} differs by {worst:.2e} of its largest value"


def composed(mixer: Any) -> Any:
    """The layer from torch operations, around the step-by-step recurrence."""
    mixer.backend = "reference"
    return mixer._composed


def test_the_layer_is_the_compiled_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = build(32, 4)
    monkeypatch.setattr(mixer, "_composed", None)
    assert mixer(draws(0)(2, 5, 32))[0].isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_states_and_all_gradients_are_those_of_the_reference(size: Any, state: bool, masked: bool) -> None:
    batch, steps, width, heads = size
    mask = lengths(batch, steps) if masked else None
    mixer, other = build(width, heads), build(width, heads)
    given = inputs(mixer, batch, steps, state)
    truth = outcome(composed(other), other, given, mask, torch.float64)
    assert_close(outcome(mixer, mixer, given, mask, torch.float64), truth, 1e-10)
    single = build(width, heads, dtype=torch.float32)
    assert_close(outcome(single, single, given, mask, torch.float32), truth, 1e-3)


@pytest.mark.parametrize("size", [(70, 40, 64, 4), (9, 520, 32, 4)], ids=str)
def test_rows_in_several_groups_and_tasks_are_those_of_the_reference(
    size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.mixer_cpu, "GROUP", 1 << 18)
    batch, steps, width, heads = size
    mixer, other = build(width, heads), build(width, heads)
    other.backend = "torch"
    given = inputs(mixer, batch, steps, True)
    truth = outcome(other._composed, other, given, None, torch.float64)
    assert_close(outcome(mixer, mixer, given, None, torch.float64), truth, 1e-9)


@pytest.mark.parametrize("size", [30.0, 120.0])
def test_gates_far_beyond_the_range_of_exp_stay_finite_and_exact(size: float) -> None:
    mixer, other = build(32, 4, gates=size), build(32, 4, gates=size)
    given = inputs(mixer, 2, 20, True)
    truth = outcome(composed(other), other, given, None, torch.float64)
    assert all(x.isfinite().all() for x in truth)
    assert_close(outcome(mixer, mixer, given, None, torch.float64), truth, 1e-9)
    single = build(32, 4, gates=size, dtype=torch.float32)
    assert all(x.isfinite().all() for x in outcome(single, single, given, None, torch.float32))


def test_the_gradients_pass_gradcheck() -> None:
    mixer = build(4, 8)
    leaves = [x.requires_grad_() for x in inputs(mixer, 2, 3, True)]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        y, past, cell = ops.mixer(given[0], mixer._weights(), given[1], MLSTMState(*given[2:]), heads=8)
        return y, past, *cell

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    names = [name for name, _ in mixer.named_parameters()]

    def of_weights(*values: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), leaves[0].detach())
        return y

    assert torch.autograd.gradcheck(of_weights, list(mixer.parameters()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "size",
    [(1, 128, 4), (11, 32, 8), (3, 96, 4), (2, 64, 1), (4, 128, 4), (33, 64, 4), (5, 24, 4), (16, 20, 2)],
    ids=str,
)
def test_steps_without_gradients_are_those_of_the_reference(size: Any, dtype: torch.dtype) -> None:
    batch, width, heads = size
    mixer, other = build(width, heads, dtype=dtype), build(width, heads)
    given = inputs(mixer, batch, 4, True)
    state, truth = as_state([part.to(dtype) for part in given[1:]]), as_state(given[1:])
    before = [part.clone() for part in (state.conv, *state.cell)]  # type: ignore[union-attr]
    first = state
    with torch.no_grad():
        for x in given[0].unbind(1):
            y, state = mixer(x[:, None].to(dtype), state)
            z, truth = composed(other)(x[:, None], truth, None)
            assert_close(
                [y, state.conv, *state.cell], [z, truth.conv, *truth.cell], 1e-10 if y.dtype == z.dtype else 1e-3
            )
    assert all(torch.equal(x, y) for x, y in zip(before, (first.conv, *first.cell), strict=True))  # type: ignore[union-attr]


@pytest.mark.usefixtures("poisoned_memory")
def test_no_memory_is_read_that_was_not_written() -> None:
    for batch, steps, width, heads in SIZES:
        for mask in (None, lengths(batch, steps)):
            mixer = build(width, heads, dtype=torch.float32)
            found = outcome(mixer, mixer, inputs(mixer, batch, steps, True), mask, torch.float32)
            assert all(x.isfinite().all() for x in found)
            with torch.no_grad():
                y, state = mixer(*(x.float() for x in inputs(mixer, batch, steps, False)))
                y, state = mixer(y[:, -1:], state)
            assert all(x.isfinite().all() for x in (y, state.conv, *state.cell))


def test_some_inputs_alone_may_want_gradients() -> None:
    mixer = build(32, 4)
    x = draws(1)(2, 7, 32)
    whole = torch.autograd.grad(mixer(x)[0].square().sum(), mixer.skip)[0]
    for parameter in mixer.parameters():
        parameter.requires_grad_(parameter is mixer.skip)
    mixer(x)[0].square().sum().backward()
    assert torch.equal(mixer.skip.grad, whole)
    assert mixer.up.weight.grad is None
    mixer.skip.requires_grad_(False)
    assert not mixer(x)[0].requires_grad


def test_inputs_of_any_strides_will_do() -> None:
    mixer, x = build(32, 4), draws(1)(2, 32, 9)
    past, *cell = inputs(mixer, 2, 9, True)[1:]
    state = MLSTMMixerState(past, MLSTMState(*cell))
    turned = MLSTMMixerState(
        past.transpose(1, 2).contiguous().transpose(1, 2),
        MLSTMState(*(part.transpose(0, 1).contiguous().transpose(0, 1) for part in cell)),
    )
    found = mixer(x.transpose(1, 2), turned)
    expected = mixer(x.transpose(1, 2).contiguous(), state)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_part_that_was_replaced_or_is_watched_is_not_passed_over() -> None:
    mixer, x, seen = build(32, 4), draws(1)(2, 5, 32), []
    expected = mixer(x)[0]
    handle = mixer.norm.register_forward_hook(lambda module, given, result: seen.append(result))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-12)
    assert len(seen) == 1
    handle.remove()
    mixer(x)
    assert len(seen) == 1
    mixer.down = nn.Sequential(mixer.down, nn.Tanh())
    torch.testing.assert_close(mixer(x)[0], expected.tanh(), rtol=0, atol=1e-12)


def test_wrong_states_are_refused_by_name() -> None:
    mixer = build(32, 4)
    x, *parts = inputs(mixer, 2, 5, True)
    with pytest.raises(ValueError, match=r"past must be \(2, 3, 64\) on cpu, found \(2, 2, 64\)"):
        mixer(x, as_state([parts[0][:, 1:], *parts[1:]]))
    with pytest.raises(ValueError, match=r"state.n must be \(2, 4, 16\)"):
        mixer(x, as_state([*parts[:2], parts[2][:1], parts[3]]))
    with pytest.raises(ValueError, match=r"mask must be \(2, 5\)"):
        mixer(x, None, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"x must be \(2, 5, 32\)"):
        mixer(x[..., :31])

    for change, told in (
        ({"gates": mixer.gates.weight[:2]}, r"gates must be \(8, 192\) on cpu, found \(2, 192\)"),
        ({"up": mixer.up.weight[:64]}, r"up must be \(128, 32\)"),
        ({"down": mixer.down.weight.to("meta")}, r"down must be \(32, 64\) on cpu, found \(32, 64\) on meta"),
    ):
        weights, state = mixer._weights()._replace(**change), as_state(parts)
        with pytest.raises(ValueError, match=told):
            ops.mixer(x, weights, heads=4)
        with pytest.raises(ValueError, match=told):
            ops.mixer_step(x[:, :1], weights, *state, heads=4)  # type: ignore[misc]


def test_a_step_to_another_width_is_computed_too() -> None:
    mixer, other = build(32, 4), build(32, 4)
    x, *parts = inputs(mixer, 2, 1, True)
    for layer in (mixer, other):
        layer.down.weight = nn.Parameter(layer.down.weight[:16].clone())
    with torch.no_grad():
        found, expected = mixer(x, as_state(parts))[0], composed(other)(x, as_state(parts), None)[0]
    assert found.shape == (2, 1, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["up", "down"])
def test_gradients_of_column_major_weights_are_right(name: str) -> None:
    mixer, other = build(64, 4, dtype=torch.float32), build(64, 4)
    x, layer = draws(1)(4, 40, 64), getattr(mixer, name)
    layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
    mixer(x.float())[0].square().sum().backward()
    composed(other)(x, None, None)[0].square().sum().backward()
    truth = getattr(other, name).weight.grad
    torch.testing.assert_close(layer.weight.grad.double(), truth, rtol=0, atol=1e-4 * float(truth.abs().max()))


def run(seed: int) -> list[Tensor]:
    mixer = build(32, 4, dtype=torch.float32)
    x = draws(seed)(20, 40, 32).float().requires_grad_()
    y, state = mixer(x)
    loss = y.square().sum() + state.cell.C.sum()
    with torch.no_grad():
        step, _ = mixer(x[:, :1], state)
    return [y.detach(), step, *torch.autograd.grad(loss, [x, *mixer.parameters()])]


def test_threads_change_no_bit_and_eight_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALL", 1)
    before, alone = torch.get_num_threads(), [run(seed) for seed in range(8)]
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(x, y) for x, y in zip(alone[0], run(0), strict=True))
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                together = list(pool.map(run, range(8)))
                for x, y in zip(alone, together, strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes",
    [(1, 8, 16), (7, 12, 64), (130, 300, 96), (1030, 33, 48), (600, 64, 10), (65, 128, 144), (262, 544, 112)],
)
def test_large_products_into_given_memory_equal_torchs(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, columns = sizes
    draw = draws(5)
    a, b, to = (draw(*shape).to(dtype) for shape in ((rows, inner), (inner, columns), (rows, columns)))
    product_cpu.Factor(b).multiply(a, to)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(to, a @ b, rtol=tolerance, atol=tolerance)
    found = draw(inner, columns).to(dtype)
    expected = found + a.t() @ to
    product_cpu.add_outer(found, a, to)
    torch.testing.assert_close(found, expected, rtol=tolerance * 10, atol=tolerance * 10)


@pytest.mark.parametrize("count", [8, 16, 32])
def test_products_are_right_however_many_registers_a_cpu_has(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from xlstm_forecast.ops import blocks, cpu_product, cpu_rows, simd

    for module in (simd, cpu_rows):
        monkeypatch.setattr(module, "registers", lambda bits: count)
    signature = blocks.signature(cpu_product.product_panels, f"f32x8 {count} registers")
    run = numba.njit(cpu_product.product_panels, nogil=True).compile(signature)
    draw = draws(7)
    a, b, to = (draw(*shape).float() for shape in ((12, 24), (24, 40), (12, 40)))
    run("", a.data_ptr(), 4 * 24, b.data_ptr(), 24, to.data_ptr(), 4 * 40, 12, 40, 40, 8, 12)
    torch.testing.assert_close(to, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("told", "counts"), [("+avx2,-avx512f", (16, 8)), ("+avx2,+avx512f", (32, 32)), ("", (8, 4))])
def test_registers_are_those_that_numba_is_told_to_use(
    told: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    numba = pytest.importorskip("numba")
    from xlstm_forecast.ops import simd

    monkeypatch.setattr(numba.core.config, "CPU_FEATURES", told)
    assert tuple(simd.registers.__wrapped__(bits) for bits in (256, 512)) == counts


@pytest.mark.parametrize("loss_on_state", [False, True])
def test_a_start_state_that_wants_no_gradient_leaves_the_others_as_they_are(loss_on_state: bool) -> None:
    """What only the start state's gradient needs is left out of the kernels; 100 steps are two chunks."""
    mixer = build(32, 2)
    x, *parts = inputs(mixer, 3, 100, True)
    q, k, v = (draws(seed)(3, 2, 100, 32) for seed in (5, 6, 7))
    i, f = draws(8)(3, 2, 100), draws(9)(3, 2, 100)
    results: list[list[Tensor]] = []
    for wanted in (True, False):
        state = [part.clone().requires_grad_(wanted) for part in parts]
        leaves = [y.clone().requires_grad_() for y in (x, q, k, v, i, f)]
        first, a, b, c, d, e = leaves
        y, end = mixer(first, as_state(state))
        h, last = ops.mlstm(a, b, c, d, e, MLSTMState(*state[1:]))
        loss = y.square().sum() + h.square().sum()
        if loss_on_state:
            loss = loss + sum(part.square().sum() for part in (*end.cell, *last))
        results.append(list(torch.autograd.grad(loss, [*leaves, *mixer.parameters()])))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", [0, 1023, -1])
def test_a_state_is_not_taken_for_empty_because_most_of_it_is(place: int) -> None:
    """Kernels leave out products with states that are zeros. Here one number of C is not, before and behind."""
    mixer, other = build(32, 1), build(32, 1)  # one head: C has 64 x 64 numbers
    x, conv, C, n, m = inputs(mixer, 2, 100, True)
    C.zero_().flatten(1)[:, place] = 3.0
    n.zero_()
    found: list[list[Tensor]] = []
    for run in (mixer, composed(other)):
        leaves = [part.clone().requires_grad_() for part in (x, conv, C, n, m)]
        y, end = run(leaves[0], as_state(leaves[1:]), None)
        loss = y.square().sum() + 5 * end.cell.C.flatten(1)[:, place].sum()
        parameters = (mixer if run is mixer else other).parameters()
        found.append([y.detach(), *torch.autograd.grad(loss, [*leaves, *parameters])])
    assert_close(found[0], found[1], 1e-10)
    q, k, v = (draws(seed)(2, 1, 100, 64) for seed in (5, 6, 7))
    i, f = draws(8)(2, 1, 100), draws(9)(2, 1, 100)
    results: list[list[Tensor]] = []
    for backend in ("cpu", "reference"):
        state = [part.clone().requires_grad_() for part in (C, n, m)]
        a, b, c, d, e = leaves = [part.clone().requires_grad_() for part in (q, k, v, i, f)]
        h, last = ops.mlstm(a, b, c, d, e, MLSTMState(*state), backend=backend)
        loss = h.square().sum() + 5 * last.C.flatten(1)[:, place].sum()
        results.append([h.detach(), *torch.autograd.grad(loss, [*leaves, *state])])
    assert_close(results[0], results[1], 1e-10)

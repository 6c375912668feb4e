"""Every backend of the recurrences against the step-by-step reference in float64: values, states and all gradients."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_forecast import ops
from xlstm_forecast.ops import MLSTMState, SLSTMState, reference

SLSTM = [name for name in ops.available_backends("slstm") if name != "reference"]
OURS = [name for name in SLSTM if name != "flashrnn"]  # flashrnn's first step overflows in float32 at gates of -120
MLSTM = [name for name in ops.available_backends("mlstm") if name != "reference"]
# batch, steps, heads, head size
SIZES = [(3, 1, 2, 8), (2, 63, 1, 24), (1, 100, 2, 32), (9, 17, 1, 48), (5, 20, 1, 64), (1, 777, 1, 8), (4, 9, 2, 10)]
slstm: Any = ops.slstm
mlstm: Any = ops.mlstm
chunkwise: Any = ops.chunkwise.mlstm
MASKS = ["none", "right", "left", "holes"]


def numbers(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_mask(kind: str, batch: int, steps: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    length = torch.randint(0, steps + 1, (batch, 1), generator=generator)
    place = torch.arange(steps)[None]
    holes = torch.rand(batch, steps, generator=generator) < 0.6
    return {"none": None, "right": place < length, "left": place >= steps - length, "holes": holes}[kind]


def slstm_inputs(size: tuple[int, int, int, int], scale: float = 1.0, state: bool = True) -> list[Tensor]:
    batch, steps, heads, dim = size
    draw = numbers()
    inputs = [draw(batch, steps, heads, 4, dim) * scale, draw(heads, dim, 4, dim) / dim**0.5, draw(heads, 4, dim)]
    if state:
        h, c, n, m = (draw(batch, heads, dim) for _ in range(4))
        inputs += [h, c, n.abs() + 0.1, m]
    return inputs


def mlstm_inputs(size: tuple[int, int, int, int], scale: float = 1.0, state: bool = True) -> list[Tensor]:
    batch, steps, heads, dim = size
    draw = numbers()
    q, k, v = draw(batch, heads, steps, dim), draw(batch, heads, steps, dim), draw(batch, heads, steps, dim + 3)
    inputs = [q, k, v, draw(batch, heads, steps) * scale, draw(batch, heads, steps) * scale + 2]
    if state:
        inputs += [draw(batch, heads, dim, dim + 3), draw(batch, heads, dim), draw(batch, heads)]
    return inputs


def outcome(op: str, inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Outputs, last state and the gradients of every input, of a loss on all outputs and the whole last state."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    if op == "slstm":
        h, state = slstm(*leaves[:3], SLSTMState(*leaves[3:]) if leaves[3:] else None, **options)
    else:
        h, state = mlstm(*leaves[:5], MLSTMState(*leaves[5:]) if leaves[5:] else None, **options)
    draw = numbers(2)
    loss = sum((x * draw(*x.shape).to(dtype)).sum() for x in (h, *state))
    return [x.detach() for x in (h, *state, *torch.autograd.grad(loss, leaves))]


def assert_close(found: list[Tensor], truth: list[Tensor], relative: float) -> None:
    for number, (x, y) in enumerate(zip(found, truth, strict=True)):
        worst = (x.double() - y).abs().max() / y.abs().max().clamp(min=0.1)
        assert worst <= relative, f"result {number} differs by {worst:.2e} of its largest value"


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_slstm_backend_equals_the_reference_in_values_states_and_gradients(size: Any, kind: str) -> None:
    if size[1] > 700 and kind in ("left", "holes"):
        pytest.skip("one mask is enough at this length")
    mask = make_mask(kind, size[0], size[1])
    truth = outcome("slstm", slstm_inputs(size), torch.float64, mask=mask, backend="reference")
    for backend in SLSTM:
        for dtype, relative in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
            assert_close(outcome("slstm", slstm_inputs(size), dtype, mask=mask, backend=backend), truth, relative)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_mlstm_backend_equals_the_reference_in_values_states_and_gradients(size: Any, kind: str) -> None:
    if size[1] > 700 and kind in ("left", "holes"):
        pytest.skip("one mask is enough at this length")
    mask = make_mask(kind, size[0], size[1])
    truth = outcome("mlstm", mlstm_inputs(size), torch.float64, mask=mask, backend="reference")
    for backend in MLSTM:
        for dtype, relative in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            assert_close(outcome("mlstm", mlstm_inputs(size), dtype, mask=mask, backend=backend), truth, relative)


@pytest.mark.parametrize("scale", [20.0, 120.0])
@pytest.mark.parametrize("state", [True, False])
def test_gates_far_beyond_the_range_of_exp_stay_finite_and_exact(scale: float, state: bool) -> None:
    size = (3, 40, 2, 16)
    for op, inputs, backends, bars in (
        ("slstm", slstm_inputs(size, state=state), OURS, (1e-11, 5e-5)),
        ("mlstm", mlstm_inputs(size, state=state), MLSTM, (1e-9, 5e-3)),
    ):
        gates = [inputs[0]] if op == "slstm" else inputs[3:5]
        for gate in gates:
            gate.copy_(torch.where(gate > 0.3, scale, torch.where(gate < -0.3, -scale, gate)) + 0.1 * gate)
        truth = outcome(op, inputs, torch.float64, backend="reference")
        assert all(x.isfinite().all() for x in truth)
        for backend in ["reference", *backends]:
            for dtype, relative in zip((torch.float64, torch.float32), bars, strict=True):
                found = outcome(op, inputs, dtype, backend=backend)
                assert all(x.isfinite().all() for x in found)
                assert_close(found, truth, relative)


@pytest.mark.parametrize("backend", SLSTM)
def test_slstm_gradients_pass_gradcheck(backend: str) -> None:
    inputs = [x.requires_grad_() for x in slstm_inputs((2, 4, 2, 8))]
    mask = torch.tensor([[True, True, True, True], [False, True, False, True]])
    assert torch.autograd.gradcheck(
        lambda *x: slstm(*x[:3], SLSTMState(*x[3:]), mask=mask, backend=backend)[0], inputs, fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *x: tuple(slstm(*x[:3], SLSTMState(*x[3:]), backend=backend)[1]), inputs, fast_mode=True
    )


@pytest.mark.parametrize("backend", MLSTM)
def test_mlstm_gradients_pass_gradcheck_without_a_norm_behind(backend: str) -> None:
    inputs = [x.requires_grad_() for x in mlstm_inputs((1, 5, 2, 3))]
    assert torch.autograd.gradcheck(lambda *x: mlstm(*x[:5], MLSTMState(*x[5:]), backend=backend)[0], inputs)
    assert torch.autograd.gradcheck(lambda *x: tuple(mlstm(*x[:5], MLSTMState(*x[5:]), backend=backend)[1]), inputs)


@pytest.mark.usefixtures("poisoned_memory")
def test_no_backend_reads_memory_that_it_did_not_write() -> None:
    for kind in MASKS:
        for size in ((9, 17, 2, 24), (3, 33, 1, 16)):
            mask = make_mask(kind, size[0], size[1])
            for op, inputs, backends in (("slstm", slstm_inputs(size), SLSTM), ("mlstm", mlstm_inputs(size), MLSTM)):
                for backend in backends:
                    found = outcome(op, inputs, torch.float32, mask=mask, backend=backend)
                    assert all(x.isfinite().all() for x in found), (op, backend, kind)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone_whatever_the_padding_holds(side: str) -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, slice(0, 5) if side == "left" else slice(7, 12)] = False
    for backend in ["reference", *SLSTM]:
        inputs = slstm_inputs((2, 12, 2, 8), state=False)
        alone, ends = slstm(inputs[0][1:, mask[1]], *inputs[1:], backend=backend)
        inputs[0][~mask] = torch.nan
        leaves = [x.requires_grad_() for x in inputs]
        h, last = slstm(*leaves, mask=mask, backend=backend)
        torch.testing.assert_close(h[1:, mask[1]], alone, atol=1e-12, rtol=0)
        torch.testing.assert_close([x[1:] for x in last], list(ends), atol=1e-12, rtol=0)
        assert (h[~mask] == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(h.sum() + last.c.sum(), leaves)), backend
    for backend in ["reference", *MLSTM]:
        inputs = mlstm_inputs((2, 12, 2, 8), state=False)
        rest = mlstm(*(x[1:, :, mask[1]] for x in inputs), backend=backend)
        for x in inputs:
            x.transpose(1, 2)[~mask] = torch.nan
        leaves = [x.requires_grad_() for x in inputs]
        h, memory = mlstm(*leaves, mask=mask, backend=backend)
        torch.testing.assert_close(h[1:, :, mask[1]], rest[0], atol=1e-10, rtol=0)
        torch.testing.assert_close([x[1:] for x in memory], list(rest[1]), atol=1e-10, rtol=0)
        assert all(g.isfinite().all() for g in torch.autograd.grad(h.sum() + memory.C.sum(), leaves)), backend


def test_fresh_and_running_rows_share_a_batch() -> None:
    """The start rule holds per element: a batch-wide test makes rows with a very low input gate NaN."""
    gates, R, b, h, c, n, m = slstm_inputs((3, 6, 1, 8))
    gates[:, :, :, 0] = -200
    for x in (h, c, n, m):
        x[0] = 0
    for backend in ["reference", *OURS]:
        mixed, _ = slstm(gates, R, b, SLSTMState(h, c, n, m), backend=backend)
        fresh, _ = slstm(gates[:1], R, b, backend=backend)
        torch.testing.assert_close(mixed[:1], fresh, atol=1e-12, rtol=0)
        assert mixed.isfinite().all()


def test_slstm_from_a_zero_state_keeps_its_bounds() -> None:
    for backend in SLSTM:
        for scale in (1.0, 5.0, 20.0):
            inputs = slstm_inputs((4, 50, 2, 16), scale, state=False)
            h, last = slstm(*(x.float() for x in inputs), backend=backend)
            assert last.n.min() >= 1 - 1e-6
            assert (last.c.abs() <= last.n * (1 + 1e-6)).all()
            assert h.abs().max() <= 1 + 1e-6


def test_the_three_forms_of_the_mlstm_agree() -> None:
    inputs = mlstm_inputs((2, 70, 2, 8), state=False)
    recurrent, _ = mlstm(*inputs, backend="reference")
    torch.testing.assert_close(reference.mlstm_parallel(*inputs), recurrent, atol=1e-5, rtol=1e-5)
    for chunk in (1, 7, 16, 70, 100):
        chunked, _ = chunkwise(*inputs, chunk=chunk)
        torch.testing.assert_close(chunked, recurrent, atol=1e-10, rtol=1e-10)


def test_a_sequence_in_pieces_equals_the_whole() -> None:
    gates, R, b = slstm_inputs((2, 30, 2, 16), state=False)
    q, k, v, i, f = mlstm_inputs((2, 30, 2, 16), state=False)
    for backend in SLSTM:
        whole, ends = slstm(gates, R, b, backend=backend)
        state, parts = None, []
        for piece in gates.split([1, 12, 17], 1):
            h, state = slstm(piece, R, b, state, backend=backend)
            parts.append(h)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
        torch.testing.assert_close(tuple(state or ()), tuple(ends), atol=1e-12, rtol=0)
    for backend in MLSTM:
        whole, final = mlstm(q, k, v, i, f, backend=backend)
        memory, parts = None, []
        for piece in zip(*(x.split([1, 12, 17], 2) for x in (q, k, v, i, f)), strict=True):
            h, memory = mlstm(*piece, memory, backend=backend)
            parts.append(h)
        torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-10, rtol=0)
        torch.testing.assert_close(tuple(memory or ()), tuple(final), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(3, 1, 2, 16), (2, 3, 1, 24), (5, 8, 2, 10), (2, 9, 1, 16)], ids=str)
def test_steps_without_gradients_equal_the_reference(size: Any) -> None:
    for kind in MASKS:
        mask = make_mask(kind, size[0], size[1])
        gates, R, b, *state = slstm_inputs(size)
        q, k, v, i, f, *memory = mlstm_inputs(size, scale=30.0)
        for backend in ("auto", "torch", "cpu"):
            with torch.no_grad():
                h, last = slstm(gates, R, b, SLSTMState(*state), mask=mask, backend=backend)
                y, end = mlstm(q, k, v, i, f, MLSTMState(*memory), mask=mask, backend=backend)
            truth, kept = slstm(gates, R, b, SLSTMState(*state), mask=mask, backend="reference")
            assert_close([h, *last], [truth, *kept], 1e-11)
            truth, held = mlstm(q, k, v, i, f, MLSTMState(*memory), mask=mask, backend="reference")
            assert_close([y, *end], [truth, *held], 1e-9)


def test_the_chunkwise_form_keeps_memory_linear_in_the_number_of_steps() -> None:
    def kept(steps: int) -> int:
        storages = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        inputs = mlstm_inputs((1, steps, 1, 8), state=False)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            h, _ = mlstm(*(x.requires_grad_() for x in inputs), backend="torch")
        return sum(storages.values()) if h.requires_grad else 0

    assert 3.5 < kept(2048) / kept(512) < 4.5


@pytest.mark.parametrize("use_u", [True, False])
@pytest.mark.parametrize("size", [(9, 17, 2, 16, 16), (2, 5, 1, 24, 8), (3, 40, 2, 32, 48), (2, 6, 2, 10, 12)], ids=str)
def test_fused_head_wise_projection_equals_projecting_first(size: Any, use_u: bool) -> None:
    batch, steps, heads, dim, inner = size
    draw = numbers()
    given = [
        draw(batch, steps, heads, inner),
        draw(batch, steps, heads, inner),
        draw(heads, inner, 4, dim) / inner**0.5,
    ]
    given += slstm_inputs((batch, steps, heads, dim))[1:]
    weights = draw(batch, steps, heads, dim)
    for kind in MASKS:
        mask = make_mask(kind, batch, steps)
        results = []
        for backend, dtype in (("reference", torch.float64), ("auto", torch.float64), ("auto", torch.float32)):
            x, u, W, R, b, *state = leaves = [y.to(dtype).requires_grad_() for y in given]
            options: dict[str, Any] = {"u": u if use_u else None, "mask": mask, "backend": backend}
            h, last = ops.slstm_headwise(x, W, R, b, SLSTMState(*state), **options)
            loss = (h * weights.to(dtype)).sum() + last.c.sum() + last.h.sum()
            wanted = leaves if use_u else [x, *leaves[2:]]
            results.append([h.detach(), *torch.autograd.grad(loss, wanted)])
        assert_close(results[1], results[0], 1e-11)
        assert_close(results[2], results[0], 1e-5)


@pytest.mark.parametrize("use_u", [True, False])
@pytest.mark.parametrize("size", [(9, 2, 16, 16), (1, 1, 24, 8), (33, 4, 32, 16)], ids=str)
def test_one_step_from_inputs_of_any_strides_equals_the_reference(size: Any, use_u: bool) -> None:
    batch, heads, dim, inner = size
    draw = numbers()
    x, u = (draw(heads, batch, 1, inner).permute(1, 2, 0, 3) for _ in range(2))
    W, (_, R, b, *state) = draw(heads, inner, 4, dim) / inner**0.5, slstm_inputs((batch, 1, heads, dim))
    turned = SLSTMState(*(part.transpose(0, 1).contiguous().transpose(0, 1) for part in state))
    kept = [part.clone() for part in turned]
    with torch.no_grad():
        found = ops.slstm_headwise(x, W, R, b, turned, u=u if use_u else None)
        truth = ops.slstm_headwise(x, W, R, b, SLSTMState(*state), u=u if use_u else None, backend="reference")
    assert_close([found[0], *found[1]], [truth[0], *truth[1]], 1e-11)
    assert_close(list(turned), kept, 0)  # the caller's state stays as it was
    found[0].zero_()  # and the next one is not the output
    assert_close(list(found[1]), list(truth[1]), 1e-11)


def test_linear_equals_torchs_in_values_and_gradients() -> None:
    draw = numbers()
    for shape, d_out in (((3, 7, 24), 50), ((64, 33, 48), 130), ((0, 5, 8), 4)):
        x, weight, bias, dy = draw(*shape), draw(d_out, shape[-1]), draw(d_out), draw(*shape[:-1], d_out)
        for with_bias in (True, False):
            results = []
            for call in (ops.linear, torch.nn.functional.linear):
                leaves = [y.float().requires_grad_() for y in (x, weight, bias)][: 3 if with_bias else 2]
                y = call(*leaves)
                results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.float())])
            torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=1e-4)


def test_any_strides_of_the_inputs_will_do() -> None:
    gates, R, b = slstm_inputs((4, 9, 2, 16), state=False)
    truth, _ = slstm(gates, R, b, backend="reference")
    for backend in SLSTM:
        for strided in (
            gates.transpose(0, 1).contiguous().transpose(0, 1),
            gates.transpose(1, 2).contiguous().transpose(1, 2),
            gates.transpose(3, 4).contiguous().transpose(3, 4),
        ):
            found, _ = slstm(strided, R.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), b, backend=backend)
            torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
        leaf = gates.clone().requires_grad_()
        h, _ = slstm(leaf, R, b, backend=backend)
        (spread,) = torch.autograd.grad(
            h.sum(), leaf, retain_graph=True
        )  # the gradient arrives expanded from one number
        (dense,) = torch.autograd.grad(h, leaf, torch.ones_like(h))
        torch.testing.assert_close(spread, dense, atol=1e-14, rtol=0)


def test_half_precision_is_computed_in_float32() -> None:
    inputs = [x.float() for x in slstm_inputs((2, 20, 2, 16), state=False)]
    truth, _ = slstm(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        h, state = slstm(inputs[0].bfloat16(), *inputs[1:])
        again, _ = slstm(inputs[0].bfloat16(), *inputs[1:], state)
    assert h.dtype == again.dtype == torch.bfloat16
    assert {x.dtype for x in state} == {torch.float32}
    torch.testing.assert_close(h.float(), truth, atol=0.03, rtol=0)
    q, k, v, i, f = (x.bfloat16() for x in mlstm_inputs((2, 20, 2, 16), state=False))
    with torch.autocast("cpu", torch.bfloat16):
        h, memory = mlstm(q, k, v, i, f)
    exact, _ = mlstm(*(x.double() for x in (q, k, v, i, f)), backend="reference")
    assert h.dtype == torch.bfloat16
    assert {x.dtype for x in memory} == {torch.float32}
    torch.testing.assert_close(h.double(), exact, atol=0.01, rtol=0.01)


class _Both(torch.nn.Module):
    def forward(self, gates: Tensor, R: Tensor, b: Tensor, q: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        return slstm(gates, R, b)[0], mlstm(q, q, q, i, i)[0]


def test_every_part_of_a_state_is_brought_to_the_inputs_dtype() -> None:
    q, gate = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4)
    state = ops.mlstm(q, q, q, gate, gate)[1]
    expected, _ = ops.mlstm(q, q, q, gate, gate, state)
    found, _ = ops.mlstm(q, q, q, gate, gate, state._replace(n=state.n.double()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    gates, R, b = torch.randn(2, 1, 3, 4, 8), torch.randn(3, 8, 4, 8), torch.randn(3, 4, 8)
    start = ops.slstm(gates, R, b)[1]
    expected, _ = ops.slstm(gates, R, b, start)
    found, _ = ops.slstm(gates, R, b, start._replace(c=start.c.double()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_whole_numbers_are_refused() -> None:
    gates, R, b = torch.ones(2, 1, 3, 4, 8, dtype=torch.int64), torch.randn(3, 8, 4, 8), torch.randn(3, 4, 8)
    with pytest.raises(TypeError, match=r"floating point, found torch.float32, torch.int64"):
        ops.slstm(gates, R, b)


def test_the_ops_compile_and_export_without_graph_breaks() -> None:
    gates, R, b = slstm_inputs((2, 5, 2, 8), state=False)
    q, _, _, i, _ = mlstm_inputs((2, 40, 2, 8), state=False)
    truth = _Both()(gates, R, b, q, i)
    compiled = torch.compile(_Both(), backend="eager", fullgraph=True)(gates, R, b, q, i)
    exported = torch.export.export(_Both(), (gates, R, b, q, i)).module()(gates, R, b, q, i)
    torch.testing.assert_close(compiled, truth, atol=1e-10, rtol=0)
    torch.testing.assert_close(exported, truth, atol=1e-10, rtol=0)


def test_an_unknown_backend_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'auto', 'reference', 'torch', 'cpu'.*found 'cuda_magic'"):
        slstm(*slstm_inputs((1, 2, 1, 8), state=False), backend="cuda_magic")
    with pytest.raises(ValueError, match=r"'auto', 'reference', 'torch', 'cpu', 'parallel'.*found 'cpu2'"):
        mlstm(*mlstm_inputs((1, 2, 1, 8), state=False), backend="cpu2")


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    """Compiled kernels read memory by the sizes of the first tensor."""
    gates, R, b, *state = slstm_inputs((2, 5, 2, 8))
    for call, message in (
        (lambda: slstm(gates, R[:, :7], b), r"R must be \(2, 8, 4, 8\) on cpu, found \(2, 7, 4, 8\)"),
        (lambda: slstm(gates, R, b[:1]), r"b must be \(2, 4, 8\)"),
        (lambda: slstm(gates[:, :0], R, b), r"gates must be \(B, T, N, 4, DH\) and not empty"),
        (lambda: slstm(gates, R, b, SLSTMState(*(x[:1] for x in state))), r"state.h must be \(2, 2, 8\)"),
        (lambda: slstm(gates, R, b, mask=torch.ones(2, 4, dtype=torch.bool)), r"mask must be \(2, 5\)"),
        (lambda: slstm(gates, R.to("meta"), b), "found .* on meta"),
        (lambda: ops.slstm_headwise(gates[:, :, :, 0], R[:1], R, b), r"W must be \(2, 8, 4, 8\)"),
        (lambda: mlstm(*mlstm_inputs((2, 5, 2, 8), state=False)[:4], gates[..., 0, 0]), r"f must be \(2, 2, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="mask must be bool"):
        slstm(gates, R, b, mask=torch.ones(2, 5))
    with pytest.raises(TypeError, match=r"floating point, found torch\.int64"):
        slstm(gates.long(), R.long(), b.long())


def run_python(code: str, **environment: str) -> str:
    """Standard output of a fresh interpreter; its failure fails the test."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_numba_the_torch_path_serves_and_says_so_once() -> None:
    found = run_python("""
        import sys, warnings
        sys.modules["numba"] = None
        import torch
        from xlstm_forecast import ops
        gates, R, b = torch.randn(2, 6, 2, 4, 8), torch.randn(2, 8, 4, 8), torch.randn(2, 4, 8)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            h = [ops.slstm(gates, R, b)[0], ops.slstm(gates, R, b, backend="cpu")[0]]
        truth = ops.slstm(gates, R, b, backend="reference")[0]
        assert all(torch.allclose(x, truth, atol=1e-6) for x in h)
        assert "cpu" not in ops.available_backends("slstm")
        print(len(seen), "numba" in str(seen[0].message))
    """)
    assert found == "1 True"


def test_numba_is_imported_by_the_first_call_only() -> None:
    found = run_python("""
        import sys
        import torch
        from xlstm_forecast import ops
        early = "numba" in sys.modules
        ops.slstm(torch.randn(1, 2, 1, 4, 8), torch.randn(1, 8, 4, 8), torch.randn(1, 4, 8))
        print(early, "numba" in sys.modules)
    """)
    assert found == "False True"

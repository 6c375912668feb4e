"""The official package `xlstm` as an oracle, on copied weights: outputs and every gradient, also of whole stacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_forecast import ops
from xlstm_forecast.encoder import Block, Encoder, EncoderConfig, Place
from xlstm_forecast.layers import LargeMLSTMMixer, MLSTMMixer, SLSTMMixer

pytest.importorskip("xlstm", reason="the oracle package xlstm is not installed (pip install --no-deps xlstm==2.0.6)")

from xlstm.blocks.mlstm.backends import parallel_stabilized_simple, recurrent_step_stabilized_simple
from xlstm.blocks.mlstm.block import mLSTMBlockConfig
from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig
from xlstm.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
from xlstm.components.feedforward import FeedForwardConfig
from xlstm.xlstm_block_stack import xLSTMBlockStack, xLSTMBlockStackConfig

HEADS = 4
Pairs = list[tuple[Tensor, Tensor]]


def randomise(module: nn.Module, scale: float = 0.3, seed: int = 0) -> None:
    """Move every parameter off its initial value: zeros and ones hide faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


def slstm_config(d: int, **kw: Any) -> sLSTMLayerConfig:
    return sLSTMLayerConfig(embedding_dim=d, num_heads=HEADS, backend="vanilla", dtype="float32", **kw)


def slstm_pairs(ours: SLSTMMixer, theirs: Any) -> Pairs:
    """Our tensor and theirs in our layout, for each parameter. Their `fgate` feeds the input gate, `igate` forget."""
    heads, dim, _, _ = ours.cell.recurrent.shape
    gates = [theirs.fgate, theirs.igate, theirs.zgate, theirs.ogate]
    kernel = theirs.slstm_cell._recurrent_kernel_.view(heads, 4, dim, dim).permute(0, 3, 1, 2)
    pairs: Pairs = [
        (ours.cell.weight, torch.stack([gate.weight.transpose(1, 2) for gate in gates], 2)),
        (ours.cell.recurrent, kernel),
        (ours.cell.bias, theirs.slstm_cell._bias_.view(4, heads, dim).transpose(0, 1)),
        (ours.norm.weight, theirs.group_norm.weight),
    ]
    if ours.conv is not None:
        pairs += [(ours.conv.weight, theirs.conv1d.conv.weight), (ours.conv.bias, theirs.conv1d.conv.bias)]
    return pairs


def mlstm_pairs(ours: MLSTMMixer, theirs: Any) -> Pairs:
    cell = theirs.mlstm_cell
    assert ours.conv is not None
    return [
        (ours.up.weight, theirs.proj_up.weight),
        (ours.conv.weight, theirs.conv1d.conv.weight),
        (ours.conv.bias, theirs.conv1d.conv.bias),
        (ours.query_key.weight, torch.stack([p.weight.transpose(1, 2) for p in (theirs.q_proj, theirs.k_proj)])),
        (ours.value.weight, theirs.v_proj.weight.transpose(1, 2)[None]),
        (ours.gates.weight, torch.cat([cell.igate.weight, cell.fgate.weight])),
        (ours.gates.bias, torch.cat([cell.igate.bias, cell.fgate.bias])),
        (ours.norm.weight, cell.outnorm.weight),
        (ours.skip, theirs.learnable_skip),
        (ours.down.weight, theirs.proj_down.weight),
    ]


def block_pairs(ours: Any, theirs: Any) -> Pairs:
    pairs: Pairs = [(ours.norm.weight, theirs.xlstm_norm.weight)]
    pairs += (slstm_pairs if isinstance(ours.mixer, SLSTMMixer) else mlstm_pairs)(ours.mixer, theirs.xlstm)
    if theirs.ffn is not None:
        pairs += [
            (ours.feed_forward_norm.weight, theirs.ffn_norm.weight),
            (ours.feed_forward.up.weight, theirs.ffn.proj_up.weight),
            (ours.feed_forward.down.weight, theirs.ffn.proj_down.weight),
        ]
    return pairs


def stack_pairs(ours: Encoder, theirs: Any) -> Pairs:
    pairs: Pairs = [(ours.norm.weight, theirs.post_blocks_norm.weight)]
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        pairs += block_pairs(mine, other)
    return pairs


def official_steps(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, Any]:
    """The official recurrent mLSTM over a sequence, (B, N, T, DH) and gates (B, N, T, 1)."""
    batch, heads, steps, dim = q.shape
    shapes = ((dim, dim), (dim, 1), (1, 1))
    state: Any = tuple(q.new_zeros(batch, heads, *shape) for shape in shapes)
    outputs = []
    for t in range(steps):  # clones, because the official step squeezes its arguments in place
        h, state = recurrent_step_stabilized_simple(*state, *(x[:, :, t : t + 1].clone() for x in (q, k, v, i, f)))
        outputs.append(h)
    return torch.cat(outputs, 2), state


def recurrent_backend(
    *, queries: Tensor, keys: Tensor, values: Tensor, igate_preact: Tensor, fgate_preact: Tensor, **_: Any
) -> Tensor:
    return official_steps(queries, keys, values, igate_preact, fgate_preact)[0]


def make_recurrent(module: nn.Module) -> nn.Module:
    """Let the official module run its recurrent mLSTM: the parallel one adds its epsilon in other units."""
    for part in module.modules():
        if hasattr(part, "backend_fn"):
            part.backend_fn = recurrent_backend  # type: ignore[assignment]
    return module


def compare(
    ours: nn.Module,
    theirs: nn.Module,
    pairs: Callable[[Any, Any], Pairs],
    d: int,
    *,
    steps: int = 33,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Outputs and the gradients of x and of every parameter agree to `tolerance`, relative to the largest entry."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    randomise(theirs)
    with torch.no_grad():
        for mine, other in pairs(ours, theirs):
            assert mine.shape == other.shape
            mine.copy_(other)
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(3, steps, d, generator=generator, dtype=dtype) for _ in range(2))
    mine_x, other_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = ours(mine_x)[0]
    z = theirs(other_x)
    close("output", y, z, tolerance)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    assert mine_x.grad is not None
    assert other_x.grad is not None
    close("gradient of x", mine_x.grad, other_x.grad, tolerance)
    for parameter in theirs.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    checked = set()
    for mine, other in pairs(ours, theirs):
        assert mine.grad is not None, names[id(mine)]
        close(f"gradient of {names[id(mine)]}", mine.grad, other, tolerance)
        checked.add(id(mine))
    assert checked == set(names), f"not compared: {[n for i, n in names.items() if i not in checked]}"


def close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: {error:.3g}"


def official_block(d: int, index: int, count: int) -> Any:
    return sLSTMBlock(
        sLSTMBlockConfig(slstm=slstm_config(d), feedforward=FeedForwardConfig(), _num_blocks=count, _block_idx=index)
    )


def official_stack(d: int, pattern: str, steps: int) -> Any:
    return xLSTMBlockStack(
        xLSTMBlockStackConfig(
            mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=HEADS)) if "m" in pattern else None,
            slstm_block=sLSTMBlockConfig(slstm=slstm_config(d), feedforward=FeedForwardConfig()),
            context_length=steps,
            num_blocks=len(pattern),
            embedding_dim=d,
            slstm_at=[i for i, letter in enumerate(pattern) if letter == "s"],
        )
    )


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_slstm_cell_gives_the_official_outputs_states_and_gradients(scale: float) -> None:
    config = sLSTMCellConfig(hidden_size=32, num_heads=HEADS, backend="vanilla", dtype="float32")
    cell = sLSTMCell(config).double()
    randomise(cell)
    generator = torch.Generator().manual_seed(2)
    gates = (torch.randn(3, 21, 4, HEADS, 8, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    weight = torch.randn(3, 21, HEADS, 8, generator=generator, dtype=torch.float64)
    z, state = cell(gates.flatten(2))
    (z.transpose(1, 2) * weight).sum().backward()
    theirs = [gates.grad, cell._recurrent_kernel_.grad, cell._bias_.grad]
    R = cell._recurrent_kernel_.detach().view(HEADS, 4, 8, 8).permute(0, 3, 1, 2).contiguous().requires_grad_()
    b = cell._bias_.detach().view(4, HEADS, 8).transpose(0, 1).contiguous().requires_grad_()
    own = gates.detach().transpose(2, 3).contiguous().requires_grad_()
    y, end = ops.slstm(own, R, b)
    (y * weight).sum().backward()
    close("output", y, z.transpose(1, 2), 1e-12)
    for name, mine, other in zip(end._fields, end, state, strict=True):
        close(name, mine.flatten(1), other, 1e-12)
    assert own.grad is not None
    assert R.grad is not None
    assert b.grad is not None
    close("gates", own.grad.transpose(2, 3), theirs[0], 1e-10)
    close("R", R.grad.permute(0, 2, 3, 1).reshape(theirs[1].shape), theirs[1], 1e-10)
    close("b", b.grad.transpose(0, 1).flatten(), theirs[2], 1e-10)


@pytest.mark.parametrize("kernel", [4, 0])
def test_the_slstm_layer_gives_the_official_outputs_and_gradients(kernel: int) -> None:
    compare(
        SLSTMMixer(32, HEADS, conv_kernel=kernel),
        sLSTMLayer(slstm_config(32, conv1d_kernel_size=kernel)),
        slstm_pairs,
        32,
    )


def test_the_slstm_block_gives_the_official_outputs_and_gradients() -> None:
    ours = Block(EncoderConfig(d_model=96, blocks="s"), "s", Place(1, 3, None))
    compare(ours, official_block(96, 1, 3), block_pairs, 96)


def test_the_mlstm_cell_gives_the_official_parallel_and_recurrent_outputs() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, HEADS, 37, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    i = torch.randn(2, HEADS, 37, generator=generator, dtype=torch.float64) * 2
    f = torch.randn(2, HEADS, 37, generator=generator, dtype=torch.float64) * 2 + 3
    inputs = [x.requires_grad_() for x in (q, k, v, i, f)]
    y, end = ops.mlstm(q, k, v, i, f)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    mine = torch.autograd.grad((y * weight).sum(), inputs)
    z = parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])
    other = torch.autograd.grad((z * weight).sum(), inputs)
    close("output", y, z, 1e-6)
    for name, a, b in zip("qkvif", mine, other, strict=True):
        close(name, a, b, 1e-6)
    stepped, state = official_steps(q, k, v, i[..., None], f[..., None])
    close("recurrent output", y, stepped, 1e-10)
    for name, a, b in zip("qkvif", mine, torch.autograd.grad((stepped * weight).sum(), inputs), strict=True):
        close(f"recurrent {name}", a, b, 1e-10)
    for name, a, b in zip("Cnm", end, state, strict=True):
        close(name, a, b.view(a.shape), 1e-10)


@pytest.mark.parametrize(("form", "tolerance"), [("parallel", 1e-6), ("recurrent", 1e-10)])
def test_the_mlstm_layer_gives_the_official_outputs_and_gradients(form: str, tolerance: float) -> None:
    theirs = mLSTMLayer(mLSTMLayerConfig(embedding_dim=32, num_heads=HEADS, context_length=33))
    if form == "recurrent":
        make_recurrent(theirs)
    compare(MLSTMMixer(32, HEADS), theirs, mlstm_pairs, 32, tolerance=tolerance)


def test_the_mlstm_layer_gives_the_official_steps() -> None:
    torch.manual_seed(4)
    theirs = mLSTMLayer(mLSTMLayerConfig(embedding_dim=32, num_heads=HEADS, context_length=8)).double()
    ours = MLSTMMixer(32, HEADS).double()
    randomise(theirs)
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    state: dict[str, Any] = {}
    with torch.no_grad():
        for mine, other in mlstm_pairs(ours, theirs):
            mine.copy_(other)
        y, _ = ours(x)
        for t in range(8):
            z, state = theirs.step(x[:, t : t + 1], **state)
            close(f"step {t}", y[:, t], z[:, 0], 1e-10)


@pytest.mark.parametrize("blocks", ["ms", "smm", "xLSTM[3:1]", "xLSTM[0:1]"])
def test_whole_stacks_give_the_official_outputs_and_gradients(blocks: str) -> None:
    config = EncoderConfig(d_model=32, num_heads=HEADS, blocks=blocks)
    compare(Encoder(config), make_recurrent(official_stack(32, config.pattern, 33)), stack_pairs, 32)


def test_a_stack_agrees_with_the_official_one_in_float32() -> None:
    config = EncoderConfig(d_model=64, num_heads=HEADS, blocks="ms")
    compare(
        Encoder(config), official_stack(64, "ms", 256), stack_pairs, 64, steps=256, tolerance=1e-3, dtype=torch.float32
    )


def test_the_forget_bias_is_the_official_power_law() -> None:
    for index, count in ((0, 1), (0, 3), (1, 3), (2, 3)):
        theirs = official_block(96, index, count).xlstm.slstm_cell._bias_.view(4, HEADS, 24).transpose(0, 1)
        ours: Any = Block(EncoderConfig(d_model=96, blocks="s"), "s", Place(index, count, None)).mixer
        close(f"block {index} of {count}", ours.cell.bias, theirs, 1e-6)


def large_components() -> Any:
    """The official xLSTM-7B parts, read by path: their package imports a backend that may not be installed."""
    found = importlib.util.find_spec("xlstm")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "xlstm_large" / "components.py"
    spec = importlib.util.spec_from_file_location("xlstm_large_components", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_layer_of_xlstm_7b_is_made_of_the_official_parts() -> None:
    official = large_components()
    torch.manual_seed(5)
    d = 32
    ours = LargeMLSTMMixer(d, HEADS).double()
    randomise(ours)
    x = torch.randn(2, 11, d, dtype=torch.float64) * 3
    with torch.no_grad():
        weights = ours.qkvo.weight.split([d // 2, d // 2, d, d])
        q, k, v, o = (x @ w.T for w in weights)
        i, f = official.soft_cap(x @ ours.gates.weight.T + ours.gates.bias, 15.0).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        h = parallel_stabilized_simple(q, k, v, i.transpose(1, 2)[..., None], f.transpose(1, 2)[..., None])
        norm = official.MultiHeadLayerNorm(HEADS, d // HEADS, force_float32_reductions=False).double()
        norm.weight.copy_(ours.norm.weight)
        expected = (torch.sigmoid(o) * norm(h.transpose(1, 2))) @ ours.out.weight.T
        close("layer", ours(x)[0], expected, 1e-5)


def test_the_root_mean_square_norm_is_the_official_one() -> None:
    block = Block(EncoderConfig(d_model=32, blocks="m", variant="large"), "m", Place(0, 1, None)).double()
    theirs = large_components().RMSNorm(32, force_float32_reductions=False).double()
    randomise(theirs)
    with torch.no_grad():
        block.norm.weight.copy_(theirs.weight)
        x = torch.randn(3, 5, 32, dtype=torch.float64)
        close("norm", block.norm(x), theirs(x), 1e-12)

"""What the mixers share: norms, head-wise linear maps, the causal convolution and the gated feed-forward net."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import ops
from ..ops.once import once
from ..ops.tracing import traced
from . import initial
from .masks import Steps, chosen, picked


def round_up(value: float, multiple: int = 64) -> int:
    """The next multiple of `multiple` at or above `value`."""
    return multiple * math.ceil(value / multiple)


def positive(**sizes: Any) -> None:
    """Raise for a size that is no whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}={size!r} must be a whole number of at least 1")


def few(x: Tensor) -> bool:
    """Whether x (..., D) holds so few rows, as in step mode, that starting operations costs more than running them."""
    return not torch.compiler.is_compiling() and x.numel() < 64 * x.shape[-1]


class Linear(nn.Linear):
    """torch's linear map on the faster of the CPU's matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


def linear(d_in: int, d_out: int, *, bias: bool = False) -> Linear:
    """A linear map whose parameters are left unset, so that building it draws no random numbers."""
    return initial.unset(Linear(d_in, d_out, bias=bias, device="meta"))


class LayerNorm(nn.Module):
    """Layer norm over the last dimension with scale 1 + weight, weight 0 at start, so that decay pulls it to 1."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight + 1, None, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, reduced in float32 at least; scale 1 at start."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class HeadNorm(nn.Module):
    """Layer norm of each head by itself: (..., N, DH) -> (..., N * DH).

    offset 1 is the paper's scale 1 + weight, offset 0 the plain scale of xLSTM-7B; both scales start at 1.
    """

    def __init__(self, num_heads: int, head_dim: int, *, eps: float = 1e-5, offset: float = 1.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((num_heads * head_dim,), 1 - offset))
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.head_dim,), None, None, self.eps).flatten(-2) * (self.weight + self.offset)


class _NormHeads(torch.autograd.Function):
    """Layer norm of heads (B, T, N, DH), flattened and scaled by (D,): torch's own forward is slow on rows so short."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        inverse = (centred * centred).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(centred, inverse, scale)
        return (centred * inverse).flatten(-2).mul_(scale)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        centred, inverse, scale = ctx.saved_tensors
        inner, nought = (grad * scale).view_as(centred), torch.zeros_like(inverse)
        size, wanted = list(centred.shape[-1:]), [True, False, False]
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            inner, centred, size, nought, inverse, None, None, wanted
        )
        return grad_x, ((centred * inverse).flatten(-2) * grad).sum((0, 1)), None


class HeadNormCPU(HeadNorm):
    """`HeadNorm`, faster in training on a CPU; like the compiled recurrence without second derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        fits = x.device.type == "cpu" and x.dtype == self.weight.dtype and x.dtype.itemsize >= 4
        training = torch.is_grad_enabled() and not traced()
        if not fits or not training or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _NormHeads.apply(x, self.weight + self.offset, self.eps)  # type: ignore[no-any-return]


class BlockLinear(nn.Module):
    """Linear maps that keep to blocks of features, without bias: each block is mapped by its own matrices.

    (..., D) -> one (..., D) for each of `maps`; weight (maps, D / block, block, block), from the third dimension to
    the fourth. Four blocks at a time are multiplied as one block-diagonal matrix: the fastest of the forms measured.
    """

    def __init__(self, features: int, block: int, maps: int = 1) -> None:
        super().__init__()
        if features % block:
            raise ValueError(f"{features} features do not divide into blocks of {block}")
        self.weight = nn.Parameter(torch.empty(maps, features // block, block, block))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps, blocks, size, _ = self.weight.shape
        group = 1 if few(x) else math.gcd(blocks, 4)
        weight = self.weight.view(maps, blocks // group, group, size, size).permute(1, 0, 3, 4, 2)
        wide = torch.diag_embed(weight) if group > 1 else weight[..., None]  # (groups, maps, size, size, group, group)
        wide = wide.permute(0, 4, 2, 1, 5, 3).reshape(blocks // group, group * size, -1)
        out = torch.bmm(x.reshape(-1, blocks // group, group * size).transpose(0, 1), wide)
        return tuple(part.transpose(0, 1).reshape(x.shape) for part in out.chunk(maps, -1))

    def fold(self, after: Tensor) -> Tensor:
        """The matrix (G, D) of `after` (G, maps, D) applied to this layer's outputs and added up over the maps."""
        blocks, size = self.weight.shape[1:3]
        return torch.einsum("mnde,gmne->gnd", self.weight, after.unflatten(-1, (blocks, size))).flatten(1)


class _DepthwiseCPU(torch.autograd.Function):
    """`depthwise` on the CPU: channels last and with its own backward, several times as fast as torch's conv1d."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)
        return F.conv2d(wide, weight[:, :, None], bias, groups=len(weight))[:, :, 0].transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        kernel, steps = weight.shape[-1], grad.shape[1]
        flipped = weight.flip(-1)[:, :, None]
        wide = grad.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)
        grad_x = F.conv2d(wide, flipped, padding=(0, kernel - 1), groups=len(weight))[:, :, 0].transpose(1, 2)
        taps = [(x[:, tap : tap + steps] * grad).sum((0, 1)) for tap in range(kernel)]
        return grad_x, torch.stack(taps, -1)[:, None], grad.sum((0, 1))


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve each feature over time: x (B, T + K - 1, D), weight (D, 1, K), bias (D,) -> (B, T, D)."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    if plain and not traced():
        if not torch.is_grad_enabled():
            return _DepthwiseCPU.forward(x, weight, bias)
        return _DepthwiseCPU.apply(x, weight, bias)  # type: ignore[no-any-return]
    return F.conv1d(x.transpose(1, 2), weight, bias, groups=len(weight)).transpose(1, 2)


class CausalConv(nn.Module):
    """Depthwise causal convolution over time, with the last kernel - 1 inputs as its state (B, K - 1, D)."""

    def __init__(self, dim: int, kernel: int = 4, generator: Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel))
        self.bias = nn.Parameter(torch.empty(dim))
        for parameter in (self.weight, self.bias):
            initial.uniform(parameter, kernel**-0.5, generator)

    def forward(self, x: Tensor, state: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, D), mask (B, T), valid steps first -> y (B, T, D), state after each row's last valid step."""
        dim, _, kernel = self.weight.shape
        past = x.new_zeros(x.shape[0], kernel - 1, dim) if state is None else state.to(x.dtype)
        padded = torch.cat([past, x], 1)
        if x.shape[1] == 1:
            y = (padded * self.weight[:, 0].T).sum(1, keepdim=True) + self.bias
        else:
            y = depthwise(padded, self.weight, self.bias)
        if mask is None:
            return y, padded[:, x.shape[1] :].clone()  # a view would keep the whole sequence
        last = mask.sum(1)[:, None] + torch.arange(kernel - 1, device=x.device)
        return y, picked(padded, last)


class GatedFeedForward(nn.Module):
    """down(act(gate) * up): the up-projection of a post-up-projection block. act: "gelu" (paper) or "silu" (7B)."""

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        act: str = "gelu",
        dropout: float = 0.0,
        num_blocks: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.act = {"gelu": nn.GELU, "silu": nn.SiLU}[act]()
        self.up = linear(d_model, 2 * d_inner)
        self.down = linear(d_inner, d_model)
        self.dropout = nn.Dropout(dropout)
        initial.small(self.up.weight, d_model, generator)
        initial.wang(self.down.weight, d_model, num_blocks, generator)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.dropout(self.down(self.act(gate) * value))


class UpProjected(nn.Module):
    """Any mixer of width d_inner between an up- and a down-projection, gated: a pre-up-projection block around it.

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state.
    """

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        mixer: nn.Module,
        *,
        dropout: float = 0.0,
        num_blocks: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.up = linear(d_model, 2 * d_inner)
        self.norm = LayerNorm(d_inner)
        self.mixer = mixer
        self.down = linear(d_inner, d_model)
        self.dropout = nn.Dropout(dropout)
        initial.small(self.up.weight, d_model, generator)
        initial.wang(self.down.weight, d_model, num_blocks, generator)

    def forward(
        self, x: Tensor, state: Any = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, Any]:
        value, gate = self.up(x).chunk(2, -1)
        y, state = self.mixer(self.norm(value), state, mask, steps)
        return self.dropout(self.down(y * F.silu(chosen(gate, steps)))), state


_PARTS = {BlockLinear, CausalConv, HeadNorm, HeadNormCPU, Linear}


def plain(part: nn.Module) -> bool:
    """Whether a call runs its class's forward and no hook, so that another operation may stand for it."""
    own = part.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not hooks and "forward" not in own


def as_built(norm: nn.Module | None, *parts: nn.Module | None) -> bool:
    """Whether all are plain parts of this file, the norm with the kernels' eps and offset: one operation may stand."""
    for part in (norm, *parts):
        if type(part) not in _PARTS or not plain(part):  # type: ignore[arg-type]
            return False
    return isinstance(norm, HeadNorm) and norm.eps == ops.NORM_EPS and norm.offset == 1


def single(x: Tensor, mask: Tensor | None) -> bool:
    """Whether x (B, T, D) is one step without gradients, which may have a kernel of its own."""
    return mask is None and x.shape[1] == 1 and not torch.is_grad_enabled()


def idle(dropout: nn.Module | None) -> bool:
    """Whether it is torch's own dropout, plain, and now lets everything through."""
    return type(dropout) is nn.Dropout and plain(dropout) and (not dropout.training or dropout.p == 0)

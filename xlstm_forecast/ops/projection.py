"""Input projections: dense, and head by head as in the paper."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import traced

SMALL = 1 << 20  # multiply-adds under which the plain call is as fast
TALL = 1024  # rows under which it is where vectors are not those of AVX-512


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x (..., D_in), weight (D_out, D_in): torch's linear, on oneDNN's product where that is faster.

    torch multiplies float32 matrices on a CPU with MKL, which uses half the vector width on some CPUs with AVX-512; its
    LSTM, and this, use oneDNN. Without AVX-512 the two are level, and oneDNN the slower one for few rows.
    """
    if traced() or not _onednn_fits(x, weight):
        return F.linear(x, weight, bias)
    multiply = _Linear.apply if torch.is_grad_enabled() else _product
    return multiply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def headwise(x: Tensor, W: Tensor, u: Tensor | None = None) -> Tensor:
    """Gates (B, T, N, G, DH) of x (B, T, N, DI) under W (N, DI, G, DH), one matrix per head.

    u: as x, read by the first half of the gates in its place.
    """
    if u is not None:
        first, last = W.chunk(2, 2)
        return torch.cat([headwise(u, first), headwise(x, last)], 3)
    batch, steps, heads, width = x.shape
    y = torch.bmm(x.reshape(-1, heads, width).transpose(0, 1), W.flatten(2))
    return y.view(heads, batch, steps, *W.shape[2:]).permute(1, 2, 0, 3, 4)


def _onednn_fits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply these, and is the faster one."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not plain or torch.is_autocast_enabled("cpu") or x.numel() * weight.shape[0] < SMALL:
        return False
    return (_wide() or (x.shape[:-1].numel() >= TALL and x.stride(-1) == 1)) and _faster()


@functools.cache
def _wide() -> bool:
    """Whether vectors are those of AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def _faster() -> bool:
    """Whether torch has the oneDNN product, an operation that its compiler uses and that no document promises."""
    if not torch.backends.mkldnn.is_available() or "_linear_pointwise" not in dir(torch.ops.mkldnn):
        return False
    try:
        probe = _product(torch.ones(2, 3), torch.ones(4, 3), None)
    except RuntimeError:
        return False
    return bool((probe == 3).all())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias by oneDNN, for x (M, K) and weight (N, K) of any strides."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T without a graph, for x (M, K) and weight (N, K) of any strides, by the faster of the two libraries."""
    return _product(x, weight, None) if _onednn_fits(x, weight) else x @ weight.t()


class _Linear(torch.autograd.Function):
    """The product with its gradients, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives, which oneDNN's product has not
            return dy @ weight, dy.t() @ x, dy.sum(0) if ctx.needs_input_grad[2] else None
        dx = _product(dy, weight.t(), None) if ctx.needs_input_grad[0] else None
        dweight = product(dy.t(), x.t()) if ctx.needs_input_grad[1] else None
        return dx, dweight, dy.sum(0) if ctx.needs_input_grad[2] else None

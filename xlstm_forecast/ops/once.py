"""Backward passes that are computed outside of the graph, and say so when a second derivative is asked of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]
MESSAGE = (
    "the compiled and the analytic backward pass of xLSTM layers have no second derivatives (Hessians, gradient "
    "penalties): build the layer with backend='reference'"
)


class _Refused(torch.autograd.Function):
    """Gradients as they are, connected with what they depend on: going back through them is an error."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(MESSAGE)


def once(backward: Backward) -> Backward:
    """Decorates `backward` of an autograd function: run without a graph; RuntimeError where that is differentiated.

    torch's `once_differentiable` raises only where the incoming gradients depend on the inputs asked for, and gives
    zeros as second derivatives otherwise.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        out = found if isinstance(found, tuple) else (found,)
        try:
            saved = ctx.saved_tensors
        except RuntimeError:  # a checkpoint gives them once
            saved = ()
        sources = [x for x in (*saved, *grads) if isinstance(x, Tensor) and x.requires_grad]
        given = [x for x in out if isinstance(x, Tensor)]
        if not sources or not given:
            return found
        refused = iter(_Refused.apply(len(given), *given, *sources))
        return tuple(next(refused) if isinstance(x, Tensor) else x for x in out)

    return run

"""Whether operations are only run, or also read by something that must see torch's own."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def traced() -> bool:
    """A compiler or tracer, a transform of `torch.func` or forward-mode differentiation looks on: own kernels and
    autograd functions would be invisible to it, or refused."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )

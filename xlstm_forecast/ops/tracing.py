"""Whether operations are only run, or also read by something that must see torch's own."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

_compiling, _tracing = torch.compiler.is_compiling, torch._C._is_tracing
_transforming = torch._C._functorch.peek_interpreter_stack


def traced() -> bool:
    """A compiler or tracer, a transform of `torch.func` or forward-mode differentiation looks on: own kernels and
    autograd functions would be invisible to it, or refused. Asked several times a step, so it must cost nothing."""
    return _compiling() or _tracing() or _transforming() is not None or forward_ad._current_level >= 0

"""sLSTM by the optional package flashrnn: its only home."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from . import eager
from .reference import SLSTMState


def installed() -> bool:
    return importlib.util.find_spec("flashrnn") is not None


def slstm(
    gates: Tensor, R: Tensor, b: Tensor, state: SLSTMState | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence; shapes and meaning as in `reference.slstm`.

    flashrnn's fused CUDA kernel, or its plain form on a CPU. It knows no masks, tests for a fresh state over the whole
    batch, and needs heads of a multiple of 16 units on CUDA: such calls go to the torch path. Two limits stay: in
    float32 an input gate under -88 at the first step gives NaN, and its CUDA kernel has no gradient of the last m.
    """
    cuda = gates.device.type == "cuda"
    if mask is not None or state is not None or gates.device.type not in ("cpu", "cuda") or (cuda and R.shape[1] % 16):
        return eager.slstm(gates, R, b, state, mask=mask)
    from flashrnn import flashrnn

    h, last = flashrnn(
        gates.permute(0, 1, 3, 2, 4).contiguous(),
        R.permute(2, 0, 3, 1).contiguous(),
        b.transpose(0, 1).contiguous(),
        function="slstm",
        backend="cuda_fused" if cuda else "vanilla",
        dtype=str(gates.dtype).removeprefix("torch."),
    )
    return h[0], SLSTMState(*last[:, :, 0])

"""Layers: parameters around the sequence operations, each (B, T, D), state -> (B, T, D), state.

Wrappers in the place of `torch.nn.LSTM`: `sLSTM`, `mLSTM`; the coupled-gate cell: `sLSTMCell`, `sLSTMLayer`.
Mixers, for the encoder, which also take a mask and the steps wanted:
`SLSTMMixer`, `MLSTMMixer`, `LargeMLSTMMixer`, `CoupledMixer`, `TorchRNN`, `CausalAttention`, `LinearMap`.
"""

from .comparison import AttentionState, CausalAttention, LinearMap, RNNState, TorchRNN
from .coupled import CoupledMixer, CoupledState, sLSTMCell, sLSTMLayer
from .masks import Packing, Steps, chosen, detach_state, needed, reverse
from .mlstm import LargeMLSTMMixer, MLSTMMixer, MLSTMMixerState
from .parts import CausalConv, GatedFeedForward, HeadNorm, LayerNorm, RMSNorm, UpProjected, round_up
from .recurrent import mLSTM, sLSTM
from .slstm import PROJECTIONS, SLSTMMixer, SLSTMMixerState, SLSTMRecurrence

__all__ = [
    "PROJECTIONS",
    "AttentionState",
    "CausalAttention",
    "CausalConv",
    "CoupledMixer",
    "CoupledState",
    "GatedFeedForward",
    "HeadNorm",
    "LargeMLSTMMixer",
    "LayerNorm",
    "LinearMap",
    "MLSTMMixer",
    "MLSTMMixerState",
    "Packing",
    "RMSNorm",
    "RNNState",
    "SLSTMMixer",
    "SLSTMMixerState",
    "SLSTMRecurrence",
    "Steps",
    "TorchRNN",
    "UpProjected",
    "chosen",
    "detach_state",
    "mLSTM",
    "needed",
    "reverse",
    "round_up",
    "sLSTM",
    "sLSTMCell",
    "sLSTMLayer",
]

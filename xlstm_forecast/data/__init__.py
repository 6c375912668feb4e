"""From long frames to batches: `frame` (roles, checks, encoding), `windows` (vectorised windows), `sources` (larger than memory)."""

from .frame import Encoding, Panel, Roles, forecast_frame, future_times, to_panel
from .loader import Loader, Sampler
from .windows import Windows

__all__ = ["Encoding", "Loader", "Panel", "Roles", "Sampler", "Windows", "forecast_frame", "future_times", "to_panel"]

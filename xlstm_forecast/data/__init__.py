"""From long frames to batches: `frame` reads, `windows` gathers, `loader` orders, `sources` holds more than memory."""

from .frame import Encoding, Panel, Roles, forecast_frame, future_times, to_panel
from .loader import Loader, Sampler
from .windows import Windows

__all__ = ["Encoding", "Loader", "Panel", "Roles", "Sampler", "Windows", "forecast_frame", "future_times", "to_panel"]

"""From long frames to batches: `frame` reads, `windows` gathers, `loader` orders, `sources` holds more than memory."""

from .dataset import WindowDataset
from .frame import Encoding, Panel, Roles, forecast_frame, future_times, to_panel
from .loader import Loader, Sampler
from .snapping import snap_times
from .sources import open_panel, stored_panel
from .windows import Windows

__all__ = [
    "Encoding",
    "Loader",
    "Panel",
    "Roles",
    "Sampler",
    "WindowDataset",
    "Windows",
    "forecast_frame",
    "future_times",
    "open_panel",
    "snap_times",
    "stored_panel",
    "to_panel",
]

"""From long frames to batches: `frame` (roles, checks, encoding), `windows` (vectorised windows), `sources` (larger than memory)."""

"""Finished windows of a backtest on disk: one file per group of windows, each written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "backtest.json"


class Folder:
    """Keeps finished windows, for one backtest only: forecaster, data and options are recognised by `fingerprint`.

    Raises ValueError where the folder belongs to another backtest.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / MANIFEST
        if manifest.exists():
            found = json.loads(manifest.read_text()).get("fingerprint")
            if found != fingerprint:
                raise ValueError(
                    f"folder {str(path)!r} holds windows of another backtest (other data, options or forecaster): "
                    "give another folder, or empty this one"
                )
        else:
            _write(manifest, json.dumps({"fingerprint": fingerprint}).encode())

    def _file(self, group: int) -> Path:
        return self.path / f"window-{group:05d}.npz"

    def read(self, group: int) -> dict[str, np.ndarray] | None:
        """The arrays of a finished group, None where it is not finished."""
        file = self._file(group)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def keep(self, group: int, **arrays: Any) -> None:
        """Write a finished group, unless it is there."""
        if self._file(group).exists():
            return
        temporary = self.path / f".{self._file(group).name}.{os.getpid()}.npz"
        np.savez(temporary, **arrays)
        os.replace(temporary, self._file(group))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)

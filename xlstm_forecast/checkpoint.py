"""Checkpoints: one safetensors file whose header carries the configuration as JSON. Never pickle.

A digest over configuration and tensors tells a damaged or edited file from a sound one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import replacing

FORMAT_VERSION = 2  # 1: before backbones told what features their coefficients are of


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the configuration and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and a JSON-able configuration to `path`, in one move, so that no half-written file is left."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(config, sort_keys=True)
    header = {"format_version": str(FORMAT_VERSION), "config": text, "digest": _digest(text, plain)}
    with replacing(path) as file:
        file.write_bytes(save(plain, metadata=header))


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and configuration of a checkpoint.

    Raises FileNotFoundError for a missing file, ValueError for one that is truncated, edited, not a checkpoint of
    this package, or written by a newer version of it.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            version = header.get("format_version")
            if version is None or "config" not in header or "digest" not in header:
                raise ValueError(f"{path} is a safetensors file, but not a checkpoint of xlstm_forecast")
            if not version.isdigit() or int(version) > FORMAT_VERSION:
                raise ValueError(
                    f"{path} has format_version {version}; this xlstm_forecast reads up to {FORMAT_VERSION}: "
                    "upgrade the package to load it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a checkpoint ({error}); save the model again") from error
    if _digest(header["config"], tensors) != header["digest"]:
        raise ValueError(f"{path} was changed after it was saved: its contents do not match their digest")
    return tensors, json.loads(header["config"])

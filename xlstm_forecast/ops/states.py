"""States as `torch.export` keeps them: named tuples that a saved program knows by name."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.utils import _pytree

Kind = TypeVar("Kind")


def kept(cls: type[Kind]) -> type[Kind]:
    """Register a named tuple, so that programs that take or return it, and files that hold it, can be read again.

    torch has no public way to say so; where this one is missing programs run and cannot be saved.
    """
    torch.serialization.add_safe_globals([cls])
    register = getattr(_pytree, "_register_namedtuple", None)
    if register is not None:
        register(cls, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")
    return cls

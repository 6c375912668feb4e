"""The configuration of a language-model run: strict, from YAML, with `--key value` options in place of what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..files import read_yaml
from .text import KINDS

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Data, model and training of a language model.

    train_data, valid_data: a file, a pattern such as "docs/*.md", or a list of these. vocab_file: a saved tokenizer;
    where the file does not exist, `fit_from_config` fits one of `tokenizer` kind and `vocab_size` on the training text
    and writes it there. output: folder for the fitted model; None: nothing is written.
    """

    train_data: str | list[str]
    valid_data: str | list[str] | None = None
    vocab_file: str | None = None
    tokenizer: str = "bpe"
    vocab_size: int = 1000
    max_length: int = 128  # tokens of a window: how far gradients reach back
    output: str | None = None

    embedding_size: int = 128
    hidden_size: int = 128
    num_layers: int = 1
    num_blocks: int = 4
    dropout: float = 0.0
    bidirectional: bool = False
    lstm_type: str = "mLSTM"
    block: str | None = None
    num_heads: int = 4
    conv_kernel: int = 4
    tie_embeddings: bool = False

    epochs: int = 1
    max_steps: int | None = None  # where given, replaces epochs
    batch_size: int = 16  # rows, each reading its own stretch of the text
    carry_state: bool = True  # from each window to the next of its row: truncated back-propagation
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 20
    schedule: str = "cosine"  # to a tenth of lr; or "constant", both after the warm-up
    gradient_clip: float = 1.0  # 0: none
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_length", "epochs", "batch_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1, or null for epochs")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: expected a positive learning rate")
        for name in ("weight_decay", "warmup_steps", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number of at least 0")
        for name, choices in (("tokenizer", KINDS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(choices)}")


def load_config(source: str | Path | Mapping[str, Any], **overrides: Any) -> LanguageConfig:
    """Read a YAML file, or a mapping, into a `LanguageConfig`; `overrides` replace what it says.

    Raises ValueError for a key that does not exist, naming the nearest one, for a missing key and for a value of the
    wrong type, FileNotFoundError for a missing file.
    """
    where = "the configuration" if isinstance(source, Mapping) else str(source)
    values = {**(source if isinstance(source, Mapping) else read_yaml(source)), **overrides}
    types = get_type_hints(LanguageConfig)
    for key in values:
        if key not in types:
            near = difflib.get_close_matches(str(key), list(types), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(types)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
    needed = [f.name for f in dataclasses.fields(LanguageConfig) if f.default is dataclasses.MISSING]
    for key in needed:
        if key not in values:
            raise ValueError(f"{where}: the key {key!r} is missing")
    return LanguageConfig(**{key: _typed(key, value, _named(types[key])) for key, value in values.items()})


def usage() -> str:
    """What the command line tells of the keys: name, type, and value where nothing is set."""
    types = get_type_hints(LanguageConfig)
    lines = ["usage: xlstm-forecast language fit --config FILE [--key value ...]", ""]
    for field in dataclasses.fields(LanguageConfig):
        kind = _named(types[field.name])
        otherwise = "needed" if field.default is dataclasses.MISSING else f"default {field.default!r}"
        lines.append(f"  --{field.name} ({kind}; {otherwise})")
    return "\n".join(lines)


def parse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Command-line options ["--lr", "1e-3", "--seed=2"] as overrides for `load_config`, values read as YAML."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise ValueError(f"expected options of the form --key value, found {name!r}")
        text = value if equals else rest.pop(0)
        try:
            values[name[2:].replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError:  # such as the pattern *.md
            values[name[2:].replace("-", "_")] = text
    return values


def _named(annotation: Any) -> str:
    """A type as it is written."""
    return str(annotation).removeprefix("<class '").removesuffix("'>")


def _typed(key: str, value: Any, kind: str) -> Any:
    """The value, checked against its type as annotated; whole numbers and "1e-3", text to YAML, are floats too."""
    accepted: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
        "list[str]": list,
        "None": type(None),
    }
    names = kind.split(" | ")
    if "float" in names and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    fits = any(isinstance(value, accepted[name]) for name in names)
    if not fits or (isinstance(value, bool) and "bool" not in names):
        wanted = " or ".join("null" if name == "None" else name for name in names)
        raise ValueError(f"{key}={value!r}: expected {wanted}, found {type(value).__name__}")
    return float(value) if names == ["float"] else value

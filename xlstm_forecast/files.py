"""Files as users give and get them: whole or not at all, and YAML in which no key stands twice."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` at the end: what was there stays until then, or for good.

    The rights are those of the file that was there, else those that any new file gets. Raises ValueError for a folder.
    """
    path = Path(path)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def check_place(path: str | Path) -> None:
    """Raise ValueError where no file can be written to `path`: a folder is there, or a file where a folder must be."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"cannot write to {path}: it is a folder; give a file name")
    above = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise ValueError(f"cannot write to {path}: {above} is a file, not a folder")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError where it is none or a key is given twice, FileNotFoundError."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration {str(path)!r} does not exist")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except _TwiceError as error:
        raise ValueError(f"{path}: the key {error.args[0]!r} is given twice; keep one of them") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    return values


class _TwiceError(Exception):
    pass


def _loader() -> Any:
    """YAML's safe loader, which would take the last of two equal keys, made to refuse them."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if len(set(keys)) < len(keys):
                raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
            return super().construct_mapping(node, deep)

    return Loader

"""Panels larger than memory: files or chunks are read once into memory-mapped columns, and trained from there.

The first pass over the rows learns series, times, vocabularies and moments; the second writes every value to its place
on the time grid, whatever the order of the rows. Writing is repeatable, so a conversion that was killed goes on with
the file it was in; the panel appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import narwhals as nw
import numpy as np
import pandas as pd

from ..files import replacing
from .calendar import Frequency, TimeAxis, infer_frequency, parse_frequency, settle
from .columns import TimeColumn, Vocabulary, counted, floats, numeric, open_frame, require
from .grid import Grid, Learner, Moments, bad_values, check_observed, ordinals
from .panel import Panel
from .roles import Encoding, Roles, ordered

Array = np.ndarray
Part = tuple[str, Callable[[], Iterable[Any]]]  # a name, and its rows as frames

FORMAT = 1
_READ_ROWS = 1 << 17
_SAMPLED_SERIES, _SAMPLED_ROWS = 64, 500_000
_ARRAYS = ("target", "known", "past", "known_categories", "past_categories", "weight")


def stored_panel(
    source: Any,
    roles: Roles,
    cache: str | os.PathLike[str],
    *,
    freq: Any = None,
    on_gap: str = "error",
    encoding: Encoding | None = None,
) -> Panel:
    """The panel of Parquet, Arrow or Feather files, or of frames that come in chunks, as memory-mapped columns.

    `source`: a folder (partitioned any way), a file, a list of files, or a function that gives the frames anew each
    time it is called. `cache`: a folder for the columns; a finished conversion of the same files and settings is
    opened, a broken-off one continued; frames from a function are always read anew. Raises ValueError as `to_panel`
    does.
    """
    if on_gap not in ("error", "mask"):
        raise ValueError(f"on_gap={on_gap!r} is neither 'error' nor 'mask'")
    parts, identity = _parts(source, roles)
    settings = [FORMAT, roles.to_dict(), str(freq), on_gap, None if encoding is None else encoding.to_dict(), identity]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    final, building = Path(cache) / f"panel-{key}", Path(cache) / f"building-{key}"
    if callable(source):
        for folder in (final, building):
            shutil.rmtree(folder, ignore_errors=True)
    if not final.exists():
        building.mkdir(parents=True, exist_ok=True)
        _Conversion(parts, roles, building, freq, on_gap, encoding).run()
        os.replace(building, final)
    return open_panel(final)


def open_panel(folder: str | os.PathLike[str]) -> Panel:
    """A finished panel from its folder; the columns stay on disk and are mapped."""
    folder = Path(folder)
    if not (folder / "panel.json").exists():
        raise ValueError(f"{str(folder)!r} holds no finished panel")
    meta = json.loads((folder / "panel.json").read_text())
    if meta["format"] != FORMAT:
        raise ValueError(f"{str(folder)!r} has format {meta['format']}; this version reads {FORMAT}: convert it again")
    arrays: dict[str, Any] = {
        name: _mapped(folder / f"{name}.npy") for name in (*meta["arrays"], *meta["series_arrays"])
    }
    roles, encoding = Roles(**meta["roles"]), Encoding.from_dict(meta["encoding"])
    axis = TimeAxis(**{**meta["axis"], "freq": Frequency(**meta["axis"]["freq"])})
    keys = meta["keys"]
    ids = None if roles.id is None else _column(roles.id, pd.Series(keys), meta["id_dtype"])
    return Panel(
        roles=roles,
        encoding=encoding,
        axis=axis,
        ids=ids,
        keys=keys,
        history=np.diff(arrays["offsets"]),
        time_template=_column(roles.time, pd.Series([], dtype=meta["time_dtype"]), meta["time_dtype"]),
        weight=arrays.pop("weight", None),
        **arrays,
    )


def _column(name: str, values: pd.Series, dtype: str) -> nw.Series:
    return nw.from_native(values.astype(dtype).rename(name), series_only=True)


def _mapped(path: Path) -> Array:
    """An array on disk, mapped copy-on-write: torch takes no read-only memory."""
    shape = np.load(path, mmap_mode="r").shape
    return np.load(path) if 0 in shape else np.load(path, mmap_mode="c")


def _parts(source: Any, roles: Roles) -> tuple[list[Part], Any]:
    """The parts of a source, and what tells whether it is the same source again."""
    if callable(source):
        return [("the frames", source)], "frames"
    paths = _files(source)
    columns = list(roles.columns)
    identity = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return [(str(p), lambda p=p: _read_file(p, columns)) for p in paths], identity  # type: ignore[misc]


def _files(source: Any) -> list[Path]:
    given = [Path(p) for p in ([source] if isinstance(source, (str, os.PathLike)) else source)]
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise ValueError(f"source {str(path)!r} does not exist")
        inside = sorted(p for p in path.rglob("*") if p.suffix in _KINDS) if path.is_dir() else [path]
        found += [p for p in inside if not p.name.startswith(("_", "."))]
    if not found:
        raise ValueError(f"source {source!r} has no file that ends in {', '.join(_KINDS)}")
    for path in found:
        if path.suffix not in _KINDS:
            raise ValueError(f"source file {str(path)!r} does not end in one of {', '.join(_KINDS)}")
    return found


_KINDS = {".parquet": "parquet", ".pq": "parquet", ".feather": "feather", ".arrow": "arrow", ".ipc": "arrow"}


def _read_file(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """A file's rows as frames of some columns, with those that its folder names ("year=2024") tell."""
    try:
        import pyarrow.dataset
    except ImportError:
        raise ImportError(
            "reading Parquet and Arrow files needs pyarrow: pip install 'xlstm-forecast[parquet]'"
        ) from None
    data = pyarrow.dataset.dataset(path, format=_KINDS[path.suffix])
    told = {k: _told(v) for k, v in (part.split("=", 1) for part in path.parent.parts if "=" in part)}
    inside = [c for c in columns if c in data.schema.names]
    for batch in data.to_batches(columns=inside, batch_size=_READ_ROWS, batch_readahead=1, use_threads=False):
        if batch.num_rows:
            frame = batch.to_pandas(date_as_object=False)
            yield frame.assign(**{c: told[c] for c in columns if c in told and c not in inside})


def _told(value: str) -> Any:
    """A value in a folder's name: an integer where it is written as one."""
    value = unquote(value)
    if value == "__HIVE_DEFAULT_PARTITION__":
        return None
    return int(value) if value.removeprefix("-").isdecimal() and str(int(value)) == value else value


class _Conversion:
    """Two passes over the parts: `scan` learns, `fill` writes."""

    def __init__(self, parts: list[Part], roles: Roles, folder: Path, freq: Any, on_gap: str, fitted: Encoding | None):
        self.parts, self.roles, self.folder, self.freq, self.on_gap = parts, roles, folder, freq, on_gap
        self.learner, self.fitted = Learner(fitted), fitted
        self.series = Vocabulary()
        self.vocabularies = {c: Vocabulary() for role in ("past", "future") for c in roles.categories(role)}
        self.moments = {c: Moments() for role in ("past", "future") for c in roles.reals(role)}
        self.static: dict[str, Array] = {c: np.empty(0) for c in roles.reals("static")}
        self.static_vocabularies = {c: Vocabulary() for c in roles.categories("static")}
        self.static |= {c: np.empty(0, np.int32) for c in self.static_vocabularies}
        self.low, self.high, self.rows = np.empty(0, np.int64), np.empty(0, np.int64), 0
        self.sample: list[tuple[Array, Array]] = []
        self.time: TimeColumn | None = None
        self.dtypes: tuple[str, str] = ("", "")

    def run(self) -> None:
        for name, a, frame in self._frames():
            self._scan(name, a, frame)
        if self.rows == 0:
            raise ValueError("the source has no rows")
        axis, grid = self._layout()
        self._fill(axis, grid)

    def _frames(self, part: Part | None = None) -> Iterator[tuple[str, int, nw.DataFrame]]:
        """(part, number of the first row in it, rows)"""
        for name, read in self.parts if part is None else [part]:
            a = 0
            for native in read():
                if len(native):
                    frame, _ = open_frame(native, self.roles, name)
                    yield name, a, frame
                    a += len(frame)

    def _codes(self, frame: nw.DataFrame) -> Array:
        if self.roles.id is None:
            self.series.index.setdefault(0, 0)
            return np.zeros(len(frame), np.int32)
        return self.series.codes(frame[self.roles.id])

    def _scan(self, name: str, a: int, frame: nw.DataFrame) -> None:
        roles = self.roles
        require(frame, roles.columns, name)
        self._check_types(name, a, frame)
        codes = self._codes(frame)
        ticks = self._ticks(name, frame)
        self._grow(len(self.series.index))
        np.minimum.at(self.low, codes, ticks)
        np.maximum.at(self.high, codes, ticks)
        self.rows += len(frame)
        chosen = codes < _SAMPLED_SERIES
        if chosen.any() and sum(len(c) for c, _ in self.sample) < _SAMPLED_ROWS:
            self.sample.append((codes[chosen], ticks[chosen]))
        for column, moments in self.moments.items():
            moments.add(floats(frame[column]))
        for column, vocabulary in self.vocabularies.items():
            vocabulary.codes(frame[column])
        for column in self.static:
            self._scan_static(name, a, frame, column, codes)

    def _check_types(self, name: str, a: int, frame: nw.DataFrame) -> None:
        roles = self.roles
        for column in roles.target:
            numeric(frame[column], "target")
        for role in ("static", "past", "future"):
            for column in roles.reals(role):
                numeric(frame[column], f"{role} covariate", booleans=True)
        for column in filter(None, (roles.id, roles.time)):
            missing = frame[column].is_null().to_numpy()
            if missing.any():
                raise ValueError(f"column {column!r} is missing in {name}, row {a + int(np.argmax(missing))}")

    def _ticks(self, name: str, frame: nw.DataFrame) -> Array:
        column = frame[self.roles.time]
        time = TimeColumn.of(column)
        if self.time is None:
            self.time = time
            native = [nw.to_native(frame[c]).dtype if c else "" for c in (self.roles.id, self.roles.time)]
            self.dtypes = ("object" if str(native[0]) == "category" else str(native[0]), str(native[1]))
        if (time.kind, time.tz, time.period) != (self.time.kind, self.time.tz, self.time.period):
            have, first = (f"{t.kind} {t.tz or t.period or ''}".strip() for t in (time, self.time))
            raise ValueError(f"time column {self.roles.time!r} is {have} in {name}, but {first} before; use one type")
        return time.convert(time.ticks(column), self.time.unit)

    def _grow(self, count: int) -> None:
        more = count - len(self.low)
        if more > 0:
            limits = np.iinfo(np.int64)
            self.low = np.r_[self.low, np.full(more, limits.max)]
            self.high = np.r_[self.high, np.full(more, limits.min)]

    def _scan_static(self, name: str, a: int, frame: nw.DataFrame, column: str, codes: Array) -> None:
        """Keep the value of each new series; refuse one that changes."""
        vocabulary = self.static_vocabularies.get(column)
        values = floats(frame[column]) if vocabulary is None else vocabulary.codes(frame[column])
        kept = self.static[column]
        if len(self.low) > len(kept):
            new = np.zeros(len(self.low), values.dtype)
            new[codes[::-1]] = values[::-1]
            new[: len(kept)] = kept
            self.static[column] = kept = new
        differs = (values != kept[codes]) & ~((values != values) & (kept[codes] != kept[codes]))
        if differs.any():
            row = int(np.argmax(differs))
            raise ValueError(
                f"static column {column!r} changes within a series; first: {name}, row {a + row}, "
                f"{self._name(int(codes[row]))}; give it as past or future covariate"
            )

    def _name(self, code: int) -> str:
        return "the series" if self.roles.id is None else f"{self.roles.id}={list(self.series.index)[code]!r}"

    def _layout(self) -> tuple[TimeAxis, Grid]:
        """The time axis and the grid, series in sorted order; `rank` takes their numbers there."""
        time = self.time
        assert time is not None

        def axis(freq: Frequency) -> TimeAxis:
            return TimeAxis(kind=time.kind, freq=freq, unit=time.unit, tz=time.tz, period=time.period)

        freq = self.freq if self.freq is not None or self.fitted is None else self.fitted.freq
        codes, ticks = (np.concatenate(x) for x in zip(*self.sample, strict=True))
        order = np.lexsort((ticks, codes))
        codes, ticks = codes[order], ticks[order]
        if freq is None:
            chosen = axis(infer_frequency(axis, ticks, codes, self.roles.time))
        else:
            chosen = axis(settle(axis, parse_frequency(freq), ticks))
        self.keys = ordered(self.series.index)
        order = np.array([self.series.index[key] for key in self.keys])
        self.rank = np.empty(len(order), np.int32)
        self.rank[order] = np.arange(len(order), dtype=np.int32)
        start, phase = chosen.split(self.low[order])
        end, other = chosen.split(self.high[order])
        phase = np.minimum(phase, other) if chosen.shifting else phase
        grid = Grid.spanning(chosen, self.roles.time, self._sorted_name, start, end, phase, self.rows)
        return chosen, grid

    def _sorted_name(self, series: int) -> str:
        return "the series" if self.roles.id is None else f"{self.roles.id}={self.keys[series]!r}"

    def _fill(self, axis: TimeAxis, grid: Grid) -> None:
        out = self._create(grid.rows)
        done_file = self.folder / "done.json"
        done = json.loads(done_file.read_text()) if done_file.exists() else []
        for part in self.parts:
            if part[0] in done:
                continue
            for name, a, frame in self._frames(part):
                self._write(out, axis, grid, name, a, frame)
            for array in out.values():
                if isinstance(array, np.memmap):
                    array.flush()
            done.append(part[0])
            _write_json(done_file, done)
        self._check(out, axis, grid)
        self._finish(out, axis, grid)

    def _create(self, rows: int) -> dict[str, Array]:
        """The columns on disk, new or as a broken-off run left them."""
        roles = self.roles
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "target": ((rows, len(roles.target)), np.float64),
            "known": ((rows, len(roles.reals("future"))), np.float32),
            "past": ((rows, len(roles.reals("past"))), np.float32),
            "known_categories": ((rows, len(roles.categories("future"))), np.int32),
            "past_categories": ((rows, len(roles.categories("past"))), np.int32),
            "seen": ((rows,), np.bool_),
        }
        if roles.weight is not None:
            shapes["weight"] = ((rows,), np.float32)
        ready = self.folder / "created"
        out = {}
        for name, (shape, dtype) in shapes.items():
            path = self.folder / f"{name}.npy"
            if 0 in shape:
                out[name] = np.zeros(shape, dtype)
                np.save(path, out[name])
                continue
            mode: Any = "r+" if ready.exists() else "w+"
            out[name] = np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)
        ready.touch()
        return out

    def _write(self, out: dict[str, Array], axis: TimeAxis, grid: Grid, name: str, a: int, frame: nw.DataFrame) -> None:
        roles, codes = self.roles, self.rank[self._codes(frame)]

        def where(row: int) -> str:
            return f"{name}, row {a + row} ({self._sorted_name(int(codes[row]))})"

        ordinal = ordinals(axis, self._ticks(name, frame), grid.phase[codes], roles.time, where)
        place = grid.offsets[codes] + ordinal - grid.start[codes]
        out["seen"][place] = True
        for j, column in enumerate(roles.target):
            out["target"][place, j] = self._reals(frame[column], True, where)
        if roles.weight is not None:
            out["weight"][place] = self._reals(frame[roles.weight], False, where)
        for role, array in (("past", "past"), ("future", "known")):
            for j, column in enumerate(roles.reals(role)):
                location, scale = self._spread(column)
                values = self._reals(frame[column], role == "past", where)
                out[array][place, j] = (values - location) / scale
            for j, column in enumerate(roles.categories(role)):
                vocabulary = self.vocabularies[column]
                local = vocabulary.codes(frame[column])
                out[f"{array}_categories"][place, j] = self._table(column, vocabulary)[local]

    def _spread(self, column: str) -> tuple[float, float]:
        if column not in self.learner.location:
            self.learner.location[column], self.learner.scale[column] = self.moments[column].result()
        return self.learner.location[column], self.learner.scale[column]

    def _table(self, column: str, vocabulary: Vocabulary) -> Array:
        if not hasattr(self, "_tables"):
            self._tables: dict[str, Array] = {}
        if column not in self._tables:
            self._tables[column] = self.learner.table(column, vocabulary)
        return self._tables[column]

    @staticmethod
    def _reals(series: nw.Series, missing: bool, where: Callable[[int], str]) -> Array:
        x = floats(series)
        wrong = np.isinf(x) if missing else ~np.isfinite(x)
        if wrong.any():
            raise ValueError(bad_values(str(series.name), int(wrong.sum()), where(int(np.argmax(wrong))), missing))
        return x

    def _check(self, out: dict[str, Array], axis: TimeAxis, grid: Grid) -> None:
        """What only the whole shows: repeated rows, gaps, series without a value."""
        found = int(np.count_nonzero(out["seen"]))
        if found < self.rows:
            self._raise_repeated(axis, grid, self.rows - found)
        if found < grid.rows:
            grid.holes = ~np.asarray(out["seen"])
            if self.on_gap == "error":
                grid.raise_gaps(axis, self.roles.time, self._sorted_name)
            out["target"][grid.holes] = np.nan
            out["past"][grid.holes] = np.nan
            if "weight" in out:
                out["weight"][grid.holes] = 1
            if out["known"].shape[1]:
                grid.carry(out["known"])
        if "weight" in out and (out["weight"] < 0).any():
            raise ValueError(f"weight column {self.roles.weight!r} has negative values; weights are >= 0")
        check_observed(self.roles.target, grid, out["target"], self._sorted_name)

    def _raise_repeated(self, axis: TimeAxis, grid: Grid, count: int) -> None:
        """Read once more, for the first row that was there before."""
        seen = np.zeros(grid.rows, bool)
        for name, a, frame in self._frames():
            codes, ticks = self.rank[self._codes(frame)], self._ticks(name, frame)
            place = grid.offsets[codes] + axis.split(ticks)[0] - grid.start[codes]
            first = np.zeros(len(place), bool)
            first[np.unique(place, return_index=True)[1]] = True
            again = seen[place] | ~first
            if again.any():
                row = int(np.argmax(again))
                keys = f"({self.roles.id}, {self.roles.time})" if self.roles.id else self.roles.time
                raise ValueError(
                    f"{counted(count, 'row repeats', 'rows repeat')} the same {keys}; first: {name}, row {a + row} "
                    f"({self._sorted_name(int(codes[row]))}, {self.roles.time}={axis.show(int(ticks[row]))}); drop or "
                    f"aggregate them"
                )
            seen[place] = True

    def _finish(self, out: dict[str, Array], axis: TimeAxis, grid: Grid) -> None:
        encoding_keys = self.keys if self.fitted is None else self.fitted.ids
        index = {key: i for i, key in enumerate(encoding_keys)}
        arrays = {
            "offsets": grid.offsets,
            "start": grid.start,
            "phase": grid.phase,
            "series": np.array([index.get(key, -1) for key in self.keys], np.int64),
            **self._static_arrays(),
        }
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        for array in out.values():
            if isinstance(array, np.memmap):
                array.flush()
        encoding = self.learner.encoding(axis, self.keys)
        meta = {
            "format": FORMAT,
            "roles": self.roles.to_dict(),
            "encoding": encoding.to_dict(),
            "axis": asdict(axis),
            "keys": self.keys,
            "id_dtype": self.dtypes[0],
            "time_dtype": self.dtypes[1],
            "arrays": [name for name in _ARRAYS if name in out],
            "series_arrays": list(arrays),
        }
        for name in ("seen.npy", "done.json", "created"):
            (self.folder / name).unlink(missing_ok=True)
        _write_json(self.folder / "panel.json", meta)

    def _static_arrays(self) -> dict[str, Array]:
        order = np.argsort(self.rank)
        reals, categories = self.roles.reals("static"), self.roles.categories("static")
        static = np.empty((len(order), len(reals)), np.float32)
        for j, column in enumerate(reals):
            values = self.static[column][order]
            location, scale = self.learner.standardise(column, [values])
            static[:, j] = (values - location) / scale
        indices = np.zeros((len(order), len(categories)), np.int32)
        for j, column in enumerate(categories):
            indices[:, j] = self.learner.table(column, self.static_vocabularies[column])[self.static[column][order]]
        return {"static": static, "static_categories": indices}


def _write_json(path: Path, value: Any) -> None:
    """Write a file so that it is there whole or not at all."""
    with replacing(path) as file:
        file.write_text(json.dumps(value))

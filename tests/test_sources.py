"""Panels from files and chunks: equal to that of the whole frame, however partitioned and however often broken off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast.data import (
    Loader,
    Panel,
    Roles,
    Sampler,
    Windows,
    forecast_frame,
    open_panel,
    sources,
    stored_panel,
    to_panel,
)

pytest.importorskip("pyarrow")

ROLES = Roles(past=("p",), future=("k", "c"), static=("st",), categorical=("c", "sc"), weight="w")


def frame(tz: str | None = "Europe/Paris", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(7):
        n = 50 + i * 9
        columns = {
            "unique_id": f"s{6 - i}",
            "ds": pd.date_range("2024-03-30", periods=n, freq="h", tz=tz),
            "y": np.where(rng.random(n) < 0.1, np.nan, rng.normal(100, 5, n)),
            "p": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
            "k": rng.normal(size=n),
            "c": rng.choice(np.array(["a", "b", None], object), n),
            "st": float(i),
            "sc": "xy"[i % 2],
            "w": rng.random(n),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def write(df: pd.DataFrame, folder: Path, parts: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for j in range(parts):
        df.iloc[j::parts].to_parquet(folder / f"part-{j}.parquet", row_group_size=31)
    return folder


def same(a: Panel, b: Panel) -> None:
    exact = ("offsets", "start", "phase", "history", "series", "target", "known_categories", "past_categories")
    for name in (*exact, "static_categories"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("known", "past", "static", "weight"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6, err_msg=name)
    assert (a.keys, a.freq, a.axis, a.encoding.categories) == (b.keys, b.freq, b.axis, b.encoding.categories)


@pytest.mark.parametrize("partition", ["rows", "shuffled", "by series", "feather", "chunks"])
def test_any_partition_gives_the_panel_of_the_whole_frame(tmp_path, partition):
    df = frame()
    source = tmp_path / "in"
    if partition == "by series":
        for name, rows in df.groupby("unique_id"):
            write(rows.drop(columns="unique_id"), source / f"unique_id={name}", 2)
    elif partition == "feather":
        source.mkdir()
        df.to_feather(source / "all.feather")
    elif partition != "chunks":
        write(df.sample(frac=1, random_state=0) if partition == "shuffled" else df, source)
    chunks = lambda: (df.iloc[a : a + 40] for a in range(0, len(df), 40))  # noqa: E731
    panel = stored_panel(chunks if partition == "chunks" else source, ROLES, tmp_path / "cache")
    whole = to_panel(df, ROLES)
    same(panel, whole)
    assert isinstance(panel.target, np.memmap)
    frames = [forecast_frame(p, np.arange(7), p.history, {"forecast": np.zeros((7, 3))}) for p in (panel, whole)]
    pd.testing.assert_frame_equal(*frames)
    windows = [Windows(p, 24, 6) for p in (panel, whole)]
    for (a, x), (b, y) in zip(*(Loader(Sampler(w, 32)) for w in windows), strict=True):
        torch.testing.assert_close(a.target, b.target)
        torch.testing.assert_close(a.known, b.known, rtol=1e-4, atol=1e-5)
        assert torch.equal(x.observed, y.observed)


def test_a_finished_conversion_is_opened_and_a_changed_source_is_read_anew(tmp_path, monkeypatch):
    df, source = frame(), tmp_path / "in"
    write(df, source)
    first = stored_panel(source, ROLES, tmp_path / "cache")
    monkeypatch.setattr(sources._Conversion, "run", lambda self: pytest.fail("converted again"))
    same(stored_panel(source, ROLES, tmp_path / "cache"), first)
    (folder,) = (tmp_path / "cache").iterdir()
    same(open_panel(folder), first)
    monkeypatch.undo()
    write(df.assign(y=df["y"] + 1), source)
    np.testing.assert_allclose(stored_panel(source, ROLES, tmp_path / "cache").target, first.target + 1)


@pytest.mark.parametrize("killed_at", [0, 1, 5, 9, 15])
def test_a_conversion_killed_anywhere_leaves_nothing_half_read_and_goes_on(tmp_path, monkeypatch, killed_at):
    df, source = frame(), write(frame(), tmp_path / "in")
    monkeypatch.setattr(sources, "_READ_ROWS", 40)
    write_part, calls, parts = sources._Conversion._write, [0], []

    def dying(self, out, axis, grid, name, a, rows):
        if calls[0] == killed_at:
            half = rows[: len(rows) // 2]
            write_part(self, out, axis, grid, name, a, half.with_columns(y=half["y"] + 7.0))  # then the lights went out
            raise KeyboardInterrupt
        calls[0] += 1
        write_part(self, out, axis, grid, name, a, rows)

    monkeypatch.setattr(sources._Conversion, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        stored_panel(source, ROLES, tmp_path / "cache")
    assert [p.name.split("-")[0] for p in (tmp_path / "cache").iterdir()] == ["building"]
    with pytest.raises(ValueError, match="holds no finished panel"):
        open_panel(next((tmp_path / "cache").iterdir()))

    record = next((tmp_path / "cache").glob("*/done.json"), None)
    finished = 0 if record is None else len(json.loads(record.read_text()))
    assert finished == killed_at // 5

    def counting(self, out, axis, grid, name, a, rows):
        parts.append(name)
        write_part(self, out, axis, grid, name, a, rows)

    monkeypatch.setattr(sources._Conversion, "_write", counting)
    same(stored_panel(source, ROLES, tmp_path / "cache"), to_panel(df, ROLES))
    assert len(set(parts)) == 4 - finished


def test_gaps_become_missing_values_or_are_refused(tmp_path):
    df = frame().drop([3, 4, 5, 80, 200])
    source = write(df, tmp_path / "in")
    with pytest.raises(ValueError, match=r"3 series have gaps in 'ds' at freq='h'; first: unique_id='s\d', after 2024"):
        stored_panel(source, ROLES, tmp_path / "cache")
    panel, whole = stored_panel(source, ROLES, tmp_path / "cache", on_gap="mask"), to_panel(df, ROLES, on_gap="mask")
    same(panel, whole)


def test_bad_rows_are_refused_by_file_and_row(tmp_path):
    df = frame()
    cases = {
        r"1 row repeats the same \(unique_id, ds\); first: .*part-\d.parquet, row \d+": pd.concat([df, df.iloc[[9]]]),
        "column 'k' is missing or infinite in 1 row; first: .*part-1.parquet, row 2": df.assign(
            k=df["k"].mask(df.index == 9)
        ),
        "column 'y' is infinite": df.assign(y=df["y"].mask(df.index == 9, np.inf)),
        "has no column 'p'": df.drop(columns="p"),
        "target column 'y' has type": df.assign(y="1"),
        "'st' changes within a series": df.assign(st=np.arange(len(df))),
        "'w' has negative values": df.assign(w=-1.0),
        "column 'unique_id' is missing in .*part-1.parquet, row 2": df.assign(
            unique_id=df["unique_id"].mask(df.index == 9)
        ),
        "no observed target value": df.assign(y=df["y"].mask(df["unique_id"] == "s3")),
        "no clear frequency": df.assign(ds=df["ds"] + pd.to_timedelta(np.arange(len(df)) % 3, "min")),
    }
    for i, (message, bad) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            stored_panel(write(bad, tmp_path / f"in{i}"), ROLES, tmp_path / "cache")
    with pytest.raises(ValueError, match="does not exist"):
        stored_panel(tmp_path / "nowhere", ROLES, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no file that ends in \.parquet"):
        stored_panel(tmp_path / "empty", ROLES, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith("panel")]

"""Frames in, panels and forecast frames out: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xlstm_forecast.data import Encoding, Panel, Roles, forecast_frame, to_panel
from xlstm_forecast.data.calendar import CALENDAR_FEATURES, calendar_features, parse_frequency

pl = pytest.importorskip("polars")

FREQUENCIES = ["s", "15min", "h", "12h", "D", "3D", "B", "W-SUN", "W-WED", "2W-SUN"]
FREQUENCIES += ["MS", "ME", "2MS", "QS-JAN", "QE-DEC", "QE-NOV", "YS-JAN", "YE-DEC", "YE-JUN"]
COLUMNS = ("target", "known", "past", "static", "known_categories", "past_categories", "static_categories")
GRID = ("offsets", "start", "phase")
ROLES = Roles(static=("size",), past=("sales",), future=("price", "promo"), categorical=("promo", "kind"))


def long_frame(lengths=(30, 41, 12), freq="D", tz=None, unit="us", begin="2023-01-01", seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for i, n in enumerate(lengths):
        columns: dict[str, Any] = {
            "unique_id": f"s{i}",
            "ds": pd.date_range(begin, periods=n, freq=freq, tz=tz).as_unit(unit),
            "y": np.arange(n) + 1000.0 * i,
            "sales": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "price": rng.normal(3, 2, n),
            "promo": rng.choice(["none", "half"], n),
            "size": float(i),
            "kind": "ab"[i % 2],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def simple(n=20, **columns: Any) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=n, freq="D")
    return pd.DataFrame({"unique_id": "a", "ds": times, "y": np.arange(n, dtype=float), **columns})


def same(a: Panel, b: Panel) -> None:
    for name in (*GRID, *COLUMNS):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.encoding == b.encoding


@pytest.mark.parametrize("tz", [None, "Europe/Berlin"])
@pytest.mark.parametrize("freq", FREQUENCIES)
def test_the_frequency_is_found_and_goes_on_as_pandas_does_over_daylight_saving(freq, tz):
    begin = "2023-03-24 00:00" if tz else "2023-01-01"
    whole = pd.date_range(begin, periods=60, freq=freq, tz=tz)
    df = pd.DataFrame({"unique_id": "a", "ds": whole[:40], "y": 1.0})
    panel = to_panel(df, Roles())
    assert parse_frequency(panel.freq) == parse_frequency(freq)
    out = forecast_frame(panel, np.array([0]), panel.history, {"forecast": np.zeros((1, 20))})
    pd.testing.assert_index_equal(pd.DatetimeIndex(out["ds"]), whole[40:], check_names=False, exact="equiv")
    assert out["ds"].dtype == df["ds"].dtype
    same(panel, to_panel(df, Roles(), freq=freq))


def test_days_at_an_hour_that_the_clock_skips_or_repeats_stay_one_day_apart():
    whole = pd.date_range("2023-03-20 02:30", periods=260, freq="D").tz_localize(
        "Europe/Berlin", nonexistent="shift_forward", ambiguous=np.ones(260, bool)
    )
    df = pd.DataFrame({"unique_id": "a", "ds": whole[:250], "y": 1.0})
    panel = to_panel(df, Roles())
    assert panel.freq == "D"
    out = forecast_frame(panel, np.array([0]), np.array([3]), {"forecast": np.zeros((1, 10))})
    assert list(out["ds"]) == list(whole[3:13])


def test_a_day_of_the_month_other_than_first_and_last_is_kept_and_clipped():
    times = pd.to_datetime(["2023-01-30", "2023-02-28", "2023-03-30", "2023-04-30"])
    panel = to_panel(pd.DataFrame({"ds": times, "y": 1.0}), Roles(id=None))
    out = forecast_frame(panel, np.array([0]), np.array([4]), {"forecast": np.zeros((1, 11))})
    assert list(out["ds"].dt.day) == [30] * 9 + [29, 30]
    assert out["ds"].iloc[9] == pd.Timestamp("2024-02-29")


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "nullable"])
@pytest.mark.parametrize(("tz", "unit"), [(None, "ns"), (None, "ms"), ("America/New_York", "us")])
def test_row_order_index_and_library_do_not_matter_and_the_frame_is_left_alone(kind, tz, unit):
    df = long_frame(tz=tz, unit=unit)
    reference = to_panel(df, ROLES)
    shuffled = df.sample(frac=1, random_state=3)
    given: Any = shuffled
    if kind == "polars":
        given = pl.from_pandas(shuffled)
    elif kind == "arrow":
        given = shuffled.convert_dtypes(dtype_backend="pyarrow")
    elif kind == "nullable":
        given = shuffled.convert_dtypes(dtype_backend="numpy_nullable")
    before = given.clone() if kind == "polars" else given.copy()
    panel = to_panel(given, ROLES)
    same(panel, reference)
    assert given.equals(before)
    out = forecast_frame(panel, np.arange(3), panel.history, {"forecast": np.zeros((3, 2))}, cutoff=True)
    assert type(out) is type(given)
    assert list(out.columns) == ["unique_id", "ds", "cutoff", "forecast"]
    if kind == "polars":
        assert out["ds"].dtype == given["ds"].dtype
        assert out["unique_id"].dtype == given["unique_id"].dtype
        out = out.to_pandas()
    else:
        assert out["ds"].dtype == given["ds"].dtype
        assert out["unique_id"].dtype == given["unique_id"].dtype
    expected = [pd.Timestamp("2023-01-01", tz=tz) + pd.DateOffset(days=n + h) for n in (30, 41, 12) for h in (0, 1)]
    assert [pd.Timestamp(t) for t in out["ds"]] == expected
    assert list(out["unique_id"].astype(str)) == ["s0", "s0", "s1", "s1", "s2", "s2"]


@pytest.mark.parametrize(
    "make", [lambda i: i * 10, lambda i: f"s{i}", lambda i: pd.Timestamp("2020-01-01") + pd.Timedelta(i, "D")]
)
def test_ids_of_any_type_come_back_in_their_type(make):
    df = long_frame().assign(unique_id=lambda d: d["unique_id"].str[1:].astype(int).map(make))
    for frame in (df, df.astype({"unique_id": "category"})):
        panel = to_panel(frame, ROLES)
        out = forecast_frame(panel, np.arange(3), panel.history, {"forecast": np.zeros((3, 1))})
        assert out["unique_id"].dtype == frame["unique_id"].dtype
        assert list(out["unique_id"]) == [make(i) for i in range(3)]


def test_a_series_with_its_times_in_the_index_and_a_frame_without_ids_are_one_series():
    index = pd.date_range("2020-01-31", periods=24, freq="ME")
    by_series = to_panel(pd.Series(np.arange(24.0), index=index, name="co2"), Roles())
    by_frame = to_panel(pd.DataFrame({"ds": index, "y": np.arange(24.0)}), Roles(id=None))
    same(by_series, by_frame)
    out = forecast_frame(by_series, np.array([0]), np.array([24]), {"forecast": np.zeros((1, 1))})
    assert list(out.columns) == ["ds", "forecast"]
    assert out["ds"].iloc[0] == pd.Timestamp("2022-01-31")


@pytest.mark.parametrize("freq", ["15min", "2M", "6h", "2W-SUN", "2Q-DEC"])
def test_periods_of_several_units_step_by_them(freq):
    whole = pd.period_range("2015-01-04", periods=33, freq=freq)
    frame = pd.DataFrame({"ds": whole[:30], "y": np.arange(30.0)})
    for options in ({}, {"freq": freq}, {"on_gap": "mask"}):
        panel = to_panel(frame, Roles(id=None), **options)
        assert len(panel.target) == 30
        ahead = panel.axis.stamps(panel.times(np.zeros(3, int), np.arange(30, 33)))
        assert list(ahead) == list(whole[30:])
    with pytest.raises(ValueError, match="gaps"):
        to_panel(frame.drop(index=7), Roles(id=None))


def test_periods_integers_and_dates_come_back_as_they_came():
    frame = pd.DataFrame({"ds": pd.period_range("2020-01", periods=30, freq="M"), "y": 1.0})
    panel = to_panel(frame, Roles(id=None))
    out = forecast_frame(panel, np.array([0]), np.array([30]), {"f": np.zeros((1, 2))})
    assert out["ds"].dtype == frame["ds"].dtype
    assert list(out["ds"].astype(str)) == ["2022-07", "2022-08"]
    frame = pd.DataFrame({"ds": np.arange(0, 60, 2, dtype=np.int32), "y": 1.0})
    panel = to_panel(frame, Roles(id=None))
    out = forecast_frame(panel, np.array([0]), np.array([30]), {"f": np.zeros((1, 2))})
    assert panel.freq == 2
    assert out["ds"].dtype == np.int32
    assert list(out["ds"]) == [60, 62]
    days = pl.DataFrame({"ds": pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 1, 20), eager=True), "y": 1.0})
    panel = to_panel(days, Roles(id=None))
    out = forecast_frame(panel, np.array([0]), np.array([20]), {"f": np.zeros((1, 1))})
    assert out["ds"].dtype == pl.Date
    assert str(out["ds"][0]) == "2024-01-21"


def test_several_targets_come_long_with_their_names():
    frame = simple(z=np.arange(20.0) * 2)
    panel = to_panel(frame, Roles(target=("y", "z")))
    values = np.arange(4.0).reshape(1, 2, 2)
    out = forecast_frame(panel, np.array([0]), np.array([20]), {"forecast": values})
    assert list(out["target"]) == ["y", "y", "z", "z"]
    assert list(out["forecast"]) == [0, 2, 1, 3]


def test_levels_near_1e8_are_kept_in_full():
    values = 1e8 + np.random.default_rng(0).normal(size=200)
    panel = to_panel(simple(200).assign(y=values), Roles())
    np.testing.assert_array_equal(panel.target[:, 0], values)


def test_gaps_are_refused_with_the_first_or_become_missing_values():
    df = long_frame()
    holed = df.drop([35, 36, 50, 75])
    message = (
        r"2 series have gaps in 'ds' at freq='D'; first: unique_id='s1', after 2023-01-05 00:00:00; .*on_gap='mask'"
    )
    with pytest.raises(ValueError, match=message):
        to_panel(holed, ROLES)
    panel, whole = to_panel(holed, ROLES, on_gap="mask"), to_panel(df, ROLES)
    assert np.flatnonzero(np.isnan(panel.target[:, 0])).tolist() == [35, 36, 50, 75]
    kept = np.setdiff1d(np.arange(len(df)), [35, 36, 50, 75])
    np.testing.assert_array_equal(panel.target[kept], whole.target[kept])
    np.testing.assert_array_equal(panel.known[36], panel.known[34])
    assert (panel.known_categories[[35, 36, 50, 75]] == 0).all()
    assert np.isnan(panel.past[35, 0])
    same(to_panel(holed.sample(frac=1, random_state=0), ROLES, on_gap="mask"), panel)


def broken(change: Any) -> pd.DataFrame:
    df = long_frame()
    out = change(df)
    return df if out is None else out


BAD: list[tuple[str, Any, str]] = [
    ("missing column", lambda d: d.rename(columns={"price": "prices"}), r"no column 'price'.*did you mean 'prices'\?"),
    ("no id column", lambda d: d.drop(columns="unique_id"), "no column 'unique_id'"),
    ("duplicate column", lambda d: pd.concat([d, d[["y"]]], axis=1), "more than one column named 'y'"),
    (
        "duplicate rows",
        lambda d: pd.concat([d, d.iloc[[5, 40]]]),
        r"2 rows repeat the same \(unique_id, ds\); first: row 83",
    ),
    ("string target", lambda d: d.assign(y="7"), "target column 'y' has type .*not numbers; convert it"),
    (
        "text in the target",
        lambda d: d.assign(y=d["y"].astype("string").mask(d.index == 3).mask(d.index == 12, "n/a")),
        "'y' has type string, not numbers; first value that is none: 'n/a' in row 12; convert it to numbers",
    ),
    (
        "dates as target",
        lambda d: d.assign(y=d["ds"]),
        r"not numbers; first value that is none: Timestamp\(.*in row 0;",
    ),
    ("boolean target", lambda d: d.assign(y=True), "target column 'y' is boolean"),
    ("complex target", lambda d: d.assign(y=1j), "target column 'y' holds complex numbers"),
    ("object target", lambda d: d.assign(y=d["y"].astype(object)), "target column 'y' has type object"),
    ("empty target", lambda d: d.assign(y=np.nan), "target column 'y' has no observed value; all 83"),
    (
        "infinite target",
        lambda d: d.assign(y=d["y"].mask(d.index == 31, np.inf)),
        r"'y' is infinite in 1 row; first: row 31 \(unique_id='s1', ds=2023-01-02",
    ),
    (
        "infinite covariate",
        lambda d: d.assign(sales=d["sales"].mask(d.index == 7, -np.inf)),
        "'sales' is infinite in 1 row",
    ),
    (
        "series without value",
        lambda d: d.assign(y=d["y"].mask(d["unique_id"] == "s1")),
        "1 series has no observed target value in column 'y'; first: unique_id='s1'",
    ),
    (
        "missing known value",
        lambda d: d.assign(price=d["price"].mask(d.index % 40 == 3)),
        r"'price' is missing or infinite in 2 rows; first: row 3 .*must always be known",
    ),
    ("text covariate", lambda d: d.assign(price="high"), "future covariate column 'price' .*add it to categorical"),
    (
        "static that changes",
        lambda d: d.assign(size=np.arange(len(d))),
        "static column 'size' changes within a series; first: row 1",
    ),
    (
        "missing id",
        lambda d: d.assign(unique_id=d["unique_id"].mask(d.index == 4)),
        "column 'unique_id' is missing in 1 row; first: row 4",
    ),
    (
        "missing time",
        lambda d: d.assign(ds=d["ds"].mask(d.index == 4)),
        "column 'ds' is missing in 1 row; first: row 4",
    ),
    ("text time", lambda d: d.assign(ds=d["ds"].astype(str)), "time column 'ds' has type .*pandas.to_datetime"),
    ("float time", lambda d: d.assign(ds=1.5), "time column 'ds' has type float64"),
    (
        "mixed zones",
        lambda d: d.assign(ds=[t.tz_localize(["UTC", "Asia/Tokyo"][i % 2]) for i, t in enumerate(d["ds"])]),
        "time column 'ds' mixes time zones",
    ),
    ("empty frame", lambda d: d.iloc[:0], "the frame has no rows"),
    ("one row", lambda d: d.iloc[:1], "no series has two different times, so pass freq="),
    (
        "unclear frequency",
        lambda d: d.assign(ds=d["ds"] + pd.to_timedelta(np.arange(len(d)) ** 2 % 7, "h")),
        "time column 'ds' has no clear frequency",
    ),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_bad_frame_is_refused_by_column_series_and_remedy(change, message, order):
    df = broken(change)
    if order == "shuffled":
        df = df.sample(frac=1, random_state=1)
        message = re.sub(r"row \d+.*", "row ", message)
    with pytest.raises(ValueError, match=message):
        to_panel(df, ROLES)


def test_text_among_numbers_of_a_polars_frame_is_quoted_with_its_row():
    df = pl.from_pandas(long_frame()).with_columns(y=pl.Series(["7", None, "8", "n/a", *["9"] * 79]))
    with pytest.raises(ValueError, match="has type String, not numbers; first value that is none: 'n/a' in row 3;"):
        to_panel(df, ROLES)


def test_a_wrong_frequency_is_refused():
    df = long_frame()
    with pytest.raises(ValueError, match=r"not on the grid of freq='W-SUN' in \d+ rows; first: row 1"):
        to_panel(df, ROLES, freq="W-SUN")
    with pytest.raises(ValueError, match="not on the grid of freq='MS'"):
        to_panel(df, ROLES, freq="MS")
    with pytest.raises(ValueError, match="3 series have gaps in 'ds' at freq='12h'"):
        to_panel(df, ROLES, freq="12h")
    with pytest.raises(ValueError, match="'fortnight' is not a frequency"):
        to_panel(df, ROLES, freq="fortnight")
    with pytest.raises(ValueError, match="freq=1 does not fit a time column of dates"):
        to_panel(df, ROLES, freq=1)
    with pytest.raises(ValueError, match="does not fit a time column of integers"):
        to_panel(df.assign(ds=df.groupby("unique_id").cumcount()), ROLES, freq="D")
    stray = df.assign(ds=df["ds"].mask(df.index == 10, pd.Timestamp("1823-01-01")))
    with pytest.raises(ValueError, match="far more than its rows; look for a wrong date"):
        to_panel(stray, ROLES, freq="D", on_gap="mask")


def test_other_objects_and_settings_are_refused():
    with pytest.raises(TypeError, match=r"must be a pandas or polars DataFrame.*found builtins\.dict"):
        to_panel({"y": [1]}, ROLES)
    with pytest.raises(ValueError, match="on_gap='fill'"):
        to_panel(long_frame(), ROLES, on_gap="fill")
    with pytest.raises(ValueError, match="column 'y' is named as target and again as past"):
        Roles(past=("y",))
    with pytest.raises(ValueError, match="calendar feature 'fortnight' is unknown"):
        Roles(calendar=("fortnight",))


def test_an_encoding_survives_json_and_reads_later_frames_alike():
    df = long_frame()
    panel = to_panel(df, ROLES)
    encoding = Encoding.from_dict(json.loads(json.dumps(panel.encoding.to_dict())))
    same(to_panel(df, ROLES, encoding=encoding), panel)
    later = df.assign(
        unique_id=df["unique_id"].replace({"s1": "new"}),
        promo=df["promo"].mask(df.index == 0, "bogus").mask(df.index == 1),
        kind=df["kind"].replace({"b": "other"}),
    )
    other = to_panel(later, ROLES, encoding=encoding)
    assert other.keys == ["new", "s0", "s2"]
    assert other.series.tolist() == [-1, 0, 2]
    first = other.offsets[1]
    assert other.known_categories[first : first + 2, 0].tolist() == [0, 0]
    assert (other.known_categories[first + 2 :] > 0).all()
    assert other.static_categories[:, 0].tolist() == [0, 1, 1]
    np.testing.assert_array_equal(other.known[first : first + 30], panel.known[:30])
    one = to_panel(df.iloc[:1], ROLES, encoding=encoding)
    assert one.freq == "D"
    assert one.rows == 1


def test_a_dropped_or_changed_time_zone_is_refused_at_the_second_frame():
    encoding = to_panel(long_frame(tz="Europe/Berlin"), ROLES).encoding
    with pytest.raises(ValueError, match="has no time zone; the model was fitted on Europe/Berlin"):
        to_panel(long_frame(), ROLES, encoding=encoding)
    with pytest.raises(ValueError, match=r"has UTC; the model was fitted on Europe/Berlin; use \.dt\.tz_convert"):
        to_panel(long_frame(tz="UTC"), ROLES, encoding=encoding)
    months, days = (pd.DataFrame({"ds": pd.period_range("2020", periods=9, freq=f), "y": 1.0}) for f in "MD")
    with pytest.raises(ValueError, match="has periods 'D'; the model was fitted on 'M'"):
        to_panel(days, Roles(id=None), encoding=to_panel(months, Roles(id=None)).encoding)
    with pytest.raises(ValueError, match="holds int values; the model was fitted on datetime"):
        to_panel(long_frame().assign(ds=range(83)), ROLES, encoding=encoding)


def test_covariates_are_standardised_by_the_rows_they_were_learnt_on():
    df = long_frame()
    panel = to_panel(df, ROLES)
    np.testing.assert_allclose(
        panel.known[:, 0], (df["price"] - df["price"].mean()) / df["price"].std(ddof=0), rtol=1e-5
    )
    spoilt = df.assign(price=df["price"].mask(df.groupby("unique_id").cumcount() >= 8, 1e6))
    early = df[df.groupby("unique_id").cumcount() < 8]
    encoding = to_panel(early, ROLES).encoding
    rows = early.index
    a, b = (to_panel(d, ROLES, encoding=encoding) for d in (df, spoilt))
    np.testing.assert_array_equal(a.known[rows], b.known[rows])


def test_static_values_may_come_in_a_frame_of_their_own():
    df = long_frame()
    table = pd.DataFrame(
        {"unique_id": ["s2", "s0", "s1", "s9"], "size": [2.0, 0.0, np.nan, 5], "kind": ["a", "a", None, "z"]}
    )
    panel = to_panel(df.drop(columns=["size", "kind"]), ROLES, static_df=table)
    assert np.isnan(panel.static[:, 0]).tolist() == [False, True, False]
    assert panel.static[2, 0] > panel.static[0, 0]
    assert panel.static_categories[:, 0].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="static_df lacks 1 series; first: unique_id='s0'"):
        to_panel(df, ROLES, static_df=table[table["unique_id"] != "s0"])
    with pytest.raises(ValueError, match="static_df has more than one row for unique_id='s0'"):
        to_panel(df, ROLES, static_df=pd.concat([table, table.iloc[[1]]]))


def future_of(df: pd.DataFrame, horizon: int, shift: int = 0) -> pd.DataFrame:
    last = df.groupby("unique_id")["ds"].max()
    rows = [
        (i, t + pd.DateOffset(days=h + 1 + shift), float(h), "half") for i, t in last.items() for h in range(horizon)
    ]
    return pd.DataFrame(rows, columns=["unique_id", "ds", "price", "promo"]).astype({"ds": df["ds"].dtype})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_future_rows_extend_every_series_whatever_their_order(library):
    df = long_frame()
    panel = to_panel(df, ROLES)
    future = future_of(df, 6).sample(frac=1, random_state=0)
    longer = panel.with_future(future if library == "pandas" else pl.from_pandas(future), 4)
    assert longer.rows == panel.rows + 12
    assert longer.history.tolist() == [30, 41, 12]
    location, scale = panel.encoding.location["price"], panel.encoding.scale["price"]
    for i, n in enumerate(panel.history):
        rows = slice(longer.offsets[i] + n, longer.offsets[i + 1])
        np.testing.assert_allclose(longer.known[rows, 0] * scale + location, np.arange(4.0), atol=1e-5)
        assert (longer.known_categories[rows, 0] == 1).all()
        assert np.isnan(longer.target[rows]).all()
        np.testing.assert_array_equal(longer.known[rows.start - n : rows.start], panel.known[panel.offsets[i] :][:n])
    again = longer.with_future(future, 4)
    np.testing.assert_array_equal(again.known, longer.known)


def test_a_horizon_that_future_rows_do_not_cover_is_refused():
    df = long_frame()
    panel, future = to_panel(df, ROLES), future_of(df, 3)
    need = (
        "first: unique_id='s0' lacks ds=2023-01-31 00:00:00; it needs the 3 steps from 2023-01-31 00:00:00 to 2023-02"
    )
    with pytest.raises(ValueError, match=r"future_df is needed: the columns \['price', 'promo'\]"):
        panel.with_future(None, 3)
    with pytest.raises(ValueError, match="does not cover the horizon of 3 series; " + need):
        panel.with_future(future_of(df, 3, shift=1), 3)
    with pytest.raises(ValueError, match="does not cover the horizon of 3 series"):
        panel.with_future(future.assign(ds=future["ds"] + pd.Timedelta(1, "h")), 3)
    with pytest.raises(ValueError, match="does not cover the horizon of 1 series; first: unique_id='s1'"):
        panel.with_future(future[future["unique_id"] != "s1"], 3)
    with pytest.raises(
        ValueError, match=r"'price' of future_df is missing or infinite in 1 row; first: unique_id='s0', ds=2023-02-01"
    ):
        panel.with_future(future.assign(price=future["price"].mask(future.index == 1)), 3)
    with pytest.raises(ValueError, match="more than one row for the same time of unique_id='s0'"):
        panel.with_future(pd.concat([future, future.iloc[[0]]]), 3)
    with pytest.raises(
        ValueError, match="of future_df is datetime with time zone UTC; that of the history is datetime"
    ):
        panel.with_future(future.assign(ds=future["ds"].dt.tz_localize("UTC")), 3)
    with pytest.raises(ValueError, match="future_df has no column 'price'"):
        panel.with_future(future.drop(columns="price"), 3)


def test_rows_before_a_time_are_counted_by_the_calendar():
    panel = to_panel(long_frame(freq="ME", lengths=(12, 5)), Roles())
    assert panel.rows_before("2023-03-15").tolist() == [2, 2]
    assert panel.rows_before("2023-03-31").tolist() == [2, 2]
    assert panel.rows_before("2023-04-01").tolist() == [3, 3]
    assert panel.rows_before("2030-01-01").tolist() == [12, 5]
    assert panel.rows_before("2000-01-01").tolist() == [0, 0]
    with pytest.raises(ValueError, match="the time column has no time zone"):
        panel.rows_before(pd.Timestamp("2023-04-01", tz="UTC"))


def test_calendar_features_follow_the_wall_clock():
    times = pd.date_range("2024-03-30", periods=96, freq="h", tz="Europe/Berlin")
    panel = to_panel(pd.DataFrame({"ds": times, "y": 1.0}), Roles(id=None))
    values = calendar_features(panel.axis, panel.times(np.zeros(96, int), np.arange(96)), CALENDAR_FEATURES)
    turns = {
        "minute": times.minute / 60,
        "hour": times.hour / 24,
        "dayofweek": times.dayofweek / 7,
        "day": (times.day - 1) / times.days_in_month,
        "dayofyear": (times.dayofyear - 1) / 366,
        "week": ((times.dayofyear - 1) // 7) / 53,
        "month": (times.month - 1) / 12,
        "quarter": (times.quarter - 1) / 4,
    }
    for j, name in enumerate(CALENDAR_FEATURES):
        angle = 2 * np.pi * np.asarray(turns[name])
        np.testing.assert_allclose(values[:, 2 * j], np.sin(angle), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(values[:, 2 * j + 1], np.cos(angle), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "given", ["h", "15min", "D", "B", "W-SUN", "W", "MS", "ME", "2MS", "QE-NOV", "YE-JUN", "MS+14D", 3]
)
def test_a_frequency_reads_its_own_name(given):
    parsed = parse_frequency(given)
    assert parse_frequency(parsed.name) == parsed


def test_aliases_of_other_libraries_mean_the_same():
    pairs = [
        ("1h", "h"),
        ("H", "h"),
        ("1d", "D"),
        ("1mo", "MS"),
        ("15m", "15min"),
        ("T", "min"),
        ("1w", "W"),
        ("1q", "QS"),
    ]
    for alias, name in pairs:
        assert parse_frequency(alias) == parse_frequency(name)
    assert parse_frequency(pd.Timedelta("90min")) == parse_frequency("90min")
    assert parse_frequency(pd.offsets.MonthEnd()) == parse_frequency("ME")

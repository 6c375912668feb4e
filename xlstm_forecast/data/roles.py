"""What the columns of a frame are (`Roles`), and what was learnt from them once, to be used again (`Encoding`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .calendar import CALENDAR_FEATURES

_COLUMN_ROLES = ("target", "static", "past", "future")


def _names(value: Any) -> tuple[str, ...]:
    """Several names, of one or of many; what is no text is refused later, by role."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The role of each column of a long frame.

    `id` None: one series. `static`, `past`, `future` hold reals, and categories where `categorical` names them too; a
    column named in `categorical` alone is static. `calendar` asks for cyclic features of the time column (see
    `CALENDAR_FEATURES`), `lags` for the target that many steps earlier, `relative_time` for the position in the window.
    """

    id: str | None = "unique_id"
    time: str = "ds"
    target: tuple[str, ...] = ("y",)
    static: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    weight: str | None = None
    calendar: tuple[str, ...] = ()
    lags: tuple[int, ...] = ()
    relative_time: bool = False

    def __post_init__(self) -> None:
        for name in (*_COLUMN_ROLES, "categorical", "calendar"):
            object.__setattr__(self, name, _names(getattr(self, name)))
        lags = (self.lags,) if isinstance(self.lags, int) else tuple(self.lags)
        object.__setattr__(self, "lags", lags)
        placed = {column for role in _COLUMN_ROLES for column in getattr(self, role)}
        alone = tuple(c for c in self.categorical if c not in placed and c != self.id)
        object.__setattr__(self, "static", self.static + alone)
        self._check()

    def _check(self) -> None:
        if not self.target:
            raise ValueError("no target column is named")
        seen: dict[str, str] = {}
        for role, columns in self._by_role():
            for column in columns:
                if not isinstance(column, str):
                    raise ValueError(
                        f"{role} column {column!r}: columns are named by text; df.rename(columns=str) does it"
                    )
                if column in seen:
                    raise ValueError(f"column {column!r} is named as {seen[column]} and again as {role}; keep one")
                seen[column] = role
        for column in self.categorical:
            if seen.get(column) in ("target", "time", "weight"):
                raise ValueError(f"column {column!r} is the {seen[column]} column and cannot be categorical")
        for feature in self.calendar:
            if feature not in CALENDAR_FEATURES:
                known = ", ".join(CALENDAR_FEATURES)
                raise ValueError(f"calendar feature {feature!r} is unknown; there are {known}")
        if any(lag < 1 for lag in self.lags) or len(set(self.lags)) < len(self.lags):
            raise ValueError(f"lags={self.lags}: each must be a different number of steps, at least 1")

    def _by_role(self) -> list[tuple[str, tuple[str, ...]]]:
        single = [("id", self.id), ("time", self.time), ("weight", self.weight)]
        return [(role, (c,)) for role, c in single if c is not None] + [(r, getattr(self, r)) for r in _COLUMN_ROLES]

    def reals(self, role: str) -> tuple[str, ...]:
        """The real columns of a role ("static", "past" or "future")."""
        return tuple(c for c in getattr(self, role) if c not in self.categorical)

    def categories(self, role: str) -> tuple[str, ...]:
        """The categorical columns of a role; the id column counts as static where `categorical` names it."""
        own = tuple(c for c in getattr(self, role) if c in self.categorical)
        return (*own, self.id) if role == "static" and self.id in self.categorical else own  # type: ignore[return-value]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns the roles name, once each."""
        return tuple(column for _, columns in self._by_role() for column in columns)

    def to_dict(self) -> dict[str, Any]:
        """The roles as JSON values; `Roles(**d)` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}


def plain(value: Any) -> Any:
    """An id or category as a JSON value: str, int, bool as they are, whole floats as int, anything else as its str."""
    value = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    if isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return str(value)


def check_names(roles: Roles, added: Iterable[str]) -> None:
    """Refuse columns that are named like one that a frame of forecasts adds: `added`, and those that all may have.

    Of several targets the names are values there, not columns. Raises ValueError naming the column.
    """
    several = len(roles.target) > 1
    taken = {"forecast", "cutoff", "sample", *added} | ({"target", "label"} if several else set())
    targets = () if several else (("target_col", roles.target[0]),)
    for argument, name in (("id_col", roles.id), ("time_col", roles.time), *targets):
        if name in taken or (argument == "time_col" and name == "target"):
            raise ValueError(
                f"{argument}={name!r}: the frame of forecasts has a column {name!r} of its own; rename it in the data"
            )


def ordered(values: Iterable[Any]) -> list[Any]:
    """Values sorted by themselves, or by type and text where they cannot be compared."""
    values = list(values)
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda v: (type(v).__name__, str(v)))


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What `to_panel` learns from the frame it is fitted on, as plain values, so that later frames are read alike.

    ids are the series in panel order; `categories` has the values of each categorical column, whose indices start at 1
    (0: unknown or missing); `location` and `scale` standardise each real covariate before it becomes float32.
    """

    time: str
    tz: str | None
    freq: str | int
    ids: list[Any]
    categories: dict[str, list[Any]] = field(default_factory=dict)
    location: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    period: str | None = None  # pandas' name of the period, where time is one

    def sizes(self, columns: Iterable[str]) -> tuple[int, ...]:
        """The number of indices of each categorical column, index 0 included."""
        return tuple(len(self.categories[c]) + 1 for c in columns)

    def to_dict(self) -> dict[str, Any]:
        """The encoding as JSON values."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Encoding:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        return cls(**values)

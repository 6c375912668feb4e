"""Plain values of a fit: the presets, the choices made where the user sets nothing, and what training did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"max_steps": 200, "d_model": 32, "blocks": "s", "networks": 1, "networks_few": 1, "networks_alone": 1},
    "default": {"max_steps": 600, "d_model": 64, "blocks": "ms", "networks": 1, "networks_few": 3, "networks_alone": 3},
    "best": {"max_steps": 1000, "d_model": 64, "blocks": "ms", "networks": 3, "networks_few": 3, "networks_alone": 5},
}  # networks_few: where windows are few; networks_alone: that forecast by themselves, from covariates
FEW = 2000  # windows to train on: of up to so many networks are narrow, and one alone hangs on its seed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resolved choices of a fit; `XLSTMForecaster.summary` shows them."""

    input_length: int
    patch_length: int
    season: int
    seasons: tuple[int, int]  # what the pre-trained network is told, 1 for none
    alone: bool  # whether the network forecasts by itself, beside the backbone, rather than correcting it
    validation: int  # steps held back at the end of every series that is long enough; 0: none
    validation_step: int  # steps between two validation origins
    min_context: int  # steps of history that a training window must have
    blocks: str
    d_model: int
    num_heads: int
    dropout: float
    networks: int  # trained on contexts of different length and averaged
    max_steps: int
    batch_size: int
    lr: float

    @property
    def naive_season(self) -> int:
        """Of the seasonal naive forecast: the year of weeks, where there is no shorter season."""
        return self.seasons[1] if self.season == self.seasons[0] == 1 else self.season


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training did: the score of every validation by step, the step that was kept, seconds."""

    validation: dict[int, float]
    best_step: int
    steps: int
    seconds: float
    train_loss: list[float]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainResult:
        """The result out of JSON, whose keys are text."""
        return cls(**values | {"validation": {int(k): v for k, v in values["validation"].items()}})


def choose_patch(season: int, input_length: int) -> int:
    """About a third to a sixth of a long season, the season itself where it is about a week, a few steps otherwise."""
    if season >= 48:
        patch = season // 6
    elif season >= 14:
        patch = season // 3
    elif season >= 5:
        patch = season if season <= 7 else season // 4
    else:
        patch = 1 if input_length <= 48 else 4
    return max(1, min(patch, input_length // 2 or 1))


def choose_input_length(lengths: np.ndarray, season: int, horizon: int, longer: int = 1, networks: int = 1) -> int:
    """Enough seasons and horizons, as far as the typical series reaches beyond its held-back horizons.

    longer: a second season, two of which are taken in, three for three networks or more, within 512 steps.
    """
    seasons = min(max(2, min(networks, 3)), 512 // longer)
    wanted = max(3 * horizon, 4 * season, 32, seasons * longer if seasons > 1 else 0)
    wanted = min(wanted, max(512, 2 * season))
    typical = int(np.quantile(lengths, 0.75))
    room = max(typical - 2 * horizon, (typical - horizon) // 2, 2)
    return int(max(1, min(wanted, room)))


def choose_validation(lengths: np.ndarray, horizon: int, given: int | None) -> tuple[int, int]:
    """(steps held back, steps between origins): a fifth of short series, a tenth of long ones; 0 where too short.

    Raises ValueError where an explicit size is smaller than the horizon or leaves nothing to train on.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
            raise ValueError(f"val_size={given!r}: expected a number of steps, or None")
        longest = int(lengths.max())
        if given > longest - horizon - 1:
            raise ValueError(
                f"val_size={given} leaves nothing to train on: the longest series has {longest} rows; hold back at "
                f"most {max(0, longest - 2 * horizon)}"
            )
        if given != 0 and given < horizon:
            raise ValueError(
                f"val_size={given} is shorter than horizon={horizon}: hold back at least one horizon, or 0"
            )
        return given, max(1, min(horizon, given // 8 or 1))
    typical = int(np.quantile(lengths, 0.75))
    size = max(horizon, min(typical // 3, max(2 * horizon, int(typical * (0.2 if typical < 2000 else 0.1)))))
    if typical < 2 * horizon + 3:
        return 0, 1
    return size, max(1, horizon // 2)

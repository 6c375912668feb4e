"""What covariates are worth to `XLSTMForecaster` on Stallion: the default without them, with known ones, with all.

    python benchmarks/covariates.py --data DIR                      # the last half-year and the two before it
    python benchmarks/covariates.py --data DIR --kinds none random --earlier 6

350 series of monthly beer sales, six months ahead from one origin; of earlier half-years everything after is removed.
Mean absolute error and mean pinball loss over nine levels, in the units of the sales.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from sets import data_argument, data_folder
from stallion import SPECIAL_DAYS, stallion

HORIZON, LEVELS = 6, tuple(np.arange(1, 10) / 10)
KNOWN = ["price_regular", "discount_in_percent", *SPECIAL_DAYS]
PAST = ["industry_volume", "soda_volume", "avg_max_temp"]
STATIC = ["agency", "sku", "avg_population_2017", "avg_yearly_household_income_2017"]
KINDS: dict[str, dict[str, list[str]]] = {
    "none": {},
    "known": {"future": KNOWN},
    "all": {"future": KNOWN, "past": PAST, "static": STATIC, "categorical": ["agency", "sku"]},
    "random": {"future": ["noise 0", "noise 1"]},
}


def sales(folder: str, earlier: int) -> pd.DataFrame:
    """The frame without its last `earlier` months, special days as numbers, two columns of noise beside."""
    df = stallion(folder).rename(columns={"date": "ds", "volume": "y"})
    df["unique_id"] = df["agency"].astype(str) + "/" + df["sku"].astype(str)
    df[SPECIAL_DAYS] = (df[SPECIAL_DAYS].astype(str) != "-").astype(float)
    noise = np.random.default_rng(0).standard_normal((len(df), 2))
    df = df.assign(**{f"noise {k}": noise[:, k] for k in range(2)})
    months = np.sort(df["ds"].unique())
    return df[df["ds"] <= months[len(months) - 1 - earlier]]


def scores(df: pd.DataFrame, kind: str, seed: int, preset: str) -> tuple[float, float]:
    """Mean absolute error and pinball loss of the last six months, forecast from all before them."""
    from xlstm_forecast import XLSTMForecaster

    roles = KINDS[kind]
    columns = [c for role in ("future", "past", "static") for c in roles.get(role, [])]
    df = df[["unique_id", "ds", "y", *columns]]
    last = np.sort(df["ds"].unique())[-HORIZON]
    train, test = df[df["ds"] < last], df[df["ds"] >= last]
    model = XLSTMForecaster(horizon=HORIZON, quantiles=LEVELS, lower=0, presets=preset, seed=seed, **roles)  # type: ignore[arg-type]
    model.fit(train, verbose=False)
    future = test[["unique_id", "ds", *roles["future"]]] if "future" in roles else None
    found = model.predict(future_df=future).merge(test[["unique_id", "ds", "y"]], on=["unique_id", "ds"])
    error = found["y"].to_numpy()[:, None] - found[[f"q{level:g}" for level in LEVELS]].to_numpy()
    levels = np.array(LEVELS)
    pinball = np.maximum(levels * error, (levels - 1) * error).mean()
    return float((found["y"] - found["forecast"]).abs().mean()), float(pinball)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_argument(parser)
    parser.add_argument("--kinds", nargs="+", default=["none", "known", "all", "random"], choices=list(KINDS))
    parser.add_argument("--earlier", type=int, nargs="+", default=[0, 6, 12], help="months left out at the end")
    parser.add_argument("--model", default="default", help="a preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    folder = str(data_folder(args.data))
    print("| months left out | covariates | seed | MAE | pinball loss | seconds |\n|---|---|---|---|---|---|")
    for earlier in args.earlier:
        df = sales(folder, earlier)
        for kind in args.kinds:
            for seed in args.seeds:
                start = time.perf_counter()
                absolute, pinball = scores(df, kind, seed, args.model)
                seconds = time.perf_counter() - start
                print(f"| {earlier} | {kind} | {seed} | {absolute:.1f} | {pinball:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""The Stallion demand example of pytorch-forecasting, with its TemporalFusionTransformer and with our XLSTM.

    python benchmarks/stallion.py --data DIR --out runs.jsonl       the runs that the file lacks, then the table
    python benchmarks/stallion.py --out runs.jsonl --table          only the table

The same TimeSeriesDataSet for all. TemporalFusionTransformer has its tutorial's settings and trains to its early
stopping on the validation months, from whose best epoch its weights are, as are those of their xLSTMTime. The processor
time that this takes is the budget of our run of the same seed, which goes through a fixed number of epochs and never
sees the validation months. Processor time (`time.process_time`, one thread), so that other load on the machine changes
little. Without DIR, or without stallion.parquet in it, the generated panel of the repository takes its place.

--earlier 6 leaves the last 6 months out altogether: the months before them, on which nothing was chosen, are forecast.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_forecasting import Baseline, GroupNormalizer, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, SMAPE, QuantileLoss
from pytorch_forecasting.models import xLSTMTime

REPOSITORY = Path(__file__).resolve().parent.parent
SPECIAL_DAYS = [
    "easter_day",
    "good_friday",
    "new_year",
    "christmas",
    "labor_day",
    "independence_day",
    "revolution_day_memorial",
    "regional_games",
    "fifa_u_17_world_cup",
    "football_gold_cup",
    "beer_capital",
    "music_fest",
]
BATCH, EPOCHS, EPOCH_BATCHES, PATIENCE = 128, 50, 50, 10
OUR_EPOCHS = 12  # of the same 50 batches
RECORDED = REPOSITORY / "benchmarks" / "stallion_runs.jsonl"  # three seeds on Stallion, as docs/ reports them
MODELS = ("baseline", "tft", "their xlstmtime", "xlstm", "xlstm, their loader")


def stallion(folder: str | Path) -> pd.DataFrame:
    """The tutorial's frame: beer volume by agency and product, monthly, with its derived columns."""
    df = pd.read_parquet(Path(folder) / "stallion.parquet")
    df["time_idx"] = df["date"].dt.year * 12 + df["date"].dt.month
    df["time_idx"] -= df["time_idx"].min()
    df["month"] = df["date"].dt.month.astype(str).astype("category")
    df["log_volume"] = np.log(df["volume"] + 1e-8)
    for column in ("sku", "agency"):
        average = df.groupby(["time_idx", column], observed=True)["volume"].transform("mean")
        df[f"avg_volume_by_{column}"] = average
    named = df[SPECIAL_DAYS].apply(lambda x: x.map({0: "-", 1: x.name}))
    df[SPECIAL_DAYS] = named.astype("category")
    return df.astype({"industry_volume": float, "soda_volume": float})


def stallion_sets(df: pd.DataFrame) -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    """Training and validation sets with the tutorial's settings: 24 months in, 6 out, the last 6 for validation."""
    cutoff = df["time_idx"].max() - 6
    training = TimeSeriesDataSet(
        df[df["time_idx"] <= cutoff],
        time_idx="time_idx",
        target="volume",
        group_ids=["agency", "sku"],
        min_encoder_length=12,
        max_encoder_length=24,
        min_prediction_length=1,
        max_prediction_length=6,
        static_categoricals=["agency", "sku"],
        static_reals=["avg_population_2017", "avg_yearly_household_income_2017"],
        time_varying_known_categoricals=["special_days", "month"],
        variable_groups={"special_days": SPECIAL_DAYS},
        time_varying_known_reals=["time_idx", "price_regular", "discount_in_percent"],
        time_varying_unknown_reals=[
            "volume",
            "log_volume",
            "industry_volume",
            "soda_volume",
            "avg_max_temp",
            "avg_volume_by_agency",
            "avg_volume_by_sku",
        ],
        target_normalizer=GroupNormalizer(groups=["agency", "sku"], transformation="softplus"),
        add_relative_time_idx=True,
        add_target_scales=True,
        add_encoder_length=True,
    )
    return training, TimeSeriesDataSet.from_dataset(training, df, predict=True, stop_randomization=True)


def panel_sets() -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    """The same from the generated panel: daily sales of 20 products, four weeks in, two weeks out."""
    df = pd.read_csv(REPOSITORY / "data" / "panel.csv", parse_dates=["ds"])
    first = df["ds"].min()
    df["time_idx"] = (df["ds"] - first).dt.days
    df["weekday"] = df["ds"].dt.dayofweek.astype(str).astype("category")
    df["holiday"] = df["holiday"].astype("category")
    observed = ["sales", "price", "promotion", "visitors"]
    df[observed] = df.groupby("unique_id")[observed].ffill().astype(float)
    df = df.dropna(subset=observed)
    cutoff = df.groupby("unique_id")["time_idx"].transform("max") - 14
    training = TimeSeriesDataSet(
        df[df["time_idx"] <= cutoff],
        time_idx="time_idx",
        target="sales",
        group_ids=["unique_id"],
        min_encoder_length=14,
        max_encoder_length=28,
        min_prediction_length=1,
        max_prediction_length=14,
        static_categoricals=["unique_id"],
        time_varying_known_categoricals=["weekday", "holiday"],
        time_varying_known_reals=["time_idx", "price", "promotion"],
        time_varying_unknown_reals=["sales", "visitors"],
        target_normalizer=GroupNormalizer(groups=["unique_id"], transformation="softplus"),
        allow_missing_timesteps=True,
        add_relative_time_idx=True,
        add_target_scales=True,
        add_encoder_length=True,
    )
    return training, TimeSeriesDataSet.from_dataset(training, df, predict=True, stop_randomization=True)


def datasets(folder: str | Path | None, earlier: int = 0) -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    """Stallion where the folder holds it, without its last `earlier` months; the generated panel otherwise."""
    if folder and (Path(folder) / "stallion.parquet").exists():
        df = stallion(folder)
        return stallion_sets(df[df["time_idx"] <= df["time_idx"].max() - earlier])
    return panel_sets()


class Budget(Callback):
    """Stops training when the processor time since its start exceeds `seconds`, validation included."""

    def __init__(self, seconds: float = float("inf")) -> None:
        self.seconds = seconds
        self.used = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.used = time.process_time() - self.start
        if self.used > self.seconds:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.used = time.process_time() - self.start


def fit(
    model: pl.LightningModule, train: Any, validation: Any, *, seconds: float, epochs: int, stop: bool
) -> tuple[Any, dict[str, float]]:
    """Trains for so many epochs, at most `seconds` of processor time.

    stop: to early stopping on the validation loss, and return the best state; otherwise validation is never looked at.
    """
    wall = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        budget, best = Budget(seconds), ModelCheckpoint(folder, monitor="val_loss")
        watching = [EarlyStopping("val_loss", min_delta=1e-4, patience=PATIENCE), best] if stop else []
        runner = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            gradient_clip_val=0.1,
            limit_train_batches=EPOCH_BATCHES,
            limit_val_batches=None if stop else 0,
            callbacks=[*watching, budget],
            enable_checkpointing=stop,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        runner.fit(model, train, validation)
        if stop:
            model = type(model).load_from_checkpoint(best.best_model_path)
    return model, {
        "cpu_seconds": round(budget.used, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "epochs": runner.current_epoch,
        "steps": runner.global_step,
    }


def scores(model: Any, validation: Any) -> dict[str, float]:
    """Validation quantile loss (models with quantiles only), MAE and SMAPE, by their own metrics."""
    quiet = {"logger": False, "accelerator": "cpu"}
    result = model.predict(validation, return_y=True, trainer_kwargs=dict(quiet))
    values = {"mae": float(MAE()(result.output, result.y)), "smape": float(SMAPE()(result.output, result.y))}
    if isinstance(getattr(model, "loss", None), QuantileLoss):
        raw = model.predict(validation, mode="quantiles", return_y=True, trainer_kwargs=dict(quiet))
        values["quantile_loss"] = float(QuantileLoss()(raw.output, raw.y))
    return values


def tft(training: TimeSeriesDataSet) -> TemporalFusionTransformer:
    """In its tutorial's settings; ranger comes with pytorch_optimizer, without which it has to be Adam."""
    try:
        import pytorch_optimizer  # noqa: F401

        optimizer = "ranger"
    except ImportError:
        optimizer = "adam"
    return TemporalFusionTransformer.from_dataset(
        training,
        learning_rate=0.03,
        hidden_size=16,
        attention_head_size=2,
        dropout=0.1,
        hidden_continuous_size=8,
        loss=QuantileLoss(),
        optimizer=optimizer,
        reduce_on_plateau_patience=4,
    )


def their_xlstm(training: TimeSeriesDataSet) -> xLSTMTime:
    """Their xLSTMTime, point forecast trained on the absolute error."""
    return xLSTMTime.from_dataset(
        training, input_size=len(training.reals), hidden_size=32, output_size=1, loss=MAE(), learning_rate=1e-3
    )


def our_xlstm(training: TimeSeriesDataSet, epochs: int) -> Any:
    """Our XLSTM with a cosine schedule over the epochs that fit into the budget."""
    from xlstm_forecast.adapters.pytorch_forecasting import XLSTM

    rates = [3e-3 * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs)) + 1e-5 for epoch in range(epochs)]
    return XLSTM.from_dataset(training, loss=QuantileLoss(), learning_rate=rates)


def run(
    name: str, seed: int, folder: str | None, budget: float, epochs: int | None = None, earlier: int = 0
) -> dict[str, Any]:
    """One training run and its scores. "xlstm, their loader" takes the same steps as with ours.

    budget: processor seconds; epochs: None for the full number; earlier: months left out at the end.
    """
    from xlstm_forecast.adapters.pytorch_forecasting import accelerate

    training, validation = datasets(folder, earlier)
    later = validation.to_dataloader(train=False, batch_size=10 * BATCH, num_workers=0)
    if name == "baseline":
        return {"model": name, "seed": seed, **scores(Baseline(), later)}
    pl.seed_everything(seed, verbose=False)
    ours = name.startswith("xlstm")
    length = epochs or (OUR_EPOCHS if ours else EPOCHS)
    builders: dict[str, Callable[[], Any]] = {
        "tft": lambda: tft(training),
        "their xlstmtime": lambda: their_xlstm(training),
        "xlstm": lambda: our_xlstm(training, length),
        "xlstm, their loader": lambda: our_xlstm(training, length),
    }
    model = builders[name]()
    fast = accelerate(training) if name == "xlstm" else training
    train = fast.to_dataloader(train=True, batch_size=BATCH, num_workers=0)
    model, used = fit(model, train, later, seconds=budget, epochs=length, stop=not ours)
    return {"model": name, "seed": seed, **used, **scores(model, later)}


def runs(
    out: Path,
    folder: str | None,
    seeds: range,
    epochs: int | None = None,
    *,
    models: Sequence[str] = MODELS,
    earlier: int = 0,
) -> None:
    """Every run that the file does not hold yet, one after the other, so that all see the same load."""
    done = {(r["model"], r["seed"]): r for r in read(out)}
    for seed in seeds:
        for name in models:
            if (name, seed) in done:
                continue
            budget = done[("tft", seed)]["cpu_seconds"] if name.startswith("xlstm") else float("inf")
            done[(name, seed)] = run(name, seed, folder, budget, epochs, earlier)
            with out.open("a") as file:
                file.write(json.dumps(done[(name, seed)]) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    """The runs in the file."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Means over the seeds, one row per model; every column in the target's units or in seconds of processor time."""
    columns = ["quantile_loss", "mae", "smape", "cpu_seconds", "steps"]
    frame = pd.DataFrame(results).reindex(columns=["model", "seed", *columns])
    means = frame.groupby("model")[columns].mean().reindex([m for m in MODELS if m in set(frame["model"])])
    means.insert(0, "seeds", frame.groupby("model")["seed"].nunique())
    return means.round(3)


def verdict(results: list[dict[str, Any]]) -> str:
    """Our means as shares of theirs, beside the bars."""
    means = table(results)
    ours = means.loc["xlstm"]
    share = ours.quantile_loss / means.loc["tft"].quantile_loss
    lines = [f"quantile loss / TemporalFusionTransformer's: {share:.3f} (bar 0.95)"]
    for name in ("mae", "smape"):
        lines.append(f"{name} / their xLSTMTime's: {ours[name] / means.loc['their xlstmtime'][name]:.3f} (bar 0.7)")
        lines.append(f"{name} / Baseline's: {ours[name] / means.loc['baseline'][name]:.3f} (bar 1)")
    spent = ours.cpu_seconds / means.loc["tft"].cpu_seconds
    lines.append(f"processor time / TemporalFusionTransformer's: {spent:.3f} (bar 1)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("XLSTM_FORECAST_DATA"), help="folder with stallion.parquet")
    parser.add_argument("--out", type=Path, default=Path("stallion.jsonl"), help="file of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--earlier", type=int, default=0, help="months left out at the end of Stallion")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not options.table:
        runs(options.out, options.data, range(options.seeds), earlier=options.earlier)
    results = read(options.out)
    print(table(results).to_string())
    print(verdict(results))


if __name__ == "__main__":
    main()

"""Training: best weights, resuming, several processes, hardware that is not there, silence, reproducibility."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.training import CHECKPOINT, KeepBest, TrainConfig, resolve_hardware, weights_of


def frame(steps: int = 120, series: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    t = np.arange(steps)
    parts = [
        pd.DataFrame({"unique_id": i, "ds": t, "y": 3 * i + np.sin(t / 3 + i) + 0.1 * rng.normal(size=steps)})
        for i in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


def forecaster(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "horizon": 5, "input_length": 20, "patch_length": 2, "d_model": 16, "num_heads": 2, "backbone": False,
        "max_steps": 30, "batch_size": 32, "lr": 2e-3, "seed": 3, "networks": 1,
    }  # fmt: skip
    return XLSTMForecaster(**settings | changes)


def weights(f: Any) -> torch.Tensor:
    return torch.cat([p.flatten() for p in f.model_.state_dict().values()])


class Killed(Exception):
    pass


def killer(step: int):
    from lightning.pytorch.callbacks import Callback

    class Killer(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == step:
                raise Killed

    return Killer()


@pytest.fixture
def small_checks(monkeypatch):
    """Validate and checkpoint every 8 steps."""
    from xlstm_forecast import fitting

    class Often(TrainConfig):
        def __init__(self, **values):
            super().__init__(**values | {"check_every": 8})

    monkeypatch.setattr(fitting, "TrainConfig", Often)


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(tmp_path, small_checks):
    df = frame()
    whole = forecaster(dropout=0.2).fit(df, verbose=False)
    stopped = forecaster(dropout=0.2, checkpoint_dir=str(tmp_path))
    with pytest.raises(Killed):
        stopped.fit(df, verbose=False, callbacks=[killer(21)])
    assert len(list(tmp_path.glob(f"*/{CHECKPOINT}"))) == 1
    other = forecaster(dropout=0.2, checkpoint_dir=str(tmp_path)).fit(df[df["ds"] < 100], verbose=False)
    assert len(other.training_[0].train_loss) == 30  # another fit leaves the checkpoint alone
    reseeded = forecaster(dropout=0.2, checkpoint_dir=str(tmp_path), seed=4).fit(df, verbose=False)
    assert len(reseeded.training_[0].train_loss) == 30
    resumed = stopped.fit(df, verbose=False)
    assert len(resumed.training_[0].train_loss) == 30 - 16
    assert resumed.training_[0].validation == whole.training_[0].validation
    assert torch.equal(weights(resumed), weights(whole))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named(tmp_path, small_checks):
    stopped = forecaster(checkpoint_dir=str(tmp_path))
    with pytest.raises(Killed):
        stopped.fit(frame(), verbose=False, callbacks=[killer(21)])
    (file,) = tmp_path.glob(f"*/{CHECKPOINT}")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged or no training checkpoint: delete it"):
        stopped.fit(frame(), verbose=False)


def test_the_best_weights_are_kept_not_the_last(small_checks):
    f = forecaster(lr=20.0, max_steps=40).fit(frame(), verbose=False)
    scores = f.training_[0].validation
    assert f.training_[0].best_step == min(scores, key=scores.get)
    assert f.training_[0].best_step < 40
    best = scores[f.training_[0].best_step]
    assert best <= scores[0]


def test_training_lowers_the_validation_loss(small_checks):
    f = forecaster(max_steps=150).fit(frame(), verbose=False)
    scores = f.training_[0].validation
    assert scores[f.training_[0].best_step] < 0.8 * scores[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    df = frame()
    first, again = (forecaster(max_steps=4).fit(df, verbose=False) for _ in range(2))
    assert torch.equal(weights(first), weights(again))
    other = forecaster(max_steps=4, seed=4).fit(df, verbose=False)
    assert not torch.equal(weights(first), weights(other))


def test_the_global_generators_are_left_as_they_were():
    df = frame()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=True)
    forecaster(max_steps=3).fit(df, verbose=False).predict(n_samples=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=True)) == str(numpy_state)


def test_nothing_is_printed_or_written_unless_asked(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    forecaster(max_steps=3).fit(frame(), verbose=False).predict()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []


def test_the_progress_bar_shows_loss_and_time_left(capfd):
    forecaster(max_steps=12).fit(frame(), verbose=True)
    out = "".join(capfd.readouterr())
    assert "train_loss" in out
    assert "12/12" in out
    assert "<00:00" in out


def test_loggers_and_callbacks_are_passed_to_lightning(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    forecaster(max_steps=20).fit(frame(), verbose=False, logger=CSVLogger(tmp_path))
    logged = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    assert logged.train_loss.notna().sum() >= 2


def test_a_callback_reads_the_training_loss_and_nobody_pays_for_it_else(monkeypatch):
    from lightning.pytorch.callbacks import Callback

    from xlstm_forecast.training import ForecastModule

    read, logged = [], []

    class Reader(Callback):
        def on_train_batch_end(self, trainer, *args):
            read.append(float(trainer.callback_metrics["train_loss"]))

    log = ForecastModule.log

    def noting(self, name, *args, **options):
        logged.append(name)
        log(self, name, *args, **options)

    monkeypatch.setattr(ForecastModule, "log", noting)
    f = forecaster(max_steps=8).fit(frame(), verbose=False, callbacks=[Reader()])
    assert read == f.training_[0].train_loss
    assert len(read) == 8
    assert logged.count("train_loss") == 8
    again = forecaster(max_steps=8).fit(frame(), verbose=False)
    assert again.training_[0].train_loss == read
    assert logged.count("train_loss") == 8


def test_every_step_has_random_numbers_of_its_own():
    from lightning.pytorch.callbacks import Callback

    seeds = []

    class Reader(Callback):
        def on_train_batch_end(self, trainer, *args):
            seeds.append(torch.initial_seed())

    forecaster(max_steps=4).fit(frame(), verbose=False, callbacks=[Reader()])
    assert seeds == [(3 << 24) + step for step in range(4)]


def test_the_averaged_weights_follow_the_models():
    keep = KeepBest(TrainConfig(), [])
    model = torch.nn.BatchNorm1d(2)  # with a whole number among its buffers
    keep.average = weights_of(model)
    expected = torch.ones(2)
    for step in range(3):
        with torch.no_grad():
            model.weight.mul_(2)
        keep._move(model, 0.9)
        expected = torch.lerp(expected, model.weight.detach(), 1 - 0.9)
        torch.testing.assert_close(keep.average["weight"], expected, rtol=0, atol=0, msg=f"step {step}")
    keep.load_state_dict(keep.state_dict())  # other tensors from here on
    keep._move(model, 0.0)
    assert torch.equal(keep.average["weight"], model.weight.detach())


def test_missing_hardware_falls_back_and_says_so(caplog):
    wanted = TrainConfig(accelerator="auto", devices="auto", strategy="ddp", precision="bf16-mixed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with caplog.at_level(logging.WARNING, "xlstm_forecast"):
        got = resolve_hardware(wanted)
    assert (got.accelerator, got.devices, got.strategy, got.precision) == ("cpu", 1, "auto", "32-true")
    text = caplog.text
    assert "no GPU found" in text
    assert "bf16-mixed" in text
    assert "one device" in text


def test_two_ddp_processes_have_the_loss_curve_of_one_at_the_same_global_batch(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, os, sys
            import torch
            torch.set_num_threads(1)
            sys.path.insert(0, sys.argv[2])
            from test_training import forecaster, frame
            if __name__ == "__main__":
                devices = int(sys.argv[1])
                strategy = "ddp" if devices > 1 else "auto"
                f = forecaster(accelerator="cpu", devices=devices, strategy=strategy, dropout=0.0)
                f.fit(frame(), verbose=False)
                rank = os.environ.get("LOCAL_RANK", "0")
                with open(f"{sys.argv[3]}/{devices}-{rank}.json", "w") as file:
                    json.dump([f.training_[0].train_loss, sorted(f.training_[0].validation.values())], file)
            """
        )
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    for devices in ("1", "2"):
        run = [sys.executable, str(script), devices, here, str(tmp_path)]
        subprocess.run(run, check=True, capture_output=True, timeout=300)
    one, rank0, rank1 = (pd.read_json(tmp_path / f"{n}.json", typ="series") for n in ("1-0", "2-0", "2-1"))
    both = (np.array(rank0[0]) + np.array(rank1[0])) / 2
    assert len(one[0]) == 30
    assert np.abs(both / np.array(one[0]) - 1).max() < 1e-4
    assert np.allclose(rank0[1], one[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": -1.0}, "lr=-1.0"), ({"max_steps": 0}, "max_steps=0"), ({"average": 1.0}, "average=1.0")],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)

"""Options of our models inside pytorch-forecasting: how plain their layers are, how their optimizer steps, which losses
fit which data sets; and forecasts from frames of new series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_forecasting")
from lightning.pytorch import Trainer
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data import EncoderNormalizer, GroupNormalizer, TorchNormalizer
from pytorch_forecasting.metrics import (
    MAE,
    RMSE,
    SMAPE,
    MultivariateNormalDistributionLoss,
    PoissonLoss,
    QuantileLoss,
    TweedieLoss,
)

from xlstm_forecast.adapters.pytorch_forecasting import XLSTM, accelerate
from xlstm_forecast.adapters.pytorch_forecasting.packages import synthetic_panel

SIZES: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "blocks": "s", "dropout": 0.0}


def dataset(**options: Any) -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        synthetic_panel(),
        time_idx="time_idx",
        target="volume",
        group_ids=["agency", "sku"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["volume"],
        **options,
    )


def build(data: TimeSeriesDataSet, **options: Any) -> Any:
    torch.manual_seed(0)
    return XLSTM.from_dataset(data, loss=MAE(), **{**SIZES, **options})


def test_plain_layers_have_neither_a_convolution_nor_a_net_around_them() -> None:
    data = dataset()
    paper, plain = build(data, num_layers=2), build(data, num_layers=2, structure="plain", conv_kernel=0)
    extra = {name for name, _ in paper.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert sum(".mixer.conv." in name for name in extra) == 4  # weight and bias of either layer
    assert sum(".feed_forward" in name for name in extra) == 3  # up, down and their norm, after the last
    assert len(extra) == 7
    sizes = [sum(p.numel() for p in block.mixer.parameters()) for block in plain.network.encoder.blocks]
    assert sizes == [4 * 16 * 8 * 2 + 4 * 16 + 16] * 2  # input and recurrent maps of two heads, biases, norm
    with pytest.raises(ValueError, match="structure='bare' is unknown"):
        build(data, structure="bare")


def test_parameters_are_updated_together_to_the_same_values_as_one_by_one() -> None:
    data = dataset()
    x, y = next(iter(accelerate(data).to_dataloader(train=False, batch_size=8)))
    weights = []
    for options in (None, {"foreach": False}):
        model = build(data, optimizer_params=options).train()
        optimizer = model.configure_optimizers()["optimizer"]
        assert optimizer.param_groups[0]["foreach"] is (options is None)
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(model(x)["prediction"], y).backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_the_horizon_may_come_from_the_last_step_of_the_history() -> None:
    data = dataset()
    model = build(data, structure="plain", conv_kernel=0, decode="last")
    steps: list[int] = []
    model.network.encoder.register_forward_pre_hook(lambda module, args: steps.append(args[0].shape[1]))
    x, y = next(iter(accelerate(data).to_dataloader(train=False, batch_size=8)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        whole = model.eval()(x)["prediction"]
        alone = model({k: v[2:3] if isinstance(v, torch.Tensor) else v for k, v in x.items()})["prediction"]
    assert steps == [12, 12]
    assert whole.shape == (8, 4, 1)
    assert (whole[:, 1:] != whole[:, :1]).all()
    torch.testing.assert_close(alone, whole[2:3])
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model.loss(model(x)["prediction"], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_known_of_the_horizon_must_be_read() -> None:
    data = TimeSeriesDataSet.from_parameters(
        {**dataset().get_parameters(), "time_varying_known_reals": ["time_idx"]}, synthetic_panel()
    )
    with pytest.raises(ValueError, match="known-future columns"):
        build(data, decode="last")
    with pytest.raises(ValueError, match="decode='first' is unknown"):
        build(dataset(), decode="first")


RELU = TorchNormalizer(transformation="relu")
MISFITS = {
    "PoissonLoss needs": (PoissonLoss(), "auto"),
    "TweedieLoss needs": (TweedieLoss(), EncoderNormalizer(transformation="log1p")),
    "MultivariateNormalDistributionLoss needs": (MultivariateNormalDistributionLoss(), RELU),
    "QuantileLoss needs several": (QuantileLoss() + SMAPE() * 0.1, "auto"),
    "loss='mae'": ("mae", "auto"),
    "loss=<class": (MAE, "auto"),
    r"loss=L1Loss\(\)": (torch.nn.L1Loss(), "auto"),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_loss_that_would_fail_in_training_is_refused_when_the_model_is_built(message: str) -> None:
    loss, normalizer = MISFITS[message]
    data = dataset(target_normalizer=normalizer)
    with pytest.raises((TypeError, ValueError), match=message):
        XLSTM.from_dataset(data, loss=loss, **SIZES)


@pytest.mark.parametrize("balance", [-1.0, 2.0])
def test_a_balance_outside_its_range_is_refused(balance: float) -> None:
    with pytest.raises(ValueError, match=f"balance={balance}"):
        build(dataset(), balance=balance)


def test_new_series_are_forecast_from_a_frame_whatever_was_forecast_before() -> None:
    """Their data set does not know the new id, which the normalizer does not ask for."""
    data = dataset(target_normalizer=GroupNormalizer(groups=["agency"]))
    frame = synthetic_panel(steps=40)
    new = frame.assign(sku=frame["sku"].replace("s1", "new"))
    fresh, used = build(data), build(data)
    with pytest.raises(KeyError, match="new"):
        TimeSeriesDataSet.from_parameters(data.get_parameters(), new, predict=True)
    known = used.predict(frame)
    first, later = fresh.predict(new, return_index=True), used.predict(new)
    torch.testing.assert_close(first.output, later)
    torch.testing.assert_close(later, known)  # the network does not read ids
    assert set(first.index["sku"]) == {"s0", "new"}
    with pytest.raises(KeyError, match="elsewhere"):  # this one the normalizer needs
        build(data).predict(frame.assign(agency=frame["agency"].replace("a0", "elsewhere")))


def test_a_later_frame_beyond_the_reach_of_a_logarithm_is_refused_like_the_first() -> None:
    data = dataset(target_normalizer=EncoderNormalizer(transformation="log1p"))
    frame = synthetic_panel(steps=40)
    model = build(data)
    assert np.isfinite(model.predict(frame).numpy()).all()
    with pytest.raises(ValueError, match="infinite"):
        model.predict(frame.assign(volume=-3 * frame["volume"]))


def test_a_later_frame_whose_target_holds_no_numbers_is_refused_by_theirs() -> None:
    model, frame = build(dataset(add_target_scales=True)), synthetic_panel(steps=40)
    model.predict(frame)
    spoiled: pd.DataFrame = frame.assign(volume=frame["volume"].astype(str))
    with pytest.raises((TypeError, ValueError)):
        model.predict(spoiled)


def waves(level: float, height: float = 1.0) -> pd.DataFrame:
    """Three series around a level."""
    time = np.arange(30)
    parts = [
        pd.DataFrame({"g": f"g{i}", "t": time, "y": level - i * height + height * np.sin(time / 3)}) for i in range(3)
    ]
    return pd.concat(parts, ignore_index=True)


def own(df: pd.DataFrame, normalizer: Any) -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        df, time_idx="t", target="y", group_ids=["g"], max_encoder_length=12, max_prediction_length=4,
        time_varying_unknown_reals=["y"], target_normalizer=normalizer,
    )  # fmt: skip


def gradients(model: Any) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("loss", [QuantileLoss(), MAE(), RMSE()])
def test_a_normalizer_whose_scale_is_negative_is_no_trouble(loss: Any) -> None:
    data = own(waves(-6.0), GroupNormalizer(groups=["g"], center=False))
    x, y = next(iter(data.to_dataloader(train=False, batch_size=8)))
    assert (x["target_scale"][:, 1] < 0).all()
    torch.manual_seed(0)
    model = XLSTM.from_dataset(data, loss=loss, **SIZES).train()
    found = model(x)["prediction"]
    assert (found.diff(dim=-1) >= 0).all()
    model.loss(found, y).backward()
    assert all(torch.isfinite(grad).all() for grad in gradients(model))


def test_a_batch_that_is_forecast_exactly_leaves_rmse_with_a_gradient_of_zero() -> None:
    data = own(waves(0.0, height=0.0), GroupNormalizer(groups=["g"], transformation="softplus"))
    model = build(data, balance=0.5).train()
    model.loss = RMSE()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    exact = 0
    for _ in range(10):
        for x, y in data.to_dataloader(train=True, batch_size=4):
            loss = model.loss(model(x)["prediction"], y)
            optimizer.zero_grad()
            loss.backward()
            assert all(torch.isfinite(grad).all() for grad in gradients(model))
            optimizer.step()
            exact += float(loss.detach()) == 0
    assert exact, "no batch was forecast exactly: the test shows nothing"


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_a_trainer_of_another_precision_trains(precision: Any, tmp_path: Any) -> None:
    data = own(waves(5.0), GroupNormalizer(groups=["g"]))
    model = build(data)
    before = [parameter.detach().clone().float() for parameter in model.parameters()]
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=2, precision=precision, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(model, data.to_dataloader(train=True, batch_size=8))
    after = [parameter.detach().float() for parameter in model.parameters()]
    assert all(torch.isfinite(value).all() for value in after)
    assert any(not torch.equal(a, b.to(a.dtype)) for a, b in zip(after, before, strict=True))

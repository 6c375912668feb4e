"""Options of our models inside pytorch-forecasting: how plain their layers are, and how their optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_forecasting")
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE

from xlstm_forecast.adapters.pytorch_forecasting import XLSTM, accelerate
from xlstm_forecast.adapters.pytorch_forecasting.packages import synthetic_panel

SIZES: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "blocks": "s", "dropout": 0.0}


def dataset() -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        synthetic_panel(),
        time_idx="time_idx",
        target="volume",
        group_ids=["agency", "sku"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["volume"],
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

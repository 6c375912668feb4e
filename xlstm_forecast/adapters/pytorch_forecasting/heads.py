"""Output parameters for pytorch-forecasting's losses, which keep projection and distribution apart.

A head emits what `Metric.rescale_parameters` expects, in the window's units; `check_loss` says at build time what
would fail in the middle of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_forecasting.data.encoders import NaNLabelEncoder
from pytorch_forecasting.metrics import (
    MAE,
    MAPE,
    MASE,
    RMSE,
    SMAPE,
    BetaDistributionLoss,
    CrossEntropy,
    DistributionLoss,
    LogNormalDistributionLoss,
    MultivariateNormalDistributionLoss,
    NegativeBinomialDistributionLoss,
    PoissonLoss,
    QuantileLoss,
    TweedieLoss,
)
from pytorch_forecasting.metrics.base_metrics import CompositeMetric, Metric, MultiLoss
from torch import Tensor, nn

from ...heads import QuantileHead, interpolate_quantiles

POSITIVE = ("relu", "softplus", "count")  # transformations of the output that only keep it from falling below zero


def output_size(loss: Any) -> int:
    """Parameters per forecast value that a loss needs."""
    if isinstance(loss, QuantileLoss):
        return len(loss.quantiles)
    return len(loss.distribution_arguments) if isinstance(loss, DistributionLoss) else 1


def scaling_metric(loss: Any) -> Any:
    """The metric that rescales the parameters: a sum of metrics leaves that to its first one."""
    return loss._metrics[0] if isinstance(loss, CompositeMetric) else loss


def check_loss(loss: Any, normalizer: Any, target: str) -> None:
    """Raises ValueError or TypeError where a loss cannot be trained on a target with this normalizer."""
    if not isinstance(loss, (Metric, MultiLoss, CompositeMetric)):
        raise TypeError(f"loss={loss!r}: expected a metric of pytorch_forecasting.metrics, such as MAE()")
    if isinstance(loss, CompositeMetric):
        for part in loss._metrics:
            if isinstance(part, (QuantileLoss, DistributionLoss)):
                raise ValueError(
                    f"loss: a sum of metrics takes one number per value, and {type(part).__name__} needs several: "
                    "add up point losses (MAE, SMAPE, ...), or give this one alone"
                )
            check_loss(part, normalizer, target)
        return
    if isinstance(loss, MultiLoss):
        raise ValueError(f"loss: a MultiLoss inside a MultiLoss, for target {target!r}: give one loss for each target")
    if isinstance(loss, CrossEntropy):
        raise ValueError(f"loss=CrossEntropy() needs classes, and target {target!r} is forecast as a number")
    if isinstance(normalizer, NaNLabelEncoder):
        raise ValueError(
            f"target {target!r} is categorical; this model forecasts numbers: "
            f"convert the column first, df[{target!r}].astype(float), and leave target_normalizer numeric"
        )
    if isinstance(loss, QuantileLoss):
        levels = [float(level) for level in loss.quantiles]
        if not levels or len(set(levels)) < len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(f"loss: quantiles={loss.quantiles} must be distinct levels within (0, 1)")
    _check_normalizer(loss, normalizer, target)


def _check_normalizer(loss: Any, normalizer: Any, target: str) -> None:
    """Raises ValueError where a loss asks of the normalizer what it does not do."""
    transformation, centred = getattr(normalizer, "transformation", None), getattr(normalizer, "center", True)
    named = transformation if isinstance(transformation, str) else None
    logarithm = (_one_way(transformation), 'logarithms that it does not undo, transformation={"forward": torch.log1p}')
    needed = {
        PoissonLoss: logarithm,  # both take the exponential of the output themselves
        TweedieLoss: logarithm,
        MultivariateNormalDistributionLoss: (named not in ("relu", "count"), 'no transformation, or "log1p"'),
        NegativeBinomialDistributionLoss: (not centred and named not in ("log", "logit"), "center=False"),
        LogNormalDistributionLoss: (named in ("log", "log1p"), 'transformation="log" or "log1p"'),
        BetaDistributionLoss: (centred and named == "logit", 'transformation="logit" and center=True'),
    }
    for kind, (met, wanted) in needed.items():
        if isinstance(loss, kind) and not met:
            raise ValueError(
                f"target_normalizer of {target!r} has transformation={transformation!r} and center={centred}, "
                f"but {kind.__name__} needs {wanted}"
            )


def _one_way(transformation: Any) -> bool:
    """Whether a normalizer transforms the target and leaves the output as it is."""
    if not isinstance(transformation, dict):
        return False
    probe, reverse = torch.tensor([0.5, 2.0]), transformation.get("reverse")
    return reverse is None or bool((torch.as_tensor(reverse(probe)) == probe).all())


def centred(loss: Any) -> bool:
    """Whether a forecast may be shifted: a negative binomial one may only be scaled."""
    return not isinstance(loss, NegativeBinomialDistributionLoss)


def in_target_units(loss: Any) -> bool:
    """Whether a loss grows with the target's units, so that large series outweigh small ones."""
    return isinstance(loss, (QuantileLoss, MAE, RMSE))


def linear_space(loss: Any, normalizer: Any) -> bool:
    """Whether to work in the target's own space: the transformation only keeps forecasts from falling below zero.

    Logarithms would turn a single zero among the values into a window's whole spread.
    """
    transformation = getattr(normalizer, "transformation", None)
    plain = transformation is None or (isinstance(transformation, str) and transformation in POSITIVE)
    return plain and isinstance(loss, (QuantileLoss, MAE, RMSE, SMAPE, MAPE, MASE))


def keep_positive(values: Tensor) -> Tensor:
    """Values clipped at 0, with the gradient of the values themselves, so that a series at zero can leave it."""
    return values + (values.clamp(min=0) - values).detach()


class ScaleGradient(torch.autograd.Function):
    """The identity, with the gradient of row b multiplied by weight[b]; x: (B, ...), weight: (B,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return grad * weight.view(-1, *(1,) * (grad.ndim - 1)), None


class DefinedGradient(torch.autograd.Function):
    """The identity, with gradient 0 where there is none: the root of a mean of squares that are all 0 has NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.where(grad.isnan(), 0, grad)


class LossHead(nn.Module):
    """Parameters (B, H, size) for a loss from features (B, H, F) and a base forecast (B, H), in the window's units.

    Quantiles cannot cross. Any other loss gets its parameters raw, the first one moved by the base forecast.
    """

    def __init__(self, d_in: int, loss: Any, normalizer: Any, size: int):
        super().__init__()
        self.order: list[int] | None = None
        self.softplus = not centred(loss) and getattr(normalizer, "transformation", None) != "log1p"
        levels = [float(level) for level in loss.quantiles] if isinstance(loss, QuantileLoss) else []
        if len(levels) > 1:
            ordered = sorted(levels)
            self.order = [ordered.index(level) for level in levels]
            self.quantile = QuantileHead(d_in, ordered)
        else:
            self.projection = nn.Linear(d_in, size)
            with torch.no_grad():
                self.projection.weight.mul_(0.1)
                self.projection.bias.zero_()

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        if self.order is not None:
            return self.quantile.shift(self.quantile(features), base)[..., self.order]
        params = self.projection(features)
        if self.softplus:  # the loss takes a softplus of its own
            base = base.clamp(min=0.05)
            base = base + torch.log(-torch.expm1(-base))
        return torch.cat((params[..., :1] + base[..., None], params[..., 1:]), -1)


def median(loss: QuantileLoss, prediction: Tensor) -> Tensor:
    """The median (B, H) of quantiles (B, H, Q), also where 0.5 is not among the levels."""
    order = sorted(range(len(loss.quantiles)), key=lambda q: loss.quantiles[q])
    levels: Sequence[float] = [float(loss.quantiles[q]) for q in order]
    if 0.5 in levels or len(levels) == 1:
        return prediction[..., order[levels.index(0.5) if 0.5 in levels else 0]]
    return interpolate_quantiles(prediction[..., order], levels, (0.5,))[..., 0]


def softplus_scale(value: float) -> float:
    """The number whose softplus is `value`."""
    return float(torch.log(torch.expm1(torch.tensor(value))))


def soft_floor(spread: Tensor, floor: Tensor) -> Tensor:
    """A spread that never falls below a learned floor, smooth in both."""
    return torch.sqrt(spread**2 + F.softplus(floor) ** 2)

"""Layers under torch's own machinery: second derivatives, function transforms, tracing, checkpoints, memory."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.utils.checkpoint import checkpoint

from xlstm_forecast import mLSTM, sLSTM
from xlstm_forecast.encoder import Encoder, EncoderConfig
from xlstm_forecast.ops.slstm_cpu import Pieces

LAYERS: dict[str, Any] = {
    "sLSTM": lambda backend: sLSTM(8, 8, num_heads=2, batch_first=True, backend=backend),
    "headwise": lambda backend: sLSTM(8, 8, num_heads=2, projection="headwise", batch_first=True, backend=backend),
    "mLSTM": lambda backend: mLSTM(8, 8, num_heads=2, batch_first=True, backend=backend),
    "s": lambda backend: Encoder(EncoderConfig(d_model=8, num_heads=2, blocks="s", backend=backend)),
    "m": lambda backend: Encoder(EncoderConfig(d_model=8, num_heads=2, blocks="m", backend=backend)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def built(name: str, backend: str = "auto", dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = LAYERS[name](backend).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return layer


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0].square().sum()


def penalty(layer: nn.Module) -> list[Tensor]:
    """Gradients of how steep the loss is."""
    x = inputs().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.softplus(loss(layer, x)), x, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), list(layer.parameters())))


@every_layer
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_second_derivatives_are_right_or_refused(name, backend):
    x, layer, truth = inputs(), built(name, backend), built(name, "reference")
    if backend == "auto" or name not in ("mLSTM", "m"):  # mLSTM's torch path is differentiated by torch
        for ask in (lambda: hessian(lambda t: loss(layer, t), x), lambda: penalty(layer)):
            with pytest.raises(RuntimeError, match="backend='reference'"):
                ask()
        return
    expected = hessian(lambda t: loss(truth, t), x)
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(hessian(lambda t: loss(layer, t), x), expected)
    for ours, theirs in zip(penalty(layer), penalty(truth), strict=True):
        torch.testing.assert_close(ours, theirs)


@every_layer
def test_the_reference_has_second_derivatives(name):
    layer, x = built(name, "reference"), inputs()[:1, :3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: layer(t)[0], x)


@every_layer
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_function_transforms_give_the_gradients_of_backward(name, backend):
    layer, x = built(name, backend), inputs()
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def of(values: dict[str, Tensor], rows: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, (rows,))[0].square().sum()

    loss(layer, x).backward()
    whole = torch.func.grad(of)(parameters, x)
    rows = torch.func.vmap(torch.func.grad(of), in_dims=(None, 0))(parameters, x[:, None])
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(whole[key], parameter.grad)
        torch.testing.assert_close(rows[key].sum(0), parameter.grad)


@every_layer
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_forward_mode_gives_the_directional_derivative_of_sequences_and_steps(name, backend):
    layer, x = built(name, backend), inputs()
    direction = torch.ones_like(x)
    with torch.no_grad():
        _, state = layer(x)
        for rows, start in ((x, None), (x[:, :1], state)):
            along = direction[:, : rows.shape[1]]
            with forward_ad.dual_level():
                dual = layer(forward_ad.make_dual(rows, along), start)[0]
                found = forward_ad.unpack_dual(dual).tangent
            ahead, behind = (layer(rows + sign * 1e-6 * along, start)[0] for sign in (1, -1))
            torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


@every_layer
def test_a_traced_layer_is_saved_and_gives_the_same(name):
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = built(name).eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]  # type: ignore[no-any-return]

    file, x = io.BytesIO(), inputs()
    with torch.no_grad():
        expected = Output()(x)
        torch.jit.save(torch.jit.trace(Output(), x), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x), expected)


@every_layer
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_checkpoint_keeps_nothing_and_gives_the_same_gradients(name, backend):
    layer, x = built(name, backend, torch.float32), inputs(torch.float32).requires_grad_()

    def gradients(out: Tensor) -> Iterator[Tensor]:
        return iter(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]))

    def alive() -> int:
        gc.collect()
        return sum(found.nbytes for found in gc.get_objects() if type(found) is Tensor)

    expected, before = gradients(layer(x)[0]), alive()
    out = checkpoint(lambda rows: layer(rows)[0], x, use_reentrant=False, preserve_rng_state=False)
    assert alive() - before <= 2 * out.nbytes
    for ours, theirs in zip(gradients(out), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@every_layer
def test_what_backward_needed_is_freed_while_the_loss_lives(name):
    def held() -> int:
        gc.collect()
        return sum(len(found.memory) for found in gc.get_objects() if type(found) is Pieces)

    before, value = held(), loss(built(name), inputs().requires_grad_())
    value.backward()
    assert held() == before
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_rows_of_a_state_are_reset_in_place():
    layer = sLSTM(8, 16, num_heads=2, batch_first=True).double()  # heads that fill vectors: parts need no padding
    _, state = layer(inputs())
    for part in state:
        part[:, 1] = 0
    out, _ = layer(inputs(), state)
    out.sum().backward()
    fresh, _ = layer(inputs())
    torch.testing.assert_close(out[1], fresh[1])
    assert not torch.allclose(out[0], fresh[0])

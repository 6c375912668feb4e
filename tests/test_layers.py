"""The layers by themselves: parts, initial values, the nn.LSTM-like wrappers, and the coupled-gate cell."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import xlstm_forecast
from xlstm_forecast.encoder import Encoder, EncoderConfig
from xlstm_forecast.layers import (
    CausalAttention,
    CausalConv,
    CoupledMixer,
    HeadNorm,
    LargeMLSTMMixer,
    LinearMap,
    MLSTMMixer,
    SLSTMMixer,
    SLSTMRecurrence,
    TorchRNN,
    detach_state,
    mLSTM,
    sLSTM,
    sLSTMCell,
    sLSTMLayer,
)
from xlstm_forecast.layers.parts import BlockLinear, depthwise
from xlstm_forecast.ops import reference

WRAPPERS = {"sLSTM dense": (sLSTM, {}), "sLSTM headwise": (sLSTM, {"projection": "headwise"}), "mLSTM": (mLSTM, {})}
every_wrapper = pytest.mark.parametrize(("cls", "options"), WRAPPERS.values(), ids=WRAPPERS)


def randomise(module: nn.Module, scale: float = 0.3) -> Any:
    """The module in float64 with every parameter moved off its initial value."""
    generator = torch.Generator().manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return module


def sequence(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- parts


def test_the_head_norm_norms_each_head_by_itself() -> None:
    norm, x = randomise(HeadNorm(4, 8)), sequence(3, 5, 4, 8)
    expected = F.group_norm(x.flatten(0, 1).flatten(1), 4, 1 + norm.weight, eps=1e-5).view(3, 5, 32)
    same(norm(x), expected)


@pytest.mark.parametrize("head_dim", [1, 8])
def test_the_norm_of_an_slstm_layer_has_the_values_and_gradients_of_the_general_one(head_dim: int) -> None:
    fast = randomise(SLSTMMixer(4 * head_dim, 4, backend="cpu").norm)
    general = HeadNorm(4, head_dim).double()
    general.load_state_dict(fast.state_dict())
    x = (5 + 3 * sequence(3, 5, 4, head_dim)).requires_grad_()
    weight = sequence(3, 5, 4 * head_dim, seed=9)
    found, expected = (torch.autograd.grad((norm(x) * weight).sum(), (x, norm.weight)) for norm in (fast, general))
    same(found, expected)
    same(fast(x), general(x))
    with torch.no_grad():
        same(fast(x), general(x))


def test_the_causal_convolution_weighs_the_last_steps() -> None:
    conv, x = randomise(CausalConv(6, 4)), sequence(2, 9, 6)
    y, state = conv(x, None, None)
    for t in range(9):
        taps = [conv.weight[:, 0, 3 - lag] * x[:, t - lag] for lag in range(4) if t >= lag]
        same(y[:, t], sum(taps) + conv.bias)
    assert torch.equal(state, x[:, -3:])


@pytest.mark.parametrize("build", [SLSTMMixer, MLSTMMixer])
@pytest.mark.parametrize("conv_kernel", [0, 1, 4])
@pytest.mark.parametrize("steps", [1, 50])
def test_the_state_of_a_convolution_keeps_no_sequence_alive(build: Any, conv_kernel: int, steps: int) -> None:
    mixer = build(32, conv_kernel=conv_kernel, backend="reference")
    x = torch.zeros(2, steps, 32, requires_grad=True)
    conv = mixer(x)[1].conv
    assert conv.shape[:2] == (2, max(conv_kernel - 1, 0))
    assert conv.untyped_storage().nbytes() == conv.numel() * 4
    assert conv.requires_grad == (conv_kernel > 0)


def test_the_state_of_attention_keeps_no_queries_alive() -> None:
    state = CausalAttention(32)(torch.zeros(2, 50, 32))[1]
    assert all(part.untyped_storage().nbytes() == part.numel() * part.itemsize for part in state)


def test_the_cpu_convolution_has_the_gradients_of_torchs_own() -> None:
    x, weight, bias = sequence(2, 12, 5), sequence(5, 1, 4, seed=2), sequence(5, seed=3)
    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    plain = F.conv1d(x.transpose(1, 2), weight, bias, groups=5).transpose(1, 2)
    same(depthwise(x, weight, bias), plain)
    g = sequence(2, 9, 5, seed=4)
    found = torch.autograd.grad((depthwise(x, weight, bias) * g).sum(), inputs)
    for mine, other in zip(found, torch.autograd.grad((plain * g).sum(), inputs), strict=True):
        same(mine, other)
    assert torch.autograd.gradgradcheck(depthwise, inputs)


@pytest.mark.parametrize("blocks", [1, 3, 8, 12])
@pytest.mark.parametrize("steps", [3, 40])
def test_block_linear_maps_each_block_by_its_own_matrix(blocks: int, steps: int) -> None:
    layer, x = BlockLinear(4 * blocks, 4, maps=2).double(), sequence(2, steps, 4 * blocks)
    layer.weight.data = sequence(2, blocks, 4, 4, seed=3)
    outputs = layer(x)
    for index in range(2):
        expected = torch.einsum("btnd,nde->btne", x.view(2, steps, blocks, 4), layer.weight[index]).flatten(2)
        same(outputs[index], expected)
    after = sequence(5, 2, 4 * blocks, seed=2)
    same(x @ layer.fold(after).T, sum(out @ after[:, index].T for index, out in enumerate(outputs)))


def test_dense_gates_come_in_the_layout_of_the_recurrence_without_a_copy() -> None:
    cell, x = SLSTMRecurrence(32, 64, 4, projection="dense").double(), sequence(3, 7, 32)
    gates = cell._dense(x, cell.weight)
    assert gates.shape == (3, 7, 4, 4, 16)
    assert gates.is_contiguous()
    same(gates, torch.einsum("btd,nged->btnge", x, cell.weight))


# --- initial values: the numbers of the papers' code


def test_slstm_forget_biases_run_from_5_to_minus_7_by_the_depth_of_the_block() -> None:
    encoder: Any = Encoder(EncoderConfig(d_model=32, num_heads=4, blocks="sss"))
    for index, power in enumerate((0.3, 0.95, 1.6)):
        bias = encoder.blocks[index].mixer.cell.bias
        expected = torch.tensor([5 - 12 * (j / 7) ** power for j in range(8)])
        for head in range(4):
            torch.testing.assert_close(bias[head, 1], expected)
        assert (bias[:, [0, 2, 3]] == 0).all()
        assert (encoder.blocks[index].mixer.cell.recurrent == 0).all()


def test_heads_of_size_one_work() -> None:
    mixer: Any = randomise(SLSTMMixer(4, 4))
    assert (SLSTMMixer(4, 4).cell.bias[:, 1] == 5).all()
    y, state = mixer(sequence(2, 5, 4))
    assert torch.isfinite(y).all()
    assert torch.isfinite(state.cell.h).all()


def test_mlstm_gates_start_at_their_biases_alone() -> None:
    for mixer, low, high in ((MLSTMMixer(64, 4), -0.5, 0.5), (LargeMLSTMMixer(64, 4), -10.0, -10.0)):
        assert (mixer.gates.weight == 0).all()
        i, f = mixer.gates.bias.view(2, 4)
        torch.testing.assert_close(f, torch.tensor([3.0, 4.0, 5.0, 6.0]))
        assert ((i >= low) & (i <= high)).all()
        assert low == high or i.unique().numel() == 4


def test_weights_are_spread_as_in_the_papers_code() -> None:
    d, blocks = 256, 4
    encoder: Any = Encoder(EncoderConfig(d_model=d, blocks="msms"), torch.Generator().manual_seed(0))
    small, wang = math.sqrt(2 / (5 * d)), 2 / (blocks * math.sqrt(d))
    m, s = encoder.blocks[0], encoder.blocks[1]
    for weight, spread in (
        (m.mixer.up.weight, small),
        (m.mixer.query_key.weight, small),
        (m.mixer.value.weight, small),
        (m.mixer.down.weight, wang),
        (s.mixer.cell.weight, small),
        (s.feed_forward.up.weight, small),
        (s.feed_forward.down.weight, wang),
        (m.mixer.conv.weight, 0.5 / math.sqrt(3)),  # U(-.5, .5)
    ):
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
    assert m.mixer.conv.weight.abs().max() <= 0.5
    assert m.mixer.up.weight.shape == (1024, 256)
    assert s.feed_forward.up.weight.shape == (2 * 384, 256)  # 64 ceil(1.3 * 256 / 64) = 384
    assert (m.mixer.skip == 1).all()
    assert all((p == 0).all() for name, p in encoder.named_parameters() if name.endswith("norm.weight"))


@pytest.mark.parametrize(("d", "inner"), [(64, 192), (96, 256), (128, 384)])
def test_the_feed_forward_net_of_the_large_blocks_has_the_official_width(d: int, inner: int) -> None:
    encoder: Any = Encoder(EncoderConfig(d_model=d, blocks="m", variant="large"))
    assert encoder.blocks[0].feed_forward.down.weight.shape == (d, inner)


# --- behaviour of the recurrences


def test_slstm_outputs_are_bounded_and_its_normaliser_is_not_below_one() -> None:
    rnn = randomise(sLSTM(6, 32, batch_first=True), scale=3.0)
    output, state = rnn(sequence(4, 50, 6) * 20)
    assert output.abs().max() <= 1
    assert state.n.min() >= 1
    assert (state.c.abs() <= state.n * (1 + 1e-12)).all()


def test_dropout_of_the_slstm_comes_before_its_norm() -> None:
    mixer, x = SLSTMMixer(32, 4, dropout=0.5), sequence(8, 20, 32).float()
    y = mixer(x)[0].unflatten(-1, (4, 8))
    assert y.mean(-1).abs().max() < 1e-5  # each head is centred although half of its units were dropped
    assert not torch.equal(mixer(x)[0], mixer(x)[0])


def test_the_wrappers_are_projection_and_recurrence() -> None:
    x = sequence(3, 9, 6)
    rnn: Any = randomise(sLSTM(6, 16, batch_first=True))
    cell = rnn.directions[0].cell
    gates = torch.einsum("btd,nged->btnge", x, cell.weight)
    h, end = reference.slstm(gates, cell.recurrent, cell.bias)
    output, state = rnn(x)
    same(output, h.flatten(2))
    for found, expected in zip(state, end, strict=True):
        same(found[0], expected.flatten(1))
    x = sequence(3, 9, 8)
    rnn = randomise(sLSTM(8, 16, projection="headwise", batch_first=True))
    cell = rnn.directions[0].cell
    gates = torch.einsum("btnd,ndge->btnge", x.unflatten(-1, (4, 2)), cell.weight)
    same(rnn(x)[0], reference.slstm(gates, cell.recurrent, cell.bias)[0].flatten(2))
    rnn = randomise(mLSTM(8, 16, batch_first=True))
    layer = rnn.directions[0]
    q, k, v = ((x @ w.T).unflatten(-1, (4, 4)).transpose(1, 2) for w in layer.qkv.weight.chunk(3))
    i, f = (x @ layer.gates.weight.T + layer.gates.bias).transpose(1, 2).chunk(2, 1)
    h, memory = reference.mlstm(q, k, v, i, f)
    output, state = rnn(x)
    same(output, layer.norm(h.transpose(1, 2)))
    for found, expected in zip(state, memory, strict=True):
        same(found[0], expected)


@every_wrapper
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_wrappers_take_and_give_what_nn_lstm_does(
    cls: Any, options: dict[str, Any], layers: int, bidirectional: bool
) -> None:
    rnn = randomise(cls(8, 16, layers, bidirectional=bidirectional, **options))
    other = nn.LSTM(8, 16, layers, bidirectional=bidirectional).double()
    x = sequence(7, 3, 8)
    output, state = rnn(x)
    expected, (h, _) = other(x)
    assert output.shape == expected.shape
    assert type(state).__name__ == ("SLSTMState" if cls is sLSTM else "MLSTMState")
    assert state.n.shape[:2] == h.shape[:2]
    if cls is sLSTM:
        assert state.h.shape == h.shape
        # as for nn.LSTM: the last layer's h is the output at each direction's last step
        last = output[-1, :, :16], output[0, :, 16:]
        same(state.h[-2 if bidirectional else -1], last[0])
        if bidirectional:
            same(state.h[-1], last[1])
    rnn.batch_first = True
    turned, turned_state = rnn(x.transpose(0, 1))
    same(turned.transpose(0, 1), output)
    same(turned_state, state)
    rnn.batch_first = False
    alone, alone_state = rnn(x[:, 1])
    same(alone, output[:, 1])
    same(alone_state, type(state)(*(part[:, 1] for part in state)))
    again, _ = rnn(x, state)
    assert not torch.allclose(again, output)


@every_wrapper
def test_a_wrapper_continues_from_its_state(cls: Any, options: dict[str, Any]) -> None:
    rnn, x = randomise(cls(8, 16, 2, **options)), sequence(9, 3, 8)
    whole, end = rnn(x)
    first, state = rnn(x[:4])
    outputs = [first]
    for x_t in x[4:]:
        y, state = rnn(x_t[None], state)
        outputs.append(y)
    same(torch.cat(outputs), whole)
    same(state, end)


@every_wrapper
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_lengths_and_masks_give_what_the_rows_give_alone(
    cls: Any, options: dict[str, Any], bidirectional: bool
) -> None:
    rnn = randomise(cls(8, 16, 2, bidirectional=bidirectional, **options))
    rows = [sequence(steps, 8, seed=steps + place) for place, steps in enumerate((3, 7, 5, 7, 1))]
    start = rnn(sequence(4, 5, 8))[1]
    alone = [rnn(row, type(start)(*(part[:, place] for part in start))) for place, row in enumerate(rows)]
    packed = pack_sequence(rows, enforce_sorted=False)
    out, state = rnn(packed, start)
    like, _ = nn.LSTM(8, 4).double()(packed)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(out, name), getattr(like, name))
    padded, lengths = pad_packed_sequence(out)
    x = nn.utils.rnn.pad_sequence(rows, padding_value=math.nan)
    by_lengths = rnn(x, start, lengths=lengths)
    left = torch.stack([torch.cat([torch.full((7 - len(row), 8), math.nan), row]) for row in rows], 1)
    mask = torch.arange(7)[:, None] >= 7 - lengths
    by_mask = rnn(left, start, mask=mask)
    for place, (y, end) in enumerate(alone):
        steps = len(rows[place])
        same(padded[:steps, place], y)
        same(by_lengths[0][:steps, place], y)
        assert (by_lengths[0][steps:, place] == 0).all()
        same(by_mask[0][7 - steps :, place], y)
        for found in (state, by_lengths[1], by_mask[1]):
            same(type(end)(*(part[:, place] for part in found)), end)
    ordered = pack_padded_sequence(sequence(6, 2, 8), torch.tensor([6, 4]))
    assert rnn(ordered)[0].sorted_indices is None


@every_wrapper
def test_dropout_lies_between_the_layers_only(cls: Any, options: dict[str, Any]) -> None:
    x = sequence(5, 2, 8)
    one, two = (randomise(cls(8, 16, layers, dropout=0.5, **options)) for layers in (1, 2))
    assert torch.equal(one(x)[0], one(x)[0])
    assert not torch.equal(two(x)[0], two(x)[0])
    assert torch.equal(two.eval()(x)[0], two(x)[0])


@every_wrapper
def test_a_wrapper_learns_what_a_linear_map_of_the_present_cannot(cls: Any, options: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rnn, readout = cls(4, 16, **options), nn.Linear(16, 1)
        optimiser = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], 1e-2)
        x = torch.randn(20, 64, 4)
        target = x[:, :, :1].roll(1, 0)
        for _ in range(150):
            loss = (readout(rnn(x)[0])[1:] - target[1:]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert loss < 0.85  # the last input, of variance 1: a map of the present input leaves all of it


def test_the_wrappers_compile_and_export() -> None:
    for cls in (sLSTM, mLSTM):
        rnn, x = randomise(cls(8, 16, bidirectional=True)), sequence(3, 2, 8)
        expected, state = rnn(x)
        torch._dynamo.reset()
        found, end = torch.compile(rnn, fullgraph=True, backend="aot_eager")(x, state)
        again, other = rnn(x, state)
        same(found, again, 1e-9)
        same(end, other, 1e-9)
        program = torch.export.export(rnn, (x,)).module()
        same(program(x)[0], expected, 1e-9)


@every_wrapper
def test_wrong_inputs_of_a_wrapper_are_named(cls: Any, options: dict[str, Any]) -> None:
    rnn, x = cls(8, 16, **options), torch.zeros(5, 2, 8)
    _, state = rnn(x)
    with pytest.raises(ValueError, match=r"2 or 3 dimensions, the last of 8, got \(5, 2, 7\)"):
        rnn(x[..., :7])
    with pytest.raises(ValueError, match=r"x of shape \(0, 2, 8\) is empty"):
        rnn(x[:0])
    with pytest.raises(TypeError, match=r"State\(.*n, m\) as returned, got tuple"):
        rnn(x, tuple(state))
    with pytest.raises(ValueError, match=r"state.n must be of shape \(1, 2, .*\), got \(1, 1"):
        rnn(x, state._replace(n=state.n[:, :1]))
    with pytest.raises(ValueError, match="mask or lengths, not both"):
        rnn(x, mask=torch.ones(5, 2, dtype=torch.bool), lengths=torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="carries its own lengths"):
        rnn(pack_sequence([x[:, 0]]), lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match=r"lengths must be of shape \(2,\)"):
        rnn(x, lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="num_heads=3 must divide the hidden size, which is 16"):
        cls(9, 16, num_heads=3, **options)
    with pytest.raises(ValueError, match="num_layers=0"):
        cls(8, 16, 0, **options)


@every_wrapper
def test_masks_and_lengths_are_checked_as_they_were_given(cls: Any, options: dict[str, Any]) -> None:
    rnn, x = cls(8, 16, **options), torch.zeros(5, 2, 8)
    mask = torch.ones(5, 2, dtype=torch.bool)
    for given, found in ((mask.T, (2, 5)), (mask[:, 0], (5,)), (mask[..., None], (5, 2, 1))):
        with pytest.raises(
            ValueError, match=re.escape(f"of shape (5, 2), laid out as x is, got torch.bool of shape {found}")
        ):
            rnn(x, mask=given)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(5,\).*got torch.bool of shape \(5, 2\)"):
        rnn(x[:, 0], mask=mask)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(5, 2\).*got torch.int64"):
        rnn(x, mask=mask.long().tolist())
    expected = rnn(x, lengths=torch.tensor([5, 3]))
    same(rnn(x, lengths=[5, 3]), expected)
    same(rnn(x, mask=(torch.arange(5)[:, None] < torch.tensor([5, 3])).tolist()), expected)
    for length in (6, -1, 2.5, math.nan):
        with pytest.raises(ValueError, match=rf"lengths\[1\] must be a whole number from 0 to 5, got {length}"):
            rnn(x, lengths=[5, length])
    with pytest.raises(ValueError, match=r"input_size=8 features at each step, got .* of shape \(7,\)"):
        rnn(pack_sequence([x[:, 0, :7]]))


@every_wrapper
def test_states_of_unbatched_sequences_are_checked_as_they_were_given(cls: Any, options: dict[str, Any]) -> None:
    rnn, x = cls(8, 16, **options), torch.zeros(5, 8)
    _, state = rnn(x)
    with pytest.raises(TypeError, match=r"State\(.*n, m\) as returned, got tuple"):
        rnn(x, tuple(state))
    shape = re.escape(str(tuple(state[0].shape)))
    with pytest.raises(ValueError, match=rf"must be of shape {shape}, got \(1, 2"):
        rnn(x, rnn(torch.zeros(5, 2, 8))[1])


@every_wrapper
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "num_heads"])
@pytest.mark.parametrize("value", [0, -4, True, 4.0])
def test_sizes_that_are_none_are_named(cls: Any, options: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={value} must be a whole number of at least 1"):
        cls(**{"input_size": 8, "hidden_size": 16, **options, name: value})


def test_no_state_is_cut_off_as_no_state() -> None:
    assert detach_state(None) is None
    assert detach_state((None, [None])) == (None, [None])


def test_an_unknown_projection_is_named() -> None:
    with pytest.raises(ValueError, match="projection='full' is unknown; choose from headwise, dense"):
        sLSTM(8, 16, projection="full")
    with pytest.raises(ValueError, match="num_heads=4 must divide the input size, which is 6"):
        sLSTM(6, 16, projection="headwise")


def test_the_layers_are_public_names_of_the_package() -> None:
    assert xlstm_forecast.sLSTM is sLSTM
    assert xlstm_forecast.mLSTM is mLSTM
    assert xlstm_forecast.sLSTMCell is sLSTMCell


# --- comparison mixers


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_torchs_own_layers_are_used_as_they_are(kind: str) -> None:
    mixer: Any = randomise(TorchRNN(8, kind=kind))
    x, mask = sequence(3, 6, 8), torch.arange(6) < torch.tensor([[6], [2], [4]])
    expected, _ = mixer.rnn(x)
    y, state = mixer(x, None, mask)
    same(y, expected.masked_fill(~mask[..., None], 0))
    packed = pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
    end = mixer.rnn(packed)[1]
    same(state.h, end[0][0] if kind == "lstm" else end[0])
    assert state.c.shape == ((3, 8) if kind == "lstm" else (3, 0))


def test_a_linear_map_is_one_matrix_over_the_steps_of_each_feature() -> None:
    mixer: Any = randomise(LinearMap(8, reach=5))
    x = sequence(3, 9, 8)
    lag = torch.arange(9)[:, None] - torch.arange(9)  # of step t behind s
    taps = mixer.over_time.weight[:, 0].flip(-1)  # (D, reach), the present first
    matrix = torch.where((lag >= 0) & (lag < 5), taps[:, lag.clamp(0, 4)], 0.0)  # (D, T, T)
    expected = torch.einsum("dts,bsd->btd", matrix, x) + mixer.over_time.bias
    same(mixer(x)[0], mixer.out(expected))


# --- the coupled-gate cell


def theirs() -> Any:
    return pytest.importorskip("pytorch_forecasting.layers._recurrent._slstm")


@pytest.mark.parametrize("use_layer_norm", [True, False])
def test_the_coupled_gate_cell_gives_pytorch_forecastings_numbers_from_its_weights(use_layer_norm: bool) -> None:
    other = randomise(theirs().sLSTMCell(5, 12, use_layer_norm=use_layer_norm), 0.5)
    ours = sLSTMCell(5, 12, use_layer_norm=use_layer_norm).double()
    ours.load_state_dict(other.state_dict())
    x, h, c = (sequence(4, size, seed=size + 1).requires_grad_() for size in (5, 12, 12))
    found, expected = ours(x, h, c), other(x, h, c)
    weights = sequence(4, 12, seed=8), sequence(4, 12, seed=9)
    for mine, their in zip(found, expected, strict=True):
        same(mine, their, 1e-12)
    inputs = [x, h, c]
    grads = [
        torch.autograd.grad(
            sum((a * w).sum() for a, w in zip(out, weights, strict=True)), [*inputs, *model.parameters()]
        )
        for out, model in ((found, ours), (expected, other))
    ]
    for mine, their in zip(*grads, strict=True):
        same(mine, their, 1e-11)
    gate = sequence(4, 12, seed=3) * 9
    same(ours.normalized_exp_gate(gate), other.normalized_exp_gate(gate), 1e-14)


@pytest.mark.parametrize("sizes", [(5, 12), (12, 12)])
@pytest.mark.parametrize("use_layer_norm", [True, False])
@pytest.mark.parametrize("use_residual", [True, False])
def test_the_coupled_gate_layer_gives_pytorch_forecastings_numbers(
    sizes: tuple[int, int], use_layer_norm: bool, use_residual: bool
) -> None:
    options = {"num_layers": 3, "use_layer_norm": use_layer_norm, "use_residual": use_residual}
    other = randomise(theirs().sLSTMLayer(*sizes, **options), 0.2)
    ours = sLSTMLayer(*sizes, **options).double()  # type: ignore[arg-type]
    ours.load_state_dict(other.state_dict())
    x = sequence(7, 4, sizes[0])
    h, c = ([sequence(4, 12, seed=seed + layer) for layer in range(3)] for seed in (10, 20))
    zero = [torch.zeros(4, 12, dtype=torch.float64)] * 3
    for start, their_start in (((), (zero, zero)), ((h, c), (h, c))):
        kept = [list(part) for part in start]
        found, (hidden, memory) = ours(x, *start)
        assert all(p is q for a, b in zip(start, kept, strict=True) for p, q in zip(a, b, strict=True))
        expected, (their_h, their_c) = other(x, *(list(part) for part in their_start))
        same(found, expected, 1e-10)
        same(hidden, their_h, 1e-10)
        same(memory, their_c, 1e-10)
        assert all(part.requires_grad for part in (*hidden, *memory))  # theirs are detached
    parameters = list(ours.parameters())
    found_grads = torch.autograd.grad((ours(x)[0] * sequence(7, 4, 12)).sum(), parameters)
    their_grads = torch.autograd.grad(
        (other(x, [*zero], [*zero])[0] * sequence(7, 4, 12)).sum(), list(other.parameters())
    )
    for mine, their in zip(found_grads, their_grads, strict=True):
        same(mine, their, 1e-9)


def test_the_coupled_gate_cell_starts_without_the_faults_of_the_original() -> None:
    cell = sLSTMCell(8, 64)
    for norm in (cell.ln_cell, cell.ln_hidden, cell.ln_input, cell.ln_hidden_update):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    for linear in (cell.input_weights, cell.hidden_weights):
        assert linear.weight.abs().max() <= 1 / 8
        assert linear.weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    before = cell.input_weights.weight.clone()
    cell.reset_parameters()
    assert not torch.equal(before, cell.input_weights.weight)
    h, c = cell.init_hidden(3)
    assert h.shape == c.shape == (3, 64)
    assert h is not c
    assert (h == 0).all()
    h, c = cell(torch.randn(3, 8), h, c)
    assert h.std() > 0.1  # with norm gains near 0 theirs starts at almost nothing


def test_the_coupled_gate_cell_compiles_whole() -> None:
    cell = sLSTMCell(3, 8)
    torch._dynamo.reset()
    compiled = torch.compile(cell, fullgraph=True, backend="eager", dynamic=True)
    for rows in (2, 5):
        given = torch.ones(rows, 3), *cell.init_hidden(rows)
        torch.testing.assert_close(compiled(*given), cell(*given))


def test_the_gates_of_the_coupled_cell_add_up_to_one() -> None:
    cell = sLSTMCell(8, 16).double()
    shares = torch.stack([cell.normalized_exp_gate(sequence(4, 16, seed=seed)) for seed in (1, 2)])
    same(shares.sum(-1), torch.ones(2, 4, dtype=torch.float64), 1e-6)


def test_the_coupled_mixer_runs_the_cell_step_by_step() -> None:
    mixer: Any = randomise(CoupledMixer(8))
    x = sequence(3, 6, 8)
    y, state = mixer(x)
    h, c = mixer.cell.init_hidden(3)
    for t in range(6):
        h, c = mixer.cell(x[:, t], h, c)
        same(y[:, t], h)
    same(tuple(state), (h, c))


def test_wrong_inputs_of_the_coupled_cell_are_named() -> None:
    cell, layer = sLSTMCell(3, 8), sLSTMLayer(3, 8)
    h, c = cell.init_hidden(2)
    with pytest.raises(ValueError, match="x has 4 features, the cell takes 3"):
        cell(torch.zeros(2, 4), h, c)
    for name in ("h_prev", "c_prev"):
        for wrong in (h[:, :7], h[:1], h[0]):
            given = {"h_prev": h, "c_prev": c, name: wrong}
            with pytest.raises(
                ValueError, match=rf"{name} must be of shape \(2, 8\), got {re.escape(str(tuple(wrong.shape)))}"
            ):
                cell(torch.zeros(2, 3), **given)
    x = torch.zeros(4, 2, 3)
    for count in (0, 2):
        with pytest.raises(ValueError, match=r"h must be 1 tensors of shape \(2, 8\), got \["):
            layer(x, [h] * count, [c] * count)
    with pytest.raises(ValueError, match=r"c must be 1 tensors of shape \(2, 8\), got \[\(1, 8\)\]"):
        layer(x, [h], [c[:1]])
    with pytest.raises(ValueError, match=r"x must be \(T, B, 3\) with T at least 1, got \(0, 2, 3\)"):
        layer(x[:0])
    with pytest.raises(ValueError, match="num_layers=0 must be"):
        sLSTMLayer(3, 8, 0)
    with pytest.raises(ValueError, match="hidden_size=0 must be"):
        sLSTMCell(3, 0)
    with pytest.raises(ValueError, match="both h and c or neither"):
        layer(torch.zeros(4, 2, 3), [h], None)


@pytest.mark.parametrize("kind", [sLSTM, mLSTM])
def test_an_exported_layer_is_saved_with_its_state_and_read_again(kind):
    rnn, x = kind(8, 16, batch_first=True).eval(), torch.randn(2, 5, 8)
    expected, state = rnn(x)
    file = io.BytesIO()
    torch.export.save(torch.export.export(rnn, (x, state)), file)
    file.seek(0)
    found, last = torch.export.load(file).module()(x, state)
    again, then = rnn(x, state)
    torch.testing.assert_close(found, again)
    assert type(last) is type(then)
    torch.testing.assert_close(tuple(last), tuple(then))
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("kind", [sLSTM, mLSTM])
def test_a_backend_that_does_not_exist_is_refused_when_a_layer_is_built(kind):
    with pytest.raises(ValueError, match=r"backend must be one of .*found 'cuda'"):
        kind(8, 16, backend="cuda")


def test_autocast_gives_every_backend_of_the_headwise_layer_the_inputs_dtype():
    x = torch.randn(2, 5, 8)
    for backend in ("auto", "torch", "reference"):
        rnn = sLSTM(8, 16, projection="headwise", backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, state = rnn(x)
        assert output.dtype == state.h.dtype == torch.float32

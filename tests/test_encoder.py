"""Every mixer, in both variants of the blocks: state, masks, directions, gradients, initial values, compilation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xlstm_forecast.encoder import MIXERS, VARIANTS, Encoder, EncoderConfig
from xlstm_forecast.layers import detach_state

D = 32
Case = dict[str, Any]
CASES: dict[str, Case] = {
    **{f"{letter} {variant}": {"blocks": letter, "variant": variant} for letter in MIXERS for variant in VARIANTS},
    "xLSTM[2:1]": {"blocks": "xLSTM[2:1]"},
    "ms pre": {"blocks": "ms", "structure": "pre"},
    "ms plain": {"blocks": "ms", "structure": "plain"},
    "ms post, two layers": {"blocks": "ms", "structure": "post", "num_layers": 2},
}
every_mixer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def build(blocks: str, variant: str = "neurips", *, spread: float = 0.1, **options: Any) -> Encoder:
    """A float64 encoder in eval mode with every parameter moved off its initial value."""
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(EncoderConfig(d_model=D, blocks=blocks, variant=variant, **options), generator).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread)
    return encoder


def sequence(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_states_equal(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    leaves, others = tree_leaves(found), tree_leaves(expected)
    assert len(leaves) == len(others)
    for mine, other in zip(leaves, others, strict=True):
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@every_mixer
def test_a_state_carried_over_a_cut_gives_the_whole(case: Case) -> None:
    encoder, x = build(**case), sequence(2, 13, D)
    whole, end = encoder(x)
    first, state = encoder(x[:, :5])
    second, state = encoder(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-11)
    assert_states_equal(state, end)


@every_mixer
def test_step_by_step_gives_the_whole_and_its_gradients(case: Case) -> None:
    encoder, x, weight = build(**case), sequence(2, 6, D), sequence(2, 6, D, seed=2)
    whole, end = encoder(x)
    parameters = list(encoder.parameters())
    expected = torch.autograd.grad((whole * weight).sum(), parameters)
    state, outputs = None, []
    for x_t in x.unbind(1):
        y, state = encoder.step(x_t, state)
        outputs.append(y)
    stepped = torch.stack(outputs, 1)
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-11)
    assert_states_equal(state, end)
    for found, other in zip(torch.autograd.grad((stepped * weight).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)


MASKS = {"left": "000011111", "right": "111110000", "holes": "010110101", "full": "111111111", "none": "000000000"}


@every_mixer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_padded_row_gives_what_the_row_gives_alone(case: Case, bidirectional: bool) -> None:
    encoder = build(**case, bidirectional=bidirectional)
    _, start = encoder(sequence(len(MASKS), 4, D, seed=3))
    mask = torch.tensor([[c == "1" for c in row] for row in MASKS.values()])
    x = sequence(len(MASKS), 9, D)
    poisoned = x.masked_fill(~mask[..., None], torch.nan)
    for state in (None, start):
        y, end = encoder(poisoned, state, mask)
        assert (y[~mask] == 0).all()
        for row in range(len(MASKS) - 1):
            own = None if state is None else pick(state, row)
            alone, alone_end = encoder(x[row : row + 1, mask[row]], own)
            torch.testing.assert_close(y[row, mask[row]], alone[0], rtol=0, atol=1e-11)
            if case["blocks"] != "t":  # the attention cache keeps the padding, marked as not valid
                assert_states_equal(pick(end, row), alone_end)
        if state is not None and case["blocks"] != "t":
            assert_states_equal(pick(end, len(MASKS) - 1), pick(state, len(MASKS) - 1))  # nothing seen, nothing moved


@every_mixer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_steps_alone_are_the_end_of_the_whole(case: Case, bidirectional: bool) -> None:
    encoder, x = build(**case, bidirectional=bidirectional), sequence(len(MASKS), 9, D).requires_grad_()
    leaves = [x, *encoder.parameters()]
    for mask in (None, torch.tensor([[c == "1" for c in row] for row in MASKS.values()])):
        whole, end = encoder(x, None, mask)
        for last in (1, 4, 9):
            y, state = encoder(x, None, mask, last=last)
            torch.testing.assert_close(y, whole[:, -last:], rtol=0, atol=1e-12)
            assert_states_equal(state, end, 0)
            grads = [
                torch.autograd.grad(part.square().sum(), leaves, retain_graph=True) for part in (y, whole[:, -last:])
            ]
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"last=10 .* 9"):
        encoder(x, last=10)


def pick(state: Any, row: int) -> Any:
    """One row of a nested state."""
    if isinstance(state, Tensor):
        return state[row : row + 1]
    parts = [pick(part, row) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


@every_mixer
def test_a_state_after_padding_goes_on_as_without_it(case: Case) -> None:
    encoder, x = build(**case), sequence(2, 12, D)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, :2] = False
    _, state = encoder(x[:, :7], None, mask)
    after, _ = encoder(x[:, 7:], state)
    for row, kept in enumerate((x[:1, :4], x[1:, 2:7])):
        alone, _ = encoder(torch.cat([kept, x[row : row + 1, 7:]], 1))
        torch.testing.assert_close(after[row], alone[0, -5:], rtol=0, atol=1e-11)


@every_mixer
def test_padding_gets_no_gradient_and_gives_none(case: Case) -> None:
    encoder, x, weight = build(**case), sequence(2, 8, D), sequence(2, 8, D, seed=2)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, :3] = False
    poisoned = x.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    y, _ = encoder(poisoned, None, mask)
    found = torch.autograd.grad((y * weight).sum(), [poisoned, *encoder.parameters()])
    assert (found[0][:, :3] == 0).all()
    z, _ = encoder(x[:, 3:])
    expected = torch.autograd.grad((z * weight[:, 3:]).sum(), list(encoder.parameters()))
    for mine, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@every_mixer
def test_later_steps_do_not_reach_earlier_outputs(case: Case) -> None:
    encoder, x = build(**case), sequence(2, 9, D)
    other = x.clone()
    other[:, 5:] = 7.0
    y, z = encoder(x)[0], encoder(other)[0]
    assert torch.equal(y[:, :5], z[:, :5])
    assert (y[:, 5:] - z[:, 5:]).abs().amin(-1).max() > 0


@every_mixer
def test_a_reverse_pass_mirrors_the_forward_one(case: Case) -> None:
    """With the two directions' mixers exchanged, the mirrored input gives the mirrored output and exchanged states."""
    encoder, mirrored = build(**case, bidirectional=True), build(**case, bidirectional=True)
    for block in mirrored.blocks:
        block.mixer, block.reverse = block.reverse, block.mixer
    x = sequence(2, 7, D)
    y, end = encoder(x)
    z, mirrored_end = mirrored(x.flip(1))
    torch.testing.assert_close(z.flip(1), y, rtol=0, atol=1e-11)
    assert_states_equal([type(s)(s.backward, s.forward) for s in mirrored_end], list(end))
    seen = torch.autograd.grad(encoder(x.requires_grad_())[0][:, 0].square().sum(), x)[0]
    assert (seen[:, -1] != 0).any()


@every_mixer
def test_every_parameter_has_a_gradient_after_two_steps(case: Case) -> None:
    encoder = Encoder(EncoderConfig(d_model=D, **case), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    x, target = sequence(4, 12, D).float(), sequence(4, 12, D, seed=2).float()
    seen = {name: False for name, _ in encoder.named_parameters()}
    for _ in range(2):
        optimiser.zero_grad()
        (encoder(x)[0] - target).square().mean().backward()
        for name, parameter in encoder.named_parameters():
            seen[name] |= parameter.grad is not None and bool((parameter.grad != 0).any())
        optimiser.step()
    assert [name for name, found in seen.items() if not found] == []


@every_mixer
def test_the_output_at_init_depends_on_inputs_some_steps_back(case: Case) -> None:
    encoder = Encoder(EncoderConfig(d_model=D, **case), torch.Generator().manual_seed(0))
    x = sequence(2, 12, D).float()
    x.requires_grad_()
    y, _ = encoder(x)
    gradient = torch.autograd.grad((y[:, -1] * sequence(2, D, seed=2).float()).sum(), x)[0]
    assert y.std() > 0.1
    assert gradient[:, :-6].abs().max() > 1e-7


@every_mixer
def test_the_same_generator_gives_the_same_weights_and_torchs_own_is_left_alone(case: Case) -> None:
    before = torch.random.get_rng_state()
    config = EncoderConfig(d_model=D, **case, bidirectional=True)
    first, second, other = (Encoder(config, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    for key, value in first.state_dict().items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(value, second.state_dict()[key]), key
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in first.state_dict().items())


@every_mixer
def test_dropout_acts_in_training_only_and_follows_torchs_seed(case: Case) -> None:
    encoder, x = build(**case, dropout=0.5), sequence(2, 9, D)
    assert torch.equal(encoder(x)[0], encoder(x)[0])
    assert not torch.equal(encoder.train()(x)[0], encoder.eval()(x)[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = encoder.train()(x)[0]
        torch.manual_seed(0)
        assert torch.equal(encoder(x)[0], first)


@every_mixer
def test_autocast_keeps_recurrent_states_in_float32(case: Case) -> None:
    encoder = build(**case, spread=0.02).float()
    x = sequence(2, 20, D).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = encoder(x)
        encoder(x, state)
    for block in state:
        cell = getattr(block, "cell", block)
        if case["blocks"] != "t":  # the attention cache follows autocast
            assert {part.dtype for part in tree_leaves(cell)} == {torch.float32}
    exact = encoder(x)[0]
    assert (y.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@every_mixer
def test_the_encoder_runs_in_bfloat16_and_float64_as_a_whole(case: Case) -> None:
    encoder, x = build(**case, spread=0.02), sequence(2, 10, D)
    exact = encoder(x)[0]
    assert exact.dtype == torch.float64
    half, _ = encoder.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(("blocks", "variant"), [("ms", "neurips"), ("ms", "large")])
def test_extreme_inputs_over_thousands_of_steps_stay_finite(blocks: str, variant: str) -> None:
    encoder = Encoder(EncoderConfig(d_model=D, blocks=blocks, variant=variant), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.mul_(30)  # gates far beyond what float32's exponential holds
    x = (sequence(1, 2000, D).float() * 1e4).requires_grad_()
    y, state = encoder(x)
    gradients = torch.autograd.grad(y.square().mean(), [x, *encoder.parameters()])
    assert all(torch.isfinite(part).all() for part in (y, *tree_leaves(state), *gradients))


class Counter(TorchDispatchMode):
    """Adds up the elements that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "view" not in str(func) and "expand" not in str(func):
            self.elements += sum(part.numel() for part in tree_leaves(out) if isinstance(part, Tensor))
        return out


@pytest.mark.parametrize("blocks", [letter for letter in MIXERS if letter != "t"])
def test_the_work_of_a_backward_pass_is_linear_in_time(blocks: str) -> None:
    encoder = build(blocks)

    def work(steps: int) -> int:
        y, _ = encoder(sequence(1, steps, D))
        with Counter() as counter:
            y.sum().backward()
        return counter.elements

    assert work(1024) < 2.3 * work(512)


def test_detached_states_cut_the_graph_and_change_no_number() -> None:
    encoder, x = build("ms"), sequence(2, 8, D).requires_grad_()
    _, state = encoder(x[:, :4])
    cut = detach_state(state)
    assert_states_equal(cut, state)
    assert type(cut[0]) is type(state[0])
    y, _ = encoder(x[:, 4:], cut)
    assert (torch.autograd.grad(y.sum(), x, retain_graph=True)[0][:, :4] == 0).all()
    z, _ = encoder(x[:, 4:], state)
    assert (torch.autograd.grad(z.square().sum(), x)[0][:, :4] != 0).any()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("blocks", "variant"), [("ms", "neurips"), ("ms", "large"), ("c", "neurips"), ("t", "neurips")]
)
def test_the_encoder_compiles_to_one_graph_with_the_same_numbers(blocks: str, variant: str) -> None:
    encoder, x, weight = build(blocks, variant), sequence(2, 6, D), sequence(2, 6, D, seed=2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2] = False
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    start = detach_state(encoder(x)[1])
    parameters = list(encoder.parameters())
    y, end = compiled(x, start, mask)
    z, other_end = encoder(x, start, mask)
    torch.testing.assert_close(y, z, rtol=0, atol=1e-10)
    assert_states_equal(end, other_end, 1e-10)
    gradients = torch.autograd.grad((y * weight).sum(), parameters)
    for mine, other in zip(gradients, torch.autograd.grad((z * weight).sum(), parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("blocks", "variant"), [("ms", "neurips"), ("ms", "large"), ("c", "neurips"), ("t", "neurips")]
)
def test_the_encoder_exports_with_state_and_mask(blocks: str, variant: str) -> None:
    encoder, x = build(blocks, variant), sequence(2, 6, D)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    _, start = encoder(x)
    program = torch.export.export(encoder, (x, start, mask))
    other = sequence(2, 6, D, seed=5)
    y, end = program.module()(other, start, mask.flip(0))
    z, other_end = encoder(other, start, mask.flip(0))
    torch.testing.assert_close(y, z, rtol=0, atol=1e-10)
    assert_states_equal(end, other_end, 1e-10)


@pytest.mark.parametrize(
    ("blocks", "count", "pattern"),
    [
        ("mmsm", None, "mmsm"),
        ("ms", 6, "msmsms"),
        ("xLSTM[7:1]", None, "msmmmmmm"),
        ("xLSTM[1:1]", 4, "msms"),
        ("xLSTM[1:0]", 3, "mmm"),
        ("xLSTM[0:1]", 2, "ss"),
        ("lgct", None, "lgct"),
    ],
)
def test_block_notations_give_their_patterns(blocks: str, count: int | None, pattern: str) -> None:
    assert EncoderConfig(blocks=blocks, num_blocks=count).pattern == pattern


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "mx"}, r"letter 'x' is unknown; choose from m \(mLSTM\), s \(sLSTM\)"),
        ({"blocks": ""}, "no block"),
        ({"blocks": "xLSTM[0:0]"}, "no block"),
        ({"blocks": "xLSTM[7:1]", "num_blocks": 12}, "multiple of 8"),
        ({"d_model": 30}, "num_heads=4 must divide d_model=30"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"variant": "small"}, "choose from neurips, large"),
        ({"projection": "full"}, "choose from headwise, dense"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"conv_kernel": -1}, "conv_kernel=-1"),
        ({"structure": "both"}, "choose from pre, post, plain, or None"),
        ({"structure": "pre", "variant": "large"}, "exclude each other"),
        ({"num_layers": 0}, "num_layers=0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**options)


def test_wrong_inputs_are_named() -> None:
    encoder, x = build("ms"), sequence(2, 5, D)
    with pytest.raises(ValueError, match=r"\(batch, steps, 32\), got \(2, 5, 31\)"):
        encoder(x[..., :31])
    with pytest.raises(ValueError, match=r"x of shape \(2, 0, 32\) is empty"):
        encoder(x[:, :0])
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 5\)"):
        encoder(x, None, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool"):
        encoder(x, None, torch.ones(2, 5))
    with pytest.raises(ValueError, match="1 entries for 2 recurrent layers"):
        encoder(x, encoder(x)[1][:1])
    with pytest.raises(ValueError, match="bidirectional encoder has no step"):
        build("s", bidirectional=True).step(x[:, 0])


@pytest.mark.parametrize("options", [{"projection": "dense"}, {"conv_kernel": 0}, {"conv_kernel": 1}, {"num_heads": 1}])
def test_the_options_of_the_paper_keep_cut_and_mask_exact(options: dict[str, Any]) -> None:
    encoder, x = build("ms", **options), sequence(2, 9, D)
    whole, end = encoder(x)
    first, state = encoder(x[:, :4])
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, :3] = False
    second, state = encoder(torch.cat([x[:, :3], x[:, 4:]], 1), state, mask)
    torch.testing.assert_close(torch.cat([first, second[:, 3:]], 1), whole, rtol=0, atol=1e-11)
    assert_states_equal(state, end)


def test_an_exported_encoder_takes_any_batch_size() -> None:
    encoder, x = build("ms"), sequence(2, 5, D)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(encoder, (x,), dynamic_shapes=({0: rows},)).module()
    other = sequence(100, 5, D, seed=5)
    torch.testing.assert_close(program(other)[0], encoder(other)[0], rtol=0, atol=1e-10)


def test_a_long_sequence_of_one_row_agrees_with_itself_in_a_batch() -> None:
    encoder, x = build("ms"), sequence(3, 150, D)
    y, _ = encoder(x)
    for row in range(3):
        torch.testing.assert_close(encoder(x[row : row + 1])[0][0], y[row], rtol=0, atol=1e-10)


@pytest.mark.parametrize("blocks", ["m", "s", "c", "l", "t"])
def test_an_exported_encoder_is_saved_and_read_again(blocks):
    encoder, x = Encoder(EncoderConfig(d_model=16, num_heads=2, blocks=blocks)).eval(), torch.randn(2, 5, 16)
    file = io.BytesIO()
    torch.export.save(torch.export.export(encoder, (x,)), file)
    file.seek(0)
    found, _ = torch.export.load(file).module()(x)
    torch.testing.assert_close(found, encoder(x)[0])


def test_a_state_of_another_batch_and_an_unknown_backend_are_refused():
    encoder = Encoder(EncoderConfig(d_model=16, num_heads=2, blocks="c"))
    _, one = encoder(torch.randn(1, 6, 16))
    with pytest.raises(ValueError, match=r"h must be of shape \(3, 16\), got \(1, 16\)"):
        encoder(torch.randn(3, 6, 16), one)
    with pytest.raises(ValueError, match=r"backend must be one of .*found 'cuda'"):
        EncoderConfig(backend="cuda")

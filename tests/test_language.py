"""The language model: what it computes, what it learns, what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from xlstm_forecast import cli
from xlstm_forecast.language import (
    LanguageConfig,
    LanguageModelingDataset,
    LanguageModule,
    Tokenizer,
    complete,
    evaluate,
    fit_from_config,
    get_device,
    load_config,
    parameter_groups,
    parse_options,
    set_seed,
    train,
    xLSTM,
)

ROOT = Path(__file__).parents[1]
VERSE = "The owl looked up to the stars above, and the sea sang back to the sand below.\n" * 40
TYPES = ["sLSTM", "mLSTM", "msmm", "xLSTM[3:1]"]


def lively(seed=0, **options) -> xLSTM:
    """A model whose every parameter counts: the zeros of the initial values are moved away from 0."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {"vocab_size": 40, "embedding_size": 24, "hidden_size": 32, "num_layers": 1, "num_blocks": 4} | options
    model = xLSTM(**arguments, generator=generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(*shape, vocab_size=40, seed=1) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def char_set(text=VERSE, max_length=16) -> LanguageModelingDataset:
    return LanguageModelingDataset(text, Tokenizer.train(text, kind="char"), max_length)


def settings(**options) -> LanguageConfig:
    return load_config({"train_data": "unused", "batch_size": 4, "lr": 1e-2, "warmup_steps": 5} | options)


# ---- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_token_by_token_gives_the_logits_of_the_whole_over_2000_tokens(dtype, tolerance):
    model, ids = lively(num_blocks=2, lstm_type="ms").to(dtype), tokens(1, 2000)
    with torch.no_grad():
        whole, _ = model(ids)
        state, single = None, []
        for token in ids[0]:
            logits, state = model.step(token[None], state)
            single.append(logits)
    assert (torch.stack(single, 1) - whole).abs().max() < tolerance
    assert whole.std() > 0.1


@pytest.mark.parametrize("block", [None, "pre", "post"])
@pytest.mark.parametrize("lstm_type", TYPES)
def test_a_text_cut_in_two_gives_the_logits_of_the_whole_whatever_the_blocks(lstm_type, block):
    model, ids = lively(lstm_type=lstm_type, block=block, num_layers=2).double(), tokens(3, 30)
    whole, end = model(ids)
    first, state = model(ids[:, :13])
    second, last = model(ids[:, 13:], state)
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=0, atol=1e-11)
    assert len(end) == len(last) == 8


@pytest.mark.parametrize("lstm_type", TYPES)
def test_a_logit_depends_on_earlier_tokens_and_never_on_later_ones(lstm_type):
    model, ids = lively(lstm_type=lstm_type), tokens(1, 20)
    other = ids.clone()
    other[0, 10] = (other[0, 10] + 1) % 40
    change = (model(ids)[0] - model(other)[0]).abs().amax(-1)[0]
    assert change[:10].max() == 0
    assert change[10:].min() > 0


def test_a_bidirectional_model_reads_both_ways_and_reverses_with_its_two_directions():
    model, ids = lively(bidirectional=True, num_blocks=1, lstm_type="sLSTM").double(), tokens(1, 12)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 40
    assert (model(ids)[0] - model(other)[0]).abs().amax(-1).min() > 0
    mirrored = lively(bidirectional=True, num_blocks=1, lstm_type="sLSTM").double()
    block = mirrored.encoder.blocks[0]
    block.mixer, block.reverse = block.reverse, block.mixer
    assert torch.allclose(mirrored(ids.flip(1))[0].flip(1), model(ids)[0], atol=1e-12)


def kinds(model: xLSTM) -> str:
    """The recurrent layers as letters."""
    names = {"SLSTMRecurrence": "s", "MLSTMMixer": "m", "LargeMLSTMMixer": "M"}
    return "".join(names.get(type(part).__name__, "") for part in model.modules())


def test_blocks_hold_the_layers_that_type_pattern_and_structure_name():
    assert kinds(lively(num_blocks=2, num_layers=3, lstm_type="sLSTM")) == "ssssss"
    assert kinds(lively(num_blocks=2, num_layers=1, lstm_type="ms")) == "ms"
    assert kinds(lively(num_blocks=4, num_layers=2, lstm_type="ms")) == "mmssmmss"
    assert kinds(lively(num_blocks=2, num_layers=2, lstm_type="msmm")) == "msmm"
    assert kinds(lively(num_blocks=4, lstm_type="xLSTM[3:1]")) == "msmm"
    assert kinds(lively(num_blocks=2, lstm_type="ms", block="post")) == "Ms"

    def nets(**options) -> tuple[int, int]:
        names = [type(part).__name__ for part in lively(**options).modules()]
        return names.count("GatedFeedForward"), names.count("UpProjected")

    assert nets(lstm_type="ms") == (2, 0)  # the paper's: feed-forward nets after sLSTM, mLSTM projects by itself
    assert nets(lstm_type="ms", block="post") == (4, 0)
    assert nets(lstm_type="ms", block="pre") == (0, 2)
    assert nets(lstm_type="sLSTM", num_layers=3) == (4, 0)  # one for each block, after its last layer


def test_tied_logits_are_products_with_the_embeddings():
    free, tied = lively(tie_embeddings=False).double(), lively(tie_embeddings=True).double()
    assert free.head is not None
    assert tied.head is None
    assert tied.outward is not None
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 40 * 32 - 32 * 24
    ids = tokens(1, 5)
    features, _ = tied._features(ids, None)
    assert torch.allclose(tied(ids)[0], tied.outward(features) @ tied.embedding.T)
    tied(ids)[0].sum().backward()
    assert tied.embedding.grad is not None
    assert (tied.embedding.grad.abs().sum(1) > 0).all()


def test_every_parameter_learns():
    model, ids = lively(num_layers=2, lstm_type="ms"), tokens(2, 12)
    F.cross_entropy(model(ids)[0].flatten(0, 1), tokens(2, 12, seed=2).flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_saved_model_comes_back_the_same(tmp_path):
    model, ids = lively(lstm_type="ms", tie_embeddings=True, block="post"), tokens(1, 9)
    model.save(tmp_path / "model.safetensors")
    again = xLSTM.load(tmp_path / "model.safetensors")
    assert torch.equal(again(ids)[0], model(ids)[0])
    assert again.arguments == model.arguments


def test_the_same_generator_gives_the_same_weights_and_leaves_the_global_one():
    before = torch.get_rng_state()
    first, second = (xLSTM(20, 16, 32, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ---- generation ----------------------------------------------------------------------------------------------------


def test_greedy_generation_takes_the_most_likely_token_of_the_whole_text():
    model, ids = lively(lstm_type="ms").double(), tokens(2, 600)  # longer than what is read at once
    out = model.generate(ids, 6, temperature=0)
    assert out.shape == (2, 606)
    assert torch.equal(out[:, :600], ids)
    logits, _ = model(out[:, :-1])
    assert torch.equal(logits[:, 599:].argmax(-1), out[:, 600:])


def test_generation_repeats_with_the_seed_and_draws_with_the_models_probabilities():
    model, ids = lively(), tokens(1, 4)
    assert torch.equal(model.generate(ids, 8, seed=5), model.generate(ids, 8, seed=5))
    assert not torch.equal(model.generate(ids, 8, seed=5), model.generate(ids, 8, seed=6))
    drawn = model.generate(ids.expand(4000, -1), 1, seed=0)[:, -1].bincount(minlength=40) / 4000
    expected = model(ids)[0][0, -1].detach().softmax(-1)
    assert (drawn - expected).abs().max() < 4 * math.sqrt(float(expected.max()) / 4000)


def test_top_k_and_top_p_draw_from_the_most_likely_tokens_only():
    model, ids = lively(), tokens(1, 4)
    ranked = model(ids)[0][0, -1].softmax(-1).sort(descending=True)
    many = ids.expand(1000, -1)
    assert set(model.generate(many, 1, top_k=3, seed=0)[:, -1].tolist()) == set(ranked.indices[:3].tolist())
    inside = int((ranked.values.cumsum(0) < 0.2).sum()) + 1
    assert set(model.generate(many, 1, top_p=0.2, seed=0)[:, -1].tolist()) == set(ranked.indices[:inside].tolist())


def test_rows_that_ended_stay_ended_and_the_call_ends_with_the_last_of_them():
    model, ids = lively(), tokens(3, 4)
    out = model.generate(ids, 400, eos_token_id=7, seed=0)[:, 4:]
    for row in out.tolist():
        assert 7 in row
        assert set(row[row.index(7) :]) == {7}
    assert out.shape[1] == max(row.index(7) for row in out.tolist()) + 1 < 400


def test_generation_is_without_dropout_and_gives_the_mode_back():
    model, ids = lively(dropout=0.5).train(), tokens(1, 4)
    assert torch.equal(model.generate(ids, 8, temperature=0), model.generate(ids, 8, temperature=0))
    assert model.training


@pytest.mark.parametrize("lstm_type", ["sLSTM", "mLSTM", "ms"])
def test_memory_and_work_per_token_stay_the_same_however_long_the_text(lstm_type):
    def sizes(state) -> list[tuple[int, ...]]:
        return [tuple(state.shape)] if isinstance(state, torch.Tensor) else [s for part in state for s in sizes(part)]

    model = lively(lstm_type=lstm_type)
    token, calls = tokens(1, 1), []
    with torch.no_grad():
        for steps in (10, 3000):
            _, state = model(tokens(1, steps))
            with torch.profiler.profile(profile_memory=True) as profile:
                _, after = model(token, state)
            allocated = sum(max(event.cpu_memory_usage, 0) for event in profile.events())
            calls.append((sizes(state), sizes(after), allocated))
    assert calls[0] == calls[1]


# ---- training ------------------------------------------------------------------------------------------------------


def test_the_documents_training_example_runs_as_printed(monkeypatch, tmp_path):
    from xlstm_forecast.language import (
        LanguageModelingDataset,
        Tokenizer,
        get_device,
        load_config,
        set_seed,
        train,
        xLSTM,
    )

    monkeypatch.chdir(ROOT)
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "language_model.yaml"
    text = Path("configs/language_model.yaml").read_text().replace("epochs: 4", "epochs: 1\nmax_steps: 10")
    path.write_text(text.replace("docs/*.md", str(ROOT / "LICENSE")))
    Path(tmp_path / "configs" / "language_vocab.json").write_bytes(Path("configs/language_vocab.json").read_bytes())
    monkeypatch.chdir(tmp_path)

    # Configuration
    config = load_config("configs/language_model.yaml")
    set_seed(config.seed)
    device = get_device()
    # Data
    tokenizer = Tokenizer(config.vocab_file)  # type: ignore[arg-type]
    train_dataset = LanguageModelingDataset(config.train_data, tokenizer, config.max_length)
    # Model
    model = xLSTM(
        len(tokenizer),
        config.embedding_size,
        config.hidden_size,
        config.num_layers,
        config.num_blocks,
        config.dropout,
    ).to(device)
    # Training
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    criterion = torch.nn.CrossEntropyLoss(ignore_index=tokenizer.pad_token_id)
    log = train(model, train_dataset, optimizer, criterion, config, device)

    assert len(log.losses) == 10
    assert log.losses[-1] < 0.9 * log.losses[0] < 0.9 * 1.2 * math.log(len(tokenizer))


def test_carrying_the_state_makes_a_loss_of_windows_that_of_the_whole_text():
    data = char_set(max_length=8)
    model = xLSTM(len(data.tokenizer), 16, 32, lstm_type="ms", generator=torch.Generator().manual_seed(0)).double()
    whole = F.cross_entropy(model(data.ids[None, :-1])[0][0], data.ids[1:]).detach()
    assert math.isclose(evaluate(model, data).nats, float(whole), rel_tol=1e-10)
    frozen = torch.optim.SGD(model.parameters(), lr=1e-300)
    criterion = torch.nn.CrossEntropyLoss(ignore_index=0)
    carried, cut = (
        train(model, data, frozen, criterion, settings(batch_size=1, carry_state=carry)).losses
        for carry in (True, False)
    )
    lengths = torch.tensor([len(y[0]) for _, y in data.batches(1)], dtype=torch.float64)
    assert math.isclose(float((torch.tensor(carried) * lengths).sum() / lengths.sum()), float(whole), rel_tol=1e-6)
    assert carried[0] == cut[0]
    assert carried[1:] != cut[1:]


def test_a_score_is_the_log_likelihood_per_token_and_per_byte():
    data = char_set("é" * 30 + "a" * 30)
    uniform = xLSTM(len(data.tokenizer), 16, 32)
    with torch.no_grad():
        uniform.head.weight.zero_()  # type: ignore[union-attr]
    score = evaluate(uniform, data, batch_size=2)
    assert score.tokens == 61
    assert math.isclose(score.perplexity, len(data.tokenizer), rel_tol=1e-6)
    assert math.isclose(score.bits_per_byte, 61 * math.log2(len(data.tokenizer)) / 90, rel_tol=1e-6)


def test_a_whole_run_learns_writes_its_files_and_repeats_bit_for_bit(tmp_path):
    source = tmp_path / "verse.txt"
    source.write_text(VERSE)
    config = {
        "train_data": str(source), "valid_data": str(source), "tokenizer": "char", "max_length": 32, "batch_size": 4,
        "embedding_size": 32, "hidden_size": 32, "num_blocks": 2, "lstm_type": "ms", "max_steps": 60, "lr": 2e-2,
        "dropout": 0.05, "vocab_file": str(tmp_path / "vocab.json"),
    }  # fmt: skip
    before = torch.get_rng_state()
    fit = fit_from_config(config, output=str(tmp_path / "out"))
    assert torch.equal(torch.get_rng_state(), before)
    assert fit.score is not None
    assert fit.score.bits_per_byte < 1.5 < fit.log.losses[0] / math.log(2)
    again = fit_from_config(config)
    assert again.log.losses == fit.log.losses
    model, tokenizer = (
        xLSTM.load(tmp_path / "out" / "model.safetensors"),
        Tokenizer(tmp_path / "out" / "tokenizer.json"),
    )
    assert complete(model, tokenizer, "The owl", 20, seed=0) == fit.complete("The owl", 20, seed=0)
    assert len(tokenizer) == len(Tokenizer(tmp_path / "vocab.json"))


def test_the_lightning_form_trains_as_the_plain_one_does():
    from xlstm_forecast.training import pl, quiet

    data, config = char_set(max_length=32), settings(epochs=2, gradient_clip=0.5)
    losses = []
    for lightning in (False, True):
        model = xLSTM(len(data.tokenizer), 16, 32, lstm_type="ms", generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=config.lr)
        criterion = torch.nn.CrossEntropyLoss(ignore_index=0)
        if not lightning:
            losses.append(train(model, data, optimizer, criterion, config).losses)
            continue
        module = LanguageModule(model, data, criterion, config, optimizer)
        with quiet(False):
            pl.Trainer(accelerator="cpu", enable_progress_bar=False, **module.trainer_options()).fit(module)
        losses.append(module.losses)
    assert len(losses[0]) == 2 * len(data.batches(4))
    assert losses[0][:10] == pytest.approx(losses[1][:10], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # the norm that clips sums its parts in another order


def test_the_command_line_trains_from_a_file(tmp_path, capsys):
    (tmp_path / "verse.txt").write_text(VERSE)
    (tmp_path / "config.yaml").write_text(
        f"train_data: {tmp_path}/verse.txt\nvalid_data: {tmp_path}/verse.txt\ntokenizer: char\nhidden_size: 32\n"
        f"embedding_size: 16\nnum_blocks: 1\nmax_length: 16\nbatch_size: 4\nlr: 1e-2\noutput: {tmp_path}/out\n"
    )
    command = ["language", "fit", "--config", str(tmp_path / "config.yaml"), "--max_steps", "3", "--lstm-type=sLSTM"]
    assert cli.main(command) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert xLSTM.load(tmp_path / "out" / "model.safetensors").arguments["lstm_type"] == "sLSTM"
    assert cli.main([*command, "--bloks", "3"]) == 2
    assert "'bloks'" in capsys.readouterr().err


def test_the_shipped_configuration_names_files_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config("configs/language_model.yaml")
    tokenizer = Tokenizer(str(config.vocab_file))
    assert len(tokenizer) == config.vocab_size
    assert len(LanguageModelingDataset(config.train_data, tokenizer, config.max_length)) > 10


def test_importing_the_language_model_brings_neither_lightning_nor_pandas_nor_the_tokenizer_library():
    code = "import sys, xlstm_forecast.language; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert {"lightning", "pandas", "tokenizers", "matplotlib", "numba"} & set(done.stdout.split()) == set()


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lstm_type": "GRU"}, r"lstm_type='GRU' is unknown; choose \"sLSTM\", \"mLSTM\", a pattern"),
        ({"lstm_type": ""}, "lstm_type=''"),
        ({"lstm_type": "msx"}, "lstm_type='msx'"),
        ({"lstm_type": "mms"}, r"names 3 layers, which divides neither num_blocks=4"),
        ({"block": "both"}, "block='both' is unknown; choose from pre, post"),
        ({"num_heads": 5}, "num_heads=5 must divide hidden_size=32"),
        ({"vocab_size": 0}, "vocab_size=0: expected a whole number"),
        ({"num_layers": 1.5}, "num_layers=1.5"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_wrong_arguments_of_the_model_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        lively(**options)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (torch.tensor([[0, 40]]), "token id 40 is out of range: the model's vocabulary has ids 0 to 39"),
        (torch.tensor([[-1, 3]]), "token id -1 is out of range"),
        (torch.zeros(1, 0, dtype=torch.int64), "hold no token"),
        (torch.zeros(3, dtype=torch.int64), "shape"),
        (torch.zeros(1, 3), "float32"),
    ],
)
def test_wrong_token_ids_are_refused_by_the_model_and_by_generation(ids, told):
    model = lively()
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=told):
            call(ids)
    with pytest.raises(TypeError, match="tensor"):
        model([[1, 2]])


def test_a_bidirectional_model_is_refused_for_generation_steps_and_next_token_training():
    data = char_set()
    model = lively(bidirectional=True, vocab_size=len(data.tokenizer))
    ids = tokens(1, 4, vocab_size=4)
    for call in (lambda: model.generate(ids), lambda: model.stream(ids), lambda: model.step(ids[:, 0])):
        with pytest.raises(ValueError, match="bidirectional model cannot generate"):
            call()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="its reverse pass has read it"):
        train(model, data, optimizer, torch.nn.CrossEntropyLoss(), settings())


def test_a_vocabulary_mismatch_is_refused_wherever_model_and_tokenizer_meet():
    data, model = char_set(), lively(vocab_size=99)
    told = rf"the model's vocab_size is 99 and the tokenizer has {len(data.tokenizer)} tokens"
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()
    for call in (
        lambda: train(model, data, optimizer, criterion, settings()),
        lambda: evaluate(model, data),
        lambda: complete(model, data.tokenizer, "The"),
        lambda: LanguageModule(model, data, criterion, settings()),
    ):
        with pytest.raises(ValueError, match=told):
            call()


@pytest.mark.parametrize("source", ["", "  \n ", [], ["", "\n"]])
def test_empty_text_is_refused(source):
    for call in (
        lambda: LanguageModelingDataset(source, Tokenizer.train("abc", kind="char"), 8),
        lambda: Tokenizer.train(source),
    ):
        with pytest.raises(ValueError, match="empty text"):
            call()


def test_files_that_are_missing_or_of_another_kind_are_named(tmp_path):
    tokenizer = Tokenizer.train("abc", kind="char")
    with pytest.raises(FileNotFoundError, match=r"'nothing/here.txt' does not exist"):
        LanguageModelingDataset("nothing/here.txt", tokenizer, 8)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        LanguageModelingDataset(tmp_path, tokenizer, 8)
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        Tokenizer(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        Tokenizer(tmp_path / "vocab.json")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        LanguageModelingDataset(tmp_path / "latin.txt", tokenizer, 8)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Tokenizer.train("abc", kind="syllables"), "kind='syllables' is unknown; choose from bpe, word, char"),
        (lambda: Tokenizer.train("abc", 100), "vocab_size=100 is too small: 'bpe' needs at least 260"),
        (lambda: Tokenizer.train("abc", kind="char").decode([99]), "token id 99 is out of range"),
        (lambda: char_set(max_length=0), "max_length=0"),
        (lambda: char_set("abc").batches(50), "batch_size=50 is too large for a text of 5 tokens"),
        (lambda: char_set("abc").batches(0), "batch_size=0"),
        (lambda: lively().generate(tokens(1, 3), 0), "max_new_tokens=0"),
        (lambda: lively().generate(tokens(1, 3), 5, temperature=-1), "temperature=-1"),
        (lambda: lively().generate(tokens(1, 3), 5, top_k=0), "top_k=0"),
        (lambda: lively().generate(tokens(1, 3), 5, top_p=1.5), "top_p=1.5"),
    ],
)
def test_other_wrong_values_are_named(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"hiden_size": 3}, "unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"hidden_size": "big"}, "hidden_size='big': expected int, found str"),
        ({"hidden_size": True}, "hidden_size=True: expected int, found bool"),
        ({"lr": 0}, "lr=0"),
        ({"tokenizer": "words"}, "tokenizer='words' is unknown; choose from bpe, word, char"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"train_data": 3}, r"train_data=3: expected str or list\[str\]"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, values, told):
    with pytest.raises(ValueError, match=told):
        load_config({"train_data": "a text"} | values)
    (tmp_path / "config.yaml").write_text("train_data: a text\n")
    with pytest.raises(ValueError, match=told):
        load_config(tmp_path / "config.yaml", **values)


def test_configurations_read_numbers_as_yaml_writes_them_and_refuse_what_is_no_mapping(tmp_path):
    (tmp_path / "config.yaml").write_text("train_data: [a.txt, b.txt]\nlr: 1e-3\nmax_steps: null\n")
    config = load_config(tmp_path / "config.yaml", **parse_options(["--dropout=0", "--num-blocks", "3"]))
    assert (config.lr, config.dropout, config.num_blocks, config.train_data) == (1e-3, 0.0, 3, ["a.txt", "b.txt"])
    with pytest.raises(ValueError, match="'train_data' is missing"):
        load_config({})
    with pytest.raises(FileNotFoundError, match=r"none.yaml"):
        load_config(tmp_path / "none.yaml")
    for text, told in (("- a\n", "expected a mapping"), ("a: [", "is not YAML")):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(ValueError, match=told):
            load_config(tmp_path / "wrong.yaml")
    with pytest.raises(ValueError, match="--key value"):
        parse_options(["lr", "3"])


def test_a_loss_that_is_not_finite_stops_training_with_advice():
    data = char_set()
    model = lively(vocab_size=len(data.tokenizer))
    with torch.no_grad():
        model.embedding[:] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; lower lr=0.01"):
        train(model, data, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss(), settings())


def test_seeds_and_devices():
    set_seed(5)
    first = torch.rand(2)
    set_seed(5)
    assert torch.equal(torch.rand(2), first)
    assert get_device("cpu").type == "cpu"
    assert get_device().type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )


# ---- a run is refused before it trains -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vaild.txt", "my docs/valid", "README", "corpus/*"])
def test_a_file_that_is_not_there_is_no_text(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verse.txt").write_text(VERSE)
    with pytest.raises(FileNotFoundError, match=f"valid_data: '{re.escape(name)}' does not exist"):
        fit_from_config({"train_data": "verse.txt", "valid_data": name, "vocab_file": "v.json", "tokenizer": "char"})
    with pytest.raises(FileNotFoundError, match="train_data"):
        fit_from_config({"train_data": ["verse.txt", name], "vocab_file": "v.json", "tokenizer": "char"})
    with pytest.raises(ValueError, match="100000"):
        fit_from_config({"train_data": "verse.txt", "batch_size": 100000, "vocab_file": "v.json", "tokenizer": "char"})
    assert [path.name for path in tmp_path.iterdir()] == ["verse.txt"]


@pytest.mark.parametrize(
    "values", [{"gradient_clip": -1.0}, {"gradient_clip": math.nan}, {"weight_decay": -0.1}, {"warmup_steps": -5}]
)
def test_negative_limits_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}=.*at least 0"):
        settings(**values)


def test_a_pattern_is_an_option_s_value_though_it_is_no_yaml():
    assert parse_options(["--train_data", "*.md", "--lr=1e-3"]) == {"train_data": "*.md", "lr": "1e-3"}


def test_training_takes_the_optimiser_s_rates_of_now_and_leaves_them():
    data = char_set()
    model = lively(vocab_size=len(data.tokenizer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    criterion = torch.nn.CrossEntropyLoss()
    train(model, data, optimizer, criterion, settings(max_steps=3, warmup_steps=0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
    for group in optimizer.param_groups:
        group["lr"] = 1e-9
    before = [parameter.clone() for parameter in model.parameters()]
    train(model, data, optimizer, criterion, settings(max_steps=2, schedule="constant", warmup_steps=0))
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(before, model.parameters(), strict=True))


def test_a_stream_leaves_the_mode_alone_and_never_drops():
    model, ids = lively(dropout=0.5), tokens(1, 5)
    expected = model.eval().generate(ids, 4, temperature=0)[0, 5:].tolist()
    model.train()
    first, second = model.stream(ids, temperature=0), model.stream(ids, temperature=0)
    found = [int(next(first))]
    assert model.training
    next(second)
    second.close()
    found += [int(next(first)) for _ in range(3)]
    assert found == expected
    model.eval()
    first.close()
    assert not model.training


def test_a_temperature_near_zero_takes_the_most_likely_token():
    model, ids = lively(), tokens(2, 5)
    assert torch.equal(model.generate(ids, 6, temperature=1e-40), model.generate(ids, 6, temperature=0))

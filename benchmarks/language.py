"""xLSTM, LSTM and Transformer as language models at equal parameter count, equal steps and the same tokens.

python -m benchmarks.language [--data DIR] [--quick] [--jobs 2] [--work FOLDER]   all tables
python -m benchmarks.language --tune      learning rates: two thirds of the steps, scored on the training part's end
python -m benchmarks.language --tasks     copying and parity, beyond the trained lengths

WikiText-2: trained on the valid part, scored on the test part, byte-level BPE fitted on the training part. Shakespeare:
characters, the last tenth is the test part. Bits per byte count every token of the test part. Every result is a file in
--work, and a run that was stopped goes on with what is missing. One thread per job; seconds are those of the processor,
so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_forecast.language import (
    LanguageConfig,
    LanguageModelingDataset,
    Tokenizer,
    evaluate,
    parameter_groups,
    train,
    xLSTM,
)

from .sets import data_argument, data_folder

WIDTH, BLOCKS, LAYERS, WINDOW, BATCH = 128, 4, 3, 128, 16
XLSTM = {"sLSTM": "sLSTM", "mLSTM": "mLSTM", "mixed": "msmm"}
MODELS = ("LSTM", *XLSTM, "Transformer")
TEXTS = ("wikitext2", "shakespeare")
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
CHOSEN = {"LSTM": 2.4e-2, "sLSTM": 2.4e-2, "mLSTM": 1.2e-2, "mixed": 1.2e-2, "Transformer": 6e-3}  # by --tune
LENGTHS = (256, 1024, 4096)
CONTEXTS = (100, 10_000)


@dataclass(frozen=True)
class Piece:
    """One result: what is measured, on which model, and how."""

    what: str
    model: str
    text: str = ""
    seed: int = 0
    steps: int = 0
    lr: float = 0.0
    length: int = 0

    def file(self, folder: Path) -> Path:
        return folder / ("-".join(str(value) for value in asdict(self).values() if value != "") + ".json")


# ---- models --------------------------------------------------------------------------------------------------------


class LSTMModel(nn.Module):
    """Embedding, torch.nn.LSTM of two layers, a projection, tied logits: ids, state -> logits, state."""

    def __init__(self, vocab_size: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocab_size, WIDTH) * math.sqrt(2 / (5 * WIDTH)))
        self.rnn = nn.LSTM(WIDTH, hidden, num_layers=2, batch_first=True)
        self.out = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x, state = self.rnn(F.embedding(ids, self.embedding) * math.sqrt(WIDTH), state)
        return F.linear(self.out(x), self.embedding), state


class TransformerModel(nn.Module):
    """Embedding, sinusoidal positions, torch's causal encoder layers with the norm first, tied logits; no state."""

    def __init__(self, vocab_size: int, inner: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocab_size, WIDTH) * math.sqrt(2 / (5 * WIDTH)))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, inner, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def features(self, ids: Tensor) -> Tensor:
        steps = ids.shape[1]
        angle = torch.arange(steps)[:, None] * 1e4 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        position = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        x = F.embedding(ids, self.embedding) * math.sqrt(WIDTH) + position
        return self.layers(x, nn.Transformer.generate_square_subsequent_mask(steps), is_causal=True)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return F.linear(self.features(ids), self.embedding), None


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def equal_width(name: str, vocab_size: int) -> int:
    """Hidden size of the LSTM, or inner size of the Transformer, that comes nearest to the mixed xLSTM's size."""
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        goal = size(xLSTM(vocab_size, WIDTH, WIDTH, 1, BLOCKS, lstm_type="msmm", tie_embeddings=True))
        build = LSTMModel if name == "LSTM" else TransformerModel
        return min(range(64, 640), key=lambda width: abs(size(build(vocab_size, width)) - goal))


def build(name: str, vocab_size: int, seed: int) -> nn.Module:
    """A model by name, of (nearly) the same number of parameters as all others."""
    if name in XLSTM:
        generator = torch.Generator().manual_seed(seed)
        pattern = XLSTM[name]
        return xLSTM(vocab_size, WIDTH, WIDTH, 1, BLOCKS, lstm_type=pattern, tie_embeddings=True, generator=generator)
    torch.manual_seed(seed)
    return (LSTMModel if name == "LSTM" else TransformerModel)(vocab_size, equal_width(name, vocab_size))


# ---- texts ---------------------------------------------------------------------------------------------------------


@functools.cache
def texts(text: str, folder: Path, tuning: bool) -> tuple[LanguageModelingDataset, LanguageModelingDataset]:
    """Training and test part; with `tuning` both are cut from the training part."""
    read = functools.partial(_read, folder)
    if text == "wikitext2":
        learn, test = read("wikitext2_valid.txt.gz"), read("wikitext2_test.txt.gz")
    else:
        whole = read("tinyshakespeare.txt.gz")
        learn, test = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]
    if tuning:
        learn, test = learn[: len(learn) * 9 // 10], learn[len(learn) * 9 // 10 :]
    tokenizer = Tokenizer.train(learn, 2000 if text == "wikitext2" else 300, "bpe" if text == "wikitext2" else "char")
    return LanguageModelingDataset(learn, tokenizer, WINDOW), LanguageModelingDataset(test, tokenizer, WINDOW)


def _read(folder: Path, name: str) -> str:
    return gzip.decompress((folder / name).read_bytes()).decode()


# ---- one result ----------------------------------------------------------------------------------------------------


def train_and_score(piece: Piece, folder: Path) -> dict[str, Any]:
    """Train for the piece's steps, score the test part."""
    learn, test = texts(piece.text, folder, piece.what == "tune")
    model = build(piece.model, len(learn.tokenizer), piece.seed)
    config = LanguageConfig(
        train_data="", batch_size=BATCH, max_steps=piece.steps, lr=piece.lr, warmup_steps=20, max_length=WINDOW
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=piece.lr)
    criterion = nn.CrossEntropyLoss(ignore_index=learn.tokenizer.pad_token_id)
    started = time.process_time()
    log = train(model, learn, optimizer, criterion, config)
    seconds = time.process_time() - started
    nats, count = sliding(model, test) if isinstance(model, TransformerModel) else stateful(model, test)
    return {
        "parameters": size(model),
        "tokens": log.tokens,
        "tokens_per_second": log.tokens / seconds,
        "perplexity": math.exp(nats / count),
        "bits_per_byte": nats / math.log(2) / test.num_bytes,
        "bytes_per_token": test.num_bytes / count,
        "train_loss": float(np.mean(log.losses[-20:])),
    }


def stateful(model: nn.Module, test: LanguageModelingDataset) -> tuple[float, int]:
    score = evaluate(model, test, batch_size=BATCH)
    return score.nats * score.tokens, score.tokens


@torch.no_grad()
def sliding(model: nn.Module, test: LanguageModelingDataset) -> tuple[float, int]:
    """Windows of the trained length, moved by half of it: every token but the first is scored once, with at least half
    a window before it."""
    half, ids, total = WINDOW // 2, test.ids, 0.0
    count = len(ids) - 1
    starts = list(range(0, max(1, count - half), half))
    padded = F.pad(ids, (0, WINDOW + 1))
    for group in range(0, len(starts), 64):
        window = torch.stack([padded[start : start + WINDOW + 1] for start in starts[group : group + 64]])
        loss = F.cross_entropy(model(window[:, :-1])[0].flatten(0, 1), window[:, 1:].flatten(), reduction="none")
        place = torch.tensor(starts[group : group + 64])[:, None] + torch.arange(WINDOW)
        fresh = (torch.arange(WINDOW) >= half) | (place < half)
        total += float((loss.view_as(place) * (fresh & (place < count))).sum())
    return total, count


def memory(piece: Piece, folder: Path) -> dict[str, Any]:
    """MiB that one training step on a text of `length` tokens adds to the process; a fresh process per piece."""
    torch.set_num_threads(1)
    model = build(piece.model, 2000, 0)

    def step(length: int) -> float:
        ids = torch.arange(length)[None] % 2000
        F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten()).backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = step(16)
    return {"mebibytes": step(piece.length) - before}


@torch.no_grad()
def generation(piece: Piece, folder: Path) -> dict[str, Any]:
    """Milliseconds for one more token after `length` tokens, and KiB that must be kept for it."""
    model = build(piece.model, 2000, 0).eval()
    ids = torch.arange(piece.length)[None] % 2000
    if isinstance(model, TransformerModel):  # torch's layer keeps no keys and values: the whole text is read again
        repeat, kept = (20 if piece.length <= 1000 else 2), ids.numel() * 8
        times = list(timed(lambda: model.features(ids)[:, -1] @ model.embedding.T, repeat))
    else:
        state: Any = None
        for part in ids.split(500, 1):
            _, state = model(part, state)
        kept, token = sum(x.numel() * x.element_size() for x in leaves(state)), ids[:, -1:]
        times = list(timed(lambda: model(token, state), 100))
    return {"milliseconds": 1e3 * float(np.median(times)), "kibibytes": kept / 1024}


def timed(call: Callable[[], Any], repeat: int) -> Iterator[float]:
    call()
    for _ in range(repeat):
        started = time.process_time()
        call()
        yield time.process_time() - started


def leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from leaves(part)


# ---- tasks ---------------------------------------------------------------------------------------------------------


def parity_batch(rows: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bits and, at every position, whether an odd number of them was 1 so far: (rows, steps) each."""
    bits = torch.randint(0, 2, (rows, steps), generator=generator)
    return bits, bits.cumsum(1) % 2


def copy_batch(rows: int, steps: int, generator: torch.Generator, letters: int = 128) -> tuple[Tensor, Tensor]:
    """A random word of so many letters, a mark, the word again; targets are the second word, -100 elsewhere."""
    word = torch.randint(0, letters, (rows, steps), generator=generator)
    mark = torch.full((rows, 1), letters)
    return torch.cat([word, mark, word[:, :-1]], 1), torch.cat([torch.full_like(word, -100), word], 1)


@dataclass(frozen=True)
class Task:
    """A task, the model that learns it and how, and its lengths: trained from `shortest` up to `LONGEST`, scored on
    `scored`. With `growth` the longest length grows from `shortest` for that share of the steps, and the others are
    from half of it."""

    make: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
    vocab_size: int
    width: int
    blocks: int
    heads: int
    kernel: int
    shortest: int
    growth: float
    scored: tuple[int, ...]
    steps: int
    lr: float
    decay: float = 0.0


TASKS = {
    "parity": Task(parity_batch, 2, 32, 1, 4, 0, 1, 0.0, (40, 160, 640), 400, 1e-2),
    "copy": Task(copy_batch, 129, 256, 2, 1, 8, 4, 0.3, (20, 40, 80, 160), 900, 3e-3, 1.5),
    "copy26": Task(
        functools.partial(copy_batch, letters=26), 27, 256, 2, 1, 8, 4, 0.3, (20, 40, 80, 160), 900, 3e-3, 1.5
    ),
}
LONGEST = 40  # trained length of both


def task(piece: Piece, folder: Path) -> dict[str, Any]:
    """Train on one task, and give the share of right answers by length."""
    t = TASKS[piece.text]
    generator = torch.Generator().manual_seed(piece.seed)
    pattern = {"sLSTM": "s", "mLSTM": "m", "mixed": "sm"}[piece.model]
    options: dict[str, Any] = {"num_heads": t.heads, "conv_kernel": t.kernel, "generator": generator}
    model = xLSTM(t.vocab_size, t.width, t.width, 1, t.blocks, lstm_type=pattern, **options)
    optimizer = torch.optim.AdamW(parameter_groups(model, t.decay), lr=piece.lr)
    for step in range(piece.steps):
        grown = min(1.0, step / (t.growth * piece.steps)) if t.growth else 1.0
        longest = int(t.shortest + (LONGEST - t.shortest) * grown)
        steps = int(torch.randint(longest // 2 if t.growth else t.shortest, longest + 1, (), generator=generator))
        x, y = t.make(64, steps, generator)
        loss = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
        rate = piece.lr * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / piece.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {
        str(length): accuracy(model, *t.make(500, length, torch.Generator().manual_seed(10**6))) for length in t.scored
    }


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers among the positions that have a target."""
    right = torch.cat([model(part)[0].argmax(-1) for part in x.split(100)]) == y
    return float(right[y >= 0].float().mean())


# ---- all results ---------------------------------------------------------------------------------------------------

WORK: dict[str, Callable[[Piece, Path], dict[str, Any]]] = {
    "train": train_and_score,
    "tune": train_and_score,
    "memory": memory,
    "generation": generation,
    "task": task,
}


def run(piece: Piece, data: Path, work: Path) -> None:
    """Compute one result and write it, in one move."""
    torch.set_num_threads(1)
    result = WORK[piece.what](piece, data)
    part = piece.file(work).with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(piece.file(work))


def run_all(pieces: list[Piece], data: Path, work: Path, jobs: int) -> dict[Piece, dict[str, Any]]:
    """All results, the missing ones computed in fresh processes."""
    work.mkdir(parents=True, exist_ok=True)
    missing = [piece for piece in pieces if not piece.file(work).exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done, future in enumerate([pool.submit(run, piece, data, work) for piece in missing], 1):
            future.result()
            print(f"{done} of {len(missing)} done", flush=True)
    return {piece: json.loads(piece.file(work).read_text()) for piece in pieces}


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def show(results: dict[Piece, dict[str, Any]]) -> None:
    """Print the tables."""
    for text in TEXTS:
        rows = []
        for name in MODELS:
            own = [r for p, r in results.items() if (p.what, p.text, p.model) == ("train", text, name)]
            cells = [spread([r[key] for r in own], digits) for key, digits in (("bits_per_byte", 3), ("perplexity", 2))]
            rate = np.mean([r["tokens_per_second"] for r in own])
            rows.append([name, f"{own[0]['parameters']:,}", f"{own[0]['tokens']:,}", *cells, f"{rate:,.0f}"])
        print(f"{text}, test part\n")
        table(
            ["model", "parameters", "tokens seen", "bits per byte", "perplexity per token", "tokens per second"], rows
        )
    lengths = sorted({p.length for p in results if p.what == "memory"})
    by = {(p.what, p.model, p.length): r for p, r in results.items()}
    rows = [[name, *(f"{by['memory', name, length]['mebibytes']:.0f}" for length in lengths)] for name in MODELS]
    print("Memory of a training step on one text, MiB, by its tokens\n")
    table(["model", *(f"{length:,}" for length in lengths)], rows)
    rows = []
    for name in MODELS:
        own = [by["generation", name, length] for length in CONTEXTS]
        rows.append([name, *(f"{r['milliseconds']:.2f}" for r in own), *(f"{r['kibibytes']:.0f}" for r in own)])
    print("Generation: milliseconds per token, and KiB kept between tokens, after so many tokens\n")
    table(["model", *(f"ms at {n:,}" for n in CONTEXTS), *(f"KiB at {n:,}" for n in CONTEXTS)], rows)


def show_tuning(results: dict[Piece, dict[str, Any]]) -> None:
    rates = sorted({p.lr for p in results})
    by = {(p.model, p.lr): r["bits_per_byte"] for p, r in results.items()}
    table(["model", *(f"lr {lr:g}" for lr in rates)], [[m, *(f"{by[m, lr]:.3f}" for lr in rates)] for m in MODELS])


def show_tasks(results: dict[Piece, dict[str, Any]]) -> None:
    for name, t in TASKS.items():
        rows = [[p.model, str(p.seed), *(f"{v:.4f}" for v in r.values())] for p, r in results.items() if p.text == name]
        print(f"{name}: share of right answers by length, trained up to {LONGEST}\n")
        table(["model", "seed", *map(str, t.scored)], rows)


def comparison(steps: int, seeds: int) -> list[Piece]:
    """All pieces, those of the first seed at the front, so that a run that is stopped has compared every model once."""

    def trained(seed: int) -> list[Piece]:
        return [Piece("train", name, text, seed, steps, CHOSEN[name]) for text in TEXTS for name in MODELS]

    cost = [Piece("memory", name, length=length) for name in MODELS for length in LENGTHS]
    cost += [Piece("generation", name, length=length) for name in MODELS for length in CONTEXTS]
    return trained(0) + cost + [piece for seed in range(1, seeds) for piece in trained(seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_argument(parser)
    parser.add_argument("--quick", action="store_true", help="30 steps, one seed")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/language"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--tasks", action="store_true")
    args = parser.parse_args()
    show_results: Callable[[dict[Piece, dict[str, Any]]], None] = show
    if args.tasks:
        runs = [(model, "parity", seed) for model in ("sLSTM", "mLSTM") for seed in range(3)]
        runs += [("mixed", "copy", 0), ("mixed", "copy", 1), ("mixed", "copy", 2), ("mixed", "copy26", 0)]
        pieces = [Piece("task", model, k, seed, TASKS[k].steps, TASKS[k].lr) for model, k, seed in runs]
        show_results = show_tasks
    elif args.tune:
        pieces = [Piece("tune", m, TEXTS[1], 100, args.steps * 2 // 3, lr) for m in MODELS for lr in RATES]
        show_results = show_tuning
    else:
        pieces = comparison(30, 1) if args.quick else comparison(args.steps, 3)
    show_results(run_all(pieces, data_folder(args.data), args.work, args.jobs))


if __name__ == "__main__":
    main()

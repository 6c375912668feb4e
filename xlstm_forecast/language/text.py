"""Text in, token ids out: sources of text, the tokenizer, and the data set with contiguous batches."""

from __future__ import annotations

import glob
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..files import replacing

KINDS = ("bpe", "word", "char")
SPECIAL_TOKENS = ("<|pad|>", "<|unk|>", "<|bos|>", "<|eos|>")
FILE_ENDINGS = (".txt", ".md", ".gz", ".rst", ".json", ".csv", ".raw", ".tokens", ".text")
PIECE = 1 << 16  # characters that are encoded at once

Source = str | Path | Sequence[str | Path]


def read_texts(source: Source) -> list[str]:
    """The documents of a source: a text; a file (.gz too); a pattern such as "docs/*.md"; or several of these.

    A string is a file where one of that name exists. Raises FileNotFoundError for a string that looks like the name of
    a file which does not exist, ValueError where there is no text at all.
    """
    items = [source] if isinstance(source, (str, Path)) else list(source)
    texts = [text for item in items for text in _documents(item)]
    if not any(text.strip() for text in texts):
        raise ValueError(f"empty text: {_short(source)} holds no characters to learn from")
    return [text for text in texts if text]


def check_files(key: str, source: Source) -> None:
    """Raise FileNotFoundError, naming the key of a configuration, for what is neither a file nor a pattern of some.

    What has several lines is a text.
    """
    for item in [source] if isinstance(source, (str, Path)) else source:
        name = str(item)
        if _may_name(item) and not Path(name).is_file() and not glob.glob(name, recursive=True):
            raise FileNotFoundError(f'{key}: {name!r} does not exist; give a file or a pattern such as "docs/*.md"')


def _may_name(item: str | Path) -> bool:
    """Whether it may be the name of a file."""
    name = str(item)
    return isinstance(item, Path) or (len(name) < 1000 and "\n" not in name and bool(name.strip()))


def _documents(item: str | Path) -> list[str]:
    if not isinstance(item, (str, Path)):
        raise TypeError(f"expected a text or a file, found {type(item).__name__}")
    name = str(item)
    if not _may_name(item):
        return [name]
    if Path(item).is_file():
        return [_read(Path(item))]
    found = sorted(glob.glob(name, recursive=True)) if any(c in name for c in "*?[") else []
    if found:
        return [_read(Path(path)) for path in found if Path(path).is_file()]
    if isinstance(item, Path) or Path(name).is_dir() or (" " not in name and name.endswith(FILE_ENDINGS)):
        what = "is a folder" if Path(item).is_dir() else "does not exist"
        raise FileNotFoundError(f'text file {name!r} {what}; give a file, a pattern such as "docs/*.md", or the text')
    return [name]


def _read(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None


def _short(source: Source) -> str:
    text = repr(source)
    return text if len(text) <= 60 else text[:57] + "..."


class Tokenizer:
    """Text to token ids and back, over the `tokenizers` library; made by `train`, or read from a saved file.

    Ids 0 to 3 are the special tokens for padding, unknown, beginning and end; text never produces them, whatever it
    holds, except for the unknown token.

    >>> tokenizer = Tokenizer.train("a rose is a rose", kind="char")
    >>> tokenizer.decode(tokenizer.encode("a rose"))
    'a rose'
    """

    def __init__(self, vocab_file: str | Path) -> None:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError where it is no such file."""
        path = Path(vocab_file)
        if not path.is_file():
            raise FileNotFoundError(
                f"vocab_file {str(path)!r} does not exist; Tokenizer.train(...).save(...) writes one"
            )
        try:
            core = _tokenizers().Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"vocab_file {str(path)!r} is not a tokenizer file: {error}") from None
        self._adopt(core, str(path))

    def _adopt(self, core: Any, where: str) -> None:
        missing = [token for token in SPECIAL_TOKENS if core.token_to_id(token) is None]
        if missing:
            raise ValueError(f"the tokenizer in {where} lacks {', '.join(missing)}; make one with Tokenizer.train")
        core.encode_special_tokens = True
        self._core = core
        self.pad_token_id, self.unk_token_id, self.bos_token_id, self.eos_token_id = (
            int(core.token_to_id(token)) for token in SPECIAL_TOKENS
        )

    @classmethod
    def train(
        cls, source: Source, vocab_size: int = 8000, kind: str = "bpe", special_tokens: Sequence[str] = ()
    ) -> Tokenizer:
        """Fit a tokenizer on a text, files, or several (see `read_texts`).

        kind: "bpe", byte-level byte-pair encoding, which can write any text; "word", words between white space, and
        line ends; "char", characters. The latter two know what the text holds and give the unknown token for the rest.
        vocab_size: the most tokens it may have, the four special ones and `special_tokens`, further ones, included.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; choose from {', '.join(KINDS)}")
        special = [*SPECIAL_TOKENS, *special_tokens]
        short = next((token for token in special if len(token) < 2), None)
        if short is not None:
            raise ValueError(f"special_tokens: {short!r} is too short to be told from text; give it two characters")
        least = len(special) + (256 if kind == "bpe" else 1)
        if vocab_size < least:
            raise ValueError(f"vocab_size={vocab_size} is too small: {kind!r} needs at least {least}")
        core, trainer = _build(kind, vocab_size, special)
        core.train_from_iterator(read_texts(source), trainer)
        tokenizer = cls.__new__(cls)
        tokenizer._adopt(core, "memory")
        return tokenizer

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The same as `Tokenizer(path)`."""
        return cls(path)

    def save(self, path: str | Path) -> None:
        """Write vocabulary and rules to a JSON file."""
        with replacing(path) as file:
            self._core.save(str(file))

    def __len__(self) -> int:
        return int(self._core.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special tokens are added."""
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._core.encode(piece, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids (T,). Raises ValueError for ids that the vocabulary does not have."""
        plain = [int(i) for i in ids]
        wrong = next((i for i in plain if not 0 <= i < len(self)), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is out of range: the tokenizer has ids 0 to {len(self) - 1}")
        return self._core.decode(plain, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it; None if it has none."""
        return self._core.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id as the vocabulary writes it; None if there is none."""
        return self._core.id_to_token(index)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "the tokenizer needs the tokenizers library: pip install 'xlstm-forecast[language]'"
        ) from error
    return tokenizers


def _build(kind: str, vocab_size: int, special: list[str]) -> tuple[Any, Any]:
    """An empty tokenizer of a kind and its trainer."""
    lib = _tokenizers()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    options: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
    if kind == "bpe":
        core = lib.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        return core, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    core = lib.Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[1]))
    if kind == "char":
        core.pre_tokenizer = pre_tokenizers.Split(lib.Regex(r"[\s\S]"), "isolated")
        core.decoder = decoders.Fuse()
    else:
        lines = pre_tokenizers.Split(lib.Regex(r"\n"), "isolated")
        words = pre_tokenizers.Split(lib.Regex(r"[^\S\n]+"), "removed")
        apart = [pre_tokenizers.Split(lib.Regex(_first_of(token)), "isolated") for token in special]
        core.pre_tokenizer = pre_tokenizers.Sequence([lines, words, *apart])
    return core, trainers.WordLevelTrainer(min_frequency=1, **options)


def _first_of(token: str) -> str:
    """A pattern of the first character of a word that is a special token: cut off, the word is none any more."""
    return rf"\A{re.escape(token[0])}(?={re.escape(token[1:])}\z)"


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that end at a line's end where there is one, so that memory stays small."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


class ContiguousBatches:
    """Batches whose rows go on in the next batch: row b reads its own stretch of the text from first to last window.

    Iterating yields (inputs, targets), (rows, <= max_length) each, targets being the inputs one token later. Every
    token but the first is a target once; the end of the last row is padded. rank and world_size pick this process's
    rows (several processes leave out the last tokens, less than one per row).
    """

    def __init__(
        self, ids: Tensor, batch_size: int, max_length: int, pad: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size={batch_size}: expected a positive multiple of {world_size}, the processes")
        count = len(ids) - 1
        if world_size > 1:  # without padding, so that every process has something to learn from in every batch
            count -= count % batch_size
        columns = -(-count // batch_size)
        if count <= (batch_size - 1) * columns:
            raise ValueError(f"batch_size={batch_size} is too large for a text of {len(ids)} tokens; take fewer rows")
        padded = ids.new_full((2, batch_size * columns), pad)
        padded[0, :count], padded[1, :count] = ids[:count], ids[1 : count + 1]
        share = batch_size // world_size
        self.table = padded.view(2, batch_size, columns)[:, rank * share : (rank + 1) * share]
        self.max_length = max_length

    def __len__(self) -> int:
        return -(-self.table.shape[2] // self.max_length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.table.split(self.max_length, 2):
            yield part[0], part[1]


class LanguageModelingDataset(Dataset[tuple[Tensor, Tensor]]):
    """A text as token ids, in windows of max_length: `dataset[i]` is (inputs, targets), (max_length,) each.

    Every document stands between its beginning and end token; the last window is padded. `batches` gives contiguous
    batches, over which a recurrent state can be carried. num_bytes: size of the text in UTF-8, for bits per byte.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, max_length: int) -> None:
        if max_length < 1:
            raise ValueError(f"max_length={max_length}: expected at least 1")
        texts = read_texts(source)
        ids: list[int] = []
        for text in texts:
            ids += [tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]
        self.tokenizer, self.max_length = tokenizer, max_length
        self.ids = torch.tensor(ids, dtype=torch.int64)
        self.num_bytes = sum(len(text.encode()) for text in texts)

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.max_length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index % len(self) * self.max_length
        part = self.ids[start : start + self.max_length + 1]
        window = self.ids.new_full((self.max_length + 1,), self.tokenizer.pad_token_id)
        window[: len(part)] = part
        return window[:-1], window[1:]

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> ContiguousBatches:
        """Contiguous batches of `batch_size` rows: see `ContiguousBatches`."""
        pad = self.tokenizer.pad_token_id
        return ContiguousBatches(self.ids, batch_size, self.max_length, pad, rank=rank, world_size=world_size)

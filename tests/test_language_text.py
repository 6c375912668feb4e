"""Text of the language models: tokenizers, sources, and the batches that they are read in."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from xlstm_forecast.language import (
    LanguageModelingDataset,
    Tokenizer,
)

ROOT = Path(__file__).parents[1]
VERSE = "The owl looked up to the stars above, and the sea sang back to the sand below.\n" * 40


def char_set(text=VERSE, max_length=16) -> LanguageModelingDataset:
    return LanguageModelingDataset(text, Tokenizer.train(text, kind="char"), max_length)


@pytest.mark.parametrize(
    "text", ["To be, or not to be", "tabs\tand\n\n  lines \r\n", "ünïcode ☃ 雪 🙂", "<|eos|><|pad|>", " "]
)
def test_byte_level_pairs_and_known_characters_give_any_text_back(text):
    for tokenizer in (Tokenizer.train(VERSE, 300), Tokenizer.train(VERSE + text, kind="char")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert min(ids) > tokenizer.eos_token_id  # no special token, whatever the text holds


def test_words_are_split_at_white_space_and_unknown_ones_get_their_token():
    tokenizer = Tokenizer.train("a rose\nis a rose", kind="word", special_tokens=["<|name|>"])
    assert len(tokenizer) == 4 + 1 + 4
    assert tokenizer.encode("rose  is") == [tokenizer.token_to_id("rose"), tokenizer.token_to_id("is")]
    assert tokenizer.encode("a tulip")[1] == tokenizer.unk_token_id == 1
    assert tokenizer.id_to_token(4) == "<|name|>"
    assert tokenizer.decode(tokenizer.encode("a\nrose")) == "a \n rose"


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer = Tokenizer.train(VERSE, 300)
    tokenizer.save(tmp_path / "new" / "vocab.json")
    for again in (Tokenizer(tmp_path / "new" / "vocab.json"), Tokenizer.load(str(tmp_path / "new" / "vocab.json"))):
        assert again.encode(VERSE) == tokenizer.encode(VERSE)
        assert len(again) == len(tokenizer)
        assert (again.pad_token_id, again.unk_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2, 3)


def test_long_texts_are_encoded_in_pieces_without_loss():
    tokenizer = Tokenizer.train(VERSE, 300)
    for text in (VERSE * 50, "x" * 200_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_texts_come_from_strings_files_patterns_and_lists(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"second"))
    tokenizer = Tokenizer.train("first second third", kind="char")

    def read(source) -> str:
        return tokenizer.decode(LanguageModelingDataset(source, tokenizer, 4).ids, skip_special_tokens=False)

    assert read("third") == "<|bos|>third<|eos|>"
    assert read(str(tmp_path / "a.txt")) == read(tmp_path / "a.txt") == "<|bos|>first<|eos|>"
    assert read(str(tmp_path / "*.txt*")) == "<|bos|>first<|eos|><|bos|>second<|eos|>"
    assert read([tmp_path / "b.txt.gz", "third"]) == "<|bos|>second<|eos|><|bos|>third<|eos|>"


def test_windows_hold_each_token_once_with_its_successor_as_target():
    data = char_set("abcdefghij", max_length=4)
    pad = data.tokenizer.pad_token_id
    pairs = [data[i] for i in range(len(data))]
    inputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert inputs[:11].tolist() == data.ids[:-1].tolist()
    assert inputs[11:].tolist() == [data.ids[-1]]
    assert targets[:11].tolist() == data.ids[1:].tolist()
    assert targets[11:].tolist() == [pad]
    assert len(data) == 3
    assert data.num_bytes == 10
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(("batch_size", "max_length"), [(1, 5), (3, 4), (5, 100)])
def test_rows_of_contiguous_batches_go_on_where_the_batch_before_ended(batch_size, max_length):
    data = char_set(VERSE[:200], max_length)
    batches = list(data.batches(batch_size))
    assert len(batches) == len(data.batches(batch_size))
    inputs, targets = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
    count = len(data.ids) - 1
    assert inputs.flatten()[:count].tolist() == data.ids[:-1].tolist()
    assert targets.flatten()[:count].tolist() == data.ids[1:].tolist()
    assert (targets.flatten()[count:] == data.tokenizer.pad_token_id).all()
    assert all(x.shape[1] <= max_length for x, _ in batches)


def test_processes_share_the_rows_of_a_batch():
    data = char_set(VERSE[:203], 7)
    parts = [list(data.batches(4, rank=rank, world_size=2)) for rank in range(2)]
    joined = torch.cat([torch.cat([x for x, _ in part], 1) for part in parts])
    assert joined.flatten().tolist() == data.ids[: joined.numel()].tolist()
    assert len(data.ids) - 1 - joined.numel() < 4


@pytest.mark.parametrize("special", [(), ("<|name|>", "[SEP]")])
def test_words_that_look_like_special_tokens_stay_text(special, tmp_path):
    text = "a b <|eos|> c <|pad|>\n<|name|> [SEP] x<|eos|> d"
    for trained in (text, "a b c d"):
        tokenizer = Tokenizer.train(trained, kind="word", special_tokens=special)
        assert [tokenizer.id_to_token(i) for i in range(4)] == ["<|pad|>", "<|unk|>", "<|bos|>", "<|eos|>"]
        assert None not in [tokenizer.id_to_token(i) for i in range(len(tokenizer))]
        tokenizer.save(tmp_path / "kept.json")
        for each in (tokenizer, Tokenizer(tmp_path / "kept.json")):
            ids = each.encode(text)
            reserved = {0, 2, 3, *(each.token_to_id(token) for token in special)}
            assert not reserved & set(ids)
            assert max(ids) < len(each)
            assert (tokenizer.unk_token_id in ids) == (trained != text)
    with pytest.raises(ValueError, match="special_tokens: '#' is too short"):
        Tokenizer.train(text, kind="word", special_tokens=["#"])

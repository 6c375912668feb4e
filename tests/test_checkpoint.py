"""Checkpoints: what goes in comes out; what is damaged is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from xlstm_forecast import checkpoint
from xlstm_forecast.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0), "n": torch.tensor([1, 2])}
CONFIG = {"horizon": 3, "levels": [0.1, 0.9], "name": "température"}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", TENSORS, CONFIG)
    return tmp_path / "model.safetensors"


def test_tensors_and_configuration_come_back_and_no_other_file_is_left(path):
    tensors, config = load_checkpoint(path)
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], TENSORS[k]) and tensors[k].dtype == TENSORS[k].dtype for k in TENSORS)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_tied_and_sliced_tensors_are_saved_apart(tmp_path):
    whole = torch.arange(10.0)
    save_checkpoint(tmp_path / "m", {"x": whole[::2], "y": whole}, {})
    tensors, _ = load_checkpoint(tmp_path / "m")
    assert tensors["x"].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(path)


def test_an_edited_weight_is_refused(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="changed after it was saved"):
        load_checkpoint(path)


def test_an_edited_configuration_is_refused(path):
    tensors, config = load_checkpoint(path)
    save_file(tensors, path, metadata={"format_version": "1", "digest": "0", "config": json.dumps(config)})
    with pytest.raises(ValueError, match="changed after it was saved"):
        load_checkpoint(path)


def test_a_newer_format_asks_for_an_upgrade(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    save_checkpoint(path, TENSORS, CONFIG)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format_version 99.*upgrade"):
        load_checkpoint(path)


def test_foreign_files_and_wrong_places_are_named(tmp_path):
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of xlstm_forecast"):
        load_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(ValueError, match="it is a folder"):
        save_checkpoint(tmp_path, TENSORS, CONFIG)


@pytest.mark.skipif(os.name == "nt", reason="rights of files are those of POSIX")
def test_a_checkpoint_has_the_rights_of_any_new_file_and_an_old_one_keeps_its_own(path):
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode
    path.chmod(0o640)
    save_checkpoint(path, TENSORS, CONFIG)
    assert path.stat().st_mode & 0o777 == 0o640

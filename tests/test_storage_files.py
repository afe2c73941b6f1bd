"""Checkpoint files: what goes in comes out, other tools read them, and what cannot be kept is refused before."""

from __future__ import annotations

import math
import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from storage_toys import contents, pt_bytes, same
from torch import nn

from imagen_pytorch.checkpoints import (
    CheckpointError,
    CheckpointMisaddressed,
    CheckpointMissing,
    CheckpointNotWritten,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)
from imagen_pytorch.checkpoints.contents import DTYPES
from imagen_pytorch.checkpoints.format_safetensors import _DTYPES as SAFETENSORS

KINDS = ("pt", "safetensors")
each_kind = pytest.mark.parametrize("kind", KINDS)


def there_and_back(value, path):
    write_checkpoint(value, path)
    return read_checkpoint(path)


# -- both formats -----------------------------------------------------------------------------------------------------


@each_kind
def test_contents_come_back(tmp_path, kind):
    value = contents(7)
    assert same(there_and_back(value, tmp_path / f"a.{kind}"), value)
    assert os.listdir(tmp_path) == [f"a.{kind}"]


@each_kind
def test_every_kind_of_element_comes_back(tmp_path, kind):
    dtypes = SAFETENSORS.values() if kind == "safetensors" else DTYPES.values()
    bits = torch.arange(32, dtype=torch.uint8)
    value = {str(dtype): bits.clone().view(dtype) if dtype != torch.bool else bits > 3 for dtype in dtypes}
    value |= {"empty": torch.zeros(0, 3), "number": torch.tensor(2.5), "turned": torch.rand(3, 4, 5).permute(2, 0, 1)}
    found = there_and_back(value, tmp_path / f"a.{kind}")
    assert list(found) == list(value)
    for name, tensor in value.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].contiguous().reshape(-1).view(torch.uint8), _raw(tensor)), name


def _raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@each_kind
def test_plain_values_come_back_as_they_were(tmp_path, kind):
    value = {
        "numbers": [0, -1, 2**200, True, False, 1.5, -0.0, math.inf, -math.inf, math.nan, 5e-324],
        "texts": ["", "caf\u00e9 \U0001f600", "\ud800", 'a"b\\c\n\x00', b"", bytes(range(256))],
        "nested": {"": [], "d": {}, "t": (), "tt": ((1,), [(2, [3])])},
        "keys": {None: 0, True: 1, 2.5: 2, b"k": 3, (1, "a"): 4, "1": 5, -7: 6},
        "a.b": {"c": torch.zeros(1)},
        "a": {"b.c": torch.ones(1), "b": {"c": torch.full((1,), 2.0)}},  # the same name when joined
        "__metadata__": torch.zeros(2),
    }
    assert same(there_and_back(value, tmp_path / f"a.{kind}"), value)


@each_kind
def test_what_cannot_be_read_back_is_not_written(tmp_path, kind):
    deep = loop = []
    for _ in range(120):
        deep = [deep]
    loop.append(loop)
    refused = {
        r"checkpoint\['x'\] is a Linear: checkpoints hold only": nn.Linear(1, 1),
        r"checkpoint\['x'\]\[1\] is a set": (1, {2}),
        r"\['x'\] is a tensor that is sparse, quantized or without data": torch.zeros(2).to_sparse(),
        r"\['x'\]\['m'\] is a tensor that is sparse": {"m": torch.zeros(2, device="meta")},
        r"\['x'\] has the key .*, a device; use strings or numbers": {torch.device("cpu"): 1},
        "is nested deeper than 100 levels": deep,
    }
    for message, value in refused.items():
        with pytest.raises(TypeError, match=message):
            write_checkpoint({"x": value}, tmp_path / f"a.{kind}")
    with pytest.raises(TypeError, match="nested deeper"):
        write_checkpoint({"x": loop}, tmp_path / f"a.{kind}")
    assert os.listdir(tmp_path) == []


@each_kind
def test_an_expanded_tensor_is_written_as_it_looks(tmp_path, kind):
    value = torch.tensor([1.0, 2.0]).expand(1000, 2)
    assert torch.equal(there_and_back({"x": value}, tmp_path / f"a.{kind}")["x"], value)


@each_kind
def test_a_view_of_complex_numbers_is_written_as_it_looks(tmp_path, kind):
    value = torch.tensor([1 + 2j, 3 - 4j])
    found = there_and_back({"x": value.conj(), "y": value.conj().imag}, tmp_path / f"a.{kind}")
    assert torch.equal(found["x"], value.conj().resolve_conj()) and found["y"].tolist() == [-2.0, 4.0]


def test_the_suffix_chooses_and_the_content_tells(tmp_path):
    write_checkpoint(contents(1), tmp_path / "a.pt")
    write_checkpoint(contents(2), tmp_path / "b.SafeTensors")
    assert (tmp_path / "a.pt").read_bytes()[:2] == b"PK" and (tmp_path / "b.SafeTensors").read_bytes()[8:9] == b"{"
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.SafeTensors").rename(tmp_path / "b.pt")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), contents(1))
    assert same(read_checkpoint(tmp_path / "b.pt"), contents(2))


def test_files_are_the_same_for_the_same_contents(tmp_path):
    for kind in KINDS:
        for name in "ab":
            write_checkpoint(contents(3), tmp_path / name / f"a.{kind}")
        assert (tmp_path / "a" / f"a.{kind}").read_bytes() == (tmp_path / "b" / f"a.{kind}").read_bytes()


# -- the format of torch.save -----------------------------------------------------------------------------------------


def test_torch_reads_our_files(tmp_path):
    write_checkpoint(contents(5), tmp_path / "a.pt")
    for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}, {"weights_only": False}):
        assert same(torch.load(tmp_path / "a.pt", **options), contents(5))


def test_checksums_are_written_even_where_torch_was_told_not_to(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        assert same(there_and_back(contents(5), tmp_path / "a.pt"), contents(5))
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)


def test_tensors_that_share_memory_still_do(tmp_path):
    base = torch.arange(12.0)
    value = {"base": base, "part": base[2:8].view(2, 3), "tied": base, "alone": torch.zeros(2)}
    for make in (write_checkpoint, lambda contents, path: torch.save(contents, path)):
        make(value, tmp_path / "a.pt")
        found = read_checkpoint(tmp_path / "a.pt")
        assert same(found, value)
        found["base"][2] = 99
        assert found["part"][0, 0] == found["tied"][2] == 99
    assert os.path.getsize(tmp_path / "a.pt") < 3000


def test_files_of_torch_save_are_read_as_torch_does(tmp_path):
    """What torch.load gives with weights_only is the reference."""
    layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = layer.state_dict()
    assert isinstance(state, OrderedDict) and state._metadata  # torch.save writes these attributes too
    value = {
        "state": state,
        "parameter": layer[0].weight,
        "frozen": nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False),
        "kept": torch.zeros(2, requires_grad=True),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "short": torch.zeros(2, dtype=torch.uint16),
    }
    torch.save(value, tmp_path / "a.pt")
    wanted = torch.load(tmp_path / "a.pt", weights_only=True)  # which knows protocol 2 only
    for protocol in (2, 3, 4, 5):
        torch.save(value, tmp_path / "a.pt", pickle_protocol=protocol)
        found = read_checkpoint(tmp_path / "a.pt")
        assert same(found, wanted) and isinstance(found["state"], OrderedDict)
        assert found["parameter"].requires_grad and found["kept"].requires_grad
        assert isinstance(found["parameter"], nn.Parameter) and not found["frozen"].requires_grad


@pytest.mark.parametrize("value", [[torch.zeros(1)], {1: torch.zeros(1)}, torch.zeros(1), None])
def test_only_dicts_with_names_are_checkpoints(tmp_path, value):
    (tmp_path / "a.pt").write_bytes(pt_bytes(value))
    with pytest.raises(CheckpointError, match=f"it holds a {type(value).__name__} instead of named entries"):
        read_checkpoint(tmp_path / "a.pt")


# -- safetensors ------------------------------------------------------------------------------------------------------


def test_other_tools_find_the_tensors_under_readable_names(tmp_path):
    write_checkpoint(contents(4), tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    names = {"model.a.weight", "model.a.bias", "optim0.state.0.exp_avg", "optim0.state.0.step"}
    assert found.keys() == names and torch.equal(found["model.a.weight"], contents(4)["model"]["a.weight"])


def test_a_flat_dict_of_weights_keeps_its_names(tmp_path):
    weights = {"unets.0.a.weight": torch.rand(2, 3), "unets.0.a.bias": torch.rand(2)}
    assert same(there_and_back(weights, tmp_path / "a.safetensors"), weights)
    assert load_file(tmp_path / "a.safetensors").keys() == weights.keys()


def test_files_of_other_tools_are_weights(tmp_path):
    weights = {"b": torch.rand(2, 3), "a": torch.arange(5), "n": torch.tensor(1.0), "e": torch.zeros(0, 2)}
    for metadata in (None, {"format": "pt", "note": "theirs"}):
        save_file(weights, tmp_path / "a.safetensors", metadata)
        found = read_checkpoint(tmp_path / "a.safetensors")
        assert list(found) == ["model"] and found["model"].keys() == weights.keys()
        assert all(same(found["model"][name], weights[name]) for name in weights)


def test_elements_that_safetensors_lacks_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"x\.y is of torch.complex128, which .safetensors cannot hold; use .pt"):
        write_checkpoint({"x": {"y": torch.zeros(1, dtype=torch.complex128)}}, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_does_not_change_with_the_model(tmp_path):
    base = torch.zeros(6)
    live = {"a": base, "b": base[:2], "list": [base.view(2, 3).t()], "n": 1, "p": nn.Parameter(torch.ones(1))}
    copy = snapshot(live)
    base += 1
    live["list"].append(2)
    assert not copy["a"].any() and not copy["list"][0].any() and len(copy["list"]) == 1
    assert copy["list"][0].stride() == (1, 3) and not isinstance(copy["p"], nn.Parameter)
    copy["a"][0] = 5  # shared memory was copied once
    assert copy["b"][0] == copy["list"][0][0, 0] == 5
    assert same(there_and_back(copy, tmp_path / "a.pt"), copy)


# -- places -----------------------------------------------------------------------------------------------------------


def test_unknown_places_have_a_sentence():
    for url, protocol, meant in [("gss://a.pt", "gss", "gs"), ("zip://in::memoyr://a.zip", "memoyr", "memory")]:
        words = rf'cannot open {url}: no file system is called "{protocol}"; use gs://, .*; did you mean "{meant}"\?'
        with pytest.raises(CheckpointMisaddressed, match=words):
            read_checkpoint(url)
    with pytest.raises(CheckpointMisaddressed, match="cannot open simplecache://a.pt: Please provide filesystem"):
        read_checkpoint("simplecache://a.pt")
    with pytest.raises(CheckpointMissing, match="no checkpoint at memory://none/a.pt"):
        read_checkpoint("memory://none/a.pt")


def test_a_missing_package_is_named(monkeypatch):
    import fsspec.core

    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(CheckpointMisaddressed, match="Please install gcsfs.*; pip install gcsfs"):
        read_checkpoint("gs://bucket/a.pt")


def test_folders_and_special_files_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="it is a folder without manifest.json, not a checkpoint file"):
        read_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it is not an ordinary file"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointNotWritten, match="could not write"):
        write_checkpoint(contents(), tmp_path / "a.pt")
    with pytest.raises(CheckpointNotWritten, match="could not write .*embedded null byte"):
        write_checkpoint(contents(), f"{tmp_path}/a\x00.pt")

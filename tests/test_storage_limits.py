"""Small files that would take much memory or time: every way of opening them refuses them within bounds.

The law: whatever a file claims, memory and time grow with its length and not with the claim.
"""

from __future__ import annotations

import io
import itertools
import json
import pickle
import resource
import struct
import time
from pathlib import Path

import fsspec
import pytest
import torch
from storage_toys import NEEDS_FORK, handmade, in_child, outcome, refusal, safetensors_bytes
from test_sharding_checkpoints import forge

from imagen_pytorch import load_imagen_from_checkpoint
from imagen_pytorch.checkpoints import (
    CheckpointError,
    CheckpointInfo,
    CheckpointStore,
    describe_checkpoint,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from imagen_pytorch.checkpoints.format_safetensors import contents_of
from imagen_pytorch.checkpoints.pickle_scan import scan_pickle
from imagen_pytorch.checkpoints.sharded import nested, read_sharded, write_sharded
from imagen_pytorch.cli._info import file_facts

LOCAL = fsspec.filesystem("file")
PRIME = 2**61 - 1  # hashes of numbers are taken by it


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def in_dict(instructions):
    return b"\x80\x02}" + text("a") + instructions + b"s."


def calls(function, arguments, count):
    """A list of the answers of so many calls with the same arguments, which are kept at index 1 of the memo."""
    return in_dict(b"](c" + function + b"\nq\x02" + arguments + b"q\x01R" + b"h\x02h\x01R" * count + b"e")


def encoded():
    """One text of a megabyte that is made into bytes again and again."""
    return calls(b"_codecs\nencode", b"(" + text("x" * (1 << 20)) + text("latin1") + b"t", 3000)


def sizes():
    return calls(b"torch\nSize", b"((" + b"K\x01" * 64 + b"tt", 200_000)


def keyed(keys):
    """A dict with these keys."""
    return pickle.dumps({"a": dict.fromkeys(keys)}, 2)


def numbers():
    """A dict whose keys have the same hash; here it is never made."""
    keys = ((index * PRIME).to_bytes(12, "little") for index in range(1, 40_000))
    return in_dict(b"}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u")


def tuples():
    """Pairs with the same hash would do; any pairs are too many."""
    return keyed(itertools.product(range(200), range(200)))


def long_tuple():
    """A key of a million values, which each of many dicts hashes anew."""
    return in_dict(b"]((" + b"\x88" * 1_000_000 + b"tq\x01" + b"}h\x01Ns" * 50_000 + b"e")


def header_of_lists():
    return safetensors_bytes('{"a":[' + "[]," * 6_000_000 + "[]]}")


def header_of_dicts():
    return safetensors_bytes('{"a":[' + "{}," * 6_000_000 + "{}]}")


def structure(node):
    """A safetensors file of this package with this description; the checksum comes after what is tried here."""
    metadata = {"imagen_pytorch": json.dumps(node), "imagen_pytorch_sha256": "1" * 64}
    return safetensors_bytes(json.dumps({"__metadata__": metadata}))


BOMBS = {
    "bytes again and again": lambda: handmade(encoded()),
    "sizes again and again": lambda: handmade(sizes()),
    "numbers that collide": lambda: handmade(numbers()),
    "tuples as keys": lambda: handmade(tuples()),
    "a long tuple as a key": lambda: handmade(long_tuple()),
    "a description without data": lambda: handmade(b"\x80\x02" + b"]" * (9 << 20)),
    "a header of lists": header_of_lists,
    "a header of dicts": header_of_dicts,
}

DOORS = {
    "read": read_checkpoint,
    "outline": describe_checkpoint,
    "model": load_imagen_from_checkpoint,
    "verify": lambda path: verify_checkpoint(path, LOCAL),
    "folder": lambda path: CheckpointStore(Path(path).parent, fs=LOCAL).read(),
}


def tried(paths):
    """What every door says to every file with 300 MB of memory to spare, and the seconds that it takes."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (300 << 20),) * 2)
    found = {}
    for (name, path), (door, open_) in itertools.product(paths.items(), DOORS.items()):
        start = time.process_time()
        found[name, door] = outcome(open_, path), time.process_time() - start
    return found


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore:.*the one before it is taken instead")
def test_memory_and_time_do_not_follow_a_claim(tmp_path):
    paths = {}
    for number, (name, make) in enumerate(BOMBS.items()):
        paths[name] = str(tmp_path / str(number) / "checkpoint.1.pt")
        Path(paths[name]).parent.mkdir()
        Path(paths[name]).write_bytes(make())
    for which, (found, seconds) in in_child(tried, paths).items():
        assert isinstance(found, tuple) and found[0] == "CheckpointError", (which, found)
        assert "not enough memory" not in found[1], (which, found)
        assert seconds < 20, (which, seconds)


def test_what_is_refused_is_said():
    messages = {
        "bytes again and again": "amount to far more than the file",
        "sizes again and again": "amount to far more than the file",
        "numbers that collide": "as a key",
        "tuples as keys": "too many tuples as keys",
        "a long tuple as a key": "as a key",
    }
    for name, message in messages.items():
        assert message in refusal("pt", BOMBS[name]()), name
    pairs = [[index * PRIME, None] for index in range(1, 9)]
    assert "has an odd key" in outcome(lambda: nested_structure({"dict": pairs}))[1]
    many = [[{"tuple": [index, 0]}, None] for index in range(1001)]
    assert "has an odd key" in outcome(lambda: nested_structure({"dict": many}))[1]


def nested_structure(node):
    return contents_of(json.dumps(node), {})


def test_honest_files_have_such_values():
    for value in (
        {"a": b"x" * 10_000, "b": [b"y" * 300] * 50, "n": 2**70},
        {"a": {2**60 - 1: 1, -(2**60) + 1: 2, (1, "a", None, 2.5): 3, 0.5: 4, b"k": 5}},
        {"a": {(index, 1): index for index in range(1000)}},
        {"a": {index: torch.ones(1) for index in range(3000)}},
    ):
        data = io.BytesIO()
        torch.save(value, data)
        assert refusal("pt", data.getvalue()) is None
        assert scan_pickle(pickle.dumps({"a": b"x" * 1000}, 2), {})


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_what_would_not_be_read_is_not_written(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    for key in (2**60, -(2**60), 10**5000, (2**60,), tuple(range(17))):
        with pytest.raises(TypeError, match="has the key .* below 2"):
            write_checkpoint({"a": {key: 1}}, path)
    with pytest.raises(TypeError, match="more than 1,000 tuples as keys"):
        write_checkpoint({"a": {(index,): 1 for index in range(1001)}}, path)
    with pytest.raises(CheckpointError, match="its description takes .* bytes, too many for what it holds"):
        write_checkpoint({"a": ["x" * 20 + str(index) for index in range(400_000)]}, path)
    assert not path.exists()


# -- folders of shards ------------------------------------------------------------------------------------------------

TENSORS = {"model/a": torch.arange(8.0), "model/b": torch.arange(12.0).view(3, 4), "model/c": torch.tensor(1.0)}


@pytest.fixture
def folder(tmp_path):
    write_sharded(LOCAL, str(tmp_path / "run"), TENSORS, {"version": "1"})
    return str(tmp_path / "run")


def doubled(given):
    """The same half of a tensor twice, and a hole where the other half is."""
    entry = given["tensors"]["model/a"]
    start, shape, *rest = entry[2][0]
    entry[1] = [16]
    entry[2] = [[start, shape, *rest], [start, shape, *rest]]


def overlapping(given):
    entry = given["tensors"]["model/a"]
    _, shape, *rest = entry[2][0]
    entry[1] = [16]
    entry[2] = [[[4], shape, *rest], [[8], shape, *rest]]


def diagonal(given):
    """Two cells of a grid of four, each twice."""
    entry = given["tensors"]["model/b"]
    _, shape, *rest = entry[2][0]
    entry[1] = [6, 8]
    entry[2] = [[start, shape, *rest] for start in ([0, 0], [3, 4], [0, 0], [3, 4])]


def absurd(given):
    given["tensors"]["model/a"][1:] = [[0, 1 << 48, 1 << 48], []]


FORGERIES = {"doubled": doubled, "overlapping": overlapping, "diagonal": diagonal, "absurd": absurd}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("door", [read_checkpoint, describe_checkpoint, lambda path: verify_checkpoint(path, LOCAL)])
def test_parts_that_do_not_tile_their_tensor_are_refused(folder, forgery, door):
    forge(folder, FORGERIES[forgery])
    with pytest.raises(CheckpointError, match=r"its manifest contradicts itself about model/[ab]"):
        door(folder)


def test_any_grid_of_parts_is_read(folder):
    """Those that processes make along one axis or two, in any order, and empty ones."""

    def grid(given):
        entry = given["tensors"]["model/b"]
        _, shape, *rest = entry[2][0]
        entry[1] = [6, 8]
        entry[2] = [[start, shape, *rest] for start in ([3, 4], [0, 0], [0, 4], [3, 0])]
        entry[2].append([[6, 0], [0, 8], *rest])

    forge(folder, grid)
    whole = TENSORS["model/b"]
    assert torch.equal(read_sharded(LOCAL, folder)["model"]["b"], torch.cat([torch.cat([whole, whole], 1)] * 2))


ODD_NAMES = ["model/\u00b2", "model/" + "9" * 5000, "model/" + "/".join("a" * 1000), "\u0661/x", "model/01", "model//"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=["superscript", "long number", "deep", "arabic", "zero", "empty"])
def test_odd_names_in_a_manifest(tmp_path, name):
    folder = str(tmp_path / "run")
    write_sharded(LOCAL, folder, {name: torch.arange(8.0)}, {"version": "1"})
    found = outcome(read_checkpoint, folder)
    if isinstance(found, tuple):
        assert found[0] == "CheckpointError" and "which has more than 16 steps" in found[1]
    else:
        assert "version" in found
    store = CheckpointStore(Path(folder).parent)
    assert outcome(store.read) is None


def test_keys_that_are_numbers():
    assert nested({"a/0/12": 1, "a/-1/x": 2, "a/007": 3, "a/\u00b2": 4}) == {
        "a": {0: {12: 1}, "-1": {"x": 2}, "007": 3, "\u00b2": 4}
    }


def test_facts_about_a_file_with_odd_names_and_steps():
    tensor = torch.empty(3, device="meta")
    names = ["unets.\u00b2.x", "unets.1.x", "unets.01.x", "unets." + "9" * 5000, "unets.99999.x", "x", "\u0661"]
    contents = {"model": dict.fromkeys(names, tensor)}
    for steps, second in (
        ([5, 7], 7),
        ([5, 10**5000], None),
        ([5, -1], None),
        ([5, float("nan")], None),
        ([5, "x"], None),
        ([5, [1]], None),
        (torch.tensor([5, 7]), 7),
        (torch.tensor([[5, 7]]), None),
        ("text", None),
    ):
        facts = file_facts(CheckpointInfo("a.pt", "pt", 9, {**contents, "steps": steps}))
        assert [unet["number"] for unet in facts["unets"]] == [2] and facts["unets"][0]["steps"] == second
        assert facts["numbers"] == 3 * len(names)
        json.dumps(facts)

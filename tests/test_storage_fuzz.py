"""Files that were changed at random: refused, or plain contents."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_toys import (
    KINDS,
    NEEDS_FORK,
    Storage,
    View,
    contents,
    each_kind,
    good_files,
    handmade,
    in_child,
    outcome,
    pickled,
    refusal,
    safetensors_bytes,
)

from imagen_pytorch.checkpoints import describe_checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_files(tmp_path_factory.mktemp("good"))


def mutated(data, draw):
    """The data with a few bytes changed, ranges doubled, moved, cut or filled."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 40]))
        action = draw(st.sampled_from(["flip", "fill", "insert", "cut", "double", "number"]))
        if action == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "fill":
            data[start : start + length] = draw(st.binary(min_size=length, max_size=length))
        elif action == "insert":
            data[start:start] = draw(st.binary(max_size=length))
        elif action == "cut":
            del data[start : start + length]
        elif action == "double":
            data[start:start] = data[start : start + length]
        else:
            data[start : start + 8] = struct.pack("<q", draw(st.sampled_from([-1, 0, 1, 2**31, 2**32 - 1, 2**62])))
    return bytes(data)


FUZZ = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@FUZZ
@given(st.data())
@each_kind
def test_mutated_files_are_refused(good, kind, data):
    changed = mutated(good[kind], data.draw)
    assert changed == good[kind] or refusal(kind, changed)


DESCRIPTION = pickled({"model": {"a": View(Storage(), (2, 2), (2, 1)), "b": [1, (2.5, None, True)]}, "raw": b"ab"})
HEADER = json.dumps(
    {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
).encode()


@FUZZ
@given(st.data())
def test_mutated_descriptions_give_plain_contents_or_an_error(data):
    description = mutated(DESCRIPTION, data.draw)
    _only_plain(outcome(KINDS["pt"], io.BytesIO(handmade(description))))


@FUZZ
@given(st.data())
def test_mutated_headers_give_plain_contents_or_an_error(data):
    changed = mutated(HEADER, data.draw)
    _only_plain(outcome(KINDS["safetensors"], io.BytesIO(safetensors_bytes(changed, bytes(16)))))


def _only_plain(found):
    if type(found) is tuple and len(found) == 2 and found[0].endswith("Error"):
        assert found[0] == "CheckpointError", found
    else:
        kinds = (dict, list, tuple, torch.Tensor, torch.Size, torch.dtype, torch.device)
        assert found is None or isinstance(found, (*kinds, bool, int, float, str, bytes))


@pytest.mark.slow
@settings(FUZZ, max_examples=3000)
@given(st.data())
def test_mutated_descriptions_at_length(data):
    _only_plain(outcome(KINDS["pt"], io.BytesIO(handmade(mutated(DESCRIPTION, data.draw)))))


def scrambled(data, chance):
    """The data with up to four changes: flips, fills, insertions, cuts, doubled ranges, odd numbers."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start, length = chance.randrange(len(data)), chance.choice([1, 1, 1, 2, 4, 8, 40])
        odd = struct.pack("<q", chance.choice([-1, 0, 1, 2**31, 2**32 - 1, 2**62]))
        changes = {
            "flip": (start, start + 1, bytes([data[start] ^ 1 << chance.randrange(8)])),
            "fill": (start, start + length, chance.randbytes(length)),
            "insert": (start, start, chance.randbytes(length)),
            "cut": (start, min(start + length, len(data) - 1), b""),
            "double": (start, start, bytes(data[start : start + length])),
            "number": (start, start + 8, odd),
        }
        first, last, new = changes[chance.choice(list(changes))]
        data[first:last] = new
    return bytes(data)


def peak():
    """The largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_mutations(path, good, count):
    """Read mutated files by every door; what odd things came of it, and how much memory it took at most."""
    chance, odd = random.Random(count), []
    doors = (read_checkpoint, describe_checkpoint, lambda path: read_checkpoint(path, mapped=True))
    doors[0](good), doors[1](good)  # what is imported and made once is not counted
    with open(good, "rb") as file:
        whole = file.read()
    before = peak()
    for number in range(count):
        changed = scrambled(whole, chance) if number % 2 else handmade(scrambled(DESCRIPTION, chance))
        with open(path, "wb") as file:
            file.write(changed)
        for door in doors:
            found = outcome(door, path)
            if isinstance(found, tuple) and found[0] != "CheckpointError":
                odd.append((number, found))
    return odd, peak() - before


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(2500, marks=pytest.mark.slow)])
def test_mutations_neither_crash_nor_run_nor_take_memory(tmp_path, monkeypatch, count):
    """Half of them are descriptions in a zip whose checksums are right."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(contents(3, 2), "good.pt")
    odd, memory = in_child(read_mutations, "a.pt", "good.pt", count)
    assert odd == [] and memory < 50 << 20
    assert sorted(os.listdir()) == ["a.pt", "good.pt"]

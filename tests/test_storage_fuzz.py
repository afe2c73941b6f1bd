"""Files that were changed at random: refused, or plain contents."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_toys import (
    KINDS,
    Storage,
    View,
    each_kind,
    good_files,
    handmade,
    outcome,
    pickled,
    refusal,
    safetensors_bytes,
)


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

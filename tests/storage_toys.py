"""Checkpoints of a few tensors, files made by hand, and children that may be killed."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import pickle
import struct
import tempfile
import zipfile
from collections import OrderedDict

import pytest
import torch

from imagen_pytorch.checkpoints import CheckpointError, CheckpointStore, write_checkpoint
from imagen_pytorch.checkpoints.format_pt import read_pt
from imagen_pytorch.checkpoints.format_safetensors import read_safetensors

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are made by fork")


def contents(step=0, width=4):
    """A little of everything; ``step`` can be read off each part, so that a mixture of two would show."""
    return {
        "model": {"a.weight": torch.full((width, 3), float(step)), "a.bias": torch.full((width,), step).bfloat16()},
        "optim0": {"state": {0: {"exp_avg": torch.full((2,), step / 2), "step": torch.tensor(step)}}, "lr": (1e-3, 2)},
        "state": {"step": step, "none": None, "raw": b"\x00\xff", "nan": math.nan, "list": [True, -1, 2**70, "\u00e9"]},
    }


def step_of(found):
    """The step of contents that are of one step wholly."""
    step = found["state"]["step"]
    assert same(found, contents(step, len(found["model"]["a.bias"])))
    return step


def filled(url, *steps, **options):
    store = CheckpointStore(url, **options)
    for step in steps:
        store.write(step, contents(step))
    return store


def same(one, other):
    """Whether nested contents are equal, types and element types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


# -- files made by hand -----------------------------------------------------------------------------------------------


def pt_bytes(value):
    """A file of torch.save without a note of ours."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zip_bytes(entries, compression=zipfile.ZIP_STORED):
    """A zip with the entries of a checkpoint, which may be anything."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(f"x/{name}", data)
    return buffer.getvalue()


class Storage:
    """Stands for a storage in a pickle made by hand: the class of its elements, its entry, how many there are."""

    def __init__(self, key="0", count=4, kind=torch.FloatStorage):
        self.key, self.count, self.kind = key, count, kind


class View:
    """Stands for a tensor on a storage."""

    def __init__(self, storage, size, stride, offset=0):
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", value.kind, value.key, "cpu", value.count) if isinstance(value, Storage) else None


def pickled(value, protocol=2):
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def handmade(description, storage=b"\x00" * 16):
    """A checkpoint around a description, with one storage of 16 bytes."""
    return zip_bytes([("data.pkl", description), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")])


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text)) + text + data


# -- children ---------------------------------------------------------------------------------------------------------


def child(function, *arguments):
    """A forked process that runs a function; no interpreter has to start, so many of them are cheap."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def in_child(function, *arguments):
    """What a function returns in a process of its own; fails if that process dies."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = child(_answer, there, function, arguments)
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the child ended with {process.exitcode}")
    finally:
        process.join()


def _answer(pipe, function, arguments):
    pipe.send(function(*arguments))
    pipe.close()


def outcome(function, *arguments):
    """The name of an error's class and its text, or the result."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)


def _from_disk(file):
    """What a file of safetensors holds, which the library reads by its name."""
    with tempfile.NamedTemporaryFile() as held:
        held.write(file.read())
        held.flush()
        return read_safetensors(held)


KINDS = {"pt": read_pt, "safetensors": _from_disk}
each_kind = pytest.mark.parametrize("kind", KINDS)


def good_files(folder):
    """The bytes of a small good file of each kind."""
    for kind in KINDS:
        write_checkpoint(contents(3, 2), folder / f"a.{kind}")
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in KINDS}


def refusal(kind, data):
    """Why these bytes are refused; None if they are not."""
    try:
        KINDS[kind](io.BytesIO(data))
    except CheckpointError as error:
        return str(error)
    return None

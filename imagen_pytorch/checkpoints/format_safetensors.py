"""Files of safetensors: tensors under readable names, the containers around them as JSON in the header.

``{"model": {"unets.0.weight": w}, "steps": (1, 2)}`` becomes one tensor ``model.unets.0.weight``, which every tool for
such files finds, and a structure that only this package reads. A SHA-256 in the header covers the header itself and all
tensors. Files of other tools have neither; they are read as ``{"model": tensors}``.

They are read by the library. It cannot write a large file in pieces, nor the same bytes twice, so that is done here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..io.atomic import sync
from ..io.errors import ODD, CheckpointError, errors_as
from .contents import (
    DTYPES,
    FREE_DESCRIPTION,
    LARGEST_TENSOR,
    MAX_DEPTH,
    MAX_TUPLE_KEYS,
    are_counts,
    check_tensor,
    is_plain_key,
)
from .format_pt import PIECE, damaged, path_of, pieces, read_at

#: bytes of a header; a hundred thousand tensors take about 20 million
MAX_HEADER = 1 << 26
_NAMES = dict(zip(DTYPES.values(), "BOOL U8 I8 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64 C64 F8_E4M3 F8_E5M2".split(),
                  strict=False))  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_METADATA, _STRUCTURE, _DIGEST = "__metadata__", "imagen_pytorch", "imagen_pytorch_sha256"
_NO_DIGEST = "0" * 64


# -- containers as JSON -----------------------------------------------------------------------------------------------


def _flattened(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """The structure of nested contents, whose tensors are collected by name."""
    if isinstance(value, Tensor):
        name = wanted = ".".join(path) or "tensor"
        number = 2
        while name in tensors or name == _METADATA:
            name, number = f"{wanted}#{number}", number + 1
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_flattened(k, (), {}), _flattened(v, (*path, str(k)), tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_flattened(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _nested(node: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """The contents of a structure; `_flattened` backwards."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, list):
        return [_nested(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "dict":
        keys = [_nested(key, {}, depth + 1) for key, _ in value]
        if not all(map(is_plain_key, keys)) or sum(type(key) is tuple for key in keys) > MAX_TUPLE_KEYS:
            raise CheckpointError("its description has an odd key")
        return {key: _nested(item, tensors, depth + 1) for key, (_, item) in zip(keys, value, strict=True)}
    if kind == "tuple":
        return tuple(_nested(item, tensors, depth + 1) for item in value)
    return {"tensor": tensors.__getitem__, "bytes": bytes.fromhex, "float": _FLOATS.__getitem__}[kind](value)


_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def contents_of(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the contents that a structure in JSON describes; a CheckpointError if it is damaged."""
    with errors_as(CheckpointError, "its description cannot be decoded", ODD):
        return _nested(json.loads(structure), tensors)


# -- writing ----------------------------------------------------------------------------------------------------------


def is_safetensors(path: str) -> bool:
    """Return whether a file of this name is written in the safetensors format."""
    return path.lower().endswith(".safetensors")


def write_safetensors(contents: Mapping[str, Any], file: BinaryIO, metadata: Mapping[str, str] | None = None) -> None:
    """Write plain contents into an empty file, read them back and put their checksum into the header.

    Each tensor is stored by itself: memory that several share is stored several times. ``metadata`` is for other tools.

    Raises:
        TypeError: elements of a kind that the format does not have.
        OSError: no disk space, or another error of the disk.
        CheckpointError: what can be read back is not what was written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_flattened(contents, (), tensors), separators=(",", ":"))
    own = {"format": "pt", _DIGEST: _NO_DIGEST, _STRUCTURE: structure}
    header: dict[str, Any] = {_METADATA: {**own, **(metadata or {})}}
    # large elements first: each tensor then begins where its elements may
    end, order = 0, sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor, begin = tensors[name], end
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name} is of {tensor.dtype}, which .safetensors cannot hold; use .pt")
        end += tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > min(MAX_HEADER, FREE_DESCRIPTION + end):
        raise CheckpointError(f"its description takes {len(text):,} bytes, too many for what it holds; use .pt")
    start = struct.pack("<Q", len(text)) + text

    def parts() -> Iterator[memoryview]:
        yield memoryview(start)
        yield from (_memory(tensors[name]) for name in order)  # one at a time, for those on a GPU

    for memory in parts():
        for at in range(0, len(memory), PIECE):
            file.write(memory[at : at + PIECE])
    sync(file)
    digest, place = hashlib.sha256(), 0
    for memory in parts():
        for at, piece in zip(range(0, len(memory), PIECE), pieces(file, place, place + len(memory)), strict=True):
            digest.update(piece)
            if piece != bytes(memory[at : at + PIECE]):
                raise CheckpointError("what can be read back is not what was written")
        place += len(memory)
    file.seek(start.index(_NO_DIGEST.encode()))
    file.write(digest.hexdigest().encode())
    sync(file)


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; nothing is copied if it is contiguous and on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


# -- reading ----------------------------------------------------------------------------------------------------------


def looks_like_safetensors(start: bytes, total: int) -> bool:
    """Return whether a file of ``total`` bytes that begins so may be one, by the length of its header."""
    return len(start) >= 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= total - 8


def _header(file: BinaryIO) -> tuple[bytes, int]:
    """The header of a file and the number of bytes that follow it; one that is too long is not read."""
    total = file.seek(0, os.SEEK_END)
    start = read_at(file, 0, min(9, total))
    if not looks_like_safetensors(start, total):
        raise damaged()
    length = struct.unpack("<Q", start[:8])[0]
    if length > min(MAX_HEADER, FREE_DESCRIPTION + total - 8 - length):  # decoded, it takes some 25 times the memory
        raise CheckpointError(f"its header claims {length:,} bytes, more than any checkpoint of this package has")
    return read_at(file, 8, length), total - 8 - length


def verify_safetensors(file: BinaryIO) -> None:
    """Read a file once and compare it with its checksum, if it has one; a CheckpointError if it is damaged."""
    import safetensors

    raw, count = _header(file)
    try:
        with safetensors.safe_open(path_of(file), "pt") as opened:
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"its header cannot be decoded, or does not fit what follows ({error})"[:300]) from error
    if _STRUCTURE in metadata or _DIGEST in metadata:
        wanted = metadata.get(_DIGEST, "")
        if len(wanted) != 64 or raw.count(wanted.encode()) != 1:
            raise CheckpointError("its checksum is damaged")
        digest = hashlib.sha256(struct.pack("<Q", len(raw)) + raw.replace(wanted.encode(), _NO_DIGEST.encode()))
        for piece in pieces(file, 8 + len(raw), 8 + len(raw) + count):
            digest.update(piece)
        if digest.hexdigest() != wanted:
            raise CheckpointError("its checksum is wrong")


def read_safetensors(file: BinaryIO, mapped: bool = False) -> Any:
    """Return the contents of a file, every tensor on the CPU; ``{"model": tensors}`` for files of other tools.

    ``mapped`` maps the tensors from the file instead of reading them; for as long as the file stays unchanged.

    Raises:
        CheckpointError: it is damaged, or its header claims what is not there.
    """
    from safetensors import safe_open

    verify_safetensors(file)
    with safe_open(path_of(file), "pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        metadata = opened.metadata() or {}
    for item in found.values():
        check_tensor(item)
    tensors = found if mapped else {name: item.clone() for name, item in found.items()}
    return contents_of(metadata.get(_STRUCTURE), tensors) if _DIGEST in metadata else {"model": tensors}


def describe_safetensors(file: BinaryIO, values: Collection[str], small: int) -> Any:
    """Return the contents of a file with tensors on the device "meta"; reads its header only, and the ``values`` that
    are named and take at most ``small`` bytes."""
    raw, count = _header(file)
    tensors: dict[str, Tensor] = {}
    with errors_as(CheckpointError, "its header cannot be decoded", ODD):
        header = json.loads(raw)
        metadata = header.pop(_METADATA, {})
        for name, entry in header.items():
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            size = math.prod(shape) * dtype.itemsize if are_counts(shape) else -1
            if not are_counts([begin, end]) or end - begin != size or end > count or size > LARGEST_TENSOR:
                raise CheckpointError(f"{name[:100]} claims another size than the file holds for it")
            tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
            if name in values and 0 < size <= small:
                held = bytearray(read_at(file, 8 + len(raw) + begin, size))
                tensors[name] = torch.frombuffer(held, dtype=dtype).view(shape)
        structure = metadata.get(_STRUCTURE)
    return {"model": tensors} if structure is None else contents_of(structure, tensors)

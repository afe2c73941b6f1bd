"""Files in the safetensors format: tensors under readable names, the containers around them as JSON in the header.

``{"model": {"unets.0.weight": w}, "steps": (1, 2)}`` becomes one tensor ``model.unets.0.weight``, which every tool for
such files finds, and a description of the rest, which only this package reads. A checksum in the header covers the
header itself and all tensors. Files of other tools have neither; they are read as ``{"model": tensors}``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .archives import PIECE, pieces, read_at
from .background import rest
from .contents import FREE_DESCRIPTION, MAX_DEPTH, MAX_TUPLE_KEYS, is_plain_key
from .dtypes import LARGEST_TENSOR, SAFETENSORS, are_counts, elements, memory_of, tensor_on
from .errors import CheckpointError
from .ptfiles import to_disk

#: bytes of a header; a hundred thousand tensors take about 20 million
MAX_HEADER = 1 << 26
_NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}
_METADATA, _STRUCTURE, _DIGEST = "__metadata__", "imagen_pytorch", "imagen_pytorch_sha256"
_NO_DIGEST = "0" * 64


def is_safetensors(path: str) -> bool:
    """Whether a file of this name is written in the safetensors format."""
    return path.lower().endswith(".safetensors")


# -- containers as JSON -----------------------------------------------------------------------------------------------


class _Flattened:
    """Nested contents as named tensors and a description of the rest."""

    def __init__(self, contents: Mapping[str, Any]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.structure = self._described(contents, ())

    def _name(self, path: tuple[str, ...]) -> str:
        name = wanted = ".".join(path) or "tensor"
        number = 2
        while name in self.tensors or name == _METADATA:
            name, number = f"{wanted}#{number}", number + 1
        return name

    def _described(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            if value.dtype not in _NAMES:
                raise TypeError(f"{'.'.join(path)} is of {value.dtype}, which .safetensors cannot hold; use .pt")
            name = self._name(path)
            self.tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            items = [[self._described(k, ()), self._described(v, (*path, str(k)))] for k, v in value.items()]
            return {"dict": items}
        if isinstance(value, list | tuple):
            items = [self._described(item, (*path, str(index))) for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _contents(node: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """What a description says; `_Flattened` backwards."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, list):
        return [_contents(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    return _KINDS[kind](value, tensors, depth + 1)


def _dict(value: Any, tensors: Mapping[str, Tensor], depth: int) -> dict[Any, Any]:
    made, tuples = {}, 0
    for key, item in value:
        name = _contents(key, {}, depth)
        tuples += type(name) is tuple
        if not is_plain_key(name) or tuples > MAX_TUPLE_KEYS:
            raise CheckpointError("its description has a key that is none")
        made[name] = _contents(item, tensors, depth)
    return made


_KINDS = {
    "tensor": lambda value, tensors, depth: tensors[value],
    "dict": _dict,
    "tuple": lambda value, tensors, depth: tuple(_contents(item, tensors, depth) for item in value),
    "bytes": lambda value, tensors, depth: bytes.fromhex(value),
    "float": lambda value, tensors, depth: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value],
}


# -- writing ----------------------------------------------------------------------------------------------------------


def _header(flat: _Flattened, order: list[str]) -> bytes:
    structure = json.dumps(flat.structure, separators=(",", ":"))
    header: dict[str, Any] = {_METADATA: {"format": "pt", _DIGEST: _NO_DIGEST, _STRUCTURE: structure}}
    end = 0
    for name in order:
        tensor, begin = flat.tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > min(MAX_HEADER, FREE_DESCRIPTION + end):
        raise CheckpointError(f"its description takes {len(text):,} bytes, too many for what it holds; use .pt")
    return text


def write_safetensors(contents: Mapping[str, Any], file: BinaryIO) -> None:
    """Write plain contents into an empty file, read them back and put their checksum into the header.

    Each tensor is stored by itself: memory that several share is stored several times.

    Raises:
        TypeError: elements of a kind that the format does not have.
        OSError: no room, or another error of the disk.
        CheckpointError: what can be read back is not what was written.
    """
    flat = _Flattened(contents)
    # large elements first: each tensor then begins where its elements may
    order = sorted(flat.tensors, key=lambda name: (-flat.tensors[name].element_size(), name))
    header = _header(flat, order)
    start = struct.pack("<Q", len(header)) + header
    file.write(start)
    crcs = []
    for name in order:
        memory, crc = memory_of(flat.tensors[name].cpu().contiguous()), 0
        for at in range(0, len(memory), PIECE):
            crc = zlib.crc32(memory[at : at + PIECE], crc)
            file.write(memory[at : at + PIECE])
            rest()
        crcs.append((len(memory), crc))
    to_disk(file)
    digest = _read_back(file, start, crcs)
    file.seek(start.index(_NO_DIGEST.encode()))
    file.write(digest.encode())
    to_disk(file)


def _read_back(file: BinaryIO, start: bytes, crcs: list[tuple[int, int]]) -> str:
    """The checksum of a file that was just written, if it holds what was in memory."""
    digest = hashlib.sha256(start)
    same = read_at(file, 0, len(start)) == start
    for count, wanted in crcs:
        crc = 0
        for piece in pieces(file, count):
            crc = zlib.crc32(piece, crc)
            digest.update(piece)
        same &= crc == wanted
    if not same or file.read(1):
        raise CheckpointError("what can be read back is not what was written")
    return digest.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a tensor is in the part behind the header, and what it is."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("its header cannot be decoded") from error


def _place(name: str, entry: Any) -> _Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("its header cannot be decoded")
    dtype = SAFETENSORS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{name[:100]} has elements of a kind that cannot be read")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not are_counts(shape) or not are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{name[:100]} is of impossible size")
    begin, end = offsets
    if end - begin != elements(shape) * dtype.itemsize or elements([max(n, 1) for n in shape]) > LARGEST_TENSOR:
        raise CheckpointError(f"{name[:100]} claims another size than the file holds for it")
    return _Place(begin, end, name, dtype, tuple(shape))


def _places(header: Mapping[str, Any], count: int) -> list[_Place]:
    """Where the tensors are: one after another, all of the ``count`` bytes behind the header."""
    places = sorted(_place(name, entry) for name, entry in header.items() if name != _METADATA)
    ends = [0, *(place.end for place in places)]
    if ends[-1] != count or any(place.begin != end for place, end in zip(places, ends, strict=False)):
        raise CheckpointError("it is cut off, or its header does not fit what follows")
    return places


def looks_like_safetensors(start: bytes, total: int) -> bool:
    """Whether a file of ``total`` bytes that begins so may be one, by the length of its header."""
    return len(start) >= 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= total - 8


def read_header(file: BinaryIO, total: int) -> tuple[bytes, dict[str, Any], list[_Place]]:
    """The header of a safetensors file of ``total`` bytes, as it stands there and decoded, and where the tensors are.

    Raises:
        CheckpointError: it is another kind of file, cut off, or claims what cannot be.
    """
    file.seek(0)
    start = file.read(9)
    if not looks_like_safetensors(start, total):
        raise CheckpointError("it is cut off, damaged or another kind of file")
    length = struct.unpack("<Q", start[:8])[0]
    data = total - 8 - length
    if length > min(MAX_HEADER, FREE_DESCRIPTION + data):  # decoded, it takes some 25 times the memory
        raise CheckpointError(f"its header claims {length:,} bytes, more than any checkpoint of this package has")
    raw = read_at(file, 8, length)
    header = _json(raw)
    return raw, header, _places(header, data)


def _passed(file: BinaryIO, memory: Callable[[_Place], Tensor | None]) -> Mapping[str, Any] | None:
    """Read a whole file and compare it with its checksum, if it has one of ours.

    Args:
        file: a safetensors file.
        memory: where the bytes of a tensor go; None for those that are only looked at.

    Returns:
        the metadata of a file of this package, else None.

    Raises:
        CheckpointError: it is damaged, or its header claims what is not there.
    """
    raw, header, places = read_header(file, file.seek(0, os.SEEK_END))
    metadata = header.get(_METADATA, {})
    ours = isinstance(metadata, dict) and (_STRUCTURE in metadata or _DIGEST in metadata)
    wanted = metadata.get(_DIGEST) if ours else None
    if ours and not (isinstance(wanted, str) and len(wanted) == 64 and raw.count(wanted.encode()) == 1):
        raise CheckpointError("its checksum is damaged")
    digest = hashlib.sha256(struct.pack("<Q", len(raw)))
    digest.update(raw.replace(wanted.encode(), _NO_DIGEST.encode()) if ours else raw)
    for place in places:
        target = memory(place)
        for piece in pieces(file, place.end - place.begin, None if target is None else memory_of(target)):
            if ours:
                digest.update(piece)
    if ours and wanted != digest.hexdigest():
        raise CheckpointError("its checksum is wrong")
    return metadata if ours else None


def check_safetensors(file: BinaryIO) -> None:
    """See that a safetensors file is complete and, if it is one of this package, unchanged; takes no memory for it.

    Raises:
        CheckpointError: it is not.
    """
    _passed(file, lambda place: None)


def read_safetensors(file: BinaryIO) -> Any:
    """The contents of a safetensors file, every tensor on the CPU; ``{"model": tensors}`` for files of other tools.

    Raises:
        CheckpointError: it is damaged, or its header claims what is not there.
    """
    tensors = {}

    def memory(place: _Place) -> Tensor:
        made = torch.empty(place.end - place.begin, dtype=torch.uint8)
        stride = torch.empty(place.shape, device="meta").stride()
        tensors[place.name] = tensor_on(made, place.dtype, 0, place.shape, stride)
        return made

    metadata = _passed(file, memory)
    return {"model": tensors} if metadata is None else _structured(metadata.get(_STRUCTURE), tensors)


def _structured(text: Any, tensors: Mapping[str, Tensor]) -> Any:
    structure = _json(text) if isinstance(text, str) else None
    try:
        return _contents(structure, tensors)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError("its description cannot be decoded") from error

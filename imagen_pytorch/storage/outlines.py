"""What a checkpoint holds, told from its descriptions alone: names, shapes and plain values, no weights.

The description of a file is some kilobytes at its start or end, so one in an object store is looked at without fetching
it. Checksums cover the weights too and are therefore not compared.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .archives import Archive, Entry, _directory, _find_end, _place_entry, read_at, read_entry, read_note
from .background import settle
from .dtypes import tensor_on
from .errors import CheckpointError, CheckpointMissing
from .manifest import reading
from .pickles import Builder, TensorNote, read_pickle
from .places import is_local, locate
from .ptfiles import _entries_of, description_in
from .reading import is_sharded
from .remote import attempts, forget_listings, kind_of
from .safefiles import (
    _METADATA,
    _STRUCTURE,
    _structured,
    is_safetensors,
    looks_like_safetensors,
    read_header,
)
from .sharded import ShardedCheckpoint, nested

#: bytes of a tensor whose values are read
_SMALL = 1 << 16
_NUMBERED = re.compile(r"^checkpoint\.(\d+)(\.pt)?$")


@dataclass(frozen=True)
class Outline:
    """A checkpoint without its weights.

    Attributes:
        path: where it is, as it was named.
        format: "pt", "safetensors" or "shards".
        size: bytes of all of its files.
        contents: as `read_checkpoint` gives them, but tensors have no memory (they are on the device "meta").
    """

    path: str
    format: str
    size: int
    contents: dict[str, Any]


class _Outliner(Builder):
    """Tensors without memory, but for those whose bytes there are."""

    def _tensor(self, note: TensorNote) -> Tensor:
        if note.storage.key in self.memory:
            return super()._tensor(note)
        return torch.empty_strided(note.size, note.stride, dtype=note.dtype, device="meta")


def _bytes(file: BinaryIO, entry: Entry) -> Tensor:
    """The bytes of a small entry as a tensor."""
    return torch.frombuffer(bytearray(read_entry(file, entry)), dtype=torch.uint8)


def _outline_pt(file: BinaryIO, values: Collection[str]) -> Any:
    """The contents of a file of torch.save; of each entry only the place is looked up, not what stands before it."""
    total = file.seek(0, os.SEEK_END)
    end = _find_end(file, total)
    try:
        listed = list(_directory(read_at(file, end.place, end.size), end.count))
    except (struct.error, UnicodeDecodeError, StopIteration, RuntimeError) as error:
        raise CheckpointError("it is cut off, damaged or another kind of file") from error
    if sum(size for _, size, _, _ in listed) > total:
        raise CheckpointError("it claims to unpack to more than its own size")
    entries = {name: Entry(name, place, place, size, crc) for name, size, crc, place in listed}
    read_note(Archive(entries, total - len(end.comment), end.comment))

    def placed(entry: Entry) -> Entry:
        return _place_entry(file, entry.name, entry.size, entry.crc, entry.header)

    description = description_in(entries)
    described = read_pickle(read_entry(file, placed(description)))
    storages = _entries_of(
        Archive(entries, end.place, b""), description.name.removesuffix("data.pkl"), described.storages
    )
    tree = described.tree
    notes = [tree.get(name) for name in values] if isinstance(tree, dict) else []
    wanted = [note.storage.key for note in notes if isinstance(note, TensorNote)]
    memory = {key: _bytes(file, placed(storages[key])) for key in wanted if storages[key].size <= _SMALL}
    return _Outliner(memory).build(tree)


def _outline_safetensors(file: BinaryIO, values: Collection[str]) -> Any:
    total = file.seek(0, os.SEEK_END)
    raw, header, places = read_header(file, total)
    tensors: dict[str, Tensor] = {}
    for place in places:
        tensors[place.name] = torch.empty(place.shape, dtype=place.dtype, device="meta")
        if place.name in values and 0 < place.end - place.begin <= _SMALL:
            data = bytearray(read_at(file, 8 + len(raw) + place.begin, place.end - place.begin))
            memory = torch.frombuffer(data, dtype=torch.uint8)
            tensors[place.name] = tensor_on(memory, place.dtype, 0, place.shape, tensors[place.name].stride())
    metadata = header.get(_METADATA)
    if isinstance(metadata, dict) and _STRUCTURE in metadata:
        return _structured(metadata[_STRUCTURE], tensors)
    return {"model": tensors}


def _outline_shards(fs: Any, folder: str) -> tuple[int, dict[str, Any]]:
    source = ShardedCheckpoint(fs, folder)
    tensors = source.manifest.tensors
    shapes = {name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for name, entry in tensors.items()}
    return sum(file.size for file in source.manifest.files.values()), nested(shapes, source.plain())


@contextmanager
def _opened(fs: Any, place: str) -> Iterator[BinaryIO]:
    """An open file; of a remote one only those bytes are fetched that are read."""
    options = {} if is_local(fs) else {"block_size": 1 << 16}
    with attempts(lambda: fs.open(place, "rb", **options)) as file:
        yield file


def read_outline(
    path: str | Path, values: Collection[str] = (), fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None
) -> Outline:
    """What a checkpoint holds. Nothing in it is ever executed, and no memory is taken for weights.

    Args:
        path: a file of torch.save or safetensors, or a folder of shards; a local path or any fsspec URL.
        values: names of entries that are small tensors and whose values are read all the same.
        fs, fs_kwargs: a ready filesystem, or arguments for making it.

    Raises:
        CheckpointMissing: there is nothing.
        CheckpointUnreachable: no connection or permission.
        CheckpointError: it is damaged, or holds anything but tensors and plain containers.
    """
    settle()
    fs, place = locate(path, fs, fs_kwargs)
    kind = kind_of(fs, place)
    if kind is None:
        raise CheckpointMissing(f"there is no checkpoint at {path}")
    with reading(fs, str(path)):
        if kind == "directory":
            if not is_sharded(fs, place):
                raise CheckpointError("it is a folder, and no checkpoint in several files")
            size, contents = _outline_shards(fs, place)
            return Outline(str(path), "shards", size, contents)
        if kind != "file":
            raise CheckpointError("it is no ordinary file")
        with _opened(fs, place) as file:
            total = file.seek(0, os.SEEK_END)
            start = read_at(file, 0, min(9, total))
            safe = looks_like_safetensors(start, total) or (is_safetensors(place) and not start.startswith(b"PK"))
            contents = _outline_safetensors(file, values) if safe else _outline_pt(file, values)
        if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
            raise CheckpointError(f"it holds a {type(contents).__name__} instead of named entries")
    return Outline(str(path), "safetensors" if safe else "pt", total, contents)


def newest_in(folder: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """The address of the checkpoint that a folder stands for: itself if it is one in several files, else ``imagen.pt``
    in it, else that of the most steps. None if it holds none; nothing is made or changed.

    Raises:
        CheckpointUnreachable: the folder cannot be listed.
    """
    fs, place = locate(folder, fs, fs_kwargs)
    place = place.rstrip("/") or "/"

    def address(path: str) -> str:
        return path if is_local(fs) else str(fs.unstrip_protocol(path))

    with reading(fs, str(folder)):
        if is_sharded(fs, place):
            return str(folder)
        forget_listings(fs, place)
        names = [str(item).rstrip("/").rsplit("/", 1)[-1] for item in attempts(lambda: fs.ls(place, detail=False))]
        if "imagen.pt" in names:
            return address(f"{place}/imagen.pt")
        found = [(int(match[1]), bool(match[2]), match[0]) for match in map(_NUMBERED.match, names) if match]
        for _, is_file, name in sorted(found, reverse=True):
            if is_file or is_sharded(fs, f"{place}/{name}"):
                return address(f"{place}/{name}")
    return None

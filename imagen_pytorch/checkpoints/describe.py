"""A description of a checkpoint: names, shapes and plain values, without the weights.

The description of a file is some kilobytes at its start or end, so one in an object store is examined without fetching
it. Checksums cover the weights too and are therefore not compared.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..io.errors import CheckpointError
from ..io.files import is_local, locate, retry
from .background import settle
from .format_pt import describe_pt
from .format_safetensors import describe_safetensors, is_safetensors, looks_like_safetensors
from .paths import is_folder, reading
from .sharded import ShardedCheckpoint

#: bytes of a tensor whose values are read
_SMALL = 1 << 16


def has_safetensors(file: BinaryIO, name: str) -> bool:
    """Return the format of an open file, known by how it begins, and by its name if that says nothing."""
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(9)
    return looks_like_safetensors(start, total) or (is_safetensors(name) and not start.startswith(b"PK"))


def named_entries(contents: Any) -> dict[str, Any]:
    """Return contents that are a dict with names as keys; a CheckpointError if they are something else."""
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise CheckpointError(f"it holds a {type(contents).__name__} instead of named entries")
    return contents


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint without its weights.

    Attributes:
        path: where it is, as it was named.
        format: "pt", "safetensors" or "shards".
        size: bytes of all of its files.
        contents: as `read_checkpoint` gives them, with tensors on the device "meta".
    """

    path: str
    format: str
    size: int
    contents: dict[str, Any]


def describe_checkpoint(
    path: str | Path, values: Collection[str] = (), fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None
) -> CheckpointInfo:
    """Return what a checkpoint holds. Nothing in it is ever executed, and no memory is taken for weights.

    Args:
        path: a file of torch.save or safetensors, or a folder of shards; a local path or any fsspec URL.
        values: names of entries that are small tensors and whose values are read all the same.
        fs, fs_kwargs: a ready file system, or arguments for making it.

    Raises:
        CheckpointMissing: there is nothing.
        CheckpointUnreachable: no connection or permission.
        CheckpointError: it is damaged, or holds anything but tensors and plain containers.
    """
    settle()
    fs, place = locate(path, fs, fs_kwargs)
    if is_folder(fs, place, path):
        source = ShardedCheckpoint(fs, place)
        size = sum(file.size for file in source.manifest.files.values())
        return CheckpointInfo(str(path), "shards", size, source.described())
    # of a remote file only those bytes are fetched that are read
    options = {} if is_local(fs) else {"block_size": 1 << 16}
    with reading(fs, path), retry(lambda: fs.open(place, "rb", **options)) as file:
        safe = has_safetensors(file, place)
        contents = (
            describe_safetensors(file, values, _SMALL) if safe else describe_pt(file, values, _SMALL, is_local(fs))
        )
        size = file.seek(0, os.SEEK_END)
        return CheckpointInfo(str(path), "safetensors" if safe else "pt", size, named_entries(contents))

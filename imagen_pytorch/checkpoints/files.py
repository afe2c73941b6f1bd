"""One checkpoint: written in one step, sealed, read or described without executing anything in it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..io.atomic import note, noted, publish, second_name, sync_folder, temporary_file
from ..io.errors import (
    CheckpointError,
    CheckpointLocked,
    CheckpointMissing,
    CheckpointNotWritten,
    CheckpointUnreachable,
    reason,
)
from ..io.files import check_disk_space, get_file, is_local, kind_of, locate, make_folder, parent_of, put_file, retry
from ..io.locks import check_locks
from .background import pause, settle
from .contents import plain_contents, room_for, size_of
from .format_pt import Archive, describe_pt, read_pt, write_pt
from .format_safetensors import (
    describe_safetensors,
    is_safetensors,
    looks_like_safetensors,
    read_safetensors,
    verify_safetensors,
    write_safetensors,
)
from .paths import is_folder, previous_of, reading, set_aside
from .sharded import ShardedCheckpoint, read_sharded

#: bytes of a tensor whose values are read
_SMALL = 1 << 16


def _has_safetensors(file: BinaryIO, name: str) -> bool:
    """Return the format of an open file, known by how it begins, and by its name if that says nothing."""
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(9)
    return looks_like_safetensors(start, total) or (is_safetensors(name) and not start.startswith(b"PK"))


def _named_entries(contents: Any) -> dict[str, Any]:
    """Return contents that are a dict with names as keys; a CheckpointError if they are something else."""
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise CheckpointError(f"it holds a {type(contents).__name__} instead of named entries")
    return contents


def _read_local(path: str, name: str, mapped: bool) -> dict[str, Any]:
    with open(path, "rb") as file:
        contents = (read_safetensors if _has_safetensors(file, name) else read_pt)(file, mapped)
    return _named_entries(contents)


def check_file(path: str | Path) -> None:
    """Raise a CheckpointError if a local file is damaged; takes no memory for what it holds."""
    with reading(locate(path)[0], path), open(path, "rb") as file:
        if _has_safetensors(file, str(path)):
            verify_safetensors(file)
        else:
            Archive(file).verify()


def read_checkpoint(
    path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None, mapped: bool = False
) -> dict[str, Any]:
    """Return the contents of a checkpoint, every tensor on the CPU. Nothing in the file is ever executed.

    Reads files of `write_checkpoint`, of torch.save and of safetensors, and folders of shards. Files of this package
    are compared with their checksum, others with what their format offers. A write in the background is waited for.

    Args:
        path: a local path or any fsspec URL.
        fs, fs_kwargs: a ready file system, or arguments for making it.
        mapped: map the tensors of a local file into memory instead of reading them, for one that stays unchanged for as
            long as they are used.

    Raises:
        CheckpointMissing: no such file.
        CheckpointUnreachable: no connection, permission, disk space or memory.
        CheckpointError: the file is damaged, or holds anything but tensors and plain containers.
    """
    settle()
    fs, place = locate(path, fs, fs_kwargs)
    shown = os.path.abspath(place) if is_local(fs) else str(path)
    if is_folder(fs, place, shown):
        return read_sharded(fs, place)
    try:
        with reading(fs, shown):
            if is_local(fs):
                return _read_local(place, place, mapped)
            with temporary_file(tempfile.gettempdir()) as file:
                get_file(fs, place, file.name)
                return _read_local(file.name, place, mapped)
    except CheckpointError as error:
        if not isinstance(error, CheckpointMissing | CheckpointUnreachable):
            note(fs, place, str(error))
        raise


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

    The description of a file is some kilobytes at its start or end, so one in an object store is examined without
    fetching it. Checksums cover the weights too and are therefore not compared.

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
        safe = _has_safetensors(file, place)
        contents = (
            describe_safetensors(file, values, _SMALL) if safe else describe_pt(file, values, _SMALL, is_local(fs))
        )
        size = file.seek(0, os.SEEK_END)
        return CheckpointInfo(str(path), "safetensors" if safe else "pt", size, _named_entries(contents))


# -- writing ----------------------------------------------------------------------------------------------------------


def write_checkpoint(
    contents: Mapping[str, Any],
    path: str | Path,
    fs: Any = None,
    fs_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    keep_previous: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint so that ``path`` is always either its old self or the complete new file. Parents are made.

    The file is written under another name, read back, sealed with a checksum and renamed; object stores get it in one
    piece, tried three times. The remains of a killed process are removed by the next write to the folder.

    Args:
        contents: tensors and plain containers.
        path: a local path or any fsspec URL. ``.safetensors`` at its end chooses that format, in which other tools find
            the tensors under names such as ``model.unets.0.weight`` (a flat dict of tensors keeps its names);
            everything else is written as by torch.save.
        fs, fs_kwargs: a ready file system, or arguments for making it.
        overwrite: whether an existing file may be replaced.
        keep_previous: leave the file that is replaced as ``<stem>.previous<suffix>``. One that cannot be read does not
            take that name: it is kept as ``<stem>.unreadable<suffix>``, and a warning says so.
        metadata: texts in the header of a ``.safetensors`` file, for other tools.

    Raises:
        TypeError: contents that are not plain.
        CheckpointLocked: another run has taken a lock that this process held for the place.
        CheckpointNotWritten: the file exists and must not be replaced, or it could not be written; what was there
            before is untouched.
    """
    if unnamed := [key for key in contents if not isinstance(key, str)]:
        raise TypeError(f"the entries of a checkpoint have names, got {unnamed[0]!r}")
    plain = plain_contents(contents)
    fs, place = locate(path, fs, fs_kwargs)
    try:
        kind = kind_of(fs, place)
        if kind is not None and kind != "file":
            raise CheckpointNotWritten(f"could not write {path}: there is a folder; choose another name")
        if kind and not overwrite:
            raise CheckpointNotWritten(f"{path} exists already; allow overwrite=True or choose another path")
        make_folder(fs, parent_of(place))
        place = os.path.realpath(place) if is_local(fs) else place
        fill = partial(write_safetensors, metadata=metadata) if is_safetensors(place) else write_pt
        _write(plain, fs, place, fill, overwrite, keep_previous)
    except (CheckpointNotWritten, CheckpointLocked):
        raise
    except Exception as error:  # every store has errors of its own
        if is_local(fs) and not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        text = f"could not write {path} (about {size_of(plain):,} bytes): {reason(error)}"
        raise CheckpointNotWritten(f"{text}; what was there before is untouched") from error


def _write(
    plain: Mapping[str, Any], fs: Any, path: str, fill: Callable[..., None], overwrite: bool, keep_previous: bool
) -> None:
    folder = os.path.dirname(path) if is_local(fs) else tempfile.gettempdir()
    check_locks(fs, path)
    with temporary_file(folder, pause) as file:
        check_disk_space(folder, room_for(plain))
        fill(plain, file)
        if is_local(fs):
            with suppress(OSError, AttributeError):  # readers of the old file can read the new one
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
        if keep_previous:
            keep(fs, path)
        check_locks(fs, path)  # again: filling takes minutes for large files
        if is_local(fs):
            publish(file, path, overwrite)
        else:
            put_file(fs, file.name, path)
        note(fs, path)
    if is_local(fs):
        sync_folder(folder)


# -- what is replaced -------------------------------------------------------------------------------------------------


def keep(fs: Any, path: str) -> None:
    """Give the file at a path, if there is one, the name of the file before.

    Only a file that can be read takes that name; any other is set aside, and the file before stays. A local file that
    this process wrote is trusted, any other is read once; of a remote one the description is read.
    """
    if kind_of(fs, path) != "file":
        return
    known, problem = noted(fs, path)
    if problem is None and not (known and is_local(fs)):
        try:
            if is_local(fs):
                check_file(path)
            describe_checkpoint(path, fs=fs)
        except CheckpointError as error:
            if isinstance(error, CheckpointUnreachable) and not is_local(fs):
                raise  # a lost connection is not damage
            problem = str(error)
    if problem is None:
        second_name(fs, path, previous_of(path))
    else:
        set_aside(fs, path, problem)

"""Writing: a file is its old self until it is wholly the new one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .contents import plain_contents, room_for, size_of
from .errors import CheckpointError, CheckpointNotWritten, reason
from .places import is_local, locate, make_folder, parent_of
from .ptfiles import to_disk, write_pt
from .remote import attempts, kind_of, put_file
from .safefiles import write_safetensors
from .temporaries import temporary_file, temporary_name


def is_safetensors(path: str) -> bool:
    """Whether a file of this name is written in the safetensors format."""
    return path.lower().endswith(".safetensors")


def previous_of(path: str) -> str:
    """Where the file before the last write is kept: ``a.previous.pt`` for ``a.pt``."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}.previous{suffix}"


def check_room(folder: str, needed: int) -> None:
    """See that a local folder has room for so many bytes.

    Raises:
        OSError: it has not.
    """
    try:
        free = shutil.disk_usage(folder)
    except OSError:  # some drives do not tell
        return
    if free.total and free.free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free.free:,} are free in {folder}")


def sync_folder(folder: str) -> None:
    """Have the names in a local folder on the disk, so that a new one survives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some drives cannot; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fill(plain: Mapping[str, Any], file: BinaryIO, name: str) -> None:
    check_room(os.path.dirname(file.name), room_for(plain))
    if is_safetensors(name):
        write_safetensors(plain, file)
    else:
        write_pt(plain, file)


def _keep(path: str) -> None:
    """Give the present file its second name, in one step and without a moment in which it has none."""
    if not os.path.exists(path):
        return
    other = temporary_name(os.path.dirname(path))
    try:
        try:
            os.link(path, other)
            os.replace(other, previous_of(path))
        except OSError:  # no second names on this drive, or tidied up by another process
            with temporary_file(os.path.dirname(path)) as copy, open(path, "rb") as file:
                shutil.copyfileobj(file, copy, 1 << 24)
                to_disk(copy)
                _publish(copy, previous_of(path))
    finally:
        with suppress(OSError):  # a link that is the same file already stays behind
            os.remove(other)


def _publish(file: BinaryIO, path: str, overwrite: bool = True) -> None:
    """Give a finished temporary file its name."""
    if os.name == "nt":  # open files cannot be renamed there
        file.close()
    if overwrite:
        os.replace(file.name, path)
    else:
        os.link(file.name, path)


def _write_local(plain: Mapping[str, Any], path: str, overwrite: bool, keep_previous: bool) -> None:
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    with temporary_file(folder) as file:
        _fill(plain, file, path)
        with suppress(OSError, AttributeError):  # whoever could read the old file can read the new one
            os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
        if keep_previous:
            _keep(path)
        _publish(file, path, overwrite)
    sync_folder(folder)


def _write_remote(plain: Mapping[str, Any], fs: Any, path: str, keep_previous: bool) -> None:
    """Write locally, then create the object in one piece: an error before that leaves the old object as it was."""
    with temporary_file(tempfile.gettempdir()) as file:
        _fill(plain, file, path)
        if keep_previous and kind_of(fs, path) == "file":
            attempts(lambda: fs.cp_file(path, previous_of(path)))
        put_file(fs, file.name, path)


def write_checkpoint(
    contents: Mapping[str, Any],
    path: str | Path,
    fs: Any = None,
    fs_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    keep_previous: bool = False,
) -> None:
    """Write a checkpoint so that ``path`` is always either its old self or the whole new file. Parents are made.

    The file is written under another name, read back, sealed with a checksum and renamed; object stores get it in one
    piece, tried three times. What a killed process left behind is removed by the next write to the folder.

    Args:
        contents: tensors and plain containers.
        path: a local path or any fsspec URL. ``.safetensors`` at its end chooses that format, in which other tools find
            the tensors under names such as ``model.unets.0.weight`` (a flat dict of tensors keeps its names);
            everything else is written as by torch.save.
        fs, fs_kwargs: a ready filesystem, or arguments for making it.
        overwrite: whether an existing file may be replaced.
        keep_previous: leave the file that is replaced as ``<stem>.previous<suffix>``.

    Raises:
        TypeError: contents that are not plain.
        CheckpointNotWritten: the file exists and must not be replaced, or it could not be written; what was there
            before is untouched.
    """
    if unnamed := [key for key in contents if not isinstance(key, str)]:
        raise TypeError(f"the entries of a checkpoint have names, got {unnamed[0]!r}")
    plain = plain_contents(contents)
    fs, place = locate(path, fs, fs_kwargs)
    failures = (OSError, ValueError, RuntimeError) if is_local(fs) else (Exception,)  # every store has its own
    try:
        kind = kind_of(fs, place)
        if kind is not None and kind != "file":
            raise CheckpointNotWritten(f"could not write {path}: there is a folder; choose another name")
        if kind and not overwrite:
            raise CheckpointNotWritten(f"{path} exists already; allow overwrite=True or choose another path")
        make_folder(fs, parent_of(place))
        if is_local(fs):
            _write_local(plain, place, overwrite, keep_previous)
        else:
            _write_remote(plain, fs, place, keep_previous)
    except CheckpointNotWritten:
        raise
    except failures as error:
        if isinstance(error, TypeError) and not isinstance(error, CheckpointError):
            raise
        raise CheckpointNotWritten(
            f"could not write {path} (about {size_of(plain):,} bytes): {reason(error)}; "
            "what was there before is untouched"
        ) from error

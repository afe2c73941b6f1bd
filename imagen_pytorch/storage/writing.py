"""Writing: a file is its old self until it is wholly the new one."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .claims import check_claims
from .contents import plain_contents, room_for, size_of
from .errors import CheckpointError, CheckpointLocked, CheckpointNotWritten, reason
from .keeping import keep, publish
from .locks import check_locks
from .own_files import note_replaced, remember
from .places import check_room, is_local, locate, make_folder, parent_of, sync_folder
from .ptfiles import write_pt
from .remote import kind_of, put_file
from .safefiles import is_safetensors, write_safetensors
from .temporaries import temporary_file


def _fill(plain: Mapping[str, Any], file: BinaryIO, name: str) -> None:
    check_room(os.path.dirname(file.name), room_for(plain))
    if is_safetensors(name):
        write_safetensors(plain, file)
    else:
        write_pt(plain, file)


def _write_local(plain: Mapping[str, Any], fs: Any, path: str, overwrite: bool, keep_previous: bool) -> None:
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    check_locks(path)
    with temporary_file(folder) as file:
        _fill(plain, file, path)
        with suppress(OSError, AttributeError):  # whoever could read the old file can read the new one
            os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
        if keep_previous:
            keep(fs, path)
        check_locks(path)  # again: filling takes minutes for large files
        publish(file, path, overwrite)
        remember(path)
    sync_folder(folder)


def _write_remote(plain: Mapping[str, Any], fs: Any, path: str, keep_previous: bool) -> None:
    """Write locally, then create the object in one piece: an error before that leaves the old object as it was."""
    with temporary_file(tempfile.gettempdir()) as file:
        _fill(plain, file, path)
        check_claims(fs, path)  # filling takes minutes for large files
        if keep_previous:
            keep(fs, path)
        put_file(fs, file.name, path)
        note_replaced(fs, path)


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
        keep_previous: leave the file that is replaced as ``<stem>.previous<suffix>``. One that cannot be read does not
            take that name: it is kept as ``<stem>.unreadable<suffix>``, and a warning says so.

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
    failures = (OSError, ValueError, RuntimeError) if is_local(fs) else (Exception,)  # every store has its own
    try:
        kind = kind_of(fs, place)
        if kind is not None and kind != "file":
            raise CheckpointNotWritten(f"could not write {path}: there is a folder; choose another name")
        if kind and not overwrite:
            raise CheckpointNotWritten(f"{path} exists already; allow overwrite=True or choose another path")
        make_folder(fs, parent_of(place))
        if is_local(fs):
            _write_local(plain, fs, place, overwrite, keep_previous)
        else:
            _write_remote(plain, fs, place, keep_previous)
    except (CheckpointNotWritten, CheckpointLocked):
        raise
    except failures as error:
        if isinstance(error, TypeError) and not isinstance(error, CheckpointError):
            raise
        raise CheckpointNotWritten(
            f"could not write {path} (about {size_of(plain):,} bytes): {reason(error)}; "
            "what was there before is untouched"
        ) from error

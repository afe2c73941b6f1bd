"""What becomes of the file that is replaced: the one before stays, and one that cannot be read is set aside."""

from __future__ import annotations

import os
import shutil
import warnings
from contextlib import suppress
from typing import Any

from .errors import CheckpointError, CheckpointUnreachable
from .outlines import read_outline
from .own_files import is_own, why_unusable
from .places import is_local
from .ptfiles import to_disk
from .reading import check_local
from .remote import attempts, kind_of
from .temporaries import temporary_file, temporary_name


def previous_of(path: str) -> str:
    """Where the file before the last write is kept: ``a.previous.pt`` for ``a.pt``, beside the file itself if it is a
    link."""
    local = path.removeprefix("file://")
    stem, suffix = os.path.splitext(os.path.realpath(local) if os.path.islink(local) else path)
    return f"{stem}.previous{suffix}"


def _aside_of(fs: Any, path: str) -> str:
    """A free name for a file that cannot be read: ``a.unreadable.pt``, ``a.unreadable-2.pt`` and so on."""
    stem, suffix = os.path.splitext(path)
    number, name = 1, f"{stem}.unreadable{suffix}"
    while kind_of(fs, name) is not None:
        number += 1
        name = f"{stem}.unreadable-{number}{suffix}"
    return name


def _unreadable(fs: Any, path: str) -> CheckpointError | None:
    """Why a file is no checkpoint from which one can go on; None if it is one.

    A local file that this process wrote is believed, any other is read once. Of a remote one the description is read,
    unless this process has tried to go on from it.
    """
    if why := why_unusable(fs, path):
        return CheckpointError(why)
    if is_local(fs) and is_own(path):
        return None
    try:
        if is_local(fs):
            check_local(path)
        read_outline(path, fs=fs)
    except CheckpointError as error:
        if isinstance(error, CheckpointUnreachable) and not is_local(fs):
            raise  # a lost connection is no damage
        return error
    return None


def set_aside(fs: Any, path: str, error: CheckpointError | str) -> str:
    """Keep a file or folder that cannot be read under another name, before something else is written in its place.

    Trouble in reading is not always damage, so it is never thrown away. A warning says both names.

    Returns:
        the new name. A file has its old one too, until something else is written there.
    """
    name = _aside_of(fs, path)
    if kind_of(fs, path) != "directory":
        second_name(fs, path, name)
    elif is_local(fs):
        os.rename(path, name)
    else:
        attempts(lambda: fs.copy(path, name, recursive=True))
    warnings.warn(f"{error}; {path} is kept as {name}", stacklevel=2)
    return name


def keep(fs: Any, path: str) -> None:
    """Give the file at a path, if there is one, the name of the file before.

    Only a file that can be read takes that name; any other is set aside, and the file before stays.
    """
    if kind_of(fs, path) != "file":
        return
    error = _unreadable(fs, path)
    if error is None:
        second_name(fs, path, previous_of(path))
    else:
        set_aside(fs, path, error)


def second_name(fs: Any, path: str, name: str) -> None:
    """Give a file another name too, in one step and without a moment in which it has none; stores copy it."""
    if not is_local(fs):
        attempts(lambda: fs.cp_file(path, name))
        return
    folder = os.path.dirname(path)
    other = temporary_name(folder)
    try:
        try:
            os.link(path, other)
            os.replace(other, name)
        except OSError:  # no second names on this drive, or tidied up by another process
            with temporary_file(folder) as copy, open(path, "rb") as file:
                shutil.copyfileobj(file, copy, 1 << 24)
                to_disk(copy)
                publish(copy, name)
    finally:
        with suppress(OSError):  # a link that is the same file already stays behind
            os.remove(other)


def publish(file: Any, path: str, overwrite: bool = True) -> None:
    """Give a finished temporary file its name."""
    if os.name == "nt":  # open files cannot be renamed there
        file.close()
    if overwrite:
        os.replace(file.name, path)
    else:
        os.link(file.name, path)

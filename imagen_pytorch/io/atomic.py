"""Atomic writing: temporary files, second names, and notes of this process about files."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from .files import is_local, retry

_NAME = re.compile(r"^\.imagen-(?P<host>.+)-\d+-[0-9a-f]{12}\.tmp$")
#: seconds after which a temporary file that no lock protects counts as abandoned
DAY = 24 * 60 * 60


class PacedFile(io.BufferedRandom):
    """A file that calls ``pause`` before each piece that is read or written."""

    pause: Callable[[], object] = staticmethod(lambda: None)

    def read(self, size: int | None = -1) -> bytes:
        """Read after a pause."""
        self.pause()
        return super().read(size)

    def write(self, data: Any) -> int:
        """Write after a pause."""
        self.pause()
        return super().write(data)


def try_lock(handle: int) -> bool | None:
    """Lock an open file without waiting; return whether it was free, None where the drive has no locks."""
    from filelock import lock_descriptor

    try:
        return lock_descriptor(handle, blocking=False)
    except OSError:  # some network drives
        return None


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:64] or "host"


def temporary_name(folder: str) -> str:
    """Return a new name in a folder that the next `temporary_file` there recognises."""
    return os.path.join(folder, f".imagen-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")


def _create(folder: str) -> tuple[str, int]:
    while True:
        path = temporary_name(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        # between making and locking it, another process may have taken it for abandoned
        if try_lock(handle) is not False and os.path.exists(path):
            return path, handle
        os.close(handle)


def _remove_stale(folder: str) -> None:
    """Remove the temporary files of killed writers; those of living ones are locked."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [(entry.path, _NAME.match(entry.name)) for entry in entries if entry.is_file(follow_symlinks=False)]
        for path, match in found:
            with suppress(OSError):
                if match is None:
                    continue
                handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                try:
                    old, free = time.time() - os.fstat(handle).st_mtime > DAY, try_lock(handle)
                    # locks of some network drives are known to one machine only
                    if free is not False and (old or (free and match["host"] == _host())):
                        os.remove(path)
                finally:
                    os.close(handle)


@contextmanager
def temporary_file(folder: str, pause: Callable[[], object] | None = None) -> Iterator[PacedFile]:
    """Open a new locked file for reading and writing; at the end it is gone unless it was renamed.

    Args:
        folder: a local one; what killed writers left in it is removed.
        pause: called before each piece that is read or written.
    """
    _remove_stale(folder)
    path, handle = _create(folder)
    file = PacedFile(io.FileIO(path, "r+b", opener=lambda *_: handle))
    file.pause = pause or file.pause
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.remove(path)


def sync(file: BinaryIO) -> None:
    """Force everything that was written to an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: str) -> None:
    """Force the names in a local folder onto the disk, so that a new one survives a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # some drives cannot; the file itself is safe
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def publish(file: Any, path: str, overwrite: bool = True) -> None:
    """Give a finished temporary file its name."""
    if os.name == "nt":  # open files cannot be renamed there
        file.close()
    if overwrite:
        os.replace(file.name, path)
    else:
        os.link(file.name, path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[PacedFile]:
    """Open a new local file that takes the name ``path`` at the end of the block, unless an error ends it.

    What has that name stays complete until then; a link gives way and is not followed.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with temporary_file(folder) as file:
        yield file
        sync(file)
        publish(file, os.fspath(path))
    sync_folder(folder)


def write_bytes(fs: Any, path: str, data: bytes) -> None:
    """Write a small file in one step, here or in an object store."""
    if not is_local(fs):
        retry(lambda: fs.pipe_file(path, data))
        return
    with replacing(path) as file:
        file.write(data)


def second_name(fs: Any, path: str, name: str) -> None:
    """Give a file another name as well, in one step; object stores copy it."""
    if not is_local(fs):
        retry(lambda: fs.cp_file(path, name))
        return
    other = temporary_name(os.path.dirname(name))
    try:
        try:
            os.link(path, other)
            os.replace(other, name)
        except OSError:  # no hard links on this drive, or tidied up by another process
            with replacing(name) as copy, open(path, "rb") as file:
                shutil.copyfileobj(file, copy, 1 << 24)
    finally:
        with suppress(OSError):  # a link that is the same file already stays there
            os.remove(other)


# -- notes of this process about files --------------------------------------------------------------------------------

Fingerprint = tuple[int, ...]
_NOTES: dict[tuple[str, str], tuple[Fingerprint | None, str | None]] = {}


def fingerprint(fs: Any, path: str) -> Fingerprint | None:
    """Return what identifies a file or folder: device, inode, size and time; in a store its size; None if missing."""
    if is_local(fs):
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    with suppress(Exception):  # every store has errors of its own
        return (int(fs.size(path) or 0),)
    return None


def _key(fs: Any, path: str) -> tuple[str, str]:
    return ("file", os.path.realpath(path)) if is_local(fs) else (str(fs.protocol), path.rstrip("/"))


def note(fs: Any, path: str, problem: str | None = None) -> None:
    """Remember that this process wrote what is at a path, or why training cannot continue from it."""
    _NOTES[_key(fs, path)] = fingerprint(fs, path), problem


def noted(fs: Any, path: str) -> tuple[bool, str | None]:
    """Return whether this process knows what is at a path now, and the problem with it if there is one."""
    known = _NOTES.get(_key(fs, path))
    current = known is not None and known[0] is not None and known[0] == fingerprint(fs, path)
    return current, known[1] if current else None

"""Who saves where: locks that end with their process, and claims where there are none."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError, CheckpointLocked, CheckpointNotWritten, reason
from .places import is_local
from .remote import attempts, forget_listings

_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def try_lock(handle: int) -> bool | None:
    """Take the exclusive lock of an open file without waiting.

    Returns:
        whether it was free; None where files have no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network drives
        return None
    return True


def _myself() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _in_words(text: bytes) -> str:
    """Who holds a lock, from what its file says."""
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        found = {}
    known = [f"{name} {found[name]}"[:100] for name in ("pid", "host", "since") if name in found]
    return f"another run ({', '.join(known)})" if known else "another run"


def _taken(holder: str, place: str, done: str) -> CheckpointLocked:
    return CheckpointLocked(f"{holder} {done} {place}; choose another checkpoint_path or end it")


class FolderLock:
    """The right to save to one place, held until `release`, until nobody refers to it or until the process ends.

    Args:
        path: the lock's own file.
        place: what it stands for, as errors call it.
    """

    def __init__(self, path: str | Path, place: str | Path) -> None:
        self.path, self.place = str(path), str(place)
        self._handle: int | None = None
        self._pid = 0

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None and self._pid == os.getpid()

    def acquire(self) -> None:
        """Take the lock; a second call does nothing. Where files have no locks, so does the first.

        Raises:
            CheckpointLocked: another run holds it.
            CheckpointNotWritten: the lock's file cannot be made.
        """
        while not self.held:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except (OSError, ValueError) as error:
                raise CheckpointNotWritten(f"cannot write to {self.place}: {reason(error)}") from error
            free = try_lock(handle)
            if free is False:
                holder = _in_words(os.read(handle, 4096))
                os.close(handle)
                raise _taken(holder, self.place, "is saving into")
            if free and not self._is_at_path(handle):  # its last holder has just removed it
                os.close(handle)
                continue
            self._hold(handle)

    def _is_at_path(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _hold(self, handle: int) -> None:
        with suppress(OSError):  # what the file says is for people; the lock is what counts
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(_myself()).encode())
        if not _HELD and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_let_go_in_child)
        self._handle, self._pid = handle, os.getpid()
        _HELD.add(self)

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if self._pid == os.getpid() and self._is_at_path(handle):
            with suppress(OSError):
                os.remove(self.path)
        os.close(handle)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter
            self.release()


def _let_go_in_child() -> None:
    """A forked worker must not keep the lock alive after its parent."""
    for lock in list(_HELD):
        with suppress(OSError):
            lock.release()


def lock_of(path: str | Path) -> FolderLock:
    """The lock of a single local file: ``.<name>.lock`` beside it; take it with `FolderLock.acquire` or ``with``."""
    folder, name = os.path.split(os.path.abspath(path))
    return FolderLock(os.path.join(folder, f".{name}.lock"), path)


class FolderClaim:
    """The right to save to a folder of an object store, where the last run that claims it has it.

    Object stores have no locks: a claim is a file with a random name of the run, which is looked at before each write.

    Args:
        fs: the filesystem.
        folder: the folder's path there.
        place: the folder, as errors call it.
    """

    def __init__(self, fs: Any, folder: str, place: str) -> None:
        self.fs, self.place = fs, place
        self.path = f"{folder.rstrip('/')}/run.lock"
        self._run: str | None = None

    @property
    def held(self) -> bool:
        """Whether this object has claimed the folder and not given it up."""
        return self._run is not None

    def acquire(self) -> None:
        """Claim the folder; a second call does nothing.

        Raises:
            CheckpointNotWritten: the claim cannot be written.
        """
        if self._run is not None:
            return
        run = uuid.uuid4().hex
        text = json.dumps({"run": run, **_myself()}).encode()
        try:
            attempts(lambda: self.fs.pipe_file(self.path, text))
        except Exception as error:
            raise CheckpointNotWritten(f"cannot write to {self.place}: {reason(error)}") from error
        self._run = run

    def check(self) -> None:
        """See that no other run has claimed the folder since; does nothing without a claim of one's own.

        Raises:
            CheckpointLocked: another run has.
            CheckpointNotWritten: nobody can tell.
        """
        if self._run is None:
            return
        text = self._read()
        if text is not None and self._run.encode() not in text:
            raise _taken(_in_words(text), self.place, "has taken over")

    def _read(self) -> bytes | None:
        try:
            forget_listings(self.fs, self.path)
            return attempts(lambda: self.fs.cat_file(self.path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CheckpointNotWritten(f"cannot see who saves into {self.place}: {reason(error)}") from error

    def release(self) -> None:
        """Give the claim up; a second call does nothing."""
        run, self._run = self._run, None
        if run is None:
            return
        with suppress(CheckpointError):
            if run.encode() in (self._read() or b""):
                with suppress(Exception):  # a claim that stays harms nobody
                    self.fs.rm_file(self.path)


def lock_of_folder(fs: Any, folder: str, place: str) -> FolderLock | FolderClaim:
    """The lock of a folder of checkpoints: ``.lock`` in a local one, a claim called ``run.lock`` elsewhere."""
    if is_local(fs):
        return FolderLock(os.path.join(folder, ".lock"), place)
    return FolderClaim(fs, folder, place)

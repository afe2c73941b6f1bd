"""Locks: one run at a time saves to a place.

On a local disk the lock is a file that the system locks (`filelock`) and that ends with its process. Object stores have
no locks: there a file with the random name of the last run that came decides. Both are checked again before each write,
because anybody may remove the file, or the complete folder, and let another run in.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from .atomic import Fingerprint, fingerprint, noted, try_lock
from .errors import CheckpointError, CheckpointLocked, CheckpointNotWritten, errors_as, reason
from .files import forget_listings, is_local, locate, parent_of, retry

#: all locks of this process that were acquired and not released
_LOCKS: weakref.WeakSet[FolderLock | FolderClaim] = weakref.WeakSet()
_TAKEOVER = threading.Lock()
#: bytes of a lock file that are read, more than any note of a run has
_MOST = 4096
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def _note(**more: str) -> bytes:
    this = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    return json.dumps({**more, **this}).encode()


def _facts(text: bytes) -> dict[str, Any]:
    """Return what a lock says about its run; empty if it is not a note of a run."""
    with suppress(ValueError, TypeError, RecursionError):
        found = dict(json.loads(text))
        return {name: found[name] for name in ("pid", "host", "since") if name in found}
    return {}


class _Lock:
    """The right of one run to save to one place, until `release`, the end of this object or that of the process.

    Args:
        fs: file system.
        path: of the lock's own file there.
        place: what it stands for, as errors call it.
        guards: the file or folder that it guards.
        takes_over: take the place over from an older lock of this process, whose next write then fails.
    """

    def __init__(self, fs: Any, path: str, place: str, guards: str, takes_over: bool = False) -> None:
        self.fs, self.path, self.place, self.guards, self.takes_over = fs, path, place, guards, takes_over
        self._turn = threading.RLock()  # a write in the background checks it too

    def __deepcopy__(self, _: dict[int, Any]) -> _Lock:
        return type(self)(self.fs, self.path, self.place, self.guards, self.takes_over)

    def _taken(self, text: bytes, done: str) -> CheckpointLocked:
        known = ", ".join(f"{name} {value}"[:100] for name, value in _facts(text).items())
        run = f"another run ({known})" if known else "another run"
        return CheckpointLocked(f"{run} {done} {self.place}; choose another checkpoint_path or end it")

    def covers(self, fs: Any, path: str) -> bool:
        """Return whether a path is what this lock guards, or lies in it."""
        same = self.fs == fs or (is_local(self.fs) and is_local(fs))
        return same and f"{path}/".startswith(f"{self.guards}/")

    def __enter__(self) -> Any:
        self.acquire()  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        self.release()  # type: ignore[attr-defined]


class FolderLock(_Lock):
    """A lock on a local disk. Where files cannot be locked, it never keeps anybody out."""

    _handle: int | None = None
    _pid = 0
    _noted = False
    _newer: Any = staticmethod(lambda: None)
    _before: dict[str, Fingerprint] = {}

    @property
    def held(self) -> bool:
        """True if this object holds the lock, as far as it has looked."""
        return self._handle is not None and self._pid == os.getpid()

    def acquire(self) -> None:
        """Take the lock; a second call does what `check` does. A CheckpointLocked if another run holds it, or a newer
        object of this process has taken it over; a CheckpointNotWritten if its file cannot be made, or is a link or not
        an ordinary file."""
        with self._turn:
            if self in _LOCKS:
                self.check()
                return
            self._take(self.takes_over)
            self._before = self._found()
            _LOCKS.add(self)

    def _take(self, takes_over: bool = False) -> None:
        while not self.held:
            handle = self._open()
            free = try_lock(handle)
            if free is False:
                with suppress(OSError):  # on Windows it cannot be read
                    text = b""
                    text = os.read(handle, _MOST)
                os.close(handle)
                if not (takes_over and self._take_over()):
                    raise self._taken(text, "is saving into")
            elif free and not self._is_at_path(handle):  # its last holder has just removed it
                os.close(handle)
            else:
                self._hold(handle)

    def _open(self) -> int:
        """Open the lock's file: an ordinary one of a single name, never what a link points to."""
        refused = f"cannot write to {self.place}"
        try:
            handle = os.open(self.path, _FLAGS, 0o644)
        except (OSError, ValueError) as error:
            text = f"its lock {self.path} is a link; remove it" if os.path.islink(self.path) else reason(error)
            raise CheckpointNotWritten(f"{refused}: {text}") from error
        found = os.fstat(handle)
        wrong = "is not an ordinary file" if not stat.S_ISREG(found.st_mode) else ""
        wrong = "is a link" if found.st_nlink > 1 or os.path.islink(self.path) else wrong
        if wrong:
            os.close(handle)
            raise CheckpointNotWritten(f"{refused}: its lock {self.path} {wrong}; remove it")
        return handle

    def _hold(self, handle: int) -> None:
        with suppress(OSError):  # the text is for people; the lock is what counts
            text = os.read(handle, _MOST)
            self._noted = not text or bool(_facts(text))  # other contents belong to others
            if self._noted:
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, _note())
        self._handle, self._pid = handle, os.getpid()

    def _take_over(self) -> bool:
        """Take the lock from an older one of this process; return whether there was one."""
        with _TAKEOVER:
            for other in list(_LOCKS):
                if isinstance(other, FolderLock) and other.path == self.path and other._is_at_path(other._handle):
                    self._handle, self._pid, self._noted = other._handle, other._pid, other._noted
                    other._handle, other._newer = None, weakref.ref(self)
                    return True
        return False

    def _is_at_path(self, handle: int | None) -> bool:
        try:
            return handle is not None and os.path.samestat(os.fstat(handle), os.lstat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _found(self) -> dict[str, Fingerprint]:
        """The guarded file, or the checkpoints in the guarded folder, as they are now."""
        paths = [self.guards]
        if os.path.dirname(self.path) == self.guards:
            with suppress(OSError), os.scandir(self.guards) as entries:
                paths = [entry.path for entry in entries if entry.name.startswith("checkpoint.")]
        return {path: found for path in paths if (found := fingerprint(self.fs, path)) is not None}

    def check(self) -> None:
        """Check that the lock is still held; does nothing if it was never taken.

        A lock whose file was removed is taken again, unless another run has saved here meanwhile: a CheckpointLocked. A
        CheckpointNotWritten if it cannot be taken again.
        """
        with self._turn:
            if self._newer() in _LOCKS:
                raise CheckpointLocked(f"a newer trainer of this process saves into {self.place} in place of this one")
            if self not in _LOCKS or (self.held and self._is_at_path(self._handle)):
                return
            self._close()
            with suppress(OSError):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._take()
            for path, found in self._found().items():
                if self._before.get(path) != found and noted(self.fs, path) != (True, None):
                    self._remove()
                    self._close()
                    raise self._taken(b"", f"has saved {os.path.basename(path)} into")

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        with self._turn:
            _LOCKS.discard(self)
            if self.held:
                self._remove()
            self._close()

    def _remove(self) -> None:
        if self._noted and self._is_at_path(self._handle):
            with suppress(OSError):
                os.remove(self.path)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter
            self.release()


class FolderClaim(_Lock):
    """A lock in an object store: the last run that claims a place has it.

    A claim that replaced another one stays after its run, which may have ended before the other run looks.
    """

    _run: str | None = None
    _stays = False

    @property
    def held(self) -> bool:
        """True if this object has claimed the place and not given it up."""
        return self._run is not None

    def acquire(self) -> None:
        """Claim the place; a second call does nothing. A CheckpointNotWritten if the claim cannot be written."""
        if self._run is not None:
            return
        try:
            self._stays = self._read() is not None
        except CheckpointNotWritten:  # there may be one
            self._stays = True
        run = uuid.uuid4().hex
        with errors_as(CheckpointNotWritten, f"cannot write to {self.place}"):
            retry(lambda: self.fs.pipe_file(self.path, _note(run=run)))
        self._run = run
        _LOCKS.add(self)

    def check(self) -> None:
        """Check that no other run has claimed the place since; does nothing without a claim of one's own. A
        CheckpointLocked if another run has, a CheckpointNotWritten if the claim cannot be examined."""
        if self._run is not None and (text := self._read()) is not None and self._run.encode() not in text:
            raise self._taken(text, "has taken over")

    def _read(self) -> bytes | None:
        with errors_as(CheckpointNotWritten, f"cannot see who saves into {self.place}"):
            try:
                forget_listings(self.fs, self.path)
                return retry(lambda: self.fs.cat_file(self.path))
            except FileNotFoundError:
                return None

    def release(self) -> None:
        """Give the claim up; a second call does nothing. It is removed if it was the first."""
        run, self._run = self._run, None
        _LOCKS.discard(self)
        if run is not None and not self._stays:
            with suppress(CheckpointError):
                if run.encode() in (self._read() or b""):
                    with suppress(Exception):  # a claim that stays does no harm
                        self.fs.rm_file(self.path)


def _close_in_child() -> None:
    """Close the locks in a forked worker, which must not keep them alive after its parent."""
    for lock in list(_LOCKS):
        _LOCKS.discard(lock)
        if isinstance(lock, FolderLock):
            lock._turn = threading.RLock()  # another thread may have held it
            with suppress(OSError):
                lock._close()


# systems without fork have no such function
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_close_in_child)


def check_locks(fs: Any, path: str) -> None:
    """Check that this process still holds a lock that covers a path, if it has taken any; the newest one counts. A
    CheckpointLocked if another run has it, a CheckpointNotWritten if it cannot be examined, or not be taken again."""
    refused = None
    for lock in [lock for lock in list(_LOCKS) if lock.covers(fs, path)]:
        try:
            lock.check()
            return
        except CheckpointLocked as error:
            refused = error
    if refused is not None:
        raise refused


def lock_of(path: str | Path, fs: Any = None, place: str | None = None) -> FolderLock | FolderClaim:
    """Return the lock of one file or folder of shards: ``.<name>.lock`` next to it, shared by all links to it."""
    fs = locate(path)[0] if fs is None else fs
    guards = os.path.realpath(path) if is_local(fs) else str(path)
    lock = f"{parent_of(guards.replace(os.sep, '/'))}/.{os.path.basename(guards)}.lock"
    return (FolderLock if is_local(fs) else FolderClaim)(fs, lock, place or str(path), guards)


def lock_of_folder(fs: Any, folder: str, place: str) -> FolderLock | FolderClaim:
    """Return the lock of a folder of checkpoints: ``.lock`` in a local one, ``run.lock`` in an object store."""
    if not is_local(fs):
        return FolderClaim(fs, f"{folder.rstrip('/')}/run.lock", place, folder.rstrip("/"))
    real = os.path.realpath(folder)
    return FolderLock(fs, os.path.join(real, ".lock"), place, real, takes_over=True)

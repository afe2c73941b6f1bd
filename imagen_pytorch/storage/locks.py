"""Who saves where: locks of local files and folders, which end with their process.

A lock is a file beside what it guards. It is looked at again before each write, because whoever removes it, or the
whole folder, lets another run in.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .background import settle
from .claims import FolderClaim
from .errors import CheckpointLocked, CheckpointNotWritten, reason
from .holders import in_words, myself, taken, told_by
from .own_files import Signature, is_own, signature_of
from .places import is_local, parent_of

#: all locks that are wanted: acquired and not released since
_LOCKS: weakref.WeakSet[FolderLock] = weakref.WeakSet()
_TAKEOVER = threading.Lock()
#: bytes of a lock file that are read, more than any note of a run has
_MOST = 4096
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


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


class FolderLock:
    """The right to save to one place, held until `release`, until nobody refers to it or until the process ends.

    Args:
        path: the lock's own file.
        place: what it stands for, as errors call it.
        guards: the file that is guarded, or the folder of checkpoints.
        takes_over: whether the newest lock of a place takes it over from an older one in the same process; the older
            one is told at its next write. Otherwise it is refused as that of another process is.
    """

    def __init__(self, path: str | Path, place: str | Path, guards: str | Path, takes_over: bool = False) -> None:
        self.path, self.place, self.guards = str(path), str(place), str(guards)
        self.takes_over = takes_over
        self._handle: int | None = None
        self._pid = 0
        self._noted = False
        self._turn = threading.RLock()  # a write in the background looks at it too
        self._newer: Callable[[], FolderLock | None] = lambda: None
        self._before: dict[str, Signature] = {}

    def __deepcopy__(self, _: dict[int, Any]) -> FolderLock:
        return FolderLock(self.path, self.place, self.guards, self.takes_over)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as it has looked."""
        return self._handle is not None and self._pid == os.getpid()

    @property
    def superseded(self) -> bool:
        """Whether a newer lock of this process has taken the place over, and is still wanted."""
        return self._newer() in _LOCKS

    # -- taking it ----------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Take the lock; a second call does what `check` does. Where files have no locks, nobody is kept out.

        Raises:
            CheckpointLocked: another run holds it, or a newer object of this process has taken it over.
            CheckpointNotWritten: the lock's file cannot be made, or is a link or no ordinary file.
        """
        with self._turn:
            if self in _LOCKS:
                self.check()
                return
            self._take(self.takes_over)
            self._before = self._found()
            _LOCKS.add(self)

    def _take(self, takes_over: bool = False) -> None:
        while not self.held:
            handle = self._opened()
            free = try_lock(handle)
            if free is False:
                holder = in_words(os.read(handle, _MOST))
                os.close(handle)
                if not (takes_over and self._take_over()):
                    raise taken(holder, self.place, "is saving into")
            elif free and not self._is_at_path(handle):  # its last holder has just removed it
                os.close(handle)
            else:
                self._hold(handle)

    def _opened(self) -> int:
        """The lock's file, made if need be: an ordinary one of a single name, and never what a link points to."""
        try:
            handle = os.open(self.path, _FLAGS, 0o644)
        except (OSError, ValueError) as error:
            if os.path.islink(self.path):
                raise self._refused("is a link") from error
            raise CheckpointNotWritten(f"cannot write to {self.place}: {reason(error)}") from error
        found = os.fstat(handle)
        wrong = "is no ordinary file" if not stat.S_ISREG(found.st_mode) else "is a link" if found.st_nlink > 1 else ""
        if wrong or os.path.islink(self.path):  # where the system follows links all the same
            os.close(handle)
            raise self._refused(wrong or "is a link")
        return handle

    def _refused(self, what: str) -> CheckpointNotWritten:
        return CheckpointNotWritten(f"cannot write to {self.place}: its lock {self.path} {what}; remove it")

    def _hold(self, handle: int) -> None:
        self._noted = False
        with suppress(OSError):  # what the file says is for people; the lock is what counts
            text = os.read(handle, _MOST)
            self._noted = not text or bool(told_by(text))  # anything else is not ours to change
            if self._noted:
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps(myself()).encode())
        self._handle, self._pid = handle, os.getpid()

    def _take_over(self) -> bool:
        """Take the lock from an older one of this process, after what that is writing; whether there was one."""
        settle()
        with _TAKEOVER:
            for other in list(_LOCKS):
                if other.path == self.path and other.held and other._is_at_path(other._handle):
                    self._handle, self._pid, self._noted = other._handle, other._pid, other._noted
                    other._handle, other._newer = None, weakref.ref(self)
                    return True
        return False

    # -- keeping it ---------------------------------------------------------------------------------------------------

    def _is_at_path(self, handle: int | None) -> bool:
        try:
            return handle is not None and os.path.samestat(os.fstat(handle), os.lstat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def covers(self, path: str) -> bool:
        """Whether a real path is what this lock guards, or lies in the folder that it guards."""
        return self.guards in (path, os.path.dirname(path))

    def _found(self) -> dict[str, Signature]:
        """The guarded file, or the checkpoints in the guarded folder, as they are now."""
        paths = [self.guards]
        if os.path.dirname(self.path) == self.guards:
            with suppress(OSError), os.scandir(self.guards) as entries:
                paths = [entry.path for entry in entries if entry.name.startswith("checkpoint.")]
        return {path: found for path in paths if (found := signature_of(path)) is not None}

    def check(self) -> None:
        """See that the lock is still held; does nothing if it was never taken.

        A lock whose file somebody removed is taken again, unless another run has been here meanwhile.

        Raises:
            CheckpointLocked: another run has the place, or has saved there.
            CheckpointNotWritten: the lock cannot be taken again.
        """
        with self._turn:
            if self.superseded:
                raise CheckpointLocked(f"a newer trainer of this process saves into {self.place} in place of this one")
            if self not in _LOCKS or (self.held and self._is_at_path(self._handle)):
                return
            self._drop()
            with suppress(OSError):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._take()
            now = self._found()
            strange = [path for path, found in now.items() if self._before.get(path) != found and not is_own(path)]
            if strange:
                self._remove()
                self._drop()
                raise taken("another run", self.place, f"has saved {os.path.basename(strange[0])} into")

    # -- giving it up -------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        with self._turn:
            _LOCKS.discard(self)
            if self.held:
                self._remove()
            self._drop()

    def _remove(self) -> None:
        if self._noted and self._is_at_path(self._handle):
            with suppress(OSError):
                os.remove(self.path)

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
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
    for lock in list(_LOCKS):
        _LOCKS.discard(lock)
        lock._turn = threading.RLock()  # another thread may have held it
        with suppress(OSError):
            lock._drop()


# systems without fork have no such function
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_let_go_in_child)


def check_locks(path: str) -> None:
    """See that this process still holds those of its locks that guard a local file or folder, given by its real path.

    Raises:
        CheckpointLocked: another run has one of them.
        CheckpointNotWritten: one of them cannot be taken again.
    """
    for lock in list(_LOCKS):
        if lock.covers(path) and not lock.superseded:
            lock.check()


def lock_of(path: str | Path) -> FolderLock:
    """The lock of a single local file: ``.<name>.lock`` beside it; take it with `FolderLock.acquire` or ``with``.

    A link and the file that it points to have one lock.
    """
    real = os.path.realpath(path)
    folder, name = os.path.split(real)
    return FolderLock(os.path.join(folder, f".{name}.lock"), path, guards=real)


def lock_of_file(fs: Any, path: str, place: str) -> FolderLock | FolderClaim:
    """The lock of a single file anywhere, or of a folder of shards: `lock_of`, or a claim of it in an object store."""
    if is_local(fs):
        return lock_of(path)
    return FolderClaim(fs, parent_of(path), place, path.rsplit("/", 1)[-1])


def lock_of_folder(fs: Any, folder: str, place: str) -> FolderLock | FolderClaim:
    """The lock of a folder of checkpoints: ``.lock`` in a local one, a claim called ``run.lock`` elsewhere."""
    if not is_local(fs):
        return FolderClaim(fs, folder, place)
    real = os.path.realpath(folder)
    return FolderLock(os.path.join(real, ".lock"), place, guards=real, takes_over=True)

"""Folders of checkpoints."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..wording import first_of
from .background import settle
from .contents import named_tensors, nonfinite_tensors, overflowing_tensors
from .errors import CheckpointError, CheckpointMissing, CheckpointUnreachable, reason
from .keeping import set_aside
from .locks import lock_of_folder
from .own_files import note_unusable
from .places import is_local, locate, make_folder
from .reading import MANIFEST, is_sharded, read_checkpoint
from .remote import attempts, forget_listings, kind_of
from .writing import write_checkpoint

_FILE = re.compile(r"^checkpoint\.(0|[1-9][0-9]{0,17})\.pt$")
_FOLDER = re.compile(r"^checkpoint\.(0|[1-9][0-9]{0,17})$")
#: entries of a checkpoint that training changes at every step
_WEIGHTS, _MOMENTS = ("model", "ema"), re.compile(r"^optim\d+$")


def read_finite(path: str, fs: Any) -> dict[str, Any]:
    """The contents of a file whose weights, averages and moments are finite numbers.

    Raises:
        CheckpointError: as `read_checkpoint`, or they hold NaN or infinities, or weights that are too large to be
            multiplied: training cannot go on from them.
    """
    contents = read_checkpoint(path, fs)
    moments = {name: value for name, value in contents.items() if _MOMENTS.match(name)}
    weights = dict(named_tensors({name: contents[name] for name in _WEIGHTS if name in contents}))
    if names := overflowing_tensors(weights) + nonfinite_tensors(moments):
        text = f"{path}: it holds weights that are NaN, infinite or too large, in {first_of(names)}"
        note_unusable(*locate(path, fs), text)
        raise CheckpointError(text)
    return contents


def verify_checkpoint(path: str, fs: Any) -> dict[str, Any] | None:
    """See that a checkpoint, a file or a folder of shards, can be read, and that the weights of a file are finite.

    Returns:
        the contents of a file; None for a folder.

    Raises:
        CheckpointError: as `read_finite`.
    """
    place = locate(path, fs)[1]
    if not is_sharded(fs, place):
        return read_finite(path, fs)
    from .sharded import ShardedCheckpoint

    try:
        checkpoint = ShardedCheckpoint(fs, place)
        checkpoint.verify()
        checkpoint.plain()
    except CheckpointUnreachable:
        raise
    except CheckpointError as error:
        note_unusable(fs, place, str(error))
        raise
    return None


class _Found(NamedTuple):
    """A checkpoint in the folder; files come before folders of the same step."""

    steps: int
    is_file: bool
    path: str


class CheckpointStore:
    """A folder of checkpoints: files ``checkpoint.<steps>.pt``, or folders ``checkpoint.<steps>`` with several files.

    A folder counts as a checkpoint once it holds ``manifest.json``. Every other file is left alone.

    Args:
        url: folder, a local path or any fsspec URL.
        keep: number of newest checkpoints that survive a write; 0 or less keeps all.
        fs, fs_kwargs: a ready filesystem, or arguments for making it.

    Raises:
        CheckpointError: the folder cannot be made or written to.
    """

    def __init__(
        self, url: str | Path, keep: int = 20, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.url, self.keep = str(url), keep
        self.fs, folder = locate(url, fs, fs_kwargs)
        self.folder = folder.rstrip("/") or "/"
        make_folder(self.fs, self.folder)
        self._lock = lock_of_folder(self.fs, self.folder, self.url)
        self._written: set[str] = set()
        self._damaged: set[str] = set()

    # -- one run at a time --------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """See that no other run saves here until `unlock`, the end of this object or the end of the process.

        In an object store the last run that locks has the folder; the one before it is told at its next write. Within
        a process this is so everywhere: the newest store of a folder takes it over, when its last write has ended.

        Raises:
            CheckpointLocked: another run is saving here, or a newer store of this process.
            CheckpointNotWritten: nothing can be written here.
        """
        self._lock.acquire()

    def unlock(self) -> None:
        """Let other runs save here."""
        self._lock.release()

    def check_lock(self) -> None:
        """See that no other run has taken the folder over since `lock`; a lock that was removed is taken again.

        Raises:
            CheckpointLocked: another run has.
        """
        self._lock.check()

    # -- what is there ------------------------------------------------------------------------------------------------

    def path(self, steps: int) -> str:
        """Where the file after so many steps is, or is to be."""
        return f"{self.folder.rstrip('/')}/checkpoint.{steps}.pt"

    def folder_path(self, steps: int) -> str:
        """Where the folder of shards after so many steps is, or is to be."""
        return self.path(steps).removesuffix(".pt")

    def _listed(self) -> list[str]:
        forget_listings(self.fs, self.folder)
        try:
            listed = attempts(lambda: self.fs.ls(self.folder, detail=False))
        except FileNotFoundError:
            return []
        except Exception as error:  # every store has errors of its own
            raise CheckpointUnreachable(f"cannot list the checkpoints in {self.url}: {reason(error)}") from error
        return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in listed]

    def _every(self) -> list[_Found]:
        """All checkpoints, newest first, folders that are not whole included."""
        names = set(self._listed())
        # a listing may lag behind; what was written here is looked for by name
        late = [path for path in self._written if path.rsplit("/", 1)[-1] not in names]
        names |= {path.rsplit("/", 1)[-1] for path in late if kind_of(self.fs, path) is not None}
        files = [_Found(int(found[1]), True, self.path(int(found[1]))) for found in map(_FILE.match, names) if found]
        folders = (int(found[1]) for found in map(_FOLDER.match, names) if found)
        return sorted([*files, *(_Found(steps, False, self.folder_path(steps)) for steps in folders)], reverse=True)

    def _whole(self, found: _Found) -> bool:
        return found.is_file or is_sharded(self.fs, found.path)

    def steps(self) -> list[int]:
        """The step counts of all checkpoints in the folder, newest first.

        Raises:
            CheckpointUnreachable: the folder cannot be listed.
        """
        settle()
        return list(dict.fromkeys(found.steps for found in self._every() if self._whole(found)))

    def paths(self) -> list[str]:
        """The paths of all checkpoints, newest first.

        Raises:
            CheckpointUnreachable: the folder cannot be listed.
        """
        settle()
        return [found.path for found in self._every() if self._whole(found)]

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, steps: int, contents: Mapping[str, Any]) -> str:
        """Write a checkpoint, then remove those beyond ``keep``; returns its path.

        Raises:
            TypeError: contents that are not plain.
            CheckpointLocked: another run has taken the folder over since `lock`.
            CheckpointNotWritten: it could not be written; nothing was removed.
        """
        path = self.path(steps)
        self.make_way(path)
        write_checkpoint(contents, path, self.fs)
        self.wrote(path)
        return path

    def make_way(self, path: str) -> None:
        """See that this run may write a file or folder here, and set aside what `read` could not read there.

        Raises:
            CheckpointLocked: another run has taken the folder over since `lock`.
        """
        self.check_lock()
        if path in self._damaged and kind_of(self.fs, path) is not None:
            set_aside(self.fs, path, f"{path} could not be read")
        self._damaged.discard(path)

    def wrote(self, path: str) -> None:
        """Take note of a checkpoint that was just written, a file or a folder, and remove those beyond ``keep``."""
        self._written.add(path)
        self._damaged.discard(path)
        self.prune(path)

    def prune(self, newest: str | None = None) -> None:
        """Remove the oldest checkpoints beyond ``keep`` whole ones, and older folders that never became whole.

        Those that `read` found damaged do not count as kept. One that cannot be removed is named in a warning.

        Args:
            newest: path of the checkpoint that was just written; it stays, whatever its number.
        """
        try:
            every = self._every()
        except CheckpointError as error:
            warnings.warn(f"{error}; no old checkpoint was removed", stacklevel=2)
            return
        kept = 0
        for found in every:
            whole = found.path not in self._damaged and (found.path == newest or self._whole(found))
            stays = found.path == newest or self.keep <= 0 or kept < self.keep
            if not whole and not found.is_file:
                stays = kept == 0  # it may still be in the making
            kept += whole
            if not stays:
                self._remove(found)

    def _remove(self, found: _Found) -> None:
        try:
            if found.is_file:
                self.fs.rm_file(found.path)
            else:
                self._remove_folder(found.path)
        except FileNotFoundError:
            pass  # another process was faster
        except Exception as error:  # every store has errors of its own; the new checkpoint is safe
            warnings.warn(f"cannot remove the old checkpoint {found.path}: {reason(error)}", stacklevel=4)
            return
        self._written.discard(found.path)
        self._damaged.discard(found.path)

    def _remove_folder(self, path: str) -> None:
        if is_local(self.fs) and os.path.islink(path):
            os.remove(path)  # what it points to belongs to others
            return
        if is_sharded(self.fs, path):
            self.fs.rm_file(f"{path}/{MANIFEST}")  # first, so that what is left of it never counts as whole
        self.fs.rm(path, recursive=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, steps: int = -1, reader: Callable[[str, Any], Any] = read_checkpoint
    ) -> tuple[str, dict[str, Any]] | None:
        """Path and contents of the checkpoint after ``steps`` steps, or of the newest one that is whole.

        A damaged checkpoint is passed over with a warning that names it. None if the folder holds no checkpoint.

        Args:
            steps: of the one that is wanted; below 0: the newest.
            reader: gives the contents of a path on a filesystem; `verify_checkpoint` finds the newest that is whole
                without holding it in memory.

        Raises:
            CheckpointMissing: no checkpoint with that number.
            CheckpointUnreachable: whether one is whole could not be found out; no older one is taken instead.
            CheckpointError: there are checkpoints and none of them is readable.
        """
        settle()
        if steps >= 0:
            path = self.path(steps)
            if kind_of(self.fs, path) is None and is_sharded(self.fs, self.folder_path(steps)):
                path = self.folder_path(steps)
            return path, reader(path, self.fs)
        damaged = 0
        for path in self.paths():
            try:
                return path, reader(path, self.fs)
            except CheckpointMissing:
                continue  # removed since it was listed
            except CheckpointUnreachable:
                raise
            except CheckpointError as error:
                damaged += 1
                self._damaged.add(path)
                warnings.warn(f"{error}; the one before it is taken instead", stacklevel=3)
        if damaged:
            raise CheckpointError(
                f"none of the {damaged} checkpoints in {self.url} is readable; move them away to start afresh"
            )
        return None

"""Folders of checkpoints: the newest complete one, and removing old ones."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..io.atomic import note
from ..io.errors import CheckpointError, CheckpointMissing, CheckpointUnreachable, errors_as, reason
from ..io.files import is_local, kind_of, locate, make_folder, name_of, names_in
from ..io.locks import lock_of_folder
from ..wording import first_of
from .background import settle
from .contents import named_tensors, ruined_tensors
from .files import read_checkpoint, write_checkpoint
from .paths import MANIFEST, is_sharded, set_aside
from .sharded import ShardedCheckpoint

_NAME = re.compile(r"^checkpoint\.(0|[1-9][0-9]{0,17})(\.pt)?$")
#: entries of a checkpoint that training changes at every step
_WEIGHTS, _MOMENTS = re.compile("^(model|ema)$"), re.compile(r"^optim\d+$")


def read_finite(path: str, fs: Any) -> dict[str, Any]:
    """Return the contents of a file whose weights, averages and moments are finite numbers.

    A CheckpointError is raised as by `read_checkpoint`, and for NaN, infinities and weights too large to be multiplied:
    training cannot continue from them.
    """
    contents = read_checkpoint(path, fs)
    weights, moments = (
        dict(named_tensors({name: value for name, value in contents.items() if kind.match(name)}))
        for kind in (_WEIGHTS, _MOMENTS)
    )
    if names := ruined_tensors(weights, moments):
        text = f"{path}: it holds weights that are NaN, infinite or too large, in {first_of(names)}"
        note(*locate(path, fs), text)
        raise CheckpointError(text)
    return contents


def verify_checkpoint(path: str, fs: Any) -> dict[str, Any] | None:
    """Check that a file or a folder of shards can be read, and a file as `read_finite` does; raise its errors. Return
    the contents of a file, None for a folder."""
    place = locate(path, fs)[1]
    if not is_sharded(fs, place):
        return read_finite(path, fs)
    try:
        ShardedCheckpoint(fs, place).verify()
    except CheckpointError as error:
        if not isinstance(error, CheckpointUnreachable):
            note(fs, place, str(error))
        raise
    return None


class _Found(NamedTuple):
    """A checkpoint in a folder; files come before folders of the same step."""

    steps: int
    is_file: bool
    path: str


def _found_in(folder: str, names: set[str]) -> list[_Found]:
    """The checkpoints among the names in a folder, newest first, folders that are not complete included."""
    found = [match for match in map(_NAME.match, names) if match]
    return sorted((_Found(int(m[1]), bool(m[2]), f"{folder.rstrip('/')}/{m[0]}") for m in found), reverse=True)


def newest_in(folder: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """Return the address of the checkpoint that a folder stands for: itself if it is one in several files, else
    ``imagen.pt`` in it, else that of the most steps. None if it holds none; nothing is made or changed.

    Raises:
        CheckpointUnreachable: the folder cannot be listed.
    """
    fs, place = locate(folder, fs, fs_kwargs)
    place = place.rstrip("/") or "/"
    if is_sharded(fs, place):
        return str(folder)
    with errors_as(CheckpointUnreachable, f"cannot list the checkpoints in {folder}"):
        names = names_in(fs, place)
    found = [_Found(0, True, f"{place}/imagen.pt")] if "imagen.pt" in names else _found_in(place, set(names))
    path = next((each.path for each in found if each.is_file or is_sharded(fs, each.path)), None)
    return path if path is None or is_local(fs) else str(fs.unstrip_protocol(path))


class CheckpointStore:
    """A folder of checkpoints: files ``checkpoint.<steps>.pt``, or folders ``checkpoint.<steps>`` with several files.

    A folder counts as a checkpoint once it holds ``manifest.json``. Every other file is left alone.

    Args:
        url: folder, a local path or any fsspec URL.
        keep: number of newest checkpoints that survive a write; 0 or less keeps all.
        fs, fs_kwargs: a ready file system, or arguments for making it.

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
        """Keep other runs from saving here until `unlock`, the end of this object or the end of the process.

        In an object store the last run that locks has the folder; the one before it fails at its next write. Within
        a process this is so everywhere: the newest store of a folder takes it over, when its last write has ended.

        Raises:
            CheckpointLocked: another run is saving here, or a newer store of this process.
            CheckpointNotWritten: nothing can be written here.
        """
        settle()
        self._lock.acquire()

    def unlock(self) -> None:
        """Let other runs save here."""
        self._lock.release()

    def check_lock(self) -> None:
        """Raise `CheckpointLocked` if another run has taken the folder over since `lock`."""
        self._lock.check()

    # -- what is there ------------------------------------------------------------------------------------------------

    def path(self, steps: int) -> str:
        """Return the path of the file of a number of steps."""
        return f"{self.folder.rstrip('/')}/checkpoint.{steps}.pt"

    def folder_path(self, steps: int) -> str:
        """Return the path of the folder of shards of a number of steps."""
        return self.path(steps).removesuffix(".pt")

    def _every(self) -> list[_Found]:
        """All checkpoints, newest first, folders that are not complete included."""
        with errors_as(CheckpointUnreachable, f"cannot list the checkpoints in {self.url}"):
            names = set()
            with suppress(FileNotFoundError):
                names = set(names_in(self.fs, self.folder))
        # a listing may lag; what was written here is looked for by name
        late = [path for path in self._written if name_of(path) not in names]
        return _found_in(self.folder, names | {name_of(path) for path in late if kind_of(self.fs, path) is not None})

    def _complete(self) -> list[_Found]:
        settle()
        return [found for found in self._every() if found.is_file or is_sharded(self.fs, found.path)]

    def steps(self) -> list[int]:
        """Return the step counts of all checkpoints in the folder, newest first."""
        return list(dict.fromkeys(found.steps for found in self._complete()))

    def paths(self) -> list[str]:
        """Return the paths of all checkpoints in the folder, newest first."""
        return [found.path for found in self._complete()]

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, steps: int, contents: Mapping[str, Any]) -> str:
        """Write a checkpoint, then remove those beyond ``keep``; return its path. Errors as of `write_checkpoint`;
        nothing is removed then."""
        path = self.path(steps)
        self.make_way(path)
        write_checkpoint(contents, path, self.fs)
        self.wrote(path)
        return path

    def make_way(self, path: str) -> None:
        """Check that this run may write a file or folder here, and set aside what `read` could not read there."""
        self.check_lock()
        if path in self._damaged and kind_of(self.fs, path) is not None:
            set_aside(self.fs, path, f"{path} could not be read")
        self._damaged.discard(path)

    def wrote(self, path: str) -> None:
        """Remember a checkpoint that was just written, a file or a folder, and remove those beyond ``keep``."""
        self._written.add(path)
        self._damaged.discard(path)
        self.prune(path)

    def prune(self, newest: str | None = None) -> None:
        """Remove the oldest checkpoints beyond ``keep`` complete ones, and older folders that never became complete.

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
            written = found.is_file or found.path == newest or is_sharded(self.fs, found.path)
            complete = written and found.path not in self._damaged
            stays = found.path == newest or self.keep <= 0 or kept < self.keep
            if not complete and not found.is_file:
                stays = kept == 0  # it may still be in the making
            kept += complete
            if not stays:
                self._remove(found)

    def _remove(self, found: _Found) -> None:
        try:
            if found.is_file or (is_local(self.fs) and os.path.islink(found.path)):
                self.fs.rm_file(found.path)  # what a link points to belongs to others
            else:
                if is_sharded(self.fs, found.path):
                    self.fs.rm_file(f"{found.path}/{MANIFEST}")  # first: what is left of it never counts as complete
                self.fs.rm(found.path, recursive=True)
        except FileNotFoundError:
            pass  # another process was faster
        except Exception as error:  # every store has errors of its own; the new checkpoint is safe
            warnings.warn(f"cannot remove the old checkpoint {found.path}: {reason(error)}", stacklevel=4)
            return
        self._written.discard(found.path)
        self._damaged.discard(found.path)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, steps: int = -1, reader: Callable[[str, Any], Any] = read_checkpoint
    ) -> tuple[str, dict[str, Any]] | None:
        """Return path and contents of the checkpoint after ``steps`` steps, or of the newest one that is complete.

        A damaged checkpoint is passed over with a warning that names it. None if the folder holds no checkpoint.

        Args:
            steps: of the one that is wanted; below 0: the newest.
            reader: gives the contents of a path on a file system; `verify_checkpoint` finds the newest that is complete
                without holding it in memory.

        Raises:
            CheckpointMissing: no checkpoint with that number.
            CheckpointUnreachable: one could not be examined; no older one is taken instead.
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
            except CheckpointError as error:
                if isinstance(error, CheckpointUnreachable):
                    raise
                damaged += 1
                self._damaged.add(path)
                warnings.warn(f"{error}; the one before it is taken instead", stacklevel=3)
        if damaged:
            text = f"none of the {damaged} checkpoints in {self.url} is readable; move them away to start afresh"
            raise CheckpointError(text)
        return None

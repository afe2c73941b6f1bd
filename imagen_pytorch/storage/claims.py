"""Who saves into a folder of an object store, where there are no locks."""

from __future__ import annotations

import json
import uuid
import weakref
from contextlib import suppress
from typing import Any

from .errors import CheckpointError, CheckpointLocked, CheckpointNotWritten, reason
from .holders import in_words, myself, taken
from .remote import attempts, forget_listings

#: all claims of this process that were not given up
_CLAIMS: weakref.WeakSet[FolderClaim] = weakref.WeakSet()


class FolderClaim:
    """The right to save to a folder or a file of an object store, where the last run that claims it has it.

    Object stores have no locks: a claim is a file with a random name of the run, which is looked at before each write.
    One that took the place of another stays there after its run, which may have ended before the other one looks.

    Args:
        fs: the filesystem.
        folder: the folder's path there.
        place: the folder or file, as errors call it.
        name: of the only file in the folder that is claimed; by default all of them are.
    """

    def __init__(self, fs: Any, folder: str, place: str, name: str | None = None) -> None:
        self.fs, self.folder, self.place, self.name = fs, folder.rstrip("/"), place, name
        self.path = f"{self.folder}/run.lock" if name is None else f"{self.folder}/.{name}.lock"
        self._run: str | None = None
        self._stays = False

    def __deepcopy__(self, _: dict[int, Any]) -> FolderClaim:
        return type(self)(self.fs, self.folder, self.place, self.name)

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
        try:
            self._stays = self._read() is not None
        except CheckpointNotWritten:  # there may be one
            self._stays = True
        text = json.dumps({"run": run, **myself()}).encode()
        try:
            attempts(lambda: self.fs.pipe_file(self.path, text))
        except Exception as error:
            raise CheckpointNotWritten(f"cannot write to {self.place}: {reason(error)}") from error
        self._run = run
        _CLAIMS.add(self)

    def covers(self, fs: Any, path: str) -> bool:
        """Whether a path is what is claimed, or lies in it."""
        claimed = self.folder if self.name is None else f"{self.folder}/{self.name}"
        return self.fs == fs and f"{path}/".startswith(f"{claimed}/")

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
            raise taken(in_words(text), self.place, "has taken over")

    def _read(self) -> bytes | None:
        try:
            forget_listings(self.fs, self.path)
            return attempts(lambda: self.fs.cat_file(self.path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CheckpointNotWritten(f"cannot see who saves into {self.place}: {reason(error)}") from error

    def release(self) -> None:
        """Give the claim up; a second call does nothing. It is removed if it was the first."""
        run, self._run = self._run, None
        _CLAIMS.discard(self)
        if run is None or self._stays:
            return
        with suppress(CheckpointError):
            if run.encode() in (self._read() or b""):
                with suppress(Exception):  # a claim that stays harms nobody
                    self.fs.rm_file(self.path)


def check_claims(fs: Any, path: str) -> None:
    """See that this process still has the folder of a path, if it has claimed it; the last of its claims counts.

    Raises:
        CheckpointLocked: another run has claimed it since.
        CheckpointNotWritten: nobody can tell.
    """
    refused = None
    for claim in [claim for claim in list(_CLAIMS) if claim.covers(fs, path)]:
        try:
            claim.check()
            return
        except CheckpointLocked as error:
            refused = error
    if refused is not None:
        raise refused

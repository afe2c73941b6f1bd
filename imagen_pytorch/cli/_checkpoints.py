"""Which checkpoint a run goes on from, and whether its results can be written at all."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from ._errors import USAGE, CommandFailed, described


def make_output(folder: Path) -> None:
    """Make the folder for metrics and samples.

    Raises:
        CommandFailed: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise CommandFailed(f"cannot make the folder {folder}: {reason}; choose another --output", USAGE) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandFailed(f"cannot write into {folder}: it is read-only; choose another --output", USAGE)


def is_whole(path: str) -> bool:
    """Whether a checkpoint can be read; one in the background is waited for."""
    from ..storage import CheckpointError, locate
    from ..storage.store import verify_checkpoint

    fs, place = locate(path)
    try:
        verify_checkpoint(place, fs)
    except CheckpointError:
        return False
    return True


def whole_or_previous(path: str) -> str:
    """A checkpoint, or if it is damaged the one before it, which is said in a warning.

    Raises:
        CheckpointUnreachable: nobody can tell now.
        CheckpointError: neither can be read.
    """
    from ..storage import CheckpointError, CheckpointUnreachable, locate, previous_of
    from ..storage.store import verify_checkpoint

    fs, place = locate(path)
    try:
        verify_checkpoint(place, fs)
    except CheckpointUnreachable:
        raise
    except CheckpointError as error:
        before = previous_of(path)
        if not is_whole(before):
            raise
        warnings.warn(f"{described(error)}; {before} is taken instead", stacklevel=2)
        return before
    return path

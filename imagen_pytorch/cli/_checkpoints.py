"""The checkpoint a run goes on from, and early checks that its results can be written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import click

from ._errors import USAGE, CommandFailed, format_error


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


def refuse_volatile(fs: Any, path: str) -> None:
    """Refuse a place that ends with this process: a training that saves there keeps nothing.

    Raises:
        click.UsageError: it does.
    """
    from ..io.files import ends_with_process

    if ends_with_process(fs):
        raise click.UsageError(
            f"{path} is gone when this command ends: give a path, or the URL of a store that lasts, for the checkpoint"
        )


def _verified(path: str) -> dict[str, Any] | None:
    from ..checkpoints import verify_checkpoint
    from ..io.files import is_local, locate

    fs, place = locate(path)
    return verify_checkpoint(place if is_local(fs) else path, fs)


def intact_or_previous(path: str) -> tuple[str, dict[str, Any] | None]:
    """Return a checkpoint, or if it is damaged or gone the one before it, with a warning.

    Returns:
        its path, and its contents if it is a file.

    Raises:
        CheckpointUnreachable: the storage does not answer.
        CheckpointError: neither can be read.
    """
    from ..checkpoints import CheckpointError, CheckpointMissing, CheckpointUnreachable, previous_of

    try:
        return path, _verified(path)
    except CheckpointUnreachable:
        raise
    except CheckpointError as error:
        newest = error
    before = previous_of(path)
    try:
        contents = _verified(before)
    except (CheckpointMissing, CheckpointUnreachable) as error:
        raise (error if isinstance(error, CheckpointUnreachable) else newest) from newest
    except CheckpointError as error:
        if not isinstance(newest, CheckpointMissing):
            raise newest from error
        # a fresh start would replace what may still be mended
        text = f"{format_error(newest)}, and {format_error(error)}; move it away to start afresh"
        raise CheckpointError(text) from error
    warnings.warn(f"{format_error(newest)}; {before} is taken instead", stacklevel=2)
    return before, contents


def has_checkpoint(path: str) -> bool:
    """Return whether there is something to go on from: a checkpoint, or the one before it.

    Raises:
        CheckpointUnreachable: the storage does not answer.
    """
    from ..checkpoints import previous_of
    from ..io.files import kind_of, locate

    return any(kind_of(*locate(place)) is not None for place in (path, previous_of(path)))

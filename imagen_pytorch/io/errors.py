"""Errors of reading and writing checkpoints, each with one sentence."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager

#: what decoding damaged bytes can raise
ODD = (ValueError, TypeError, LookupError, OverflowError, AttributeError, AssertionError, EOFError, RuntimeError,
       struct.error, pickle.UnpicklingError)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used, with the file and the reason."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """A file is missing where one was expected."""

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointMismatch(CheckpointError):
    """A checkpoint of another model; the message lists the names and shapes that differ."""


class CheckpointNotWritten(CheckpointError):
    """A checkpoint could not be written; what was there before is untouched."""


class CheckpointUnreachable(CheckpointError):
    """A checkpoint could not be examined: no connection, no permission, no disk space or no memory."""


class CheckpointMisaddressed(CheckpointError):
    """A URL that no file system here can open: a misspelt protocol, or one whose package is not installed."""


class CheckpointLocked(CheckpointError):
    """Another run saves to the same place."""


def reason(error: BaseException) -> str:
    """Return what an error says on one line of bounded length, with its class where the text alone may say little."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


@contextmanager
def errors_as(
    kind: type[CheckpointError], what: str, caught: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Raise errors of the block as ``kind``, with ``what`` could not be done; a `CheckpointError` passes unchanged.

    Every file system has errors of its own, so all of them are caught by default.
    """
    try:
        yield
    except CheckpointError:
        raise
    except caught as error:
        raise kind(f"{what}: {reason(error)}") from error

"""What can go wrong with checkpoints, each with a sentence."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used, with the file and the reason."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """There is no file where one was expected."""

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointMismatch(CheckpointError):
    """A checkpoint of another model; the message lists the names and shapes that differ."""


class CheckpointNotWritten(CheckpointError):
    """A checkpoint could not be written; what was there before is untouched."""


class CheckpointUnreachable(CheckpointError):
    """Whether a checkpoint is whole could not be found out: no connection, no permission, no room or no memory."""


class CheckpointMisaddressed(CheckpointError):
    """A URL that no file system here can open: a misspelt protocol, or one whose package is not installed."""


class CheckpointLocked(CheckpointError):
    """Another run saves to the same place."""


def reason(error: BaseException) -> str:
    """What an error says, with its kind where the text alone may say little, on one line of bounded length."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."

"""Mistakes and mishaps as one line on standard error, each kind with its exit code."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..wording import excerpt, printable
from ._signals import is_main_process

FAILED, USAGE, DATA, CHECKPOINT, MEMORY = 1, 2, 3, 4, 5

#: characters of one message, at most
MAX_LENGTH = 600

#: how torch begins the message of an error that a reading process met
_OF_A_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")

#: exit codes by the name of an exception's class or nearest parent; by name, so that nothing has to be imported
CODES = {
    "CheckpointMissing": USAGE,
    "CheckpointLocked": USAGE,
    "CheckpointMisaddressed": USAGE,
    "CheckpointNotWritten": FAILED,
    "CheckpointError": CHECKPOINT,
    "NoFileSystem": USAGE,
    "PackageMissing": USAGE,
    "DataError": DATA,
    "MetadataError": DATA,
    "SampleNotFinite": CHECKPOINT,
    "OutOfMemoryError": MEMORY,
    "MemoryError": MEMORY,
    "FileNotFoundError": USAGE,
    "NotADirectoryError": USAGE,
    "IsADirectoryError": USAGE,
    "PermissionError": USAGE,
    "ValueError": USAGE,
    "TypeError": USAGE,
}


def say(text: str) -> None:
    """Print lines on standard error; text quoted from files is escaped and shortened."""
    click.echo("\n".join(excerpt(line, MAX_LENGTH) for line in text.split("\n")), err=True)


class CommandFailed(click.ClickException):
    """Ends a command with a sentence and an exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = code


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def exit_code(error: BaseException) -> int:
    """The exit code for an exception."""
    if _out_of_memory(error):
        return MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return USAGE
    names = (parent.__name__ for parent in type(error).__mro__)
    return next((CODES[name] for name in names if name in CODES), FAILED)


def _message(error: BaseException) -> str:
    """The text of an exception; of one raised in a reading process, whose traceback torch puts first, the last line."""
    text = str(error) or type(error).__name__
    if _OF_A_WORKER.match(text):
        text = re.sub(r"^[\w.]+: ", "", text.rstrip().splitlines()[-1])
    return text


def is_expected(error: BaseException) -> bool:
    """Return whether the message of an exception is a sentence for users."""
    foreseen = isinstance(error, ValueError | TypeError | OSError | ImportError | click.ClickException)
    return foreseen or exit_code(error) == MEMORY or type(error).__module__.startswith("imagen_pytorch")


def format_error(error: BaseException) -> str:
    """An exception as a sentence; for an unexpected one, with a hint on how to see its traceback."""
    text = _message(error)
    if exit_code(error) == MEMORY:
        return f"out of memory: {text.splitlines()[0]}"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space" if error.errno == errno.ENOSPC else ""
        return f"{where}{os.strerror(error.errno)}{hint}"
    if is_expected(error):
        return text
    return f"{type(error).__name__}: {text} (unexpected; --debug shows where)"


def one_line(error: click.ClickException) -> str:
    """The several lines of a click message as one: the command, what is wrong, where to read on."""
    text = " ".join(error.format_message().split()).removesuffix(".")
    cut = "" if len(text) <= MAX_LENGTH else " ... (--debug shows the rest)"
    text = f"{printable(text[:MAX_LENGTH])}{cut}"
    context = getattr(error, "ctx", None)
    if not isinstance(error, click.UsageError) or context is None:
        return f"imagen: {text}"
    return f"{context.command_path}: {text} (see {context.command_path} --help)"


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print warnings inside the block as one line each, without the place in the code, and each only once."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        text = " ".join(str(message).split())
        if issubclass(category, UserWarning) and text not in shown and is_main_process():
            shown.add(text)
            say(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

"""Every kind of mishap has its exit code and its sentence."""

from __future__ import annotations

import errno
import warnings

import click
import pytest
import torch

from imagen_pytorch.checkpoint import CheckpointError, CheckpointMismatch, CheckpointMissing
from imagen_pytorch.cli._errors import LONGEST, CommandFailed, described, exit_code, one_line, warnings_as_lines


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (TypeError("x"), 2),
        (FileNotFoundError(errno.ENOENT, "no", "a.png"), 2),
        (CheckpointMissing("x"), 2),
        (CheckpointError("x"), 4),
        (CheckpointMismatch("x"), 4),
        (torch.OutOfMemoryError("CUDA out of memory"), 5),
        (MemoryError(), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5),
        (RuntimeError("x"), 1),
        (KeyError("x"), 1),
        (OSError(errno.ENOSPC, "full"), 1),
        (ImportError("x"), 1),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_an_unforeseen_error_says_how_to_see_more():
    assert described(KeyError("x")) == "KeyError: 'x' (unexpected; --debug shows where)"
    assert described(ValueError("a sentence")) == "a sentence"


def test_errors_of_the_operating_system_name_the_file():
    assert described(FileNotFoundError(errno.ENOENT, "no", "a.png")) == "a.png: No such file or directory"
    assert "free some space" in described(OSError(errno.ENOSPC, "full"))


def test_messages_become_one_line_of_bounded_length():
    assert one_line(CommandFailed("two\n  lines.")) == "imagen: two lines"
    assert len(one_line(CommandFailed("x" * 5000))) < LONGEST + 60
    context = click.Context(click.Command("train"), info_name="imagen train")
    assert one_line(click.UsageError("wrong.", context)) == "imagen train: wrong (see imagen train --help)"


def test_warnings_are_one_line_and_shown_once(capsys):
    with warnings_as_lines():
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: two lines\n"

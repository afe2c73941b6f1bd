"""Every kind of mishap has its exit code and its sentence."""

from __future__ import annotations

import errno
import sys
import warnings

import click
import pytest
import torch
from click.testing import CliRunner

from imagen_pytorch.checkpoint import CheckpointError, CheckpointMisaddressed, CheckpointMismatch, CheckpointMissing
from imagen_pytorch.cli import main
from imagen_pytorch.cli._errors import MAX_LENGTH, CommandFailed, exit_code, format_error, one_line, warnings_as_lines
from imagen_pytorch.data import DataUnavailable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (TypeError("x"), 2),
        (FileNotFoundError(errno.ENOENT, "no", "a.png"), 2),
        (CheckpointMissing("x"), 2),
        (CheckpointMisaddressed("x"), 2),
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
    assert format_error(KeyError("x")) == "KeyError: 'x' (unexpected; --debug shows where)"
    assert format_error(ValueError("a sentence")) == "a sentence"


def test_errors_of_the_operating_system_name_the_file():
    assert format_error(FileNotFoundError(errno.ENOENT, "no", "a.png")) == "a.png: No such file or directory"
    assert "free some space" in format_error(OSError(errno.ENOSPC, "full"))


class Failing(torch.utils.data.Dataset):
    """Items that cannot be read, for one of several reasons."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, _):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataUnavailable("a.png: the folder is gone"), 3, "a.png: the folder is gone"),
        (OSError("a.png: damaged"), 1, "a.png: damaged"),
        (RuntimeError("size: 3"), 1, "RuntimeError: size: 3 (unexpected; --debug shows where)"),
    ],
)
def test_an_error_of_a_reading_process_is_told_without_its_traceback(error, code, words):
    """Torch puts the traceback in front of the message; cut to a line, nothing else would be left."""
    loader = torch.utils.data.DataLoader(Failing(error), num_workers=1)
    with pytest.raises(type(error)) as caught:
        list(loader)
    assert "Traceback" in str(caught.value)
    assert (format_error(caught.value), exit_code(caught.value)) == (words, code)


def test_messages_become_one_line_of_bounded_length():
    assert one_line(CommandFailed("two\n  lines.")) == "imagen: two lines"
    assert len(one_line(CommandFailed("x" * 5000))) < MAX_LENGTH + 60
    context = click.Context(click.Command("train"), info_name="imagen train")
    assert one_line(click.UsageError("wrong.", context)) == "imagen train: wrong (see imagen train --help)"


def test_warnings_are_one_line_and_shown_once(capsys):
    with warnings_as_lines():
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: two lines\n"


@pytest.mark.parametrize(
    "command", ["train --steps 1 -q --checkpoint", "train --steps 1 -q --data", "sample x --model", "info"]
)
@pytest.mark.parametrize(
    ("address", "words"),
    [("gss://bucket/a.pt", ('no file system is called "gss"', 'did you mean "gs"?')), ("abfs://a/b.pt", ("adlfs",))],
)
def test_an_address_that_nothing_can_open_is_a_bad_argument(tmp_path, monkeypatch, command, address, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "adlfs", None)  # installed or not
    done = CliRunner().invoke(main, [*command.split(), address])
    assert done.exit_code == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in (address, *words)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--resume", "no checkpoint in . to go on from"),
        ("--resume_from_checkpoint=latest", "no checkpoint in . to go on from"),
        ("--frseh", "No such option"),
    ],
)
def test_options_of_other_programs_are_answered(option, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main.main(["train", option])
    assert words in capsys.readouterr().err

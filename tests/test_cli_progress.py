"""What a training run tells: lines, numbers in a file, signals remembered."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import signal
import sys
from pathlib import Path

import click
import pytest

from imagen_pytorch.cli._metrics import MetricsLog
from imagen_pytorch.cli._progress import Progress, Span, clock
from imagen_pytorch.cli._signals import Interruption


def run(log, first=0, last=10, quiet=False, every=4, losses=None):
    with Progress(Span(2, first, last), 8, log, every, quiet) as progress:
        for step in range(first + 1, last + 1):
            progress.advance(step, (losses or {}).get(step, 1.0 / step), 1e-3)
    return progress


def test_log_holds_the_mean_loss_of_each_period(tmp_path):
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    run(log, quiet=True)
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [4, 8, 10]
    assert all(entry["unet"] == 2 and entry["lr"] == 1e-3 for entry in entries)
    assert entries[0]["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert all(entry["images_per_second"] > 0 for entry in entries)


def test_history_goes_on_where_the_log_ends(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    run(log, 0, 4, quiet=True)
    with open(log.path, "a") as file:
        file.write('{"unet": 2, "st')  # cut off by a crash
    run(log, 4, 8, quiet=True).validated(0.5)
    assert [step for step, _ in log.history()["U-Net 2"]] == [4, 8]
    assert log.history()["U-Net 2 validation"] == [(8, 0.5)]
    assert MetricsLog(tmp_path / "none.jsonl").history() == {}


def rows(path, *entries):
    path.write_text("".join(json.dumps({"unet": 1, "step": step, **more}) + "\n" for step, more in entries))
    return MetricsLog(path).history()


def loss(value, **more):
    return {"loss": value, **more}


def test_what_a_later_run_trained_again_is_not_in_the_curve(tmp_path):
    """Killed at step 9, gone on from 4: with other intervals, with validations, and twice."""
    path = tmp_path / "metrics.jsonl"
    first = [(step, loss(1.0, from_step=0)) for step in (2, 4, 6, 8)] + [(7, {"valid_loss": 3.0, "from_step": 0})]
    again = [(step, loss(2.0, from_step=4)) for step in (7, 10)] + [(9, {"valid_loss": 4.0, "from_step": 4})]
    found = rows(path, *first, *again)
    assert found == {"U-Net 1": [(2, 1.0), (4, 1.0), (7, 2.0), (10, 2.0)], "U-Net 1 validation": [(9, 4.0)]}
    found = rows(path, *first, *again, (5, loss(3.0, from_step=4)))
    assert found["U-Net 1"] == [(2, 1.0), (4, 1.0), (5, 3.0)]
    older = rows(path, (2, loss(1.0)), (4, loss(1.0)), (6, loss(1.0)), (3, loss(2.0)), (5, loss(2.0)))
    assert older["U-Net 1"] == [(2, 1.0), (3, 2.0), (5, 2.0)]  # written by an earlier version


#: a long way beyond what a number can be
HUGE = b"1" + b"0" * 400
DAMAGE = [
    b"\xff\xfe\x00",
    *(b"[]", b"5", b"null", b'"x"', b"{}", b'{"unet": 1}', b"[" * 100_000),
    b'{"unet": "x", "step": 3, "loss": 1.0}',
    b'{"unet": [], "step": 3, "loss": 1}',
    b'{"unet": true, "step": 3, "loss": 1}',
    b'{"unet": 1, "step": null, "loss": 1.0}',
    b'{"unet": 1, "step": 3, "loss": "x"}',
    b'{"unet": 1, "step": 3, "loss": NaN}',
    b'{"unet": 1, "step": ' + HUGE + b', "loss": 1.0}',
    b'{"unet": 1, "step": 3, "loss": ' + HUGE * 20 + b"}",
]


@pytest.mark.parametrize("line", DAMAGE)
def test_damaged_lines_are_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"unet": 1, "step": 2, "loss": 0.5}\n' + line + b'\n{"unet": 1, "step": 4, "loss": 0.25}\n')
    assert MetricsLog(path).history() == {"U-Net 1": [(2, 0.5), (4, 0.25)]}


def test_a_log_that_is_no_file_has_no_history(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert MetricsLog(tmp_path / "metrics.jsonl").history() == {}


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    run(MetricsLog(tmp_path / "metrics.jsonl"), first=100, last=108)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2 and "\r" not in err
    assert lines[0].startswith("U-Net 2  step 104/108  loss ") and "img/s" in lines[0]
    assert lines[1].endswith("0:00 left")


def test_quiet_is_silent(tmp_path, capsys):
    run(MetricsLog(tmp_path / "metrics.jsonl"), quiet=True).validated(1.0)
    assert capsys.readouterr() == ("", "")


def test_a_loss_that_is_no_number_is_left_out(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    progress = run(log, last=4, quiet=True, losses={2: math.nan, 3: math.inf})
    assert json.loads(log.path.read_text())["loss"] == pytest.approx((1 + 1 / 4) / 2)
    assert math.isfinite(progress.shown)


def test_the_shown_loss_is_the_mean_of_the_last_interval(tmp_path, capsys):
    """What was trained long ago does not flatter the present: losses rise, and are shown to."""
    losses = {step: float(step > 4) + step for step in range(1, 9)}
    progress = run(MetricsLog(tmp_path / "m.jsonl"), last=8, losses=losses)
    assert progress.shown == pytest.approx((6 + 7 + 8 + 9) / 4)
    lines = capsys.readouterr().err.splitlines()
    assert "loss 2.5000" in lines[0] and "loss 7.5000" in lines[1] and "lr 0.001" in lines[0]


def test_within_the_first_interval_the_mean_so_far_is_shown(tmp_path):
    with Progress(Span(1, 0, 9), 8, MetricsLog(tmp_path / "m.jsonl"), 9, True) as progress:
        for step, value in ((1, 2.0), (2, math.nan), (3, 4.0)):
            progress.advance(step, value, 1e-3)
            assert progress.shown == pytest.approx({1: 2.0, 2: 2.0, 3: 3.0}[step])


@pytest.mark.parametrize(("share", "said"), [(None, 0), (0.3, 0), (0.85, 1)])
def test_waiting_for_data_is_said_once(tmp_path, capsys, share, said):
    log = MetricsLog(tmp_path / "m.jsonl")
    with Progress(Span(1, 0, 4), 8, log, 1, False, reading_share=lambda: share) as progress:
        for step in range(1, 5):
            progress.advance(step, 1.0, 1e-3)
    assert capsys.readouterr().err.count("reading the data takes 85% of the time") == said


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (83.4, "1:23"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_remembered(number, code, request):
    # what runs in the background or under nohup inherits others
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, usual)))
    with Interruption() as interruption:
        assert not interruption and interruption.exit_code() == 0
        os.kill(os.getpid(), number)
        assert interruption and interruption.exit_code() == code
        assert signal.getsignal(number) is usual  # the second one acts at once
    assert signal.getsignal(number) is usual


class Broken:
    """A stream whose reader has gone."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    flush = isatty = lambda self: self.write("")

    @property
    def buffer(self):
        return self


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
        (OSError(errno.EIO, "Input/output error"), 129),
        (OSError(errno.ENOSPC, "No space left on device"), 0),
        (ValueError("I/O operation on closed file"), 0),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_fails_ends_nothing_by_itself(monkeypatch, name, error, code):
    """A closed pipe or terminal is remembered like a signal; a full disk behind a redirection is not."""
    monkeypatch.setattr(sys, name, Broken(error))
    before = getattr(sys, name)
    with Interruption() as interruption:
        click.echo("a word", err=name == "stderr")
        print("another", file=getattr(sys, name), flush=True)
        click.echo(b"bytes", err=name == "stderr")
        assert interruption.exit_code() == code
    assert getattr(sys, name) is before


def test_streams_that_were_never_open_stay_so(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Interruption():
        assert sys.stderr is None
        run(MetricsLog(Path(os.devnull)), last=1)

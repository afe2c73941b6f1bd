"""What a training run tells: lines, numbers in a file, signals remembered."""

from __future__ import annotations

import json
import math
import os
import signal

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
        file.write('{"unet": 2, "st\n')  # cut off by a crash
    run(log, 4, 8, quiet=True).validated(0.5)
    assert [step for step, _ in log.history()["U-Net 2"]] == [4, 8]
    assert log.history()["U-Net 2 validation"] == [(8, 0.5)]
    assert MetricsLog(tmp_path / "none.jsonl").history() == {}


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


def test_the_shown_loss_is_a_mean_without_bias(tmp_path):
    progress = run(MetricsLog(tmp_path / "m.jsonl"), last=3, quiet=True, losses={1: 2.0, 2: 2.0, 3: 2.0})
    assert progress.shown == pytest.approx(2.0)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (83.4, "1:23"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_remembered(number, code):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption and interruption.exit_code() == 0
        os.kill(os.getpid(), number)
        assert interruption and interruption.exit_code() == code
        assert signal.getsignal(number) is before  # the second one acts at once
    assert signal.getsignal(number) is before

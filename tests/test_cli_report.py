"""``report.html``: one file that fetches nothing, runs nothing but its own lines, and shows what is in the folder."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from train_toys import SMALL, enter, imagen, refused, succeed, write_config

from imagen_pytorch.cli import _report
from imagen_pytorch.evaluation import page
from imagen_pytorch.training.diagnosis import LEVELS

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\" ' \x1b[2J \u202e"


class Read(HTMLParser):
    """The tags of a page, the addresses that it names, and its text."""

    def __init__(self, contents: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(contents.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        self.words += data


def make_run(folder: Path, sheets: int = 3, points: int = 20) -> Path:
    """A folder with what trainings leave; the captions, figures and commands are hostile."""
    folder.mkdir()
    rows = []
    for unet in (1, 2):
        for step in range(1, points + 1):
            row = {"unet": unet, "step": 50 * step, "from_step": 0, "epoch": step, "loss": 1 / step + 0.1}
            rows.append({**row, "time": f"2026-12-01T00:{step % 60:02}:00+00:00", "lr": 1e-3})
        rows.append({"unet": unet, "step": 50, "from_step": 0, "valid_loss": 0.3, **dict.fromkeys(LEVELS, 0.2)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(sheets):
        Image.new("RGB", (300, 200), (step, 99, 99)).save(folder / f"sample-{step * 500:06}.png")
    facts = {"figures": {HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}, "kid": {"value": 0.1, "real": 0.0}}}
    (folder / "eval.json").write_text(json.dumps({**facts, "sampling": HOSTILE, "date": "today"}))
    (folder / "config.resolved.json").write_text(json.dumps({"sample_texts": [HOSTILE]}))
    (folder / "command.txt").write_text(f"imagen train --text {HOSTILE}\n")
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "a run")


def test_the_page_shows_everything_and_nothing_runs_or_is_fetched(run):
    assert succeed("report", run).stdout == f"{run}/report.html\n"
    found = Read((run / "report.html").read_bytes())
    assert found.tags.count("script") == 1 and all(address.startswith("data:image/") for address in found.addresses)
    assert len(found.addresses) == 3 and found.tags.count("input") == 1
    assert b"\x1b" not in (run / "report.html").read_bytes() and "\u202e" not in found.words
    for words in ("Training a run", "U-Net 2", "1,000", "Loss", "noise level", "step 1,000", "Samples of U-Net 1"):
        assert words in found.words, words
    for words in ("0.5 (0.4 to 0.6)", "kid real", "sample_texts", "imagen train --text", "alert(1)", "19:00"):
        assert words in found.words, words


def test_a_second_page_replaces_the_first_and_no_other(run):
    for _ in range(2):
        succeed("report", run)
    assert len(list(run.glob("report*"))) == 1


def test_the_page_has_a_limit(run, monkeypatch):
    monkeypatch.setattr(_report, "ROOM", 2 * os.path.getsize(run / "sample-000500.png") + 9)
    succeed("report", run)
    found = Read((run / "report.html").read_bytes())
    assert len(found.addresses) == 2 and "(2 of 3 sheets)" in found.words and "step 1,000" in found.words


def test_long_curves_are_thinned():
    curve = [(step, 1.0 / step) for step in range(1, 100_000)]
    drawn = page.chart("Loss", {"U-Net 1": curve, "U-Net 2": curve[:1]})
    assert len(drawn) < 60_000 and ">80000<" in drawn
    points = re.findall(r'points="([^"]+)"', drawn)
    assert all(points) and points[0].split()[-1].startswith("1000.0,")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "damage"])
def test_what_is_no_sheet_or_evaluation_is_left_out(run, kind):
    for name in ("sample-000500.png", "eval.json"):
        (run / name).unlink()
        if kind == "link":
            (run / name).symlink_to("/etc/hostname")
        elif kind == "pipe":
            os.mkfifo(run / name)
        elif kind == "folder":
            (run / name).mkdir()
    if kind == "damage":
        (run / "eval.json").write_text("[" * 100_000)
        (run / "eval-1.json").write_text('{"figures": {"a": "x", "b": null, "c": 1e999}}')
    succeed("report", run)
    found = Read((run / "report.html").read_bytes())
    assert len(found.addresses) == 2 and "alert(1)" in found.words


def test_a_training_ends_with_its_page_and_failing_to_write_it_is_a_warning(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL)
    done = succeed("train", "--steps", 2, "--log-every", 1, "--sample-every", 1, "--text", HOSTILE.replace("\x1b", ""))
    assert "wrote report.html\n" in done.stderr
    found = Read(Path("report.html").read_bytes())
    assert len(found.addresses) == 2 and "a red" not in found.words and "environment" in found.words.lower()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_report, "replace_own", full)
    assert "warning: no report.html: No space left on device" in succeed("train", "--steps", 1).stderr


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(imagen("report"), 2, "no losses in metrics.jsonl")
    assert not os.listdir()

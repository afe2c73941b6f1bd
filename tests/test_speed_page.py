"""The page about speed says what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import report

    return report


def test_the_page_is_that_of_the_results(report):
    """Nobody wrote a number into it by hand, nor into the README's table."""
    results = ROOT / "benchmarks" / "results"
    assert report.PAGE.read_text() == report.page(results)
    text = report.README.read_text()
    assert report.with_block(text, report.block(results)) == text


def test_the_page_has_a_line_for_every_case(report):
    rows = [
        {"case": "a", "side": "ours", "unit": "step", "median": 0.5, "ratio": 1.0, "range": [1, 1], "memory": 7},
        {"case": "a", "side": "diffusers", "unit": "step", "median": 1.0, "ratio": 2.0, "range": [1.5, 2.5]},
        {"case": "b", "side": "ours", "unit": "file", "median": 2.0, "ratio": 1.0, "range": [1, 1]},
        {"case": "b", "side": "diffusers", "error": "no such thing"},
    ]
    lines = report.compared({"rows": rows}).splitlines()
    assert lines[2:] == ["| a | 500 ms a step, 7 MB | 2.00 (1.50 to 2.50) |", "| b | 2 s a file | fails |"]


@pytest.mark.parametrize(
    "name", ["compare", "quality", "reading", "saving", "solvers", "trainer_overhead", "video_memory"]
)
def test_every_benchmark_explains_itself(name):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr

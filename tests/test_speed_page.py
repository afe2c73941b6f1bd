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
    """Nobody wrote a number into it by hand, nor into the README's sentence."""
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


#: runs each program as if it had been called, in one interpreter: torch is imported once
HELP = """
import contextlib, io, runpy, sys
from pathlib import Path
for name in sys.argv[1:]:
    sys.argv, said = [name, "--help"], io.StringIO()
    sys.path.insert(0, str(Path(name).parent))
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(name, run_name="__main__")
    print(name if said.getvalue().startswith("usage:") else f"{name} does not explain itself: {said.getvalue()}")
"""


def test_every_benchmark_explains_itself():
    programs = [str(path) for path in sorted(ROOT.glob("benchmarks/*.py")) if "argparse" in path.read_text()]
    assert len(programs) >= 7
    done = subprocess.run([sys.executable, "-c", HELP, *programs], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == programs, done.stdout + done.stderr

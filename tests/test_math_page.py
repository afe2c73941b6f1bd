"""docs/math.md: the names that it uses exist, its sources are those of the code, and its code runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from imagen_pytorch.diffusion import multistep, process, samplers

ROOT = Path(__file__).resolve().parents[1]
ROOM = ROOT / "imagen_pytorch" / "diffusion"
PAGE = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
PROSE, CODE = re.sub(r"```.*?```", "", PAGE, flags=re.S), re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def identifiers() -> set[str]:
    """Every name that the files of the room define, take or use."""
    found = set()
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= {getattr(node, kind) for kind in ("id", "attr", "arg", "name") if hasattr(node, kind)}
    return found


def test_names_in_backticks_exist():
    quoted = re.findall(r"`([^`\n]+)`", PROSE)
    names = [name for text in quoted if (name := re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text))]
    assert len(names) > 50
    known = identifiers()
    for name in names:
        assert all(part in known for part in name[1].split(".")), f"{name[0]}: the code has no such name"
    paths = [text for text in quoted if "/" in text and " " not in text]
    assert paths and all((ROOT / path).exists() for path in paths)


def test_every_member_of_the_samplers_is_derived():
    for family in (samplers.SAMPLERS,):
        for name in family:
            made = type(family.make(name)).__name__
            assert f"`{made}`" in PROSE, f"{made} ({name}) is missing"


def test_sources_of_the_page_are_those_of_the_code():
    said = {number for path in ROOM.glob("*.py") for number in re.findall(r"\d{4}\.\d{5}", path.read_text("utf-8"))}
    assert set(re.findall(r"\d{4}\.\d{5}", PROSE)) <= said


def test_the_code_of_the_page_runs():
    assert len(CODE) == 1
    torch.manual_seed(0)
    exec(compile(CODE[0], "docs/math.md", "exec"), {})


@pytest.mark.parametrize("module", [samplers, multistep, process])
def test_files_begin_with_their_derivation(module):
    lines = module.__doc__.splitlines()
    assert sum(line.startswith("    ") for line in lines) >= 2, "formulas, indented"
    assert len(lines) >= 10

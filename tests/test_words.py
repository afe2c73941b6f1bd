"""Plain technical English: words that docstrings, comments, messages and pages do without."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagen_pytorch import data, tensors
from imagen_pytorch.data import base
from imagen_pytorch.diffusion import losses, multistep, samplers, schedules

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "imagen_pytorch"

WORDS = re.compile(r"\bpictures?\b|\bso many\b|\bnobody\b|\bsomebody\b|\bwhoever\b|\bis no (?!longer)|\bbehind\b", re.I)
#: quoted code, and the Unicode name of an emoji
CODE = re.compile(r"`+[^`]*`+|framed picture")
#: a docstring says what its object does or is: "Return ...", "The ..."
CLAUSES = re.compile(r"(What|Which|Whether|Where|Who|Whose|Why|How)\b")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring, comment and string of a source file, or every line of a page, with its line number."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    with path.open("rb") as file:
        marks = list(tokenize.tokenize(file.readline))
    yield from ((mark.start[0], mark.string) for mark in marks if mark.type == tokenize.COMMENT)


def wrong(path: Path) -> list[str]:
    """The words of a file that are to go, with their places; names of data (keys, quoted code) are no words."""
    prose = [(line, CODE.sub("", text)) for line, text in texts(path) if not text.isidentifier()]
    found = [(line, match[0]) for line, text in prose for match in WORDS.finditer(text)]
    if path.suffix == ".py":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(line, text[:40]) for line, text in docstrings(tree) if CLAUSES.match(text)]
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, word in found]


def room(path: Path) -> str:
    """The file or folder of the package, or the page, that a file belongs to."""
    inside = path.is_relative_to(PACKAGE)
    return path.relative_to(PACKAGE if inside else ROOT).parts[0].removesuffix(".py")


FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", sorted({room(path) for path in FILES}))
def test_words(name):
    found = [place for path in FILES if room(path) == name for place in wrong(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "earlier", "now"),
    [
        (data, "PictureDataset", "ImageDataset"),
        (base, "PictureDataset", "ImageDataset"),
        (schedules, "Level", "NoiseLevel"),
        (losses, "NoiseLevels", "NoiseLevelDistribution"),
        (tensors, "Share", "BatchShard"),
        (samplers, "Known", "Inpainting"),
        (samplers, "Noises", "NoiseSource"),
        (samplers, "Past", "HistoryEntry"),
        (samplers, "before", "last_x0"),
        (samplers, "corrupt", "add_noise"),
        (samplers, "exponential_step", "ddim_step"),
        (samplers, "fresh_noise", "draw_noise"),
        (samplers, "half_log_snr_step", "lambda_step"),
        (multistep, "AB2", "AdamsBashforth"),
        (multistep, "PC2", "PredictorCorrector"),
        (multistep, "DPMpp2MSDEMidpoint", "DPMpp2MSDE"),
    ],
)
def test_earlier_names_work_with_a_warning(module, earlier, now):
    with pytest.warns(DeprecationWarning, match=f"{earlier} is called {now} now.*version 4.0"):
        assert getattr(module, earlier) is getattr(module, now)
    with pytest.raises(AttributeError, match='has no attribute "no_such_name"'):
        module.no_such_name  # noqa: B018

"""How long, how wide and how plain the code may be; what the linter cannot say is said here."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from every_file import each_file

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "imagen_pytorch"

#: the most lines of all files of rooms that are to become smaller; a change that makes one smaller lowers its number
ROOMS = {("training", "trainer.py"): 5530, ("io", "checkpoints"): 3320}
MAX_FILE, MAX_FUNCTION, USUAL_FUNCTION, UNUSUAL_SHARE, MAX_PARAMETERS, MAX_COPY = 500, 60, 40, 0.02, 10, 5

Function = ast.FunctionDef | ast.AsyncFunctionDef

files = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


class Found(NamedTuple):
    """A function, its dotted name, whether it or what it stands in is private, and whether that is a function."""

    node: Function
    name: str
    private: bool
    nested: bool


def functions(node: ast.AST, outer: str = "", private: bool = False, nested: bool = False) -> Iterator[Found]:
    """Every function, methods and nested ones included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            hidden = private or (child.name.startswith("_") and not child.name.startswith("__"))
            name, function = f"{outer}{child.name}", isinstance(child, Function)
            if function:
                yield Found(child, name, hidden, nested)
            yield from functions(child, f"{name}.", hidden or function, nested or function)
        else:
            yield from functions(child, outer, private, nested)


@cache
def every_function() -> list[tuple[Path, Found]]:
    return [(path, found) for path in files for found in functions(tree(path))]


def body(node: Function) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


def length(node: Function, private: bool) -> int:
    """Lines from the signature to the end, without the docstring.

    A public signature that is a table of many options, one to a line, counts as one line.
    """
    lines = node.end_lineno - node.lineno + 1
    if not private and len(parameters(node)) > MAX_PARAMETERS:
        lines -= node.body[0].lineno - node.lineno - 1
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def parameters(node: Function) -> list[ast.arg]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [item for item in (*named, arguments.vararg, arguments.kwarg) if item and item.arg not in ("self", "cls")]


@each_file(files)
def test_files_are_short(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= MAX_FILE, f"{count} lines; split it at a noun"


@pytest.mark.parametrize("names", ROOMS, ids="+".join)
def test_rooms_do_not_grow(names):
    parts = [path for path in files if path.relative_to(PACKAGE).parts[0] in names]
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in parts)
    assert parts and count <= ROOMS[names], f"{count} lines; the room is to become smaller"


@each_file(files)
def test_functions_are_short_and_narrow(path):
    for node, name, private, _ in functions(tree(path)):
        lines = length(node, private)
        assert lines <= MAX_FUNCTION, f"{name}: {lines} lines"
        count = len(parameters(node))
        assert not private or count <= MAX_PARAMETERS, f"{name}: {count} parameters; gather them in a dataclass"


def test_long_functions_are_rare():
    every = [(length(found.node, found.private), f"{path.name}:{found.name}") for path, found in every_function()]
    unusual = sorted(item for item in every if item[0] > USUAL_FUNCTION)
    assert len(unusual) <= UNUSUAL_SHARE * len(every), f"{len(unusual)} of {len(every)}: {unusual}"


@each_file(files)
def test_everything_is_annotated(path):
    bare = []
    for node, name, *_ in functions(tree(path)):
        bare += [f"{name}({item.arg})" for item in parameters(node) if item.annotation is None]
        bare += [f"{name} ->"] if node.returns is None else []
    assert not bare, bare


@each_file(files)
def test_public_names_are_documented(path):
    assert ast.get_docstring(tree(path)), "the file says nothing about itself"
    public = [node for node in tree(path).body if isinstance(node, Function | ast.ClassDef)]
    classes = [node for node in public if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    public += [inner for node in classes for inner in node.body if isinstance(inner, Function)]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    overloads = {node.name for node in public for mark in node.decorator_list if "overload" in ast.unparse(mark)}
    assert not set(silent) - overloads, silent


@each_file(files)
def test_no_shortcuts(path):
    """No assert (a mistake deserves a sentence), no print, no bare except, no star import."""
    for node in ast.walk(tree(path)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert; raise ValueError or TypeError"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{where}: bare except"
        assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), f"{where}: print"
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), f"{where}: star import"


QUIET = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
BUSY_CALLS = set(
    "open mkdir read_text read_bytes urlopen get from_pretrained load system run seed manual_seed set_num_threads "
    "set_default_dtype basicConfig import_module".split()
)


@each_file(files)
def test_importing_does_nothing(path):
    """A module defines, names and registers; it opens, seeds, sets and connects nothing."""
    for node in tree(path).body:
        if isinstance(node, QUIET) and not isinstance(node, ast.AnnAssign):
            continue
        if isinstance(node, ast.If):
            condition = ast.unparse(node.test)
            assert "TYPE_CHECKING" in condition or "__name__" in condition, f"{path.name}:{node.lineno}"
            continue
        called = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called}
        assert not names & BUSY_CALLS, f"{path.name}:{node.lineno} calls {names & BUSY_CALLS} at import"


@each_file(files)
def test_keywords_are_not_swallowed(path):
    """``**kwargs`` exists only to be handed on or looked at; a null object takes whatever a real one would."""
    for node, name, *_ in functions(tree(path)):
        if node.args.kwarg is None:
            continue
        word = node.args.kwarg.arg
        used = [item for item in ast.walk(node) if isinstance(item, ast.Name) and item.id == word]
        assert used or name.startswith("Null"), f"{name}: **{word} disappears"


def ladder(node: ast.If) -> int:
    """The number of rungs ``x == "name"`` on the same ``x`` in an if / elif chain."""
    subjects: defaultdict[str, int] = defaultdict(int)
    current: ast.stmt | None = node
    while isinstance(current, ast.If):
        match current.test:
            case ast.Compare(left=subject, ops=[ast.Eq()], comparators=[ast.Constant(value=str())]):
                subjects[ast.unparse(subject)] += 1
        current = current.orelse[0] if len(current.orelse) == 1 else None
    return max(subjects.values(), default=0)


@each_file(files)
def test_families_are_registries_not_ladders(path):
    tall = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.If) and ladder(node) > 2]
    matches = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Match)]
    assert not tall + matches, f"a ladder over names at lines {tall + matches}; use a registry"


def code(path: Path, node: Function) -> list[tuple[int, str]]:
    """The executable lines of a function with their numbers; blank lines, brackets and comments aside."""
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = range(body(node)[0].lineno, node.end_lineno + 1) if body(node) else ()
    stripped = [(number, lines[number - 1].strip()) for number in numbers]
    return [(number, line) for number, line in stripped if len(line) > 3 and not line.startswith("#")]


def test_nothing_is_copied():
    """No six executable lines in a row occur twice."""
    places = defaultdict(list)
    for path, found in every_function():
        lines = [] if found.nested else code(path, found.node)
        for start in range(len(lines) - MAX_COPY):
            run = lines[start : start + MAX_COPY + 1]
            places["\n".join(line for _, line in run)].append(f"{path.relative_to(PACKAGE)}:{run[0][0]}")
    copies = {text: where for text, where in places.items() if len(where) > 1}
    assert not copies, "\n\n".join(f"{where}\n{text}" for text, where in copies.items())


def test_test_files_have_their_own_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))

"""Dependencies point downward: every import inside the package is read from its syntax tree and checked."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from every_file import each_file

PACKAGE = Path(__file__).resolve().parents[1] / "imagen_pytorch"

LAYERS = (
    ("version", "wording", "registry", "tensors", "images", "construction", "ranges", "lines", "renamed", "extensions",
     "parameters", "io"),
    ("diffusion", "nn", "text"),
    ("cascade", "data"),
    ("compat", "checkpoints", "model_files"),
    ("imagen",),
    ("signatures", "configs", "checkpoint", "export", "pretrained", "training", "trainer", "image_metadata",
     "evaluation", "profiling"),
    ("ui",),
    # doors: command line, lazy names, and files that only re-export what lives below under names people know
    ("cli", "__init__", "__main__", "imagen_pytorch", "elucidated_imagen", "imagen_video", "t5", "utils", "testing"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
#: layers whose rooms do not know each other
APART = (LEVEL["nn"], LEVEL["cascade"])
FOUNDATION = {"torch", "numpy", "einops", "jaxtyping", "PIL", "fsspec", "filelock"}

# packages that nobody should wait for before using them: imported inside the function that needs them
ON_USE = set(
    "transformers accelerate av datasets ema_pytorch PIL rich gcsfs s3fs pandas diffusers scipy sentencepiece "
    "tokenizers safetensors huggingface_hub requests fsspec filelock gradio".split()
)
FORBIDDEN = {"torchvision", "kornia", "beartype", "pytorch_warmup"}


class Import(NamedTuple):
    """One import statement: where it stands, what it names, and when it runs.

    ``eager`` is true if it runs when the module is imported, ``typed`` if it never runs, for annotations.
    """

    line: int
    module: str
    eager: bool
    typed: bool


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The file or folder of the package that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _typing_only(node: ast.If) -> bool:
    return any(isinstance(name, ast.Name) and name.id == "TYPE_CHECKING" for name in ast.walk(node.test))


def _statements(node: ast.AST, eager: bool = True, typed: bool = False) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, eager and not typed, typed
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        annotates = isinstance(child, ast.If) and _typing_only(child)
        yield from _statements(child, eager and not inside, typed or annotates)


def imports(path: Path) -> list[Import]:
    """Every import of a file with absolute module names; ``from . import x`` counts as importing ``x``."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node, *kind in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, *kind) for alias in node.names]
            continue
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        if node.module is None or module == PACKAGE.name:
            found += [Import(node.lineno, f"{module}.{alias.name}", *kind) for alias in node.names]
        else:
            found.append(Import(node.lineno, module, *kind))
    return found


def inner(name: str) -> str | None:
    """The room that an absolute module name points to, or None outside the package."""
    parts = name.split(".")
    return (parts[1] if len(parts) > 1 else "__init__") if parts[0] == PACKAGE.name else None


@each_file(files())
def test_imports_point_downward(path):
    here = room(path)
    assert here in LEVEL, f"{here} is in no layer: add it to LAYERS and to docs/architecture.md"
    wrong = []
    for line, module, _, typed in imports(path):
        there = inner(module)
        if typed or there is None or there == here:  # annotations may name what lies above
            continue
        there = there if there in LEVEL else "__init__"  # `from imagen_pytorch import Name`
        upward = LEVEL[there] > LEVEL[here]
        sideways = LEVEL[there] == LEVEL[here] in APART
        if upward or sideways:
            wrong.append(f"{path.name}:{line} imports {module} ({'upward' if upward else 'sideways'})")
    assert not wrong, "\n".join(wrong)


@each_file(files())
def test_heavy_packages_are_imported_on_use(path):
    roots = [(line, module.split(".")[0], eager) for line, module, eager, _ in imports(path)]
    assert not [f"{path.name}:{line} imports {root}" for line, root, _ in roots if root in FORBIDDEN]
    assert not [f"{path.name}:{line} imports {root} eagerly" for line, root, eager in roots if eager and root in ON_USE]


@each_file(path for path in files() if LEVEL.get(room(path)) == 0)
def test_the_foundation_needs_little(path):
    allowed = FOUNDATION | set(sys.stdlib_module_names) | {PACKAGE.name}
    assert {item.module.split(".")[0] for item in imports(path)} <= allowed


def module_name(path: Path) -> str:
    parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_circles():
    """The modules can be put into one order in which each names only earlier ones, be it in a function or for types."""
    modules = {module_name(path): path for path in files()}
    needs = {name: {item.module for item in imports(path)} & modules.keys() for name, path in modules.items()}
    refuse_circles(needs)


def test_no_circles_of_rooms():
    """So can the rooms."""
    needs: dict[str, set[str]] = {room(path): set() for path in files()}
    for path in files():
        needs[room(path)] |= {inner(item.module) for item in imports(path)} & needs.keys()
    refuse_circles(needs)


def refuse_circles(needs: dict[str, set[str]]) -> None:
    """Fail if what names what cannot be put into one order."""
    while ready := [name for name, needed in needs.items() if not needed & needs.keys() - {name}]:
        for name in ready:
            del needs[name]
    assert not needs, f"these import each other: {sorted(needs)}"


@each_file(path for path in files() if path.name != "__init__.py")
def test_no_import_hides_behind_a_name(path):
    """Members of a family are found by `registry.import_members`, and lazy names by `__init__.py`; nothing else is."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = [node for node in calls if "import_module" in ast.unparse(node.func)]
    relative = [node for node in named if len(node.args) > 1 or ast.unparse(node.args[0]).startswith(("'.", "f'."))]
    assert not [node.lineno for node in relative]

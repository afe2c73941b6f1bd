"""Parts of a user's own: files that register members of families, and packages that are found by an entry point."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

#: group of entry points whose modules register members; they are imported when a name is unknown
GROUP = "imagen_pytorch"


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file, so that the members of families in it are registered. Each file is imported once.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the file raises an error; it is named.
    """
    place = Path(path).expanduser().resolve()
    if not place.is_file():
        raise FileNotFoundError(f"no file {path} to import")
    name = f"{GROUP}_imported_{place.stem}_{abs(hash(place)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file (.py)")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ImportError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


@functools.cache
def import_entry_points() -> None:
    """Import the modules of all installed packages that have an entry point in `GROUP`, once in a process.

    A module that raises an error is named in a warning.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            text = f'the entry point "{point.name}" ({point.value}) cannot be imported: {type(error).__name__}: {error}'
            warnings.warn(text, stacklevel=2)

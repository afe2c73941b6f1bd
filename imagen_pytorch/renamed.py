"""Names of version 3.0 that have changed since: they keep working until version 4.0, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module whose names have changed.

    Args:
        module: ``__name__`` of the module.
        names: the earlier name and the present one.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module "{module}" has no attribute "{name}"')
        sentence = f"{module}.{name} is called {names[name]} now; the earlier name goes with version 4.0"
        warnings.warn(sentence, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return find

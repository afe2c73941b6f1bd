"""Small tools that users reach through ``imagen_pytorch.utils``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checkpoint import load_imagen_from_checkpoint

__all__ = ["load_imagen_from_checkpoint", "safeget"]


def safeget(dictionary: Mapping[str, Any], keys: str | Sequence[str], default: Any = None) -> Any:
    """Look up ``"a.b.c"`` or ``["a", "b", "c"]`` in nested dictionaries; ``default`` where the path ends early."""
    value: Any = dictionary
    for key in keys.split(".") if isinstance(keys, str) else keys:
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value

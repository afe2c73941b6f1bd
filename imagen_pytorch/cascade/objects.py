"""Options that are small objects, made from a name or from a mapping of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ..registry import suggestion
from ..tensors import per_stage

Kind = TypeVar("Kind")


def option_objects(kind: type[Kind], value: Any, count: int, name: str) -> tuple[Kind | None, ...]:
    """Return the object of an option for each U-Net, None where it is off.

    Args:
        kind: a dataclass that checks its fields.
        value: None, a mapping of fields, or the value of the first field; or a list of these, one per U-Net.
        count: number of U-Nets.
        name: of the option, with which every message begins.

    Raises:
        ValueError: an unknown field, a value out of range, or another number of entries than U-Nets.
        TypeError: a value of another kind.
    """
    return tuple(None if item is None else _option_object(kind, item, name) for item in per_stage(value, count, name))


def _option_object(kind: type[Kind], value: Any, name: str) -> Kind:
    known = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
    named = dict(value) if isinstance(value, Mapping) else {known[0]: value}
    for key in named:
        if key not in known:
            raise ValueError(f'{name} has no "{key}"{suggestion(key, known)}; it has {", ".join(known)}')
    needed = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    if missing := [key for key in needed if key not in named]:
        raise ValueError(f'{name} needs "{missing[0]}"')
    try:
        return kind(**named)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error

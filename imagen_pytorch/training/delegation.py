"""Names of an object that stand for those of its parts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def methods_of(kind: type, part: str, names: str) -> Iterator[Callable[..., Any]]:
    """Return methods that call those of a part of class ``kind``, which the attribute ``part`` holds: one for each of
    the names between blanks, with their docstrings."""
    return (_method(kind, part, name) for name in names.split())


def _method(kind: type, part: str, name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(kind, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(getattr(self, part), name)(*args, **kwargs)

    return call


def attributes_of(part: str, names: str) -> Iterator[property]:
    """Yield properties that read and set attributes of a part, one for each of the names between blanks."""
    for name in names.split():

        def read(self: Any, name: str = name) -> Any:
            return getattr(getattr(self, part), name)

        def write(self: Any, value: Any, name: str = name) -> None:
            setattr(getattr(self, part), name, value)

        yield property(read, write, doc=f"The attribute ``{name}`` of ``{part}``.")


def arguments_of(part: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given arguments that the constructor of a part takes."""
    names = list(inspect.signature(part.__init__).parameters)[1:]  # type: ignore[misc]
    return {name: given[name] for name in names if name in given}

"""Objects that remember how they were made, so that a checkpoint can make them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def records_construction(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of ``__init__``: keeps the arguments that were given, by name, in ``self._locals``.

    Only what was given is kept: a default that changes later must not be frozen into every checkpoint.
    A subclass that calls ``super().__init__`` keeps its own arguments. Arguments that a class names in ``_unrecorded``
    are left out: networks, for one, are parts of the object already. The name of the class is kept for `class_name`.
    Numbers of NumPy and of torch become Python's before the constructor sees them.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        args = tuple(_python(value) for value in args)
        kwargs = {name: _python(value) for name, value in kwargs.items()}
        bound = signature.bind(self, *args, **kwargs).arguments
        given = {name: value for name, value in list(bound.items())[1:] if name != "kwargs"} | bound.get("kwargs", {})
        init(self, *args, **kwargs)
        left_out = getattr(type(self), "_unrecorded", ())
        self._locals = {name: value for name, value in given.items() if name not in left_out}
        self._made_as = type(self).__name__

    return wrapper


def _python(value: Any) -> Any:
    """A number of NumPy or torch, alone or in a list, as a Python number; everything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(_python(item) for item in value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def class_name(made: Any) -> str:
    """The name of the class that an object was made as: sharding puts its own class in the place of a network's."""
    return getattr(made, "_made_as", type(made).__name__)


def plain(value: Any) -> Any:
    """A value as plain containers (tuples become lists); enums become their values.

    Raises:
        TypeError: something that a checkpoint must not hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written into a checkpoint; use names, numbers, lists and dicts")

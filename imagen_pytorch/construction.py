"""Objects that record their constructor's arguments, so that a checkpoint can build them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def records_construction(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate ``__init__`` to keep the given arguments, by name, in ``self._locals``.

    Only given arguments are kept: a default that changes later must not be frozen into every checkpoint.
    A subclass that calls ``super().__init__`` keeps its own arguments. Arguments that a class names in ``_unrecorded``
    are left out, for example networks, which are parts of the object already. The name of the class is kept for
    `class_name`. Numbers of NumPy and of torch become Python's before the constructor gets them.
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
    """Convert a number of NumPy or torch, alone or in a list, to a Python number. Other values pass unchanged."""
    if type(value) in (list, tuple):
        return type(value)(_python(item) for item in value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def class_name(made: Any) -> str:
    """Return the name of the class that an object was built as. Sharding replaces the class of a network by its own."""
    return getattr(made, "_made_as", type(made).__name__)


def plain(value: Any) -> Any:
    """Convert a value to plain containers (tuples become lists). Enums become their values.

    Raises:
        TypeError: a value that a checkpoint must not hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written into a checkpoint; use names, numbers, lists and dicts")

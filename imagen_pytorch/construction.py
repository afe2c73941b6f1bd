"""Objects that record their constructor's arguments, so that a checkpoint can build them again; and models that are
built without memory, so that those that are too large are refused before memory is taken."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as hooks

Made = TypeVar("Made")


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
    """Convert a value to plain containers (tuples become lists). Enums become their values; a TypeError for a value
    that a checkpoint must not hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written into a checkpoint; use names, numbers, lists and dicts")


# -- models without memory --------------------------------------------------------------------------------------------


class ModelTooLarge(ValueError):
    """A model has more weights or parts than allowed."""


def main_memory() -> int:
    """Return the bytes of memory of this machine; a very large number where the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 50


def build_on_meta(make: Callable[[], Made], weights: int = 1 << 50, parts: int = 1 << 20) -> Made:
    """Build a model on the device "meta": its tensors have shapes only.

    Weights and parts are counted while it is built: a description of a billion blocks would fill the memory with
    modules before a finished model could be counted.

    Args:
        make: constructs it, in this thread.
        weights: largest number of elements of all parameters and buffers together.
        parts: largest number of parameters, buffers and modules.

    Raises:
        ModelTooLarge: it has more of them.
        NotImplementedError: a network reads its weights while it is built.
        Exception: any other error of the constructor.
    """
    thread, limits, seen = threading.get_ident(), {"weights": weights, "parts": parts}, {"weights": 0, "parts": 0}

    def count(_owner: nn.Module, _name: str, item: Any) -> None:
        if threading.get_ident() != thread:
            return
        seen["parts"] += 1
        seen["weights"] += item.numel() if isinstance(item, torch.Tensor) else 0
        for kind, most in limits.items():
            if seen[kind] > most:
                raise ModelTooLarge(f"its networks have more than {most:,} {kind}")

    with ExitStack() as stack:
        for kind in ("parameter", "buffer", "module"):
            stack.callback(getattr(hooks, f"register_module_{kind}_registration_hook")(count).remove)
        with torch.device("meta"):
            return make()

"""Checks of numbers and names that a caller gives, with messages that name the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from ..ranges import check_number, check_whole, plain_number
from ..registry import Registry
from ..tensors import per_stage

#: largest number of sampling steps
MAX_STEPS = 100_000
#: largest number of images of one call, and of frames of a clip
MAX_IMAGES = 1_000_000
#: modes of `torch.compile`
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_fraction(value: Any, name: str) -> float:
    """Check that a number lies between 0 and 1, and return it.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or NaN.
    """
    return check_number(value, name, 0, 1)


def check_positive(value: Any, name: str) -> float:
    """Check that a number is finite and above 0, and return it.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or NaN.
    """
    return check_number(value, name, 0, 1e6, above=True)


def check_scale(value: Any, name: str = "cond_scale") -> float:
    """Check a guidance weight and return it.

    Raises:
        TypeError: not a number.
        ValueError: not finite, or absurdly large.
    """
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not abs(number) <= 1e6:
        raise ValueError(f"{name} must be a finite number (1 turns guidance off, 3 to 10 are usual), got {number}")
    return float(number)


def check_name(value: Any, name: str) -> str:
    """Check that the name of a choice is a string, and return it.

    Raises:
        TypeError: not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, got {value!r}")
    return value


def check_member(family: Registry[Any], value: Any, name: str, *prepared: Any) -> Any:
    """Return the member of a family that a caller describes, with its parameters.

    Args:
        family: the family.
        value: a name, "name(key=value)", a mapping with "name", or an object.
        name: of the argument.
        prepared: objects that give the parameters which ``value`` leaves out, as `Registry.make` takes them.

    Raises:
        TypeError: another value, or a parameter of another kind.
        ValueError: an unknown member or parameter, or a value out of range.
    """
    if not family.fits(value):
        fits = "a function" if family.base is None else f"a {family.base.__name__}"
        raise TypeError(f"{name} must be a name, a mapping with a name, or {fits}; got {value!r}")
    return family.make(value, *prepared)


def check_flag(value: Any, name: str) -> bool:
    """Check a switch: True or False, also as 1, 0 or None.

    Raises:
        TypeError: another value, which would count as true.
    """
    if value is not None and not (isinstance(value, bool | Real | np.bool_) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_compile(value: Any) -> bool | str:
    """Check that networks are to be compiled, or in which mode, and return the argument.

    Raises:
        ValueError: an unknown mode.
    """
    if not isinstance(value, bool) and value not in COMPILE_MODES:
        raise ValueError(f"compile must be True, False or one of {', '.join(COMPILE_MODES)}; got {value!r}")
    return value


def check_unet_number(value: Any, count: int, name: str = "unet_number") -> int:
    """Check the 1-based number of one of ``count`` U-Nets, and return it.

    Raises:
        TypeError: not a number.
        ValueError: not an integer, or a U-Net that does not exist.
    """
    number = check_whole(value, name, -math.inf)
    if not 1 <= number <= count:
        raise ValueError(f"{name}: U-Nets are numbered 1 to {count}, got {number}")
    return number


def check_each(
    value: Any, count: int, name: str, check: Callable[..., Any], *range_: float, optional: bool = True
) -> None:
    """Check a per-U-Net argument.

    Args:
        optional: an entry may be None, which is not checked.

    Raises:
        TypeError: as ``check``.
        ValueError: as ``check``, or another number of entries than U-Nets.
    """
    for item in per_stage(value, count, name):
        if item is not None or not optional:
            check(item, name, *range_)

"""Numbers and names that a caller states: their kinds and ranges, refused with a sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from ..ranges import check_number, check_whole, plain_number
from ..tensors import per_stage

#: most sampling steps, noise levels of a run
MOST_STEPS = 100_000
#: most images of one call, and most frames of a clip
MOST_IMAGES = 1_000_000
#: modes of `torch.compile`
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_share(value: Any, name: str) -> float:
    """A number between 0 and 1.

    Raises:
        TypeError: not a number.
        ValueError: outside of the range, or NaN.
    """
    return check_number(value, name, 0, 1)


def check_positive(value: Any, name: str) -> float:
    """A finite number above 0.

    Raises:
        TypeError: not a number.
        ValueError: outside of the range, or NaN.
    """
    return check_number(value, name, 0, 1e6, above=True)


def check_scale(value: Any, name: str = "cond_scale") -> float:
    """A guidance weight.

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
    """The name of a choice.

    Raises:
        TypeError: not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, got {value!r}")
    return value


def check_flag(value: Any, name: str) -> bool:
    """A switch: True or False, also as 1, 0 or None.

    Raises:
        TypeError: something else, which would count as true.
    """
    if value is not None and not (isinstance(value, bool | Real | np.bool_) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_compile(value: Any) -> bool | str:
    """Whether, or in which mode, networks are compiled.

    Raises:
        ValueError: no such mode.
    """
    if not isinstance(value, bool) and value not in COMPILE_MODES:
        raise ValueError(f"compile must be True, False or one of {', '.join(COMPILE_MODES)}; got {value!r}")
    return value


def check_unet_number(value: Any, count: int, name: str = "unet_number") -> int:
    """The 1-based number of one of ``count`` U-Nets.

    Raises:
        TypeError: not a number.
        ValueError: a fraction, or no such U-Net.
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
        optional: whether an entry may be None, which is not checked.

    Raises:
        TypeError: as ``check``.
        ValueError: as ``check``, or another number of entries than U-Nets.
    """
    for item in per_stage(value, count, name):
        if item is not None or not optional:
            check(item, name, *range_)

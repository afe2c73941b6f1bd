"""Checks of the type and range of numbers that a caller gives, with messages that name the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def plain_number(value: Any) -> Any:
    """Return a tensor of one element as a number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value


def check_whole(value: Any, name: str, low: float = 1, high: int | None = None) -> int:
    """Check that a value is an integer in a range, and return it.

    Raises:
        TypeError: not a number.
        ValueError: not an integer, or out of range.
    """
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not isinstance(number, Integral):
        raise ValueError(f"{name} must be a whole number, got {number}")
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    if high is not None and number > high:
        raise ValueError(f"{name} must be at most {high:,}, got {number:,}")
    return int(number)


def check_number(value: Any, name: str, low: float, high: float, *, above: bool = False) -> float:
    """Check that a value is a number in a range, and return it.

    Args:
        above: the range excludes its lower end.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or NaN.
    """
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= number <= high or (above and number == low):
        if high == math.inf:
            fits = f"be {'above' if above else 'at least'} {low:g}"
        else:
            fits = f"{'be above' if above else 'lie between'} {low:g} and {'at most ' if above else ''}{high:g}"
        raise ValueError(f"{name} must {fits}, got {number}")
    return float(number)

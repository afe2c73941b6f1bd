"""Numbers that a caller states: their kinds and ranges, refused with a sentence that names the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def plain_number(value: Any) -> Any:
    """A tensor of one element as a number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value


def check_whole(value: Any, name: str, low: float = 1, high: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        TypeError: not a number.
        ValueError: a fraction, or outside of the range.
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
    """A number in a range.

    Args:
        above: whether the range leaves out its lower end.

    Raises:
        TypeError: not a number.
        ValueError: outside of the range, or NaN.
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

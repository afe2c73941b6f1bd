"""Numbers and names that a caller states: their kinds and ranges, refused with a sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from ..tensors import per_stage

#: most sampling steps, noise levels of a run
MOST_STEPS = 100_000
#: most images of one call, and most frames of a clip
MOST_IMAGES = 1_000_000
#: modes of `torch.compile`
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def _item(value: Any) -> Any:
    """A tensor of one element as a number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value


def check_whole(value: Any, name: str, low: float = 1, high: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        TypeError: not a number.
        ValueError: a fraction, or outside of the range.
    """
    number = _item(value)
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
    number = _item(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= number <= high or (above and number == low):
        if high == math.inf:
            fits = f"be {'above' if above else 'at least'} {low:g}"
        else:
            fits = f"{'be above' if above else 'lie between'} {low:g} and {'at most ' if above else ''}{high:g}"
        raise ValueError(f"{name} must {fits}, got {number}")
    return float(number)


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
    number = _item(value)
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


def check_compile(value: Any) -> bool | str:
    """Whether, or in which mode, networks are compiled.

    Raises:
        ValueError: no such mode.
    """
    if not isinstance(value, bool) and value not in COMPILE_MODES:
        raise ValueError(f"compile must be True, False or one of {', '.join(COMPILE_MODES)}; got {value!r}")
    return value


def check_each(value: Any, count: int, name: str, check: Callable[..., Any], *range_: float) -> None:
    """Check a per-U-Net argument; entries that are None are left out.

    Raises:
        TypeError: as ``check``.
        ValueError: as ``check``, or another number of entries than U-Nets.
    """
    for item in per_stage(value, count, name):
        if item is not None:
            check(item, name, *range_)

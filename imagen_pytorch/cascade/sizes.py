"""Sizes of the stages of a cascade."""

from __future__ import annotations

from typing import Any

from ..images import Size, as_size
from ..tensors import per_stage


def stage_sizes(given: Any, count: int) -> tuple[Size, ...]:
    """Return one (height, width) per stage from one size, or one size per stage.

    Raises:
        TypeError: a value of another type.
        ValueError: another number of sizes than U-Nets, or a stage smaller than the one before.
    """
    if not isinstance(given, int | list | tuple):
        raise TypeError(f"image_sizes must be an int, or one int or (height, width) for each U-Net; got {given!r}")
    single = isinstance(given, int) or (count == 1 and is_pair(given))
    sizes = tuple(as_size(size) for size in ((given,) if single else given))
    if len(sizes) != count:
        raise ValueError(f"{count} U-Nets need as many image_sizes, got {len(sizes)}: {given}")
    for low, high in zip(sizes, sizes[1:], strict=False):
        if high[0] < low[0] or high[1] < low[1]:
            raise ValueError(f"image_sizes must not shrink from stage to stage, got {given}")
    return sizes


def plain_size(size: Size) -> int | Size:
    """Return the side of a square, else (height, width)."""
    return size[0] if size[0] == size[1] else size


def is_pair(value: Any) -> bool:
    """Return true for a (height, width)."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)


def crop_entries(value: Any, count: int) -> tuple[Any, ...]:
    """Return ``random_crop_sizes`` per stage. A single number applies to all but the first."""
    if isinstance(value, int):
        return (None,) * (count > 1) + (value,) * (count - (count > 1))
    return per_stage(value, count, "random_crop_sizes")

"""Sampling from a model in training: only through stages that are trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn


def untrained(unet: nn.Module) -> bool:
    """Whether a network is as it was made: its last layer, which starts at zero, still is zero."""
    last = getattr(unet, "final_conv", None)
    return last is not None and not any(bool(item.any()) for item in last.parameters())


def last_trained(unets: Sequence[nn.Module], steps: Sequence[int], first: int = 1) -> int:
    """Number of the last U-Net up to which, from ``first`` on, all are trained; ``first - 1`` if none is.

    A U-Net counts as trained if this trainer has updated it or it came with trained weights. Placeholders count.
    """
    number = first - 1
    for unet, taken in list(zip(unets, steps, strict=True))[first - 1 :]:
        if not taken and not getattr(unet, "is_null", False) and untrained(unet):
            break
        number += 1
    return number


def stop_before_untrained(
    arguments: dict[str, Any], unets: Sequence[nn.Module], steps: Sequence[int]
) -> dict[str, Any]:
    """The arguments of `Cascade.sample`, stopping at the last trained stage unless told where to stop; with a warning.

    If not even the first stage is trained the whole cascade runs, for its shapes.
    """
    first = arguments.get("start_at_unet_number", 1)
    stop = arguments.get("stop_at_unet_number")
    last = last_trained(unets, steps, first)
    if last >= (stop or len(unets)):
        return arguments
    if stop is not None or last < first:
        warnings.warn(f"U-Net {last + 1} has not been trained yet: its pictures are noise", stacklevel=4)
        return arguments
    warnings.warn(
        f"U-Net {last + 1} has not been trained yet: sampling stops at U-Net {last}; stop_at_unet_number overrides it",
        stacklevel=4,
    )
    return arguments | {"stop_at_unet_number": last}

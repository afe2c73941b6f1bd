"""Directions of motion of generated clips, measured by the centre of their brightness, and those of their captions.

For clips of `MovingDigits` and others with something bright over a dark background, and captions such as "the digit 3
moves up and left".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.moving_digits import DIRECTIONS, centre_track
from .intervals import fraction_interval

#: Darker values count as background.
GROUND = 0.2
#: Fraction of the side that a clip must move in its first half to count as moving.
LEAST = 0.03

_NAMES = "|".join(sorted(DIRECTIONS, key=len, reverse=True))
_MOVES = re.compile(rf"\bmoves (?:to the )?({_NAMES})\b")


def caption_direction(caption: str) -> Float[Tensor, "2"] | None:
    """Return the mean direction that a caption names, (down, right) of length one, or None if it names none."""
    found = [torch.tensor(DIRECTIONS[name], dtype=torch.float32) for name in _MOVES.findall(caption)]
    if not found:
        return None
    total = torch.stack([way / way.norm() for way in found]).sum(0)
    return total / total.norm() if total.norm() > 1e-3 else None


def movement(video: Float[Tensor, "c f h w"]) -> Float[Tensor, "2"]:
    """Return the movement of the brightness in the first half of a clip, as (down, right) in sides of the frame.

    A straight line is fitted to its centre in those frames, because things bounce later. A single frame does not move.
    """
    steps = video.shape[1] // 2
    if not steps:
        return torch.zeros(2)
    track = centre_track(video[:, : steps + 1].float().cpu(), threshold=GROUND)
    when = torch.arange(steps + 1, dtype=torch.float32) - steps / 2
    slope = when @ (track - track.mean(0)) / (when @ when)
    return slope * steps / torch.tensor([float(side) for side in video.shape[-2:]])


def follows(moved: Float[Tensor, "2"], wanted: Float[Tensor, "2"], tolerance: float = 45.0) -> bool:
    """Return true for a movement of at least `LEAST` that is less than ``tolerance`` degrees off the wanted
    direction."""
    length = float(moved.norm())
    return length >= LEAST and float(moved @ wanted) / length > math.cos(math.radians(tolerance))


def tolerance_between(directions: Sequence[Tensor]) -> float:
    """Return half of the smallest angle between two different directions, in degrees, at most 45.

    A direction within this angle of one of them is closer to it than to any other.
    """
    angles = sorted({round(math.degrees(math.atan2(*way.tolist())) % 360, 3) for way in directions})
    gaps = [after - before for before, after in zip(angles, [*angles[1:], *(a + 360 for a in angles[:1])], strict=True)]
    return min([45.0, *(gap / 2 for gap in gaps if gap > 1e-2)])


def motion_figures(
    made: Float[Tensor, "b c f h w"], real: Float[Tensor, "b c f2 h2 w2"], captions: Sequence[str]
) -> dict[str, Any]:
    """Compute the fraction of generated clips that move as in their captions, of real clips, and of chance.

    Args:
        made, real: in [0, 1], one of each per caption.
        captions: those that name no direction are left out.

    Returns:
        ``clips`` that were judged, the shares ``generated``, ``real`` and ``chance``, the ends ``low`` and ``high`` of
        the 95 % interval of ``generated``, ``tolerance`` in degrees, and by the name of each direction ``by_direction``
        the share of the generated clips. Empty if no caption names one.

    Raises:
        ValueError: other numbers of clips than captions.
    """
    if not len(made) == len(real) == len(captions):
        raise ValueError(f"{len(captions)} captions need as many clips, got {len(made)} and {len(real)}")
    ways = {index: way for index, text in enumerate(captions) if (way := caption_direction(text)) is not None}
    if not ways:
        return {}
    tolerance = tolerance_between(list(ways.values()))
    right = {
        kind: {index: follows(movement(clips[index]), way, tolerance) for index, way in ways.items()}
        for kind, clips in (("generated", made), ("real", real))
    }
    groups: dict[str, list[bool]] = {}
    for index in ways:
        groups.setdefault(" + ".join(_MOVES.findall(captions[index])), []).append(right["generated"][index])
    shares = {kind: sum(results.values()) / len(ways) for kind, results in right.items()}
    interval = fraction_interval(shares["generated"], len(ways))
    return {
        "clips": len(ways),
        **shares,
        "low": interval.low,
        "high": interval.high,
        "chance": tolerance / 180,
        "tolerance": tolerance,
        "by_direction": {name: sum(results) / len(results) for name, results in sorted(groups.items())},
    }

"""How the frames of a batch of clips lie in memory, for the few layers that mix them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

#: Frames per second where nobody says how fast a clip is.
USUAL_FPS = 8.0


@dataclass(frozen=True)
class Frames:
    """Which rows of a map ``(b f) c h w`` are the frames of one clip, and when they were taken.

    Attributes:
        count: frames of a clip; they lie one behind the other in the batch, in the order of their times.
        gaps: seconds from each frame (row) to each other (column), ``(b, f, f)``, or ``(1, f, f)`` if all clips have
            the same.
        apart: ``(b,)``, true for clips whose frames are independent pictures; None if there are none of these.
    """

    count: int
    gaps: Float[Tensor, "b2 f f"]
    apart: Bool[Tensor, " b"] | None = None

    def clips(self, x: Float[Tensor, "bf *rest"]) -> Float[Tensor, "b f *rest"]:
        """A batch of frames as a batch of clips."""
        return x.unflatten(0, (-1, self.count))

    def unless_apart(self, mixed: Float[Tensor, "bf *rest"], x: Float[Tensor, "bf *rest"]) -> Float[Tensor, "bf *rest"]:
        """What a layer made of the frames; of independent pictures what they were before it."""
        if self.apart is None:
            return mixed
        apart = self.apart.repeat_interleave(self.count).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(apart, x, mixed)

    def squeezed(self, stride: int, causal: bool) -> Frames:
        """The frames behind a layer that makes one of ``stride``: each at the time of the first of its group if it must
        not know the others, else in the middle of the group."""
        gaps = self.gaps[:, ::stride, ::stride]
        if not causal:
            gaps = F.avg_pool2d(self.gaps[:, None], stride)[:, 0]
        return replace(self, count=self.count // stride, gaps=gaps)


def moved_on(hidden: Float[Tensor, "bf n d"], frames: Frames, share: Float[Tensor, ""]) -> Float[Tensor, "bf n d"]:
    """Half of the features moved to the next frame ("token shift", Zhang et al. 2021, arXiv 2108.02432).

    Args:
        share: 0 moves nothing, 1 everything. The first frame keeps its own.
    """
    own, kept = frames.clips(hidden).chunk(2, dim=-1)
    before = torch.cat([own[:, :1], own[:, :-1]], dim=1)
    shifted = torch.cat([torch.lerp(own, before, share.to(own.dtype)), kept], dim=-1).flatten(0, 1)
    return frames.unless_apart(shifted, hidden)


def usual_times(count: int, fps: float | Tensor = USUAL_FPS, first: int = 0, step: int = 1) -> Float[Tensor, "b f"]:
    """Times of frames at a steady rate, in seconds: every ``step``-th from frame ``first`` on.

    Args:
        count: number of frames.
        fps: frames per second, one number or one per clip ``(b,)``.
    """
    places = first + step * torch.arange(count, dtype=torch.float64)
    rates = torch.as_tensor(fps, dtype=torch.float64).reshape(-1, 1)
    return places.to(rates.device) / rates

"""The layout of the frames of a batch of clips, for the few layers that mix them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

#: default frames per second, if the rate of a clip is not given
USUAL_FPS = 8.0


@dataclass(frozen=True)
class Frames:
    """The rows of a map ``(b f) c h w`` that are the frames of one clip, and their times.

    Attributes:
        count: frames of a clip. They are consecutive in the batch, in the order of their times.
        time_deltas: seconds from each frame (row) to each other (column), ``(b, f, f)``, or ``(1, f, f)`` if all clips
            have the same.
        independent: ``(b,)``, true for clips whose frames are independent images; None if there are none of these.
    """

    count: int
    time_deltas: Float[Tensor, "b2 f f"]
    independent: Bool[Tensor, " b"] | None = None

    def clips(self, x: Float[Tensor, "bf *rest"]) -> Float[Tensor, "b f *rest"]:
        """Reshape a batch of frames to a batch of clips."""
        return x.unflatten(0, (-1, self.count))

    def unless_independent(
        self, mixed: Float[Tensor, "bf *rest"], x: Float[Tensor, "bf *rest"]
    ) -> Float[Tensor, "bf *rest"]:
        """Return the output of a layer, and its input for clips of independent images."""
        if self.independent is None:
            return mixed
        independent = self.independent.repeat_interleave(self.count).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(independent, x, mixed)

    def downsampled(self, stride: int, causal: bool) -> Frames:
        """Return the frames after a layer that merges ``stride`` of them into one. The time is that of the first frame
        of a group in a causal network, else the middle of the group."""
        time_deltas = self.time_deltas[:, ::stride, ::stride]
        if not causal:
            time_deltas = F.avg_pool2d(self.time_deltas[:, None], stride)[:, 0]
        return replace(self, count=self.count // stride, time_deltas=time_deltas)


def shift_tokens(hidden: Float[Tensor, "bf n d"], frames: Frames, share: Float[Tensor, ""]) -> Float[Tensor, "bf n d"]:
    """Shift half of the features to the next frame ("token shift", Zhang et al. 2021, arXiv 2108.02432).

    Args:
        share: fraction that is shifted, 0 to 1. The first frame keeps its own features.
    """
    own, kept = frames.clips(hidden).chunk(2, dim=-1)
    before = torch.cat([own[:, :1], own[:, :-1]], dim=1)
    shifted = torch.cat([torch.lerp(own, before, share.to(own.dtype)), kept], dim=-1).flatten(0, 1)
    return frames.unless_independent(shifted, hidden)


def usual_times(count: int, fps: float | Tensor = USUAL_FPS, first: int = 0, step: int = 1) -> Float[Tensor, "b f"]:
    """Return the times of frames at a constant rate, in seconds: every ``step``-th from frame ``first`` on.

    Args:
        count: number of frames.
        fps: frames per second, one number or one per clip ``(b,)``.
    """
    places = first + step * torch.arange(count, dtype=torch.float64)
    rates = torch.as_tensor(fps, dtype=torch.float64).reshape(-1, 1)
    return places.to(rates.device) / rates

"""The frames that a stage generates and their times, for training and sampling alike.

The inputs of a video cascade are clips at the full frame rate, that of its last stage. A stage with a
``temporal_downsample_factor`` of k generates every k-th of their frames, each at its true time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..images import Size, resample_frames, resize
from ..tensors import Generators, rand
from .inputs import check_rates, check_times, checked_images
from .lowres import lowres_version
from .stage import Stage

if TYPE_CHECKING:
    from .base import CascadeBase

Rate = float | Sequence[float] | Tensor | None


@dataclass(frozen=True)
class ClipInput:
    """The arguments of a call about frames. See `Cascade.training_batch` and `Cascade.sample`."""

    cond_video_frames: Tensor | None = None
    post_cond_video_frames: Tensor | None = None
    frame_times: Tensor | None = None
    fps: Rate = None
    ignore_time: bool | Tensor = False

    def given(self) -> list[str]:
        """Return the names of the arguments that were given."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return [name for name, value in named.items() if value is not None and value is not False]


def with_checked_frames(cascade: CascadeBase, clip: ClipInput, batch: int) -> ClipInput:
    """Return the arguments with given frames as floats in the caller's range.

    Raises:
        ValueError, TypeError: as `checked_images`.
    """
    names = ("cond_video_frames", "post_cond_video_frames")
    given = {name: getattr(clip, name) for name in names if getattr(clip, name) is not None}
    checked = {name: checked_images(cascade, part, name, batch=batch) for name, part in given.items()}
    return replace(clip, **checked)


@dataclass(frozen=True)
class StageFrames:
    """The frames of one clip at one stage.

    Attributes:
        noisy, preceding, following: indices of its frames at the full rate, among those of their kind.
        times: seconds of all frames in the order preceding, noisy, following, ``(1, m)`` or ``(b, m)``, on the CPU.
    """

    noisy: Tensor
    preceding: Tensor
    following: Tensor
    times: Float[Tensor, "b m"]

    @property
    def noisy_slice(self) -> slice:
        """Positions of the noisy frames among all."""
        return slice(len(self.preceding), len(self.preceding) + len(self.noisy))


@dataclass(frozen=True)
class ClipFrames:
    """All frames of a call at the full rate.

    Attributes:
        count, num_preceding, num_following: numbers of noisy frames, and of given ones before and after them.
        times: as `StageFrames`.
        thin: a stage with fewer frames uses only those given ones that fall on its own times.
    """

    count: int
    num_preceding: int
    num_following: int
    times: Float[Tensor, "b m"]
    thin: bool = True

    def at(self, frame_stride: int) -> StageFrames:
        """Return every ``frame_stride``-th noisy frame, and the given frames that belong to them."""
        last = self.num_preceding + self.count
        noisy = torch.arange(0, self.count, frame_stride)
        preceding = self._matching(torch.arange(self.num_preceding), frame_stride)
        following = self._matching(torch.arange(last, last + self.num_following), frame_stride)
        places = torch.cat([preceding, self.num_preceding + noisy, following])
        return StageFrames(noisy, preceding, following - last, self.times[:, places])

    def _matching(self, given: Tensor, frame_stride: int) -> Tensor:
        """Select given frames whose distance to the first noisy one is a multiple of the stride, or else the
        nearest."""
        if frame_stride == 1 or not self.thin or not len(given):
            return given
        noisy = self.times[0, self.num_preceding : self.num_preceding + self.count]
        step = float(noisy[-1] - noisy[0]) / (self.count - 1) if self.count > 1 else float("inf")
        away = (self.times[0, given] - noisy[0]) / (frame_stride * step)
        on_grid = given[(away - away.round()).abs() < 1e-3]
        return on_grid if len(on_grid) else given[away.abs().argmin()][None]


def frame_rate(fps: Rate, batch: int) -> Float[Tensor, " b"] | None:
    """Return the frames per second of each clip, on the CPU.

    Raises:
        ValueError: another number of rates than clips, or one that is not positive and finite.
        TypeError: not numbers.
    """
    if fps is None:
        return None
    check_rates(fps)
    rates = torch.as_tensor(fps, dtype=torch.float64, device="cpu").reshape(-1)
    if len(rates) not in (1, batch):
        raise ValueError(f"fps must be positive, one number or one for each of the {batch} clips; got {rates.tolist()}")
    return rates.expand(batch)


def check_frame_count(stages: Sequence[Stage], count: int) -> None:
    """Check that every stage can generate every ``frame_stride``-th of these frames.

    Raises:
        ValueError: names the stage.
    """
    for stage in stages:
        if count % stage.frame_stride:
            raise ValueError(
                f"U-Net {stage.number} makes one of {stage.frame_stride} frames (temporal_downsample_factor): "
                f"video_frames must be a multiple of that, got {count}"
            )


def clip_frames(cascade: CascadeBase, count: int, clip: ClipInput, batch: int) -> ClipFrames:
    """Return the frames of a call with ``count`` noisy ones, at the full rate.

    Raises:
        ValueError: another number of times than frames, or of times or rates than clips.
    """
    given = (clip.cond_video_frames, clip.post_cond_video_frames)
    before, following = (0 if part is None else part.shape[2] for part in given)
    total, times = before + count + following, clip.frame_times
    if times is None:
        rates = frame_rate(cascade.fps if clip.fps is None else clip.fps, batch)
        times = (torch.arange(total, dtype=torch.float64) - before) / rates[:, None]
    times = check_times(times)
    if times.ndim != 2 or times.shape[1] != total or len(times) not in (1, batch):
        raise ValueError(
            f"frame_times must be (batch, {total}) seconds, one for each frame, given ones included; got "
            f"{tuple(times.shape)}"
        )
    return ClipFrames(count, before, following, times.double().cpu(), cascade.resize_cond_video_frames)


def resample_to_stage(
    cascade: CascadeBase, clip: Tensor, stage: Stage, before: Stage, count: int
) -> Float[Tensor, "b c f h w"]:
    """Resample a clip of the previous stage to the number of frames of this stage. Images stay as they are."""
    if not cascade.is_video or (stage.frame_stride == before.frame_stride and clip.shape[2] == count):
        return clip
    places = torch.arange(count, dtype=torch.float64) * stage.frame_stride / before.frame_stride
    return resample_frames(clip, places, cascade.temporal_resize_mode)


@dataclass(frozen=True)
class GivenFrames:
    """The given frames of one stage at its size in [-1, 1], and their low-resolution versions."""

    images: tuple[Tensor | None, Tensor | None]
    lowres_images: tuple[Tensor | None, Tensor | None]

    @staticmethod
    def around(x: Tensor, parts: tuple[Tensor | None, Tensor | None]) -> Float[Tensor, "b c m h w"]:
        """Put noisy frames between the given ones."""
        preceding, following = parts
        return torch.cat([part.to(x) for part in (preceding, x, following) if part is not None], dim=2)


def given_frames(
    cascade: CascadeBase, clip: ClipInput, frames: StageFrames, low: Size | None, size: Size
) -> GivenFrames:
    """Return the given frames of a call at one stage.

    Args:
        low: size of the previous stage, if there is one.
        size: of this stage.
    """
    images, lowres_images = [], []
    places = {"cond_video_frames": frames.preceding, "post_cond_video_frames": frames.following}
    for name, chosen in places.items():
        part = getattr(clip, name)
        part = None if part is None else cascade.normalize_img(part)
        part = None if part is None else part[:, :, chosen.to(part.device)]
        images.append(None if part is None else resize(part, size, cascade.resize_mode))
        small = part is None or low is None
        lowres_images.append(None if small else lowres_version(part, low, size, cascade.resize_mode))
    return GivenFrames(tuple(images), tuple(lowres_images))


def draw_given(count: int, causal: bool, generator: Generators) -> Tensor:
    """Draw the frames that are given in training, in order: the first few, or, unless causal, any.

    Args:
        count: number of frames, at least one of which is left to generate.
        causal: frames see only earlier ones.
    """
    how_many, kind = rand((2,), generator).tolist()
    number = 1 + int(how_many * (count - 1))
    if causal or kind < 0.5:
        return torch.arange(number)
    return rand((count,), generator).argsort()[:number].sort().values


def give_frames(frames: StageFrames, chosen: Tensor) -> tuple[StageFrames, Tensor]:
    """Turn some of the noisy frames into given ones. Return the new frames, and the order of all frames."""
    first, last = frames.noisy_slice.start, frames.noisy_slice.stop
    left = torch.ones(len(frames.noisy), dtype=torch.bool)
    left[chosen] = False
    others = left.nonzero().flatten()
    order = torch.cat([torch.arange(first), first + chosen, first + others, torch.arange(last, frames.times.shape[1])])
    preceding = torch.cat([frames.preceding, frames.noisy[chosen]])
    moved = StageFrames(frames.noisy[others], preceding, frames.following, frames.times[:, order])
    return moved, order

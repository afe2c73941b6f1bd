"""Which frames a stage sees, and when they were taken; for training and sampling alike.

A video cascade is told about clips at the full frame rate, that of its last stage. A stage with a
``temporal_downsample_factor`` of k makes every k-th of their frames, each at its true time.
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
from .lowres import lowres_companion
from .stage import Stage

if TYPE_CHECKING:
    from .parts import CascadeParts

Rate = float | Sequence[float] | Tensor | None


@dataclass(frozen=True)
class ClipInput:
    """What a call says about frames; see `Cascade.training_batch` and `Cascade.sample`."""

    cond_video_frames: Tensor | None = None
    post_cond_video_frames: Tensor | None = None
    frame_times: Tensor | None = None
    fps: Rate = None
    ignore_time: bool | Tensor = False

    def given(self) -> list[str]:
        """The names of what was said."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return [name for name, value in named.items() if value is not None and value is not False]


def with_checked_frames(cascade: CascadeParts, clip: ClipInput, batch: int) -> ClipInput:
    """The same with given frames as floats in the caller's range.

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
        noisy, preceding, following: which frames of the full rate they are, among those of their kind.
        times: seconds of all frames in the order preceding, noisy, following, ``(1, m)`` or ``(b, m)``, on the CPU.
    """

    noisy: Tensor
    preceding: Tensor
    following: Tensor
    times: Float[Tensor, "b m"]

    @property
    def noisy_slice(self) -> slice:
        """Where the noisy frames are among all."""
        return slice(len(self.preceding), len(self.preceding) + len(self.noisy))


@dataclass(frozen=True)
class ClipFrames:
    """All frames of a call at the full rate.

    Attributes:
        count, before, behind: noisy frames, and given ones before and behind them.
        times: as `StageFrames`.
        thin: whether a stage with fewer frames takes only those given ones that fall on its own times.
    """

    count: int
    before: int
    behind: int
    times: Float[Tensor, "b m"]
    thin: bool = True

    def at(self, factor: int) -> StageFrames:
        """Every ``factor``-th noisy frame and the given frames that go with them."""
        last = self.before + self.count
        noisy = torch.arange(0, self.count, factor)
        preceding = self._matching(torch.arange(self.before), factor)
        following = self._matching(torch.arange(last, last + self.behind), factor)
        places = torch.cat([preceding, self.before + noisy, following])
        return StageFrames(noisy, preceding, following - last, self.times[:, places])

    def _matching(self, given: Tensor, factor: int) -> Tensor:
        """Given frames whole strides away from the first noisy one; the nearest one if there are none."""
        if factor == 1 or not self.thin or not len(given):
            return given
        noisy = self.times[0, self.before : self.before + self.count]
        step = float(noisy[-1] - noisy[0]) / (self.count - 1) if self.count > 1 else float("inf")
        away = (self.times[0, given] - noisy[0]) / (factor * step)
        on_grid = given[(away - away.round()).abs() < 1e-3]
        return on_grid if len(on_grid) else given[away.abs().argmin()][None]


def frame_rate(fps: Rate, batch: int) -> Float[Tensor, " b"] | None:
    """Frames per second of each clip, on the CPU.

    Raises:
        ValueError: another number of rates than clips, or one that is not positive and finite.
        TypeError: no numbers.
    """
    if fps is None:
        return None
    check_rates(fps)
    rates = torch.as_tensor(fps, dtype=torch.float64, device="cpu").reshape(-1)
    if len(rates) not in (1, batch):
        raise ValueError(f"fps must be positive, one number or one for each of the {batch} clips; got {rates.tolist()}")
    return rates.expand(batch)


def check_frame_count(stages: Sequence[Stage], count: int) -> None:
    """Refuse a number of frames of which some stage cannot make every ``factor``-th.

    Raises:
        ValueError: naming the stage.
    """
    for stage in stages:
        if count % stage.factor:
            raise ValueError(
                f"U-Net {stage.number} makes one of {stage.factor} frames (temporal_downsample_factor): "
                f"video_frames must be a multiple of that, got {count}"
            )


def clip_frames(cascade: CascadeParts, count: int, clip: ClipInput, batch: int) -> ClipFrames:
    """The frames of a call with ``count`` noisy ones, at the full rate.

    Raises:
        ValueError: another number of times than frames, or of times or rates than clips.
    """
    given = (clip.cond_video_frames, clip.post_cond_video_frames)
    before, behind = (0 if part is None else part.shape[2] for part in given)
    total, times = before + count + behind, clip.frame_times
    if times is None:
        rates = frame_rate(cascade.fps if clip.fps is None else clip.fps, batch)
        times = (torch.arange(total, dtype=torch.float64) - before) / rates[:, None]
    times = check_times(times)
    if times.ndim != 2 or times.shape[1] != total or len(times) not in (1, batch):
        raise ValueError(
            f"frame_times must be (batch, {total}) seconds, one for each frame, given ones included; got "
            f"{tuple(times.shape)}"
        )
    return ClipFrames(count, before, behind, times.double().cpu(), cascade.resize_cond_video_frames)


def in_time(cascade: CascadeParts, clip: Tensor, stage: Stage, before: Stage, count: int) -> Float[Tensor, "b c f h w"]:
    """A clip of the stage before, as many frames as this stage has; pictures stay as they are."""
    if not cascade.is_video or (stage.factor == before.factor and clip.shape[2] == count):
        return clip
    places = torch.arange(count, dtype=torch.float64) * stage.factor / before.factor
    return resample_frames(clip, places, cascade.temporal_resize_mode)


@dataclass(frozen=True)
class GivenFrames:
    """The given frames of one stage at its size in [-1, 1], and what the stage before would have made of them."""

    pictures: tuple[Tensor | None, Tensor | None]
    companions: tuple[Tensor | None, Tensor | None]

    @staticmethod
    def around(x: Tensor, parts: tuple[Tensor | None, Tensor | None]) -> Float[Tensor, "b c m h w"]:
        """Noisy frames between the given ones."""
        before, behind = parts
        return torch.cat([part.to(x) for part in (before, x, behind) if part is not None], dim=2)


def given_frames(
    cascade: CascadeParts, clip: ClipInput, frames: StageFrames, low: Size | None, size: Size
) -> GivenFrames:
    """The given frames of a call as one stage sees them.

    Args:
        low: size of the stage before, if there is one.
        size: of this stage.
    """
    pictures, companions = [], []
    places = {"cond_video_frames": frames.preceding, "post_cond_video_frames": frames.following}
    for name, chosen in places.items():
        part = getattr(clip, name)
        part = None if part is None else cascade.normalize_img(part)
        part = None if part is None else part[:, :, chosen.to(part.device)]
        pictures.append(None if part is None else resize(part, size, cascade.resize_mode))
        small = part is None or low is None
        companions.append(None if small else lowres_companion(part, low, size, cascade.resize_mode))
    return GivenFrames(tuple(pictures), tuple(companions))


def draw_given(count: int, causal: bool, generator: Generators) -> Tensor:
    """A random choice of frames that are given in training, in order: the first few, or, unless causal, any.

    Args:
        count: number of frames, of which at least one is left to be made.
        causal: whether frames see earlier ones only.
    """
    how_many, kind = rand((2,), generator).tolist()
    number = 1 + int(how_many * (count - 1))
    if causal or kind < 0.5:
        return torch.arange(number)
    return rand((count,), generator).argsort()[:number].sort().values


def in_front(frames: StageFrames, chosen: Tensor) -> tuple[StageFrames, Tensor]:
    """Some of the noisy frames given instead: what is what then, and the order of all frames that goes with it."""
    first, last = frames.noisy_slice.start, frames.noisy_slice.stop
    left = torch.ones(len(frames.noisy), dtype=torch.bool)
    left[chosen] = False
    others = left.nonzero().flatten()
    order = torch.cat([torch.arange(first), first + chosen, first + others, torch.arange(last, frames.times.shape[1])])
    preceding = torch.cat([frames.preceding, frames.noisy[chosen]])
    moved = StageFrames(frames.noisy[others], preceding, frames.following, frames.times[:, order])
    return moved, order

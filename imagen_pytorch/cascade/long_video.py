"""Videos longer than a network's window: each call generates a few frames, given some that exist already."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..ranges import check_whole
from ..registry import Registry
from ..tensors import seeded
from .counting import images_of
from .limits import MAX_IMAGES, check_flag
from .options import SampleOptions
from .stage import Stage
from .video import ClipFrames, check_frame_count, frame_rate

if TYPE_CHECKING:
    from .base import CascadeBase


#: arguments of `Cascade.sample` that name or hold the frames of one call, or change what it returns
_DECIDED = (
    "video_frames",
    "cond_video_frames",
    "post_cond_video_frames",
    "frame_times",
    "inpaint_videos",
    "inpaint_images",
    "inpaint_masks",
    "init_images",
    "start_image_or_video",
    "return_all_unet_outputs",
)


class Part(NamedTuple):
    """One call: the given frames and the new ones, both by their index in the complete video, in order."""

    given: tuple[int, ...]
    new: tuple[int, ...]


#: Schemes by name, ``scheme(total, window) -> parts`` (Harvey et al. 2022, arXiv 2205.11495, section 4).
SCHEMES: Registry[Callable[[int, int], list[Part]]] = Registry("scheme")


@SCHEMES.register("autoregressive")
def autoregressive(total: int, window: int) -> list[Part]:
    """Go from the beginning to the end, half a window at a time, given the half before it."""
    half = max(1, window // 2)
    parts = [Part((), tuple(range(min(window, total))))]
    for first in range(min(window, total), total, half):
        parts.append(Part(tuple(range(first - (window - half), first)), tuple(range(first, min(first + half, total)))))
    return parts


@SCHEMES.register("long_range")
def long_range(total: int, window: int) -> list[Part]:
    """As `autoregressive`, but every other given frame comes from the past, evenly over all existing frames."""
    parts = []
    for given, new in autoregressive(total, window):
        near = given[len(given) // 2 :]
        far = len(given) - len(near)
        early = [index * near[0] // far for index in range(far)] if far else []
        parts.append(Part((*early, *near), new))
    return parts


@SCHEMES.register("hierarchical")
def hierarchical(total: int, window: int) -> list[Part]:
    """Generate a window of frames distributed over the complete video first, then, in order, those between two of them,
    given the nearest frames."""
    if total <= window:
        return [Part((), tuple(range(total)))]
    coarse = sorted({round(index * (total - 1) / (window - 1)) for index in range(window)})
    parts, known = [Part((), tuple(coarse))], set(coarse)
    room = max(1, window // 2)
    for early, late in pairwise(coarse):
        missing = range(early + 1, late)
        for place in range(0, len(missing), room):
            new = tuple(missing[place : place + room])
            sides = (new[0] - 1, late)  # both come first: nearer ones on one side alone would miss the frame to reach
            near = sorted(known, key=lambda index: (index not in sides, max(new[0] - index, index - new[-1]), index))
            parts.append(Part(tuple(sorted(near[: window - len(new)])), new))
            known |= set(new)
    return parts


def checked(scheme: str | Sequence[Any], total: int, window: int) -> list[Part]:
    """Return the parts of a scheme, by name or given as (given, new) pairs of frame indices.

    Raises:
        ValueError: an unknown scheme; a frame that is generated twice or never, or given before it exists; more frames
            in one call than a window.
        TypeError: neither a name nor such pairs.
    """
    check_whole(total, "total_frames", 1, MAX_IMAGES)
    if check_whole(window, "window", 1, MAX_IMAGES) < 2:
        raise ValueError(f"a long video needs at least 1 frame and a window of 2, got {total} and {window}")
    if isinstance(scheme, str):
        return SCHEMES[scheme](total, window)
    try:
        parts = [
            Part(tuple(sorted(map(operator.index, given))), tuple(sorted(map(operator.index, new))))
            for given, new in scheme
        ]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"scheme must be a name or a list of (given, new) frame indices, one pair for each call; got {scheme!r}"
        ) from error
    made: set[int] = set()
    for number, (given, new) in enumerate(parts, start=1):
        if len(given) + len(new) > window:
            raise ValueError(f"call {number} of the scheme has {len(given) + len(new)} frames, the window {window}")
        if not new or not set(given) <= made or made & set(new):
            raise ValueError(
                f"call {number} of the scheme must make new frames, each once, given frames that exist; it makes "
                f"{list(new)} given {list(given)}"
            )
        made |= set(new)
    if made != set(range(total)):
        wrong = sorted(made ^ set(range(total)))
        raise ValueError(f"the scheme must make each of the frames 0 to {total - 1} once; amiss: {wrong}")
    return parts


def sample_long(
    cascade: CascadeBase,
    sample: Callable[..., Tensor],
    total_frames: int,
    window: int,
    scheme: str | Sequence[Any],
    inpaint: bool,
    options: SampleOptions,
    arguments: dict[str, Any],
) -> Tensor:
    """Implement `Cascade.sample_long`.

    Args:
        sample: `Cascade.sample` of the model.
        options: the arguments as options of ``sample``.
    """
    if not cascade.is_video:
        raise ValueError("sample_long is for video models; this is an image model")
    if taken := [name for name in _DECIDED if arguments.get(name) is not None]:
        raise ValueError(
            f"the scheme decides which frames each call of sample_long makes: it takes no {', '.join(taken)}"
        )
    check_flag(inpaint, "inpaint")
    parts = checked(scheme, total_frames, window)
    options.check(len(cascade.unets))
    arguments = _one_source_of_noise(arguments)
    fps = arguments.get("fps")
    rates = frame_rate(cascade.fps if fps is None else fps, images_of(arguments))[:, None]
    _check_parts(cascade, cascade.stages[: options.stop_at_unet_number], parts, inpaint, rates)
    video: Tensor | None = None
    for given, new in parts:
        if inpaint:
            made = _inpainted(sample, video, given, new, rates, arguments)
        else:
            known = {} if not given else {"cond_video_frames": video[:, :, list(given)]}
            times = torch.tensor([*given, *new], dtype=torch.float64) / rates
            made = sample(video_frames=len(new), frame_times=times, **known, **arguments)
        if video is None:
            video = made.new_zeros(*made.shape[:2], total_frames, *made.shape[3:])
        video[:, :, list(new)] = made
    return video


def _check_parts(
    cascade: CascadeBase, stages: Sequence[Stage], parts: list[Part], inpaint: bool, rates: Tensor
) -> None:
    """Check before the first call that every later one is possible.

    Raises:
        ValueError: names the call, or the stage that leaves out frames.
    """
    if (last := stages[-1]).frame_stride != 1:
        raise ValueError(
            f"sample_long makes every frame, but U-Net {last.number} makes one of {last.frame_stride} "
            "(temporal_downsample_factor): let stop_at_unet_number end at a later one"
        )
    for number, (given, new) in enumerate(parts, start=1):
        stage_frames, made = ((), sorted({*given, *new})) if inpaint else (given, new)
        times = torch.tensor([*stage_frames, *made], dtype=torch.float64) / rates
        try:
            check_frame_count(stages, len(made))
            frames = ClipFrames(len(made), len(stage_frames), 0, times, cascade.resize_cond_video_frames)
            for stage in stages:
                seen = frames.at(stage.frame_stride)
                check = getattr(cascade.unets[stage.number - 1], "check_frames", None)
                if check is not None:  # a custom network need not have it
                    check(seen.times, seen.noisy_slice)
        except ValueError as error:
            count = f"{len(made)} frames given {len(stage_frames)}"
            raise ValueError(f"call {number} of {len(parts)} of sample_long makes {count}: {error}") from error


def _inpainted(
    sample: Callable[..., Tensor],
    video: Tensor | None,
    given: tuple[int, ...],
    new: tuple[int, ...],
    rates: Tensor,
    arguments: dict[str, Any],
) -> Tensor:
    """Generate new frames together with given ones that RePaint keeps."""
    every = sorted({*given, *new})
    named: dict[str, Any] = {}
    if given:
        mask = torch.tensor([index in given for index in every], device=video.device)
        named["inpaint_videos"] = video[:, :, every]
        named["inpaint_masks"] = mask[None, :, None, None].expand(len(video), -1, *video.shape[3:])
    times = torch.tensor(every, dtype=torch.float64) / rates
    made = sample(video_frames=len(every), frame_times=times, **named, **arguments)
    return made[:, :, [every.index(index) for index in new]]


def _one_source_of_noise(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return one generator per clip for all calls. The same seed at every call would repeat the noise."""
    seed = arguments.get("seed")
    if seed is None:
        return arguments
    rest = {name: value for name, value in arguments.items() if name != "seed"}
    return rest | {"generator": seeded(seed, images_of(arguments))}

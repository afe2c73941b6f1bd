"""One `sample()` call as several smaller ones, which generate the same images from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ranges import check_whole
from ..tensors import seeds_of
from .counting import images_of

#: arguments of `Cascade.sample` with one entry per image
PER_IMAGE = (
    "texts",
    "text_masks",
    "text_embeds",
    "cond_images",
    "cond_video_frames",
    "post_cond_video_frames",
    "frame_times",
    "fps",
    "inpaint_videos",
    "inpaint_images",
    "inpaint_masks",
    "init_images",
    "start_image_or_video",
    "negative_texts",
    "seed",
    "generator",
)


def rows(value: Any, chosen: slice) -> Any:
    """Return the entries of a per-image argument for some of the images. Per-unet tuples are sliced one by one. A
    single row (or number) serves all images."""
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim and len(value) > 1 else value
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(item, Tensor) for item in value):
        return tuple(rows(item, chosen) for item in value)
    return value[chosen] if len(value) > 1 else value


def joined(results: Sequence[Any], per_stage: bool) -> Any:
    """Concatenate the results of several calls."""
    if per_stage:
        return [joined(stage, False) for stage in zip(*results, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.cat(list(results))
    return [image for result in results for image in result]


def in_batches(sample: Callable[..., Any], arguments: dict[str, Any], max_batch_size: int) -> Any:
    """Call ``sample`` with at most ``max_batch_size`` images at a time. A seed gives the same images.

    Raises:
        ValueError: a size below one, or impossible seeds.
        TypeError: a size or seeds that are not numbers.
    """
    max_batch_size = check_whole(max_batch_size, "max_batch_size")
    count = images_of(arguments)
    if arguments.get("seed") is not None:
        arguments = arguments | {"seed": seeds_of(arguments["seed"], count)}
    results = []
    for first in range(0, count, max_batch_size):
        chosen = slice(first, min(first + max_batch_size, count))
        piece = {name: rows(value, chosen) if name in PER_IMAGE else value for name, value in arguments.items()}
        results.append(sample(**piece | {"batch_size": chosen.stop - chosen.start}))
    return joined(results, bool(arguments.get("return_all_unet_outputs")))

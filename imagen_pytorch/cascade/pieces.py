"""One `sample()` call as several smaller ones, which make the same pictures from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: arguments of `Cascade.sample` with one entry per picture
PER_PICTURE = (
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
#: of these, the ones that say how many pictures there are when batch_size is left at 1
_COUNTED = (
    "texts",
    "text_embeds",
    "inpaint_images",
    "inpaint_videos",
    "cond_images",
    "start_image_or_video",
    "cond_video_frames",
    "post_cond_video_frames",
)


def picture_count(arguments: Mapping[str, Any]) -> int:
    """How many pictures a call of `Cascade.sample` makes."""
    counts = [len(arguments[name]) for name in _COUNTED if arguments.get(name) is not None]
    batch = arguments.get("batch_size", 1)
    is_text = arguments.get("texts") is not None or arguments.get("text_embeds") is not None
    return counts[0] if counts and (is_text or batch == 1) else batch


def rows(value: Any, chosen: slice) -> Any:
    """The entries of a per-picture argument for some of the pictures; per-unet tuples are cut one by one, and a single
    row serves all pictures."""
    if isinstance(value, Tensor):
        return value[chosen] if len(value) > 1 else value
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(item, Tensor) for item in value):
        return tuple(rows(item, chosen) for item in value)
    return value[chosen]


def joined(results: Sequence[Any], per_stage: bool) -> Any:
    """The results of several calls as that of one."""
    if per_stage:
        return [joined(stage, False) for stage in zip(*results, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.cat(list(results))
    return [picture for result in results for picture in result]


def in_pieces(sample: Callable[..., Any], arguments: dict[str, Any], max_batch_size: int) -> Any:
    """Call ``sample`` with at most ``max_batch_size`` pictures at a time; a seed gives the same pictures.

    Raises:
        ValueError: a size below one.
    """
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
    count = picture_count(arguments)
    if isinstance(arguments.get("seed"), int):
        arguments = arguments | {"seed": [arguments["seed"] + index for index in range(count)]}
    results = []
    for first in range(0, count, max_batch_size):
        chosen = slice(first, min(first + max_batch_size, count))
        piece = {name: rows(value, chosen) if name in PER_PICTURE else value for name, value in arguments.items()}
        results.append(sample(**piece | {"batch_size": chosen.stop - chosen.start}))
    return joined(results, bool(arguments.get("return_all_unet_outputs")))

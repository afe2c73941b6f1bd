"""The number of images that one call of `sample` generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ranges import check_whole
from .inputs import as_tensor
from .limits import MAX_IMAGES
from .options import check_texts

#: arguments with one entry per image; the first that is given sets the number if neither captions nor batch_size do
_COUNTED = (
    "inpaint_images",
    "inpaint_videos",
    "cond_images",
    "start_image_or_video",
    "cond_video_frames",
    "post_cond_video_frames",
)


def images_of(arguments: Mapping[str, Any]) -> int:
    """Return the number of images or clips that `Cascade.sample` generates from these arguments.

    Captions, or their embeddings, set the number. One caption serves ``batch_size`` images. Without captions it is
    ``batch_size``, or, if that is 1, the number of given images.

    Raises:
        TypeError: a ``batch_size`` that is not a number, or captions that are not a list of strings.
        ValueError: a ``batch_size`` below 1 or not an integer, no caption, or another number of captions.
    """
    stated = check_whole(arguments.get("batch_size", 1), "batch_size", 1, MAX_IMAGES)
    captions, embeds = arguments.get("texts"), arguments.get("text_embeds")
    if embeds is not None:
        captions = as_tensor(embeds, "text_embeds")
        if captions.ndim != 3:
            raise ValueError(f"text_embeds must be (batch, tokens, width), got {tuple(captions.shape)}")
    elif captions is not None:
        check_texts(captions)
    if captions is not None:
        count = len(captions)
        if not count:
            raise ValueError("texts (or text_embeds) must hold at least one caption, got none")
        if count > 1 and stated not in (1, count):
            raise ValueError(
                f"batch_size={stated} does not fit {count} captions: give one caption for all images, or one for each"
            )
        return max(count, stated)
    given = [arguments.get(name) for name in _COUNTED]
    init = arguments.get("init_images")
    given += init if isinstance(init, list | tuple) else [init]
    counts = [len(item) for item in given if hasattr(item, "__len__") and getattr(item, "ndim", 1)]
    return counts[0] if counts and stated == 1 else stated

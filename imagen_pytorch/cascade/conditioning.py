"""Captions and conditioning pictures on their way to the network, for training and sampling alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..images import as_float
from .options import check_text_count, mask_of
from .stage import takes_pictures


class Text(NamedTuple):
    """Encoded captions: embeddings ``(b, n, d)`` and a mask ``(b, n)``, true at real tokens."""

    embeds: Tensor
    mask: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """The same captions elsewhere, in another precision."""
        return Text(self.embeds.to(device, dtype), self.mask.to(device))


Encode = Callable[[Sequence[str]], Text]


def text_input(
    encode: Encode,
    dim: int | None,
    texts: Sequence[str] | None,
    embeds: Tensor | None,
    mask: Tensor | None,
) -> Text | None:
    """The captions of a call; ready embeddings win over ``texts``.

    Args:
        encode: turns captions into embeddings.
        dim: width of the embeddings; None if the model takes no text.

    Raises:
        ValueError: text where the model takes none, none where it needs some, or embeddings of another shape.
        TypeError: one string instead of a list.
    """
    if dim is None:
        if texts is not None or embeds is not None:
            raise ValueError("this model is unconditional (condition_on_text=False): it takes no texts or text_embeds")
        return None
    if embeds is None and texts is None:
        raise ValueError("this model is conditioned on text: give texts=[...] or text_embeds")
    if embeds is None:
        check_text_count(texts, len(texts))
        return encode(texts)
    if embeds.ndim != 3 or embeds.shape[-1] != dim:
        raise ValueError(f"text_embeds must be (batch, tokens, {dim}), got {tuple(embeds.shape)}")
    return Text(embeds, mask_of(embeds, mask))


def null_text(batch: int, dim: int, device: torch.device, dtype: torch.dtype) -> Text:
    """Captions of no token, for a network that reads text in a call without any."""
    mask = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    return Text(torch.zeros(batch, 1, dim, device=device, dtype=dtype), mask)


def stacked(first: Text, second: Text) -> Text:
    """Two batches of captions as one, padded to the longer."""
    length = max(first.embeds.shape[1], second.embeds.shape[1])
    rooms = [length - text.embeds.shape[1] for text in (first, second)]
    embeds = [F.pad(text.embeds, (0, 0, 0, room)) for text, room in zip((first, second), rooms, strict=True)]
    masks = [F.pad(text.mask, (0, room)) for text, room in zip((first, second), rooms, strict=True)]
    return Text(torch.cat(embeds), torch.cat(masks))


def conditioning_pictures(
    cond_images: Tensor | None, unet: nn.Module, batch: int, device: torch.device
) -> Tensor | None:
    """Conditioning pictures as floats, checked against what the network takes.

    Raises:
        ValueError: given but not taken, taken but not given, or another count.
    """
    wanted = takes_pictures(unet)
    if wanted != (cond_images is not None):
        raise ValueError(
            "this U-Net needs cond_images (it was built with cond_images_channels)"
            if wanted
            else "cond_images were given, but the U-Net was built without cond_images_channels"
        )
    if cond_images is None:
        return None
    if cond_images.ndim != 4:
        raise ValueError(f"cond_images must be (batch, channels, height, width), got {tuple(cond_images.shape)}")
    if len(cond_images) != batch:
        raise ValueError(f"{batch} pictures need as many cond_images, got {len(cond_images)}")
    return as_float(cond_images, "cond_images").to(device)

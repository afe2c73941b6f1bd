"""Captions and conditioning images as a network needs them, for training and sampling alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import TakesImages, as_tensor, conditioning_images, text_mask
from .options import check_text_count
from .stage import takes_cond_images


class Text(NamedTuple):
    """Encoded captions: embeddings ``(b, n, d)`` and a mask ``(b, n)``, true at real tokens."""

    embeds: Tensor
    mask: Tensor

    def repeated(self, batch: int) -> Text:
        """Repeat one caption for every image of a batch. Several captions stay as they are."""
        if len(self.embeds) == batch:
            return self
        return Text(self.embeds.expand(batch, -1, -1), self.mask.expand(batch, -1))

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """Return the captions on another device, in another precision."""
        return Text(self.embeds.to(device, dtype), self.mask.to(device))


Encode = Callable[[Sequence[str]], Text]


def text_input(
    encode: Encode,
    dim: int | None,
    texts: Sequence[str] | None,
    embeds: Any,
    mask: Any,
) -> Text | None:
    """Return the captions of a call. Ready embeddings take precedence over ``texts``.

    Args:
        encode: turns captions into embeddings.
        dim: width of the embeddings; None if the model takes no text.

    Raises:
        ValueError: text for a model that takes none, none for one that needs some, or embeddings of another shape.
        TypeError: one string instead of a list, or embeddings that are neither a tensor nor an array of floats.
    """
    if dim is None:
        given = {"texts": texts, "text_embeds": embeds, "text_masks": mask}
        if taken := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"this model is unconditional (condition_on_text=False): it takes no {', '.join(taken)}")
        return None
    if mask is not None and embeds is None:
        raise ValueError("text_masks belong to text_embeds: give both, or texts alone")
    if embeds is None and texts is None:
        raise ValueError("this model is conditioned on text: give texts=[...] or text_embeds")
    if embeds is None:
        check_text_count(texts, len(texts))
        return encode(texts)
    embeds = as_tensor(embeds, "text_embeds")
    if embeds.ndim != 3 or embeds.shape[-1] != dim:
        raise ValueError(f"text_embeds must be (batch, tokens, {dim}), got {tuple(embeds.shape)}")
    if not embeds.is_floating_point():
        raise TypeError(f"text_embeds must be floating point, got {embeds.dtype}")
    return Text(embeds, text_mask(embeds, mask))


def null_text(batch: int, dim: int, device: torch.device, dtype: torch.dtype) -> Text:
    """Return captions without tokens, for a network that reads text in a call without any."""
    mask = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    return Text(torch.zeros(batch, 1, dim, device=device, dtype=dtype), mask)


def stacked(first: Text, second: Text) -> Text:
    """Concatenate two batches of captions, padded to the longer."""
    length = max(first.embeds.shape[1], second.embeds.shape[1])
    rooms = [length - text.embeds.shape[1] for text in (first, second)]
    embeds = [F.pad(text.embeds, (0, 0, 0, room)) for text, room in zip((first, second), rooms, strict=True)]
    masks = [F.pad(text.mask, (0, room)) for text, room in zip((first, second), rooms, strict=True)]
    return Text(torch.cat(embeds), torch.cat(masks))


def prepare_cond_images(
    cascade: TakesImages, cond_images: Any, unet: nn.Module, batch: int, device: torch.device
) -> tuple[Tensor | None, bool]:
    """Return the conditioning images of a network as floats, and true if any were given.

    If training drops some (``cond_images_drop_prob``), they may be absent. Zeros replace them, as for dropped ones.

    Raises:
        ValueError: given but not taken, taken but not given, or as `conditioning_images`.
        TypeError: as `conditioning_images`.
    """
    if not takes_cond_images(unet):
        if cond_images is not None:
            raise ValueError("cond_images were given, but the U-Net was built without cond_images_channels")
        return None, False
    channels = getattr(unet, "cond_images_channels", 3)
    if cond_images is None:
        if not cascade.cond_images_drop_prob:
            raise ValueError(
                "this U-Net needs cond_images (it was built with cond_images_channels); they may be absent only where "
                "training drops some (cond_images_drop_prob above 0)"
            )
        return torch.zeros(batch, channels, 1, 1, device=device), False
    return conditioning_images(cascade, cond_images, channels, batch=batch).to(device), True

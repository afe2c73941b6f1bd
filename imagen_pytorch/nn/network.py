"""The base of networks of a user's own, and what a cascade needs of a network."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..images import Size, resize
from .persistence import Persistent

#: attributes of every network of a cascade, with their kinds
ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "channels": int,
    "channels_out": int,
    "lowres_cond": bool,
    "cond_on_text": bool,
    "self_cond": bool,
    "_locals": dict,
}
#: arguments of `condition` that a cascade passes to a network of which an attribute is true
CONDITIONS = {
    "cond_on_text": ("text_embeds", "text_mask", "text_keep"),
    "lowres_cond": ("lowres_cond_img", "lowres_noise_times"),
    "is_video": ("frames", "frame_times"),
}
#: methods of every network, with the names of arguments that a cascade passes
METHODS: dict[str, tuple[str, ...]] = {
    "condition": ("batch", "size"),
    "forward": ("self_cond",),
    "cast_model_parameters": ("lowres_cond", "text_embed_dim", "channels", "channels_out", "cond_on_text"),
}


@dataclass(frozen=True)
class Conditions:
    """The conditions of a call: those that the network takes, else None.

    Attributes:
        text_embeds, text_mask: captions ``(b, n, d)``, and true at their valid tokens. A dropped caption has none.
        lowres: the noised low-resolution image, at the size of ``x``.
        lowres_noise: the log-SNR of its noise, ``(b,)``.
    """

    text_embeds: Tensor | None = None
    text_mask: Tensor | None = None
    lowres: Tensor | None = None
    lowres_noise: Tensor | None = None

    def rows(self, rows: slice) -> Conditions:
        """Return the conditions of some items of the batch."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: None if part is None else part[rows] for name, part in parts.items()})


class Network(Persistent):
    """Base of an image network of a user's own. A subclass defines `predict`, and a constructor that is decorated with
    `records_construction` and passes ``**kwargs`` on. A model makes the network again with the arguments below that its
    place in the cascade needs.

    Args:
        channels, channels_out: of the image and of the prediction; by default the same.
        lowres_cond: the network takes a low-resolution image and the log-SNR of its noise.
        cond_on_text, text_embed_dim: it takes captions, and the width of their embeddings.
        self_cond: it takes an earlier estimate of the image.
    """

    is_video = is_causal = has_cond_image = crop_coordinates = False
    augment_dim = cond_images_channels = 0
    #: number of tokens of the longest caption, for estimates of cost
    max_text_len = 256
    #: names of the classes of blocks that sharded training gathers one by one
    _no_split_modules: Sequence[str] = ()

    def __init__(
        self,
        *,
        channels: int = 3,
        channels_out: int | None = None,
        lowres_cond: bool = False,
        cond_on_text: bool = False,
        text_embed_dim: int | None = None,
        self_cond: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.channels_out = channels, channels if channels_out is None else channels_out
        self.lowres_cond, self.cond_on_text = lowres_cond, cond_on_text
        self.text_embed_dim, self.self_cond = text_embed_dim, bool(self_cond)

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"], conditions: Conditions, self_cond: Tensor | None
    ) -> Float[Tensor, "b c h w"]:
        """Return the prediction for a noisy image.

        Args:
            x: the image, scaled to about unit variance.
            time: the noise condition: log-SNR for `Imagen`, a quarter of log sigma for `ElucidatedImagen`.
            conditions: captions and the low-resolution image.
            self_cond: an earlier estimate, or None.
        """

    def condition(
        self,
        *,
        batch: int,
        size: Size,
        text_embeds: Float[Tensor, "b n d"] | None = None,
        text_mask: Bool[Tensor, "b n"] | None = None,
        text_keep: Bool[Tensor, " b"] | None = None,
        lowres_cond_img: Float[Tensor, "b c *from"] | None = None,
        lowres_noise_times: Float[Tensor, " b"] | None = None,
    ) -> Any:
        """Compute everything that does not depend on the noise level, once per call. See `Conditions`.

        A subclass may return an object of its own with a method ``rows(slice)``.
        """
        if text_embeds is not None:
            text_mask = torch.any(text_embeds != 0, dim=-1) if text_mask is None else text_mask
            text_mask = text_mask if text_keep is None else text_mask & text_keep[:, None]
        lowres = None if lowres_cond_img is None else resize(lowres_cond_img, size)
        return Conditions(text_embeds, text_mask, lowres, lowres_noise_times)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        conditioning: Any = None,
        *,
        self_cond: Tensor | None = None,
        inner: Any = None,
        return_inner: bool = False,
        **conditions: Any,
    ) -> Float[Tensor, "b c h w"]:
        """Run `predict`. Without ``conditioning`` from `condition`, it is computed from the other arguments.

        Raises:
            ValueError: maps of an earlier call are to be reused, of which this network keeps none.
        """
        if return_inner or inner is not None:
            raise ValueError(f"{type(self).__name__} has no inner maps to reuse: leave out cache_interval")
        if conditioning is None:
            conditioning = self.condition(batch=len(x), size=tuple(x.shape[-2:]), **conditions)
        return self.predict(x, time, conditioning, self_cond if self.self_cond else None)


def missing_of(network: Any) -> list[str]:
    """Return what a network lacks that a cascade needs, one phrase for each; empty if it fits."""
    lacks = [
        f"the attribute {name} ({getattr(kind, '__name__', kind)})"
        for name, kind in ATTRIBUTES.items()
        if not isinstance(getattr(network, name, None), kind)
    ]
    for name, arguments in METHODS.items():
        method = getattr(network, name, None)
        if not callable(method):
            lacks.append(f"the method {name}")
            continue
        placed = ("x", "time", "conditioning") if name == "forward" else ()
        if name == "condition":
            arguments = (
                *arguments,
                *(item for key in CONDITIONS if getattr(network, key, 0) for item in CONDITIONS[key]),
            )
        try:
            inspect.signature(method).bind(*placed, **dict.fromkeys(arguments))
        except TypeError:
            lacks.append(f"{name}({', '.join((*placed, *(f'{item}=' for item in arguments)))})")
    return lacks

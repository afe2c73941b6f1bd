"""The conditioning of a network, computed once per call and used at every step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..images import Size, resize
from ..tensors import token_mask
from .attention import KeysValues
from .blocks import Context, ContextAttention
from .embeddings import FourierFeatures, PerceiverResampler, masked_mean, pixel_coordinates
from .initial import normal_parameter
from .persistence import Persistent


@dataclass(frozen=True)
class Conditioning:
    """The result of `ConditioningEncoder.condition`. `rows` selects items of the batch.

    Attributes:
        emb: sum of the embeddings of low-resolution noise level and text, added to that of the noise level, ``(b, d)``.
        static: keys and values of low-resolution and text tokens, per attention layer.
        mask: ``(b, n)``, true at valid tokens.
        cond_images: conditioning images at working size.
        lowres: the low-resolution image.
        coordinates: x and y of every pixel in the full image, ``(b, 2, h, w)``, or ``(1, 2, h, w)`` for all items.
    """

    emb: Tensor | None = None
    static: tuple[KeysValues, ...] = ()
    mask: Tensor | None = None
    cond_images: Tensor | None = None
    lowres: Tensor | None = None
    coordinates: Tensor | None = None

    def rows(self, rows: slice) -> Conditioning:
        """Return the conditioning of some items of the batch."""
        return replace(self, **{field.name: _rows(getattr(self, field.name), rows) for field in fields(self)})


def _rows(value: Any, rows: slice) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(item, rows) for item in value)
    shared = not isinstance(value, Tensor) or value.shape[0] == 1  # one row for all items
    return value if shared else value[rows]


@dataclass(frozen=True)
class EncodedCondition:
    """One encoded condition: a vector, tokens and their mask. Each is None where the condition has none."""

    emb: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None


class ConditioningEncoder(Persistent):
    """The conditioning half of a U-Net: it encodes noise levels, captions and images. The other half computes maps."""

    #: true for networks of clips
    is_video = False
    has_cond_image: bool
    cond_images_channels: int
    crop_coordinates: bool
    augment_dim: int
    max_text_len: int
    resize_mode: str

    # -- construction -----------------------------------------------------------------------------------------------

    def _build_conditions(self, given: Mapping[str, Any], cond_dim: int, hidden_dim: int, attends: bool) -> None:
        """Build the encoders. ``attends``: some layer reads tokens. Parts that no layer would read are left out."""
        features, tokens = given["learned_sinu_pos_emb_dim"], given["num_time_tokens"]

        def hiddens() -> nn.Module:
            return nn.Sequential(FourierFeatures(features), nn.Linear(features + 1, hidden_dim), nn.SiLU())

        def to_tokens() -> nn.Module | None:
            parts = (nn.Linear(hidden_dim, cond_dim * tokens), nn.Unflatten(1, (tokens, cond_dim)))
            return nn.Sequential(*parts) if attends else None

        self.to_time_hiddens, self.to_time_tokens = hiddens(), to_tokens()
        self.to_time_cond = nn.Linear(hidden_dim, hidden_dim)
        if self.lowres_cond:
            self.to_lowres_time_hiddens, self.to_lowres_time_tokens = hiddens(), to_tokens()
            self.to_lowres_time_cond = nn.Linear(hidden_dim, hidden_dim)
        self.norm_cond = nn.LayerNorm(cond_dim) if attends else None
        self.to_augment_cond = nn.Linear(self.augment_dim, hidden_dim, bias=False) if self.augment_dim else None
        if self.to_augment_cond is not None:
            nn.init.zeros_(self.to_augment_cond.weight)
        self.text_to_cond = self.attn_pool = self.to_text_non_attn_cond = None
        if self.cond_on_text and (attends or given["text_film"]):
            self._build_text(given, cond_dim, hidden_dim)

    def _build_text(self, given: Mapping[str, Any], cond_dim: int, hidden_dim: int) -> None:
        self.text_to_cond = nn.Linear(given["text_embed_dim"], cond_dim)
        # a dropped caption is one null token for attention, and one null vector for the modulation
        self.null_text_embed = None if self.norm_cond is None else normal_parameter(1, 1, cond_dim)
        if given["text_film"]:
            self.to_text_non_attn_cond = nn.Sequential(
                nn.LayerNorm(cond_dim), nn.Linear(cond_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
            )
            self.null_text_hidden = normal_parameter(1, hidden_dim, std=0.02)
        if given["attn_pool_text"]:
            shape = (given["attn_pool_num_latents"], self.max_text_len, given["attn_heads"], given["attn_dim_head"])
            self.attn_pool = PerceiverResampler(cond_dim, *shape, kv_heads=given["attn_kv_heads"])

    def _number_readers(self) -> None:
        """Number the layers that read the context, so that each finds its own keys and values."""
        readers = (part for part in self.modules() if isinstance(part, ContextAttention))
        self._readers = [reader for reader in readers if reader.attention.to_context is not None]
        for index, reader in enumerate(self._readers):
            reader.context_index = index

    # -- once per call ----------------------------------------------------------------------------------------------

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
        cond_images: Float[Tensor, "b c2 h2 w2"] | None = None,
        cond_images_keep: Bool[Tensor, " b"] | None = None,
        crop_window: Float[Tensor, "b 4"] | None = None,
        augment_label: Float[Tensor, "b k"] | None = None,
    ) -> Conditioning:
        """Encode everything that does not depend on the noise level, once per call.

        Args:
            batch, size: number of images and their height and width.
            text_embeds, text_mask: captions. Without a mask every position that is not all zero is valid. Invalid
                positions have no influence, and those after the longest caption cost nothing.
            text_keep: false replaces a caption by the learned null text, as does an empty caption.
            lowres_cond_img, lowres_noise_times: the noised low-resolution image, and the log-SNR of its noise.
            cond_images, cond_images_keep: conditioning images of any size. False sets one to zero.
            crop_window: top, left, height and width of each image as fractions of the full image that it was cut from.
                By default each is a full image. For networks with ``crop_coordinates``.
            augment_label: the numbers that describe how each image was augmented, by default zeros. For networks with
                ``augment_dim``.

        Raises:
            ValueError: a required input is missing, an unused one is given, or shapes do not fit.
        """
        text, enlarges = "is conditioned on text (cond_on_text)", "enlarges an image (lowres_cond)"
        sees = "sees another image (cond_images_channels)"
        changes = "takes the label of an augmentation (augment_dim)"
        located = "has channels of coordinates (crop_coordinates)"
        augments = self.to_augment_cond
        takes_label = augment_label is not None and augments is not None
        space = ("frames", "height", "width") if self.is_video else ("height", "width")
        taken = {
            "text_embeds": (text_embeds, self.cond_on_text, text, ("tokens", self.text_embed_dim)),
            "lowres_cond_img": (lowres_cond_img, self.lowres_cond, enlarges, (self.channels, *space)),
            "lowres_noise_times": (lowres_noise_times, self.lowres_cond, enlarges, ()),
            "cond_images": (cond_images, self.has_cond_image, sees, None),
            "cond_images_keep": (cond_images_keep, cond_images_keep is not None, sees, ()),
            "text_keep": (text_keep, text_keep is not None, text, ()),
            "augment_label": (augment_label, takes_label, changes, (self.augment_dim,)),
            "crop_window": (crop_window, crop_window is not None and self.crop_coordinates, located, (4,)),
        }
        for name, (value, wanted, what, fits) in taken.items():
            _check(name, value, wanted, what, batch, fits)
        encoded = []
        if self.lowres_cond:
            encoded.append(self._lowres_level(lowres_noise_times))
        if augment_label is not None:
            encoded.append(EncodedCondition(augments(augment_label.to(augments.weight.dtype)), None, None))
        if self.text_to_cond is not None and self.cond_on_text:
            encoded.append(self._read_text(*self._trim_text(text_embeds, text_mask, text_keep)))
        joined = _concat_conditions(encoded)
        static: tuple[KeysValues, ...] = ()
        if joined.tokens is not None:
            normed = self.norm_cond(joined.tokens)
            static = tuple(reader.attention.context(normed) for reader in self._readers)
        cond_images = self._cond_images(cond_images, cond_images_keep, size)
        lowres = None if lowres_cond_img is None else resize(lowres_cond_img, size)
        coordinates = self._coordinates(crop_window, size)
        return Conditioning(joined.emb, static, joined.mask, cond_images, lowres, coordinates)

    def _coordinates(self, window: Tensor | None, size: Size) -> Tensor | None:
        if not self.crop_coordinates:
            return None
        if window is None:
            window = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=self.to_time_cond.weight.device)
        return pixel_coordinates(window, size)

    def _lowres_level(self, times: Tensor) -> EncodedCondition:
        emb = self.to_lowres_time_hiddens(times)
        tokens = None if self.to_lowres_time_tokens is None else self.to_lowres_time_tokens(emb)
        return EncodedCondition(self.to_lowres_time_cond(emb), tokens, None)

    def _trim_text(self, embeds: Tensor, mask: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Trim captions after the last valid token. Return them, their mask, and which captions have a valid token."""
        mask = torch.any(embeds != 0, dim=-1) if mask is None else token_mask(mask, "text_mask")
        if mask.shape != embeds.shape[:2]:
            raise ValueError(f"text_mask must be {tuple(embeds.shape[:2])} as text_embeds are, got {tuple(mask.shape)}")
        mask = mask if keep is None else mask & keep[:, None]
        length = embeds.shape[1]
        # a compiled network needs constant shapes, and a training step must not wait for the accelerator
        waits = mask.device.type != "cpu" and torch.is_grad_enabled()
        if not waits and not torch.compiler.is_compiling():
            length = int((mask.any(dim=0) * torch.arange(1, length + 1, device=mask.device)).amax()) if length else 0
        if length > self.max_text_len:
            warnings.warn(f"captions of {length} tokens are cut at max_text_len={self.max_text_len}", stacklevel=3)
        # at least one token, for the null text; a negative number trims
        room = max(1, min(length, self.max_text_len)) - embeds.shape[1]
        embeds, mask = F.pad(embeds, (0, 0, 0, room)), F.pad(mask, (0, room))
        return embeds, mask, mask.any(dim=1, keepdim=True)

    def _read_text(
        self, embeds: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], kept: Bool[Tensor, "b 1"]
    ) -> EncodedCondition:
        tokens = self.text_to_cond(embeds)
        null = tokens.new_zeros(()) if self.null_text_embed is None else self.null_text_embed.to(tokens.dtype)
        tokens = torch.where(mask[..., None], tokens, null)
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        mask = mask | (first & ~kept)
        if self.attn_pool is not None:
            tokens, mask = self.attn_pool(tokens, mask), None
        emb = None
        if self.to_text_non_attn_cond is not None:
            pooled = self.to_text_non_attn_cond(masked_mean(tokens, mask))
            emb = torch.where(kept, pooled, self.null_text_hidden.to(pooled.dtype))
        return EncodedCondition(emb, tokens, mask) if self.norm_cond is not None else EncodedCondition(emb, None, None)

    def _cond_images(self, images: Tensor | None, keep: Tensor | None, size: Size) -> Tensor | None:
        if images is None:
            return None
        if images.ndim != 4 or images.shape[1] != self.cond_images_channels:
            need = f"cond_images must have {self.cond_images_channels} channels"
            raise ValueError(f"{need} and be (batch, channels, height, width), got {tuple(images.shape)}")
        images = resize(images, size, self.resize_mode)
        return images if keep is None else images * keep.reshape(-1, 1, 1, 1).to(images.dtype)

    # -- at every step ----------------------------------------------------------------------------------------------

    def _embed_time(self, time: Tensor, conditioning: Conditioning) -> Context:
        """Return the modulation of all blocks and the tokens that attention may read."""
        time_hidden = self.to_time_hiddens(time)
        emb = self.to_time_cond(time_hidden)
        if conditioning.emb is not None:
            emb = emb + conditioning.emb
        tokens = None if self.to_time_tokens is None else self.norm_cond(self.to_time_tokens(time_hidden))
        mask = conditioning.mask
        if mask is not None:
            mask = F.pad(mask, (tokens.shape[1], 0), value=True)
        return Context(F.silu(emb), tokens, conditioning.static, mask)

    def forward_with_cond_scale(
        self,
        *args: Any,
        cond_scale: float = 1.0,
        remove_parallel_component: bool = False,
        keep_parallel_frac: float = 0.0,
        **kwargs: Any,
    ) -> Float[Tensor, "b c h w"]:
        """Run `forward` with guidance in the space of the prediction (Ho & Salimans 2022, arXiv 2207.12598).

        For code that calls the network itself. Sampling guides estimates of the image instead, in one batch.

        Args:
            *args, **kwargs: of `forward`, without a ready ``conditioning``.
            cond_scale: 1 returns the plain prediction, as does a network without text.
            remove_parallel_component, keep_parallel_frac: scale the part of the guidance that is parallel to the
                prediction by this fraction (Sadat et al. 2024, arXiv 2410.02416).

        Raises:
            ValueError: as `forward`; or a ready conditioning, from which the caption cannot be removed.
        """
        answer = self(*args, **kwargs)
        if cond_scale == 1 or not self.cond_on_text:
            return answer
        if len(args) > 2 or kwargs.get("conditioning") is not None:
            raise ValueError("forward_with_cond_scale takes text_embeds and the like, not a ready conditioning")
        null = self(*args, **{**kwargs, "cond_drop_prob": 1.0, "text_keep": None})
        update = answer - null
        if remove_parallel_component:
            axis = F.normalize(answer.flatten(1), dim=1).view_as(answer)
            parallel = axis * (axis * update).flatten(1).sum(1).view(-1, *(1,) * (answer.ndim - 1))
            update = update - (1 - keep_parallel_frac) * parallel
        return answer + (cond_scale - 1) * update


def _check(
    name: str, value: Tensor | None, wanted: bool, what: str, batch: int, fits: tuple[int | str | None, ...] | None
) -> None:
    """Check that an input is given where needed, and that its shape after the batch is ``fits``."""
    if wanted and value is None:
        raise ValueError(f"this U-Net {what}: {name} must be given")
    if value is None:
        return
    if not wanted:
        raise ValueError(f"{name} was given, but only a U-Net that {what} takes it; this one was built without")
    if value.ndim > 0 and value.shape[0] != batch:
        raise ValueError(f"a batch of {batch} needs as many {name}, got {value.shape[0]}")
    if fits is None:
        return
    sides = zip(fits, value.shape[1:], strict=False)
    if value.ndim != 1 + len(fits) or any(isinstance(side, int) and side != found for side, found in sides):
        shape = ", ".join(("batch", *map(str, fits)))
        raise ValueError(f"{name} must be ({shape}), got {tuple(value.shape)}")


def _concat_conditions(encoded: list[EncodedCondition]) -> EncodedCondition:
    """Add the vectors and concatenate the tokens. The mask is None if all tokens are valid."""
    hiddens = [item.emb for item in encoded if item.emb is not None]
    spoken = [item for item in encoded if item.tokens is not None]
    emb = sum(hiddens[1:], hiddens[0]) if hiddens else None
    tokens = torch.cat([item.tokens for item in spoken], dim=1) if spoken else None
    if all(item.mask is None for item in spoken):
        return EncodedCondition(emb, tokens, None)
    masks = [
        torch.ones_like(item.tokens[..., 0], dtype=torch.bool) if item.mask is None else item.mask for item in spoken
    ]
    return EncodedCondition(emb, tokens, torch.cat(masks, dim=1))

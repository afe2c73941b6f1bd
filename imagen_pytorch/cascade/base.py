"""The parts of a cascade: networks, stages, a text encoder, and the arguments of its constructor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..construction import class_name, plain
from ..diffusion.process import DiffusionProcess
from ..images import as_float, normalize, unnormalize
from ..tensors import per_stage
from ..text import TextEncoder, as_encoder, check_name, text_encoder
from .conditioning import Text
from .limits import check_unet_number
from .lowres import Augmentation
from .module_state import Turn, alone_on_device, device_of
from .options import SharedOptions, plain_member
from .sizes import plain_size
from .stage import Stage, fitted, is_null, makes_videos


class CascadeBase(nn.Module):
    """Networks in order, each with its process and its size.

    Args:
        unets: the networks, lowest resolution first.
        processes: one diffusion process per network.
        shared: the arguments that the public constructors have in common.

    Attributes:
        unets: the networks, fitted to their places.
        stages: the properties of each stage besides the weights.
        image_sizes, random_crop_sizes: per U-Net, an int for a square or (height, width).
        sample_channels: channels of the images of each U-Net.
        cond_scale, guidance: defaults of `sample`: per U-Net the guidance weight, and the method. None where the model
            sets none.
        turn: lock of the model, held during changes of the networks, such as in `sample`.

    Raises:
        ValueError: contradicting or unknown options, named in the message.
        TypeError: an object that is not a network.
    """

    #: type of the model, as configuration files and checkpoints spell it
    kind: ClassVar[str] = ""
    _unrecorded: ClassVar[tuple[str, ...]] = ("unets", "text_encoder")
    _locals: dict[str, Any]

    def __init__(
        self, unets: Sequence[nn.Module], processes: Sequence[DiffusionProcess], shared: SharedOptions
    ) -> None:
        super().__init__()
        count = len(unets)
        shared.check(count)
        for process in processes:
            process.check_times()
        losses = shared.spectral_losses(count)
        processes = [replace(process, spectral=loss) for process, loss in zip(processes, losses, strict=True)]
        self.condition_on_text = shared.condition_on_text
        self.cond_drop_prob = shared.cond_drop_prob
        self.cond_images_drop_prob = shared.cond_images_drop_prob
        self.cond_scale = per_stage(shared.cond_scale, count, "cond_scale")
        self.guidance = shared.guidance
        self.channels = shared.channels
        self.sample_channels = (shared.channels,) * count
        given = shared.text_encoder
        self._text_encoder = None if given is None else as_encoder(given, shared.text_embed_dim)
        name = getattr(self._text_encoder, "name", shared.text_encoder_name)
        self.text_encoder_name = None if name is None else check_name(name)
        self.text_embed_dim = shared.text_embed_dim
        if self.condition_on_text and self.text_embed_dim is None:
            self.text_embed_dim = self.text_encoder.dim
        self.auto_normalize_img = shared.auto_normalize_img
        self.input_image_range = (0.0, 1.0) if shared.auto_normalize_img else (-1.0, 1.0)
        self.resize_mode = shared.resize_mode
        self.lowres_sample_noise_level = shared.lowres_sample_noise_level
        self.per_sample_random_aug_noise_level = shared.per_sample_random_aug_noise_level
        self.lowres_max_noise_level = shared.lowres_max_noise_level
        self.dynamic_thresholding = per_stage(shared.dynamic_thresholding, count, "dynamic_thresholding")
        self.dynamic_thresholding_percentile = shared.dynamic_thresholding_percentile
        self.only_train_unet_number = shared.only_train_unet_number
        self.augmentation = Augmentation(shared.lowres_schedule())
        self.turn = Turn()
        self.temporal_downsample_factor = shared.temporal_factors(count)
        self.temporal_downsample_divisor = self.temporal_downsample_factor[0]
        self.resize_cond_video_frames = shared.resize_cond_video_frames
        self.temporal_resize_mode = shared.temporal_resize_mode
        self.video_frames, self.fps = shared.video_frames, shared.fps
        self.fps_drop_prob, self.given_frames_prob = shared.fps_drop_prob, shared.given_frames_prob
        sizes = shared.sizes(count)
        crops = shared.crops(sizes)
        self.image_sizes = tuple(plain_size(size) for size in sizes)
        self.random_crop_sizes = tuple(None if crop is None else plain_size(crop) for crop in crops)
        limits = [shared.dynamic_thresholding_percentile if dynamic else None for dynamic in self.dynamic_thresholding]
        residuals, factors = shared.residuals(count), self.temporal_downsample_factor
        added = shared.augmentations(count), shared.perceptual_losses(count)
        columns = (range(1, count + 1), processes, sizes, crops, limits, residuals, factors, *added)
        self.stages = tuple(Stage(*row) for row in zip(*columns, strict=True))
        embed_dim = self.text_embed_dim if self.condition_on_text else None
        self.unets = nn.ModuleList(
            fitted(unet, index, self.channels, embed_dim, wanted)
            for index, (unet, wanted) in enumerate(zip(unets, shared.choices_of_networks(count), strict=True))
        )
        if all(is_null(unet) for unet in self.unets):
            raise ValueError("at least one U-Net must be more than a NullUnet placeholder")
        self._check_ranks()

    def _check_ranks(self) -> None:
        """Check that all networks are for images or all for videos, and that frame rates belong to videos."""
        kinds = {makes_videos(unet) for unet in self.unets if not is_null(unet)}
        if len(kinds) > 1:
            raise ValueError("the U-Nets of a cascade are all Unet (images) or all Unet3D (videos), got both")
        if not self.is_video and self.temporal_downsample_divisor != 1:
            raise ValueError("temporal_downsample_factor is for video cascades (Unet3D); images have no frames")

    # -- facts ------------------------------------------------------------------------------------------------------

    @property
    def unconditional(self) -> bool:
        """True if the model takes no text."""
        return not self.condition_on_text

    @property
    def can_classifier_guidance(self) -> bool:
        """True if captions were dropped in training, which classifier-free guidance needs."""
        return self.cond_drop_prob > 0

    @property
    def is_video(self) -> bool:
        """True if the networks generate videos."""
        return any(makes_videos(unet) for unet in self.unets)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return device_of(self.unets)

    def get_unet(self, unet_number: int) -> nn.Module:
        """Return the network with this 1-based number. It is not moved.

        Raises:
            TypeError, ValueError: a number that does not exist.
        """
        return self.unets[check_unet_number(unet_number, len(self.unets)) - 1]

    def to_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain containers: {"type", "unets": [{"type", ...}, ...], ...}.

        Raises:
            TypeError: the model was made with an object that a file cannot hold.
        """
        given = {name: plain_member(name, value) for name, value in self._locals.items()}
        if self._text_encoder is not None:
            given["text_encoder_name"] = self.text_encoder_name
        if self.text_embed_dim is not None:
            given["text_embed_dim"] = self.text_embed_dim
        unets = [{"type": class_name(unet), **plain(unet._locals)} for unet in self.unets]
        return {"type": self.kind, "unets": unets, **plain(given)}

    # -- images and captions ----------------------------------------------------------------------------------------

    def as_given(self, images: Shaped[Tensor, "b c *space"], name: str = "images") -> Float[Tensor, "b c *space"]:
        """Convert images to floats in the caller's range, also from uint8.

        Raises:
            TypeError: integers that are not uint8.
        """
        cond_images = as_float(images, name)
        return cond_images if self.auto_normalize_img or images.is_floating_point() else normalize(cond_images)

    def normalize_img(self, images: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Convert from the caller's range to [-1, 1]."""
        return normalize(images) if self.auto_normalize_img else images

    def unnormalize_img(self, images: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Convert from [-1, 1] to the caller's range."""
        return unnormalize(images) if self.auto_normalize_img else images

    @property
    def text_encoder(self) -> TextEncoder:
        """Text encoder of the model. Its weights are loaded at the first caption.

        Raises:
            ValueError: the model has none, because ``text_encoder_name`` is None.
        """
        if self._text_encoder is None and self.text_encoder_name is None:
            raise ValueError(
                "this model has no text encoder (text_encoder_name=None): pass text_embeds= instead of texts, and "
                "text_embed_dim= when the model is made"
            )
        return self._text_encoder or text_encoder(self.text_encoder_name)

    def encode(self, texts: Sequence[str]) -> Text:
        """Encode captions to embeddings and mask, on the model's device."""
        return Text(*self.text_encoder.encode(list(texts), device=self.device))

    def encode_text(self, texts: Sequence[str], return_attn_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Encode captions to embeddings ``(b, n, d)``, on request with their mask ``(b, n)``."""
        text = self.encode(texts)
        return tuple(text) if return_attn_mask else text.embeds

    # -- changes ----------------------------------------------------------------------------------------------------

    def force_unconditional_(self) -> None:
        """Use a text model without text, in place. Its networks receive the null caption of training."""
        self.condition_on_text = False

    def reset_unets_all_one_device(self, device: torch.device | str | None = None) -> None:
        """Move every network to one device (that of the first one)."""
        self.unets.to(device or self.device)

    @contextmanager
    def one_unet_in_gpu(self, unet_number: int | None = None, unet: nn.Module | None = None) -> Iterator[None]:
        """Keep one network, by number or itself, on the model's device and the others on the CPU inside the context.

        Raises:
            ValueError: not exactly one of the two arguments, or a network of another model.
        """
        if (unet_number is None) == (unet is None):
            raise ValueError("one_unet_in_gpu takes either unet_number or unet")
        kept = unet if unet_number is None else self.get_unet(unet_number)
        index = next((index for index, item in enumerate(self.unets) if item is kept), None)
        if index is None:
            raise ValueError("one_unet_in_gpu: the network does not belong to this model; pass its unet_number")
        with alone_on_device(self.unets, index, self.device):
            yield

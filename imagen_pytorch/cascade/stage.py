"""One stage of the cascade: its process, its size and the processing of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..diffusion.guidance import dynamic_threshold, static_threshold
from ..diffusion.perceptual import PerceptualLoss
from ..diffusion.process import DiffusionProcess
from ..images import Size
from ..nn.network import missing_of
from .geometric import GeometricAugmentation
from .lowres import Direct, Residual


@dataclass(frozen=True)
class Stage:
    """The properties of one U-Net besides its weights.

    Attributes:
        number: 1-based.
        process: schedule, objective, noise levels, weighting and sampler.
        size: height and width of its images.
        crop: height and width of its training crops; None trains on whole images.
        percentile: quantile at which estimates are thresholded (Saharia et al. 2022, section 2.3); None clips at 1.
        residual: scale of the residual over the enlarged low-resolution image; None models the image itself.
        frame_stride: it keeps every ``frame_stride``-th frame of the full frame rate.
        augment: random geometric changes of its training images; None for none.
        perceptual: a loss on the features of a frozen network, for training only.
    """

    number: int
    process: DiffusionProcess
    size: Size
    crop: Size | None
    percentile: float | None
    residual: float | None
    frame_stride: int = 1
    augment: GeometricAugmentation | None = None
    perceptual: PerceptualLoss | None = None

    def threshold(self, x0: Tensor, space: Residual | Direct) -> Tensor:
        """Threshold estimates in the stage's space as the images they represent, for training and sampling."""
        return space.encode(thresholded(space.decode(x0), self.percentile))


def thresholded(image: Tensor, percentile: float | None) -> Tensor:
    """Threshold each estimate at its own quantile of absolute values, or (None) clip it to [-1, 1]."""
    return static_threshold(image) if percentile is None else dynamic_threshold(image, percentile)


def fitted(
    unet: nn.Module, index: int, channels: int, text_embed_dim: int | None, choices: Mapping[str, Any]
) -> nn.Module:
    """Adapt a U-Net to its place in the cascade. Without a width of text embeddings it takes no text.

    ``choices`` are arguments of the network that the model may set. None leaves them as they are.

    A network from ``torch.compile`` is compiled in place after that, with torch's default settings, so that the names
    in its state dict do not change. ``imagen.unets[0].compile(...)`` takes other settings.

    Raises:
        TypeError: not a network, with what it lacks.
        ValueError: the network was built with another value of one of the ``choices`` than the model sets.
    """
    compiled = hasattr(unet, "_orig_mod")
    inner = unet._orig_mod if compiled else unet
    _check_network(inner, index)
    for name, wanted in choices.items():
        own = getattr(inner, "_locals", {}).get(name)
        if None not in (own, wanted) and own != wanted:
            raise ValueError(f"U-Net {index + 1} was built with {name}={own}, the model with {name}={wanted}")
    cast = inner.cast_model_parameters(
        lowres_cond=index > 0,
        text_embed_dim=text_embed_dim,
        channels=channels,
        channels_out=channels,
        cond_on_text=text_embed_dim is not None,
        **choices,
    )
    _check_network(cast, index)  # now it takes more
    if compiled:
        cast.compile()
    return cast


def _check_network(network: nn.Module, index: int) -> None:
    """Check that a network has what a cascade needs of it.

    Raises:
        TypeError: names what it lacks.
    """
    if not is_null(network) and (lacks := missing_of(network)):
        raise TypeError(
            f"U-Net {index + 1} must be a Unet, Unet3D or NullUnet, got {type(network).__name__}; a network of your "
            f"own is a `Network` (docs/extending.md), and this one lacks {', '.join(lacks)}"
        )


def is_null(unet: nn.Module) -> bool:
    """Return true for a placeholder, which is neither trained nor sampled."""
    return bool(getattr(unet, "is_null", False))


def makes_videos(unet: nn.Module) -> bool:
    """Return true for a network of clips ``(b, c, f, h, w)``."""
    return bool(getattr(unet, "is_video", False))


def takes_cond_images(unet: nn.Module) -> bool:
    """Return true for a network that is conditioned on images (``cond_images_channels``)."""
    return bool(getattr(unet, "has_cond_image", False))

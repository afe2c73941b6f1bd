"""The low-resolution condition of an upsampling stage: made once, for training and sampling alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.schedules import Schedule
from ..images import Size, resize
from ..tensors import Generators, expand_to, rand, randn_like, widest


@dataclass(frozen=True)
class Augmentation:
    """Noise-conditioning augmentation: the low-resolution picture is noised and the network is told how much.

    Ho et al. 2021 (cascaded diffusion), arXiv 2106.15282, section 4.2.
    """

    schedule: Schedule

    def __call__(
        self, image: Float[Tensor, "b c *space"], times: Float[Tensor, " b"], generator: Generators = None
    ) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, " b"]]:
        """Noise a picture in [-1, 1] at times in [0, 1]; returns it with the log-SNR that the network is told."""
        level = self.schedule(widest(times, image.device))
        alpha, sigma = (expand_to(part, image).to(image) for part in (level.alpha, level.sigma))
        noised = alpha * image + sigma * randn_like(image, generator)
        return noised, level.log_snr.to(image)


def lowres_companion(image: Float[Tensor, "b c *space"], low: Size, size: Size, mode: str) -> Float[Tensor, "b c *to"]:
    """What the previous stage would have handed over for this picture: down to its size and up to this stage's."""
    shrunk = resize(image, low, mode)
    return resize(shrunk, size, mode)


@dataclass(frozen=True)
class Residual:
    """A stage may model (picture - enlarged low-resolution picture) / scale instead of the picture.

    The enlarged picture is most of the answer already; what is left is small and centred at zero, so an upsampler
    learns in a fraction of the steps. All maps are affine: known regions and init pictures pass through them too.

    Args:
        base: the enlarged low-resolution picture in [-1, 1], ``(b, c, *space)``.
        scale: about twice the standard deviation of the difference, so that the result has the usual 0.5.
    """

    base: Tensor
    scale: float

    def encode(self, picture: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Picture in [-1, 1] to what the stage models."""
        return (picture - self.base) / self.scale

    def decode(self, modelled: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """What the stage models to a picture."""
        return self.base + self.scale * modelled


@dataclass(frozen=True)
class Direct:
    """The stage models the picture itself."""

    def encode(self, picture: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """The identity."""
        return picture

    decode = encode


def target_space(base: Tensor | None, scale: float | None) -> Residual | Direct:
    """The space in which a stage works: residual if it has a scale, else the picture itself."""
    return Direct() if scale is None or base is None else Residual(base, scale)


def augmentation_times(
    batch: int, per_sample: bool, generator: Generators, device: torch.device
) -> Float[Tensor, " b"]:
    """Training levels of the augmentation, uniform in [0, 1): one per picture, or one for the whole batch."""
    return rand((batch,), generator, device) if per_sample else rand((1,), generator, device).expand(batch)

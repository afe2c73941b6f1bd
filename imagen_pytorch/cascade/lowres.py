"""The low-resolution condition of an upsampling stage, for training and sampling alike."""

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
    """Noise-conditioning augmentation: noise the low-resolution image and condition the network on the amount.

    Ho et al. 2021 (cascaded diffusion), arXiv 2106.15282, section 4.2.
    """

    schedule: Schedule

    def __call__(
        self, image: Float[Tensor, "b c *space"], times: Float[Tensor, " b"], generator: Generators = None
    ) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, " b"]]:
        """Noise an image in [-1, 1] at times in [0, 1], and return it with the log-SNR that conditions the network."""
        level = self.schedule(widest(times, image.device))
        alpha, sigma = (expand_to(part, image).to(image) for part in (level.alpha, level.sigma))
        noised = alpha * image + sigma * randn_like(image, generator)
        return noised, level.log_snr.to(image)


def lowres_version(image: Float[Tensor, "b c *space"], low: Size, size: Size, mode: str) -> Float[Tensor, "b c *to"]:
    """Simulate the output of the previous stage for this image: reduce it to that size and enlarge it to this one."""
    shrunk = resize(image, low, mode)
    return resize(shrunk, size, mode)


@dataclass(frozen=True)
class Residual:
    """A stage that models (image - enlarged low-resolution image) / scale instead of the image.

    The enlarged image is most of the result already. The rest is small and centred at zero, so an upsampler learns in
    a fraction of the steps. All maps are affine: known regions and init images pass through them too.

    Args:
        base: the enlarged low-resolution image in [-1, 1], ``(b, c, *space)``.
        scale: about twice the standard deviation of the difference, so that the result has the usual 0.5.
    """

    base: Tensor
    scale: float

    def encode(self, image: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Convert an image in [-1, 1] to the data of the stage."""
        return (image - self.base) / self.scale

    def decode(self, modelled: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Convert the data of the stage to an image."""
        return self.base + self.scale * modelled


@dataclass(frozen=True)
class Direct:
    """A stage that models the image itself."""

    def encode(self, image: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Return the image."""
        return image

    decode = encode


def target_space(base: Tensor | None, scale: float | None) -> Residual | Direct:
    """Return the space in which a stage works: residual if it has a scale, else the image itself."""
    return Direct() if scale is None or base is None else Residual(base, scale)


def augmentation_times(
    batch: int, per_sample: bool, generator: Generators, device: torch.device
) -> Float[Tensor, " b"]:
    """Draw training times of the augmentation, uniform in [0, 1): one per image, or one for the complete batch."""
    return rand((batch,), generator, device) if per_sample else rand((1,), generator, device).expand(batch)

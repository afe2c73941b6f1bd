"""A loss on the features that a frozen network computes of the clean estimate, at low noise only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..ranges import check_number
from ..tensors import Generators, bernoulli
from .schedules import NoiseLevel

#: from RGB images ``(n, 3, h, w)`` in [0, 1] to maps of several resolutions
FeatureMaps = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class PerceptualLoss:
    """The squared distance of normalised feature maps of the estimated and the real image, added to the plain loss.

    It acts only where the fraction of noise is small (Ma et al. 2026, "PixelGen", arXiv 2602.02493): at much noise the
    best estimate is a blurred mean, whose features are not those of an image. The features of every position are scaled
    to unit length, their squared differences are averaged over positions and added over maps (Zhang et al. 2018, arXiv
    1801.03924, eq. 1, without learned weights).

    With this loss the best network is no longer the posterior mean. Likelihoods and validation losses leave it out.
    Judge what was trained with it by other features.

    Args:
        features: name of the frozen network.
        weight: factor of this loss, at least 0.
        max_noise_share: largest fraction of noise, sigma / (alpha + sigma), at which it acts, 0 to 1.
        batch_fraction: fraction of the items, chosen at random, for which it is computed. Their loss counts the more,
            so that its mean does not depend on this number.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number, or not a name.
    """

    features: str
    weight: float = 0.1
    max_noise_share: float = 0.7
    batch_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.features, str):
            raise TypeError(f"features must be a name, got {self.features!r}")
        check_number(self.weight, "weight", 0, 1e6)
        check_number(self.max_noise_share, "max_noise_share", 0, 1)
        check_number(self.batch_fraction, "batch_fraction", 0, 1, above=True)

    def draw(self, level: NoiseLevel, generator: Generators = None) -> Bool[Tensor, " b"]:
        """Return for which items it is computed: a random choice among those with little noise.

        Args:
            level: noise level of each item, ``(b,)``.
            generator: source of the choice.
        """
        little = level.sigma <= self.max_noise_share * (level.alpha + level.sigma)
        return little & bernoulli(self.batch_fraction, len(little), generator, little.device)

    def __call__(
        self, maps: FeatureMaps, estimate: Float[Tensor, "b c *space"], images: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each item, weighted for the items that were not drawn.

        Args:
            maps: the frozen network.
            estimate: of the images, in [-1, 1] or a little outside; receives the gradient.
            images: grey or RGB images or clips in [-1, 1].
        """
        with torch.no_grad():
            wanted = maps(_rgb(images))
        total = 0
        for found, real in zip(maps(_rgb(estimate)), wanted, strict=True):
            distance = (F.normalize(found.float(), dim=1) - F.normalize(real.float(), dim=1)).square().sum(1)
            total = total + distance.flatten(1).mean(1)
        return total.unflatten(0, (len(images), -1)).mean(1) * (self.weight / self.batch_fraction)


def _rgb(images: Float[Tensor, "b c *space"]) -> Float[Tensor, "n 3 h w"]:
    """Return images or the frames of clips with three channels in [0, 1]."""
    planes = images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images
    return ((planes + 1) / 2).expand(-1, 3, -1, -1)

"""Densities whose denoiser ``E[x0 | x_t]`` is a formula. Each computes in the precision of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.samplers import NoiseSource, draw_noise
from ..diffusion.schedules import NoiseLevel
from ..tensors import Generators, expand_to, rand


def _parts(level: NoiseLevel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma as they broadcast over ``x``, in its precision."""
    alpha, sigma = (expand_to(part.to(x), x) for part in level)
    return alpha, sigma


@dataclass(frozen=True)
class IsotropicGaussian:
    """Independent normal values, ``N(mean, std**2)`` each.

    Args:
        mean, std: numbers, or tensors that broadcast over one item.
    """

    mean: float | Tensor = 0.0
    std: float | Tensor = 0.5

    def __call__(
        self, x: Float[Tensor, "b *shape"], level: NoiseLevel, x0_before: Tensor | None
    ) -> Float[Tensor, "b *shape"]:
        """``m + alpha s**2 / (alpha**2 s**2 + sigma**2) (x - alpha m)``."""
        alpha, sigma = _parts(level, x)
        variance = self.std**2
        return self.mean + alpha * variance / (alpha.square() * variance + sigma.square()) * (x - alpha * self.mean)

    def draw(self, shape: Sequence[int], generator: NoiseSource = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw data of this shape, the batch first."""
        return self.mean + self.std * draw_noise(torch.empty(tuple(shape), dtype=dtype), generator)


class Gaussian:
    """``N(mean, covariance)`` over the values of an item, in the order of ``flatten``.

    Args:
        mean: ``(d,)``.
        covariance: ``(d, d)``, symmetric and not negative.

    Raises:
        ValueError: a matrix that is not a covariance.
    """

    def __init__(self, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> None:
        variances, axes = torch.linalg.eigh(covariance.double())
        if not torch.allclose(covariance, covariance.T) or float(variances[0]) < -1e-9 * float(variances[-1]):
            raise ValueError("covariance must be symmetric and without negative eigenvalues")
        self.mean, self.axes, self.variances = mean.double(), axes, variances.clamp(min=0)

    def __call__(
        self, x: Float[Tensor, "b *shape"], level: NoiseLevel, x0_before: Tensor | None
    ) -> Float[Tensor, "b *shape"]:
        """``m + alpha C (alpha**2 C + sigma**2 I)**-1 (x - alpha m)``, along the axes of C."""
        flat = x.flatten(1)
        alpha, sigma = (part.to(x).reshape(-1, 1) for part in level)
        mean, axes, variances = (part.to(x) for part in (self.mean, self.axes, self.variances))
        gain = alpha * variances / (alpha.square() * variances + sigma.square())
        return (mean + ((flat - alpha * mean) @ axes * gain) @ axes.T).reshape(x.shape)

    def draw(
        self, count: int, generator: NoiseSource = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b d"]:
        """Draw ``count`` items."""
        z = draw_noise(torch.empty(count, len(self.mean), dtype=dtype), generator)
        return self.mean.to(z) + (z * self.variances.to(z).sqrt()) @ self.axes.to(z).T


@dataclass(frozen=True)
class IsotropicMixture:
    """``sum_k weights_k N(means_k, stds_k**2 I)`` over the values of an item.

    Args:
        means: one point of d values for each component.
        stds, weights: one number for each component. The weights sum to one.

    Raises:
        ValueError: the numbers of components differ, or the weights do not sum to one.
    """

    means: Sequence[Sequence[float]]
    stds: Sequence[float]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.stds) == len(self.weights):
            raise ValueError(
                f"a mixture needs as many means, stds and weights, got {len(self.means)}, {len(self.stds)} and "
                f"{len(self.weights)}"
            )
        if abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError(f"the weights of a mixture sum to 1, got {sum(self.weights)}")

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = (self.means, self.stds, self.weights)
        means, stds, weights = (torch.tensor(part, dtype=torch.float64).to(x) for part in parts)
        return means, stds.square(), weights

    def responsibilities(self, x: Float[Tensor, "b *shape"], level: NoiseLevel) -> Float[Tensor, "b k"]:
        """Return the probability of each component given ``x_t``."""
        return torch.softmax(self._joint(x, level), dim=1)

    def log_density(self, x: Float[Tensor, "b *shape"], level: NoiseLevel) -> Float[Tensor, " b"]:
        """Return the log-density of ``x_t``, in nats."""
        size = x.flatten(1).shape[1]
        return torch.logsumexp(self._joint(x, level), dim=1) - size / 2 * math.log(2 * math.pi)

    def _joint(self, x: Tensor, level: NoiseLevel) -> Tensor:
        means, variances, weights = self._tables(x)
        flat = x.flatten(1)
        alpha, sigma = (part.to(x).reshape(-1, 1) for part in level)
        spread = alpha.square() * variances + sigma.square()
        distance = (flat[:, None] - alpha[..., None] * means).square().sum(-1)
        return weights.log() - distance / (2 * spread) - flat.shape[1] / 2 * spread.log()

    def __call__(
        self, x: Float[Tensor, "b *shape"], level: NoiseLevel, x0_before: Tensor | None
    ) -> Float[Tensor, "b *shape"]:
        """``sum_k r_k (alpha s_k**2 x + sigma**2 m_k) / (alpha**2 s_k**2 + sigma**2)`` with the responsibilities r."""
        means, variances, _ = self._tables(x)
        alpha, sigma = (part.to(x).reshape(-1, 1, 1) for part in level)
        spread = alpha.square() * variances[:, None] + sigma.square()
        parts = (alpha * variances[:, None] * x.flatten(1)[:, None] + sigma.square() * means) / spread
        return (self.responsibilities(x, level)[..., None] * parts).sum(1).reshape(x.shape)

    def draw(
        self, count: int, generator: Generators = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b d"]:
        """Draw ``count`` items."""
        z = draw_noise(torch.empty(count, len(self.means[0]), dtype=dtype), generator)
        means, variances, weights = self._tables(z)
        edges = weights.cumsum(0)
        part = torch.searchsorted(edges, rand((count,), generator, dtype=dtype)).clamp(max=len(edges) - 1)
        return means[part] + variances[part].sqrt()[:, None] * z


#: Four components in the plane, near enough to make every sampler's order visible and far enough not to be Gaussian.
TEST_MIXTURE = IsotropicMixture(
    means=((1.0, 0.2), (-0.8, 0.9), (-0.3, -1.0), (0.6, -0.6)),
    stds=(0.3, 0.25, 0.35, 0.2),
    weights=(0.3, 0.25, 0.25, 0.2),
)

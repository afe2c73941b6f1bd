"""The exact response of a sampler to Gaussian data, without Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.guidance import Denoise
from ..diffusion.samplers import Sampler
from ..diffusion.schedules import NoiseLevel, Schedule


@dataclass(frozen=True)
class AffineResponse:
    """``x = offset + start_gain x_T + sum_i noise_gains_i z_i``: a sampler on one Gaussian value.

    Args:
        offset: the result of a start at zero and no noise.
        start_gain: the factor of the start.
        noise_gains: the factors of all noises, in the order in which they were drawn.
    """

    offset: float
    start_gain: float
    noise_gains: Float[Tensor, " n"]

    def mean(self, start: float = 0.0) -> float:
        """Return the mean of the result if the start has this mean."""
        return self.offset + self.start_gain * start

    def variance(self, start: float) -> float:
        """Return the variance of the result if the start has this variance."""
        return self.start_gain**2 * start + float(self.noise_gains.square().sum())


def affine_response(sampler: Sampler, denoise: Denoise, schedule: Schedule, levels: list[NoiseLevel]) -> AffineResponse:
    """Return the exact response of a sampler to one-dimensional Gaussian data.

    Every estimate, and so every sampler, is affine in the start and in each noise there. A batch of unit vectors gives
    all factors in one run.

    Args:
        sampler: any sampler.
        denoise: affine in ``x_t``, such as `IsotropicGaussian`.
        schedule: the process.
        levels: the noise levels of the run, not necessarily to the clean end.
    """
    drawn = 0

    def silence(x: Tensor) -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros_like(x)

    sampler.sample(denoise, schedule, torch.zeros(1, 1, dtype=torch.float64), levels, generator=silence)
    units = iter(torch.eye(drawn + 2, dtype=torch.float64)[2:])

    def unit(x: Tensor) -> Tensor:
        return next(units).reshape(x.shape)

    start = torch.eye(drawn + 2, dtype=torch.float64)[1][:, None]
    answer = sampler.sample(denoise, schedule, start, levels, generator=unit)[:, 0]
    gains = answer[1:] - answer[0]
    return AffineResponse(float(answer[0]), float(gains[0]), gains[1:])


def moment_exact_noise(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Draw noise whose batch has exactly mean zero, unit covariance and no correlation with the state.

    With it in place of random noise (``generator=moment_exact_noise``) the batch mean and covariance of an affine
    sampler without memory are those of infinitely many draws. Ten rows serve two dimensions.

    Raises:
        ValueError: fewer rows than twice the dimensions plus one.
    """
    rows, dims = x.shape
    if rows < 2 * dims + 1:
        raise ValueError(f"exact moments in {dims} dimensions need at least {2 * dims + 1} rows, got {rows}")
    taken = torch.cat([x.new_ones(rows, 1), x], dim=1)
    basis, _ = torch.linalg.qr(torch.cat([taken, torch.randn(rows, dims, dtype=x.dtype)], dim=1))
    return basis[:, -dims:] * rows**0.5

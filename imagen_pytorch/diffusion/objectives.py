"""Objectives: the quantity that a network predicts, as four coefficients and a target.

For every objective and every process ``x0 = c_skip x_t + c_out prediction``. The network receives ``c_in x_t`` and the
scalar ``c_noise``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..parameters import Positive
from ..registry import Registry
from .schedules import NoiseLevel


class Coefficients(NamedTuple):
    """Scale of the input, weight of the input and of the prediction in x0, and the noise condition."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor


class Objective(ABC):
    """One choice of the quantity that the network predicts."""

    @abstractmethod
    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """Return the four coefficients at a noise level, of its shape and precision."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return the prediction that gives ``x0`` exactly. The level must broadcast over the tensors."""


OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective", Objective)


def _condition(level: NoiseLevel) -> Tensor:
    # clamped where the image is all noise or all data, so that a network never receives an infinite number
    return level.log_snr.clamp(-30, 30)


def _unit(level: NoiseLevel) -> Tensor:
    # brings data of unit variance to unit variance; exactly one for variance-preserving processes
    return 1 / torch.hypot(level.alpha, level.sigma)


@OBJECTIVES.register("noise", "eps")
@dataclass(frozen=True)
class Noise(Objective):
    """The noise (Ho et al. 2020, arXiv 2006.11239, eq. 14). Undefined at alpha = 0."""

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """``x0 = (x_t - sigma noise) / alpha``."""
        return Coefficients(_unit(level), 1 / level.alpha, -level.sigma_edm, _condition(level))

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return the noise."""
        return noise


@OBJECTIVES.register("x_start", "x0")
@dataclass(frozen=True)
class XStart(Objective):
    """The clean image."""

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """``x0`` is the prediction."""
        nothing = torch.zeros_like(level.alpha)
        return Coefficients(_unit(level), nothing, nothing + 1, _condition(level))

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return the clean image."""
        return x0


@OBJECTIVES.register("v")
@dataclass(frozen=True)
class Velocity(Objective):
    """``v = alpha noise - sigma x0`` (Salimans & Ho 2022, arXiv 2202.00512, appendix D), for any process."""

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """``x0 = (alpha x_t - sigma v) / (alpha**2 + sigma**2)``."""
        total = level.alpha.square() + level.sigma.square()
        return Coefficients(_unit(level), level.alpha / total, -level.sigma / total, _condition(level))

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return v."""
        return level.alpha * noise - level.sigma * x0


@OBJECTIVES.register("flow")
@dataclass(frozen=True)
class FlowVelocity(Objective):
    """``noise - x0``, the velocity of a straight path (Lipman et al. 2022, arXiv 2210.02747)."""

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """``x0 = (x_t - sigma u) / (alpha + sigma)``."""
        total = level.alpha + level.sigma
        return Coefficients(torch.ones_like(total), 1 / total, -level.sigma / total, _condition(level))

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return the velocity of the straight path."""
        return noise - x0


@OBJECTIVES.register("edm")
@dataclass(frozen=True)
class EDM(Objective):
    """EDM's F (Karras et al. 2022, arXiv 2206.00364, table 1), on ``x_t / alpha`` so that it serves any process.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: Positive = 0.5

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """Scale input and target to unit variance; ``c_noise = log(sigma / alpha) / 4``."""
        alpha, sigma = level
        total = sigma.square() + (alpha * self.sigma_data).square()
        return Coefficients(
            1 / total.sqrt(),
            alpha * self.sigma_data**2 / total,
            sigma * self.sigma_data / total.sqrt(),
            _condition(level) / -8,
        )

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Return ``(x0 - c_skip x_t) / c_out``, written without the difference that would cancel at little noise."""
        alpha, sigma = level
        total = (sigma.square() + (alpha * self.sigma_data).square()).sqrt()
        return (sigma / self.sigma_data * x0 - alpha * self.sigma_data * noise) / total

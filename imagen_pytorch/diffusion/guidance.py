"""Guidance: combines the conditional and the unconditional estimate of x0, and thresholds.

In x0 space a linear guidance equals guidance of the noise or of v, and a non-linear one does not depend on what the
network predicts. The order is fixed: guide, then threshold, then self-conditioning and sampler.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..parameters import Fraction, NotNegative, Positive, Range
from ..registry import Registry
from ..tensors import expand_to, quantile
from .schedules import NoiseLevel

#: ``denoise(x_t, level, x0_before) -> x0``: the only function that a sampler calls.
Denoise = Callable[[Tensor, NoiseLevel, Tensor | None], Tensor]
#: Both estimates: the last argument requests the unconditional one too, computed in the same batch.
Pair = Callable[[Tensor, NoiseLevel, Tensor | None, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Guidance(ABC):
    """A way to combine the conditional and the unconditional estimate.

    Args:
        scale: the weight w. 1 returns the conditional estimate itself, and the unconditional one is not computed.

    Raises:
        ValueError: a weight that is not finite.
    """

    scale: float = 1.0
    #: the largest weight that the method accepts
    largest_scale: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        if not -math.inf < self.scale < math.inf:
            raise ValueError(f"a guidance weight must be a finite number, got {self.scale}")

    @property
    def uses_uncond(self) -> bool:
        """Return true if any step needs the unconditional estimate."""
        return self.scale != 1

    def needs_uncond(self, level: NoiseLevel) -> bool:
        """Return true if the step at this noise level needs the unconditional estimate."""
        return self.uses_uncond

    @abstractmethod
    def combine(self, cond: Tensor, uncond: Tensor, level: NoiseLevel, state: dict[str, Any]) -> Tensor:
        """Combine two estimates into one. ``state`` is kept during one sampling run."""


GUIDANCE: Registry[Callable[..., Guidance]] = Registry("guidance method", Guidance, {"scale": "cond_scale"})


def _norm(x: Tensor) -> Tensor:
    return expand_to(x.flatten(1).norm(dim=1), x)


@GUIDANCE.register("cfg")
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """``uncond + w (cond - uncond)`` (Ho & Salimans 2022, arXiv 2207.12598)."""

    def combine(self, cond: Tensor, uncond: Tensor, level: NoiseLevel, state: dict[str, Any]) -> Tensor:
        """Return the extrapolation."""
        return torch.lerp(uncond, cond, self.scale)


@GUIDANCE.register("interval")
@dataclass(frozen=True)
class Interval(ClassifierFree):
    """Guidance only while the log-SNR lies in an interval (Kynkaanniemi et al. 2024, arXiv 2404.07724). Outside, the
    unconditional estimate is not computed.

    Args:
        low, high: bounds of the log-SNR.
    """

    low: float = -3.0
    high: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    def needs_uncond(self, level: NoiseLevel) -> bool:
        """Return true if the noise level lies inside the interval."""
        return self.uses_uncond and self.low <= float(level.log_snr) <= self.high


@GUIDANCE.register("rescale")
@dataclass(frozen=True)
class Rescale(ClassifierFree):
    """Bring the standard deviation back to that of the conditional estimate (Lin et al. 2023, arXiv 2305.08891,
    eq. 16).

    Args:
        phi: fraction of the rescaled estimate.
    """

    phi: Fraction = 0.7

    def combine(self, cond: Tensor, uncond: Tensor, level: NoiseLevel, state: dict[str, Any]) -> Tensor:
        """Return the guided estimate, partly rescaled."""
        guided_x0 = super().combine(cond, uncond, level, state)
        ratio = cond.flatten(1).std(dim=1) / guided_x0.flatten(1).std(dim=1).clamp(min=1e-12)
        return guided_x0 * (self.phi * expand_to(ratio, cond) + 1 - self.phi)


@GUIDANCE.register("apg")
@dataclass(frozen=True)
class AdaptiveProjected(Guidance):
    """Guide along the component orthogonal to the conditional estimate (Sadat et al. 2024, arXiv 2410.02416, algorithm
    1).

    Args:
        eta: fraction of the parallel component that is kept.
        radius: largest norm of the difference.
        momentum: weight of the previous difference, usually negative.
    """

    eta: Fraction = 0.0
    radius: NotNegative = math.inf
    momentum: Annotated[float, Range(-1, 1)] = 0.0

    def combine(self, cond: Tensor, uncond: Tensor, level: NoiseLevel, state: dict[str, Any]) -> Tensor:
        """Return the projected guidance."""
        difference = cond - uncond
        if self.momentum:
            before = state.get("difference")
            difference = difference if before is None else difference + self.momentum * before
            state["difference"] = difference
        if math.isfinite(self.radius):
            difference = difference * (self.radius / _norm(difference).clamp(min=1e-12)).clamp(max=1)
        direction = cond / _norm(cond).clamp(min=1e-12)
        parallel = expand_to((difference * direction).flatten(1).sum(1), cond) * direction
        return cond + (self.scale - 1) * (difference - parallel + self.eta * parallel)


@GUIDANCE.register("cfgpp")
@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """CFG++ (Chung et al. 2024, arXiv 2406.08070) as a weight that depends on the level, for any sampler.

    Renoising a DDIM step with the unconditional noise is guidance with ``w = omega / (1 - exp(-h))``, where h is the
    step in half log-SNR. As published, its strength grows with the number of steps. Here h is that of a reference grid.

    Args:
        scale: omega, in [0, 1]. 1 is the strongest.
        ref_steps: steps of the reference grid, even in half log-SNR over ``span``. None takes ``h`` from ``step``.
        span: half log-SNR from the first to the last level of the reference grid.
        step: half log-SNR of the sampler's own steps, for the published form.

    Raises:
        ValueError: an omega outside [0, 1].
    """

    ref_steps: Annotated[int, Range(1, 1e6)] | None = 50
    span: Positive = 10.6
    step: Positive | None = None
    largest_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1:
            raise ValueError(
                f'the cond_scale of the guidance "cfgpp" is its omega and lies in [0, 1] (0.6 is usual), got '
                f"{self.scale}"
            )

    @property
    def uses_uncond(self) -> bool:
        """Return true: the weight is never exactly one."""
        return True

    @property
    def weight(self) -> float:
        """Return the equivalent weight of classifier-free guidance."""
        h = self.step if self.ref_steps is None else self.span / self.ref_steps
        if h is None:
            raise ValueError("cfgpp without ref_steps needs step, the half log-SNR between the sampler's levels")
        return self.scale / -math.expm1(-h)

    def combine(self, cond: Tensor, uncond: Tensor, level: NoiseLevel, state: dict[str, Any]) -> Tensor:
        """Apply classifier-free guidance with the equivalent weight."""
        return torch.lerp(uncond, cond, self.weight)


def guided(pair: Pair, guidance: Guidance) -> Denoise:
    """Return a denoiser that computes only the estimates of ``pair`` that the guidance needs."""
    state: dict[str, Any] = {}

    def denoise(x: Tensor, level: NoiseLevel, x0_before: Tensor | None) -> Tensor:
        both = guidance.needs_uncond(level)
        cond, uncond = pair(x, level, x0_before, both)
        return guidance.combine(cond, uncond, level, state) if both and uncond is not None else cond

    return denoise


def static_threshold(x0: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
    """Clip an estimate to [-1, 1]."""
    return x0.clamp(-1, 1)


def dynamic_threshold(
    x0: Float[Tensor, "b *shape"], percentile: float = 0.95, ceiling: float | None = None
) -> Float[Tensor, "b *shape"]:
    """Clip each estimate at its own quantile of absolute values, at least 1, and divide by it.

    Saharia et al. 2022, arXiv 2205.11487, section 2.3.

    Args:
        x0: estimates of any shape.
        percentile: the quantile in [0, 1].
        ceiling: largest divisor.
    """
    bound = quantile(x0.abs(), percentile).clamp(min=1.0, max=ceiling)
    bound = expand_to(bound, x0)
    return x0.clamp(-bound, bound) / bound

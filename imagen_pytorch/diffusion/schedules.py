"""Noise schedules: from time t to (alpha, sigma) and back, and the grids of noise levels that samplers use.

``x_t = alpha x0 + sigma noise``; the log-SNR is ``2 log(alpha / sigma)`` and falls as noise grows. Three families turn
a log-SNR into a `NoiseLevel`: "vp" keeps ``alpha**2 + sigma**2 = 1``, "ve" keeps ``alpha = 1``, "flow" keeps
``alpha + sigma = 1``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..parameters import Fraction, Positive
from ..registry import Registry
from ..renamed import renamed


class NoiseLevel(NamedTuple):
    """One noise level ``(alpha, sigma)``: 0-dimensional float64 while sampling, ``(b,)`` while training."""

    alpha: Tensor
    sigma: Tensor

    @property
    def log_snr(self) -> Tensor:
        """``2 log(alpha / sigma)``: inf without noise, -inf without signal."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @property
    def sigma_edm(self) -> Tensor:
        """``sigma / alpha``: EDM's noise level (Karras et al. 2022)."""
        return self.sigma / self.alpha

    @classmethod
    def clean(cls) -> NoiseLevel:
        """Return the end of every grid: the data themselves."""
        return cls(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def _vp(log_snr: Tensor) -> NoiseLevel:
    return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())


def _ve(log_snr: Tensor) -> NoiseLevel:
    return NoiseLevel(torch.ones_like(log_snr), torch.exp(-log_snr / 2))


def _flow(log_snr: Tensor) -> NoiseLevel:
    return NoiseLevel(torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2))


FAMILIES: dict[str, Callable[[Tensor], NoiseLevel]] = {"vp": _vp, "ve": _ve, "flow": _flow}


class Schedule(ABC):
    """Log-SNR as a falling function of time.

    Attributes:
        family: "vp", "ve" or "flow".
        grid: name of the grid that samplers take unless they state one, or "" for the one that a sampler prefers.
        rho: exponent of Karras' grid.
    """

    family: ClassVar[str] = "vp"
    grid: ClassVar[str] = ""
    rho: float = 7.0

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times ``t`` of any shape."""

    @abstractmethod
    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return the times with these log-SNRs."""

    def time_range(self) -> tuple[float, float]:
        """Return the times of the most and of the least noise."""
        return 1.0, 0.0

    def bounds(self) -> tuple[float, float]:
        """Return the log-SNR at both ends, the lowest first. Levels outside were never trained."""
        low, high = self.log_snr(torch.tensor(self.time_range(), dtype=torch.float64)).tolist()
        return low, high

    def sampling_bounds(self) -> tuple[float, float]:
        """Return the part of `bounds` in which a solver should spend its steps.

        Above sigma / alpha = 80 an image in [-1, 1] is lost in noise. Below 0.002 the noise is a quarter of a grey
        level (Karras et al. 2022, table 1, use this range).
        """
        low, high = self.bounds()
        return max(low, -2 * math.log(80.0)), min(high, -2 * math.log(0.002))

    def level(self, log_snr: Tensor) -> NoiseLevel:
        """Return the noise level of this family with this log-SNR."""
        return FAMILIES[self.family](log_snr)

    def __call__(self, t: Tensor) -> NoiseLevel:
        """Return the noise level at time ``t`` of any shape."""
        return self.level(self.log_snr(t))

    def discretize(self, steps: int, grid: str | None = None) -> list[NoiseLevel]:
        """Return ``steps + 1`` noise levels in float64, from the noisiest to exactly clean.

        Args:
            steps: number of steps.
            grid: a grid with its parameters. None takes the schedule's own, or "time".

        Raises:
            ValueError: fewer than one step, or an unknown grid.
        """
        if steps < 1:
            raise ValueError(f"sampling needs at least 1 step, got {steps}")
        alphas, sigmas = self.level(GRIDS.make(grid or self.grid or "time")(self, steps))
        return [NoiseLevel(*pair) for pair in zip(alphas.unbind(), sigmas.unbind(), strict=True)] + [NoiseLevel.clean()]


SCHEDULES: Registry[Callable[..., Schedule]] = Registry("noise schedule", Schedule)
GRIDS: Registry[Callable[..., Tensor]] = Registry("grid")


# -- grids: the log-SNRs of the steps, without the clean end ---------------------------------------------------------


@GRIDS.register("time")
def time_grid(schedule: Schedule, steps: int) -> Tensor:
    """Space the times evenly, from the noisy end and without the other, as in ancestral sampling."""
    return schedule.log_snr(torch.linspace(*schedule.time_range(), steps + 1, dtype=torch.float64)[:-1])


@GRIDS.register("log_snr")
def log_snr_grid(schedule: Schedule, steps: int) -> Tensor:
    """Space the log-SNRs evenly (Lu et al. 2022, arXiv 2206.00927, section 3.4)."""
    return torch.linspace(*schedule.sampling_bounds(), steps, dtype=torch.float64)


@GRIDS.register("karras")
def karras_grid(schedule: Schedule, steps: int, *, rho: Positive | None = None) -> Tensor:
    """Space ``sigma_edm**(1/rho)`` evenly (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Args:
        schedule: the schedule.
        steps: number of steps.
        rho: the exponent. None takes that of the schedule.
    """
    rho = schedule.rho if rho is None else rho
    ends = (torch.tensor(schedule.sampling_bounds(), dtype=torch.float64) / -2).exp() ** (1 / rho)
    ratios = (ends[0] + torch.linspace(0, 1, steps, dtype=torch.float64) * (ends[1] - ends[0])) ** rho
    return -2 * ratios.log()


# -- schedules -------------------------------------------------------------------------------------------------------


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """``alpha = cos(pi/2 (t + s) / (1 + s))`` (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).

    The log-SNR is clipped to +-15. Without the clip alpha reaches 1e-8 at t = 1, where the noise objective divides by
    it and second-order solvers diverge.

    Args:
        s: offset that keeps the noise at t = 0 above zero.
        clip: lowest and highest log-SNR.
    """

    s: Fraction = 0.008
    clip: tuple[float, float] = (-15.0, 15.0)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times in [0, 1]."""
        angle = (t + self.s) / (1 + self.s) * (math.pi / 2)
        # the clamp keeps tan finite at the end; the bound of the next line is reached before it
        return (-2 * torch.log(torch.tan(angle.clamp(max=math.pi / 2 - 1e-6)))).clamp(*self.clip)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return times in [0, 1]."""
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / math.pi) * (1 + self.s) - self.s


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """The continuous form of DDPM's linear betas, ``-log expm1(1e-4 + 10 t**2)`` (Kingma et al. 2021, arXiv 2107.00630,
    appendix H)."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times in [0, 1]."""
        return -torch.log(torch.expm1(1e-4 + 10 * t.square()))

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return times in [0, 1]."""
        return ((torch.log1p(torch.exp(-log_snr)) - 1e-4).clamp(min=0) / 10).sqrt()


@SCHEDULES.register("shifted_cosine")
@dataclass(frozen=True)
class ShiftedCosine(Cosine):
    """The cosine schedule for larger images: log-SNR lower by ``2 log(shift)`` (Hoogeboom et al. 2023, arXiv
    2301.11093, eq. 3).

    Args:
        shift: image side divided by 64.
    """

    shift: Positive = 4.0

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times in [0, 1]."""
        return (super().log_snr(t) - 2 * math.log(self.shift)).clamp(*self.clip)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return times in [0, 1]."""
        return super().inverse(log_snr + 2 * math.log(self.shift))


@SCHEDULES.register("karras")
@dataclass(frozen=True)
class Karras(Schedule):
    """EDM: alpha is 1 and time is sigma itself (Karras et al. 2022, arXiv 2206.00364).

    Raises:
        ValueError: not ``0 < sigma_min < sigma_max``.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    family: ClassVar[str] = "ve"
    grid: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def time_range(self) -> tuple[float, float]:
        """Return sigma_max and sigma_min: time is the noise level."""
        return self.sigma_max, self.sigma_min

    def sampling_bounds(self) -> tuple[float, float]:
        """Return the full range: sigma_min and sigma_max were chosen explicitly."""
        return self.bounds()

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at noise levels ``t``."""
        return -2 * torch.log(t)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return noise levels."""
        return torch.exp(-log_snr / 2)


@SCHEDULES.register("flow")
@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: ``x_t = (1 - t) x0 + t noise`` (Liu et al. 2022, arXiv 2209.03003).

    Args:
        shift: moves steps towards noise for larger images, ``t' = m t / (1 + (m - 1) t)`` (Esser et al. 2024,
            arXiv 2403.03206, eq. 23).
        clip: lowest and highest log-SNR. -inf starts from pure noise, which the noise objective does not support.
    """

    shift: Positive = 1.0
    clip: tuple[float, float] = (-15.0, 15.0)
    family: ClassVar[str] = "flow"

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times in [0, 1]."""
        plain = 2 * (torch.log1p(-t) - torch.log(t)) - 2 * math.log(self.shift)
        return plain.clamp(*self.clip)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return times in [0, 1]."""
        return torch.sigmoid(-(log_snr + 2 * math.log(self.shift)) / 2)


@SCHEDULES.register("discrete")
@dataclass(frozen=True)
class Discrete(Schedule):
    """Any list of betas (Ho et al. 2020, arXiv 2006.11239). Times between two of its steps take the nearest one.

    Args:
        betas: variances added per step, each in (0, 1). The default is DDPM's linear schedule of 1000 steps.

    Raises:
        ValueError: no betas, or one outside (0, 1).
    """

    betas: Sequence[float] = tuple(1e-4 + (0.02 - 1e-4) * index / 999 for index in range(1000))

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be numbers between 0 and 1, at least one, got {list(self.betas)[:8]}")

    def _table(self, like: Tensor) -> Tensor:
        kept = torch.cumsum(torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)), 0)
        return (kept - torch.log(-torch.expm1(kept))).to(like)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times in [0, 1]. 1 is the last step, 1 / number of steps the first."""
        count = len(self.betas)
        index = (t * count).round().long().clamp(1, count) - 1
        return self._table(t)[index]

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Return the times in [0, 1] of the nearest steps."""
        table = self._table(log_snr)
        nearest = (table - log_snr.unsqueeze(-1)).abs().argmin(-1)
        return (nearest + 1).to(log_snr) / len(self.betas)


__getattr__ = renamed(__name__, {"Level": "NoiseLevel"})

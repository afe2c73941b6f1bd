"""Samplers: from noise to an image. One loop, and one `step` per sampler.

With ``l = log(alpha / sigma)``, half of the log-SNR, and the estimate ``D(l)`` of x0, the probability-flow ODE of every
process is (Song et al. 2021, arXiv 2011.13456, eq. 13; Karras et al. 2022, arXiv 2206.00364, eq. 4)

    d(x / alpha) / dl = D - x / alpha,    so    d(exp(l) x / alpha) / dl = exp(l) D.

Integrated from level t to level s, with ``h = l_s - l_t`` (`lambda_step`), and multiplied by ``alpha_s``:

    x_s = (sigma_s / sigma_t) x_t + alpha_s * integral over u in [0, h] of exp(u - h) D(l_t + u).

For a constant D the integral is ``1 - exp(-h)``, which gives `ddim_step`; Heun's rule and the samplers of ``multistep``
replace it more exactly. The posterior of x_s given x_t and x0 adds noise instead. With ``fresh = 1 - exp(-2 h)``, any
``eta`` keeps the marginals of the process (Song et al. 2020, arXiv 2010.02502, eq. 16):

    x_s = alpha_s x0 + sigma_s (sqrt(1 - eta**2 fresh) (x_t - alpha_t x0) / sigma_t + eta sqrt(fresh) z).

A sampler calls a denoiser at noise levels and depends on nothing else. Updates are finite where alpha or sigma is zero.
A step to the clean end is its first-order limit, ``x = x0``. ``docs/math.md`` goes through all of them.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..parameters import Fraction, NotNegative
from ..registry import Registry
from ..renamed import renamed
from ..tensors import Generators, randn_like
from .guidance import Denoise
from .schedules import GRIDS, NoiseLevel, Schedule

#: Source of noise: generators, or ``noise(x)``, which returns the noise for a state of this shape. The latter fixes a
#: Brownian path for different numbers of steps, or probes a sampler.
NoiseSource = Generators | Callable[[Tensor], Tensor]


def draw_noise(x: Tensor, generator: NoiseSource) -> Tensor:
    """Draw standard normal noise of the shape, device and precision of ``x``."""
    return generator(x) if callable(generator) else randn_like(x, generator)


class Step(NamedTuple):
    """Result of a step: the next state, the estimate of x0 at the previous state, and that state if the step corrected
    it."""

    x: Tensor
    x0: Tensor
    corrected: Tensor | None = None


class HistoryEntry(NamedTuple):
    """An earlier noise level of the run, the state there and the estimate of x0."""

    level: NoiseLevel
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Inpainting:
    """A partly known image, for RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).

    Args:
        image: values of the known pixels, in the space of x0.
        mask: true where the image is known; broadcasts over channels.
        resample_times: number of passes over each segment of ``jump`` steps.
        jump: length of a segment in steps.
    """

    image: Tensor
    mask: Tensor
    resample_times: int = 10
    jump: int = 1

    def renoise_known(self, x: Tensor, level: NoiseLevel, generator: NoiseSource) -> Tensor:
        """Replace the known pixels by their values, noised to the level of the state."""
        return torch.where(self.mask, add_noise(self.image, level, draw_noise(x, generator)), x)

    def composite(self, x0: Tensor) -> Tensor:
        """Replace the known pixels by their clean values."""
        return torch.where(self.mask, self.image, x0)


def add_noise(x0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """Return ``alpha x0 + sigma noise`` for a level that broadcasts."""
    return level.alpha * x0 + level.sigma * noise


def renoise(x: Tensor, s: NoiseLevel, t: NoiseLevel, noise: Tensor) -> Tensor:
    """Go from level ``s`` back to the noisier ``t``, keeping the marginal: the added *variance* is the difference.

    ``x_t = r x_s + sqrt(sigma_t**2 - r**2 sigma_s**2) z`` with ``r = alpha_t / alpha_s``.
    """
    ratio = t.alpha / s.alpha
    return ratio * x + (t.sigma.square() - (ratio * s.sigma).square()).clamp(min=0).sqrt() * noise


def lambda_step(t: NoiseLevel, s: NoiseLevel) -> float:
    """Return ``h = (log SNR(s) - log SNR(t)) / 2``, positive towards less noise; inf to the clean end or from pure
    noise.

    The result is a float: one tensor operation costs more than all the arithmetic of a step.
    """
    return _half_log_snr(s) - _half_log_snr(t)


def _half_log_snr(level: NoiseLevel) -> float:
    alpha, sigma = float(level.alpha), float(level.sigma)
    if alpha == 0 or sigma == 0:
        return math.inf if sigma == 0 else -math.inf
    return math.log(alpha / sigma)


def ddim_step(x: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Take the exact step for a constant estimate: DDIM, and Euler's step of EDM and of rectified flow."""
    ratio = s.sigma / t.sigma
    return ratio * x + (s.alpha - t.alpha * ratio) * x0


def last_x0(history: Sequence[HistoryEntry]) -> Tensor | None:
    """Return the latest estimate, for self-conditioning."""
    return history[-1].x0 if history else None


@dataclass(frozen=True)
class Walk:
    """The run that a step belongs to.

    Attributes:
        denoise: estimates x0.
        schedule: for samplers that evaluate between levels.
        generator: source of all noise.
        steps: number of steps of the run.
        history: past levels of the run, the latest last, at most as many as the sampler's ``memory``.
    """

    denoise: Denoise
    schedule: Schedule
    generator: NoiseSource = None
    steps: int = 1
    history: Sequence[HistoryEntry] = ()

    def x0(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Estimate x0. The latest estimate is passed on for self-conditioning."""
        return self.denoise(x, level, last_x0(self.history))

    def noise(self, x: Tensor) -> Tensor:
        """Draw standard normal noise of the shape, device and precision of ``x``."""
        return draw_noise(x, self.generator)


#: ``callback(index, total, x0)``; returning False stops.
StepCallback = Callable[[int, int, Tensor], Any]


@dataclass(frozen=True)
class Sampler(ABC):
    """The sampling loop, and the interface of one step.

    Args:
        grid: the noise levels of a run: a grid with its parameters, such as "karras(rho=5)". None takes the grid of
            the schedule, or else the preferred one.

    Attributes:
        preferred_grid: the grid of this sampler where neither it nor the schedule states one.
        default_steps: a number of steps that gives good images.
        memory: number of past levels that a step reads. At least one is kept, for self-conditioning.
    """

    grid: str | None = field(default=None, kw_only=True)
    preferred_grid: ClassVar[str] = "karras"
    default_steps: ClassVar[int] = 32
    memory: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        try:
            inspect.signature(cls.step).bind("self", "walk", "x", "t", "s")
        except TypeError:
            given = ", ".join(inspect.signature(cls.step).parameters)
            raise TypeError(
                f"{cls.__name__}.step({given}): a sampler has step(self, walk, x, t, s), and walk has denoise, "
                "schedule, history, generator and steps"
            ) from None

    def __post_init__(self) -> None:
        if self.grid is not None:
            GRIDS.parse(self.grid)

    @abstractmethod
    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Step from level ``t`` to the less noisy ``s``."""

    def discretize(self, schedule: Schedule, steps: int | None = None) -> list[NoiseLevel]:
        """Return the noise levels of a run, from noise to clean."""
        grid = self.grid or schedule.grid or self.preferred_grid
        return schedule.discretize(self.default_steps if steps is None else steps, grid)

    def sample(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x: Tensor,
        levels: list[NoiseLevel],
        *,
        generator: NoiseSource = None,
        known: Inpainting | None = None,
        callback: StepCallback | None = None,
        first: int = 0,
    ) -> Tensor:
        """Run the steps from ``x`` at ``levels[first]`` to the clean end.

        Args:
            denoise: estimates x0.
            schedule: the schedule, for samplers that evaluate between levels.
            x: the state, any shape with the batch first.
            levels: from `discretize`; the last one is clean.
            generator: source of all noise.
            known: known pixels; they are exact in the result.
            callback: called after each step; returning False ends the run with the latest estimate.
            first: index of the state's level in ``levels``.
        """
        total, estimate = len(levels) - 1, x
        jump, repeats = (1, 1) if known is None else (known.jump, known.resample_times)
        walk = Walk(denoise, schedule, generator, total)
        for start in range(first, total, jump):
            end = min(start + jump, total)
            for repeat in reversed(range(repeats)):
                for t, s in pairwise(levels[start : end + 1]):
                    if known is not None:
                        x = known.renoise_known(x, t, generator)
                        walk = replace(walk, denoise=_with_known(denoise, known, t, generator))
                    step = self.step(walk, x, t, s)
                    past = HistoryEntry(t, x if step.corrected is None else step.corrected, step.x0)
                    walk = replace(walk, history=(*walk.history, past)[-max(self.memory, 1) :])
                    x, estimate = step.x, step.x0
                if repeat:
                    x = renoise(x, levels[end], levels[start], draw_noise(x, generator))
                    walk = replace(walk, history=())
            if callback is not None and callback(end - 1, total, estimate) is False:
                x = estimate
                break
        return x if known is None else known.composite(x)


def _with_known(denoise: Denoise, known: Inpainting, start: NoiseLevel, generator: NoiseSource) -> Denoise:
    """Renoise the known pixels in the evaluations that a step makes at other levels than its start."""

    def wrapped(x: Tensor, level: NoiseLevel, x0_before: Tensor | None) -> Tensor:
        return denoise(x if level is start else known.renoise_known(x, level, generator), level, x0_before)

    return wrapped


SAMPLERS: Registry[Callable[..., Sampler]] = Registry("sampler", Sampler)


@SAMPLERS.register("ddpm", "ancestral")
@dataclass(frozen=True)
class Ancestral(Sampler):
    """Ancestral sampling from the posterior (Ho et al. 2020, arXiv 2006.11239, eq. 7), in continuous time.

    Args:
        eta: 1 is the posterior's variance, 0 is DDIM (Song et al. 2020, arXiv 2010.02502, eq. 16).
        upper: fraction of the upper variance, ``lower**(1 - upper) upper**upper``: 0 is the posterior's for data
            that are one point, 1 that for data of unit variance (Ho et al. 2022, arXiv 2204.03458, section 2).
    """

    eta: NotNegative = 1.0
    upper: Fraction = 0.0
    preferred_grid: ClassVar[str] = "time"
    default_steps: ClassVar[int] = 250

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Return the posterior mean plus noise. The step to the clean end adds no noise."""
        x0 = walk.x0(x, t)
        if float(s.sigma) == 0:
            return Step(x0, x0)
        fresh = -math.expm1(-2 * lambda_step(t, s))
        added = s.sigma * self.eta * math.sqrt(fresh)
        kept = s.sigma * math.sqrt(max(1 - self.eta**2 * fresh, 0))
        mean = s.alpha * x0 + kept * ((x - t.alpha * x0) / t.sigma)
        if self.eta == 0:
            return Step(mean, x0)
        return Step(mean + added * (t.sigma / s.sigma) ** self.upper * walk.noise(x), x0)


@SAMPLERS.register("ddim", "euler")
@dataclass(frozen=True)
class DDIM(Sampler):
    """The first-order deterministic step (Song et al. 2020, arXiv 2010.02502, eq. 12)."""

    default_steps: ClassVar[int] = 50

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Take one DDIM step."""
        x0 = walk.x0(x, t)
        return Step(ddim_step(x, x0, t, s), x0)


def _heun(denoise: Denoise, x: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Take a trapezoidal step of ``x / alpha`` as a function of ``sigma / alpha``. The mean of both slopes is the mean
    of both directions, which needs no division by alpha at ``s``."""
    predicted = ddim_step(x, x0, t, s)
    if float(s.sigma) == 0 or float(t.alpha) == 0:
        return predicted
    again = denoise(predicted, s, x0)
    slope = ((x - t.alpha * x0) / t.sigma + (predicted - s.alpha * again) / s.sigma) / 2
    stretch = s.alpha / t.alpha
    return stretch * x + (s.sigma - stretch * t.sigma) * slope


@SAMPLERS.register("heun")
@dataclass(frozen=True)
class Heun(Sampler):
    """EDM's deterministic second-order sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 1). It needs two
    evaluations a step, and one for the step to the clean end."""

    default_steps: ClassVar[int] = 18

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Take Euler's step, then correct it."""
        x0 = walk.x0(x, t)
        return Step(_heun(walk.denoise, x, x0, t, s), x0)


@SAMPLERS.register("edm")
@dataclass(frozen=True)
class EDMChurn(Sampler):
    """EDM's stochastic sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 2), on any process.

    Args:
        S_churn: amount of noise added over the run, the same at every step.
        S_tmin, S_tmax: noise levels between which noise is added.
        S_noise: standard deviation of the added noise.
    """

    S_churn: NotNegative = 80.0
    S_tmin: NotNegative = 0.05
    S_tmax: NotNegative = 50.0
    S_noise: NotNegative = 1.003

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Add a little noise, then take Heun's step from there."""
        inside = self.S_tmin <= float(t.sigma_edm) <= self.S_tmax
        gamma = min(self.S_churn / walk.steps, math.sqrt(2) - 1) if inside else 0.0
        if gamma:
            raised = walk.schedule.level(t.log_snr - 2 * math.log1p(gamma))
            extra = (raised.sigma_edm.square() - t.sigma_edm.square()).sqrt() * self.S_noise
            x = raised.alpha * (x / t.alpha + extra * walk.noise(x))
            t = raised
        x0 = walk.x0(x, t)
        return Step(_heun(walk.denoise, x, x0, t, s), x0)


__getattr__ = renamed(
    __name__,
    {
        "Known": "Inpainting",
        "Noises": "NoiseSource",
        "Past": "HistoryEntry",
        "before": "last_x0",
        "corrupt": "add_noise",
        "exponential_step": "ddim_step",
        "fresh_noise": "draw_noise",
        "half_log_snr_step": "lambda_step",
    },
)

"""`DiffusionProcess`: schedule, objective, noise levels, weighting and sampler in one object.

The schedule noises data, ``x_t = alpha x0 + sigma noise``, and the objective says what the network predicts of it:

    x0 = c_skip x_t + c_out target,    estimate = c_skip x_t + c_out prediction.

The difference of both, ``estimate - x0 = c_out (prediction - target)``, turns a weight w of the error of x0 into one of
the error of the prediction, so that the loss of a time t from the distribution of noise levels is

    w(t) |estimate - x0|**2 = w(t) c_out**2 |prediction - target|**2.

Its minimum is the posterior mean ``E[x0 | x_t]``, whatever the weight and the objective. Measured in the prediction of
another objective (``loss_space``, with ``c_out'``) the residual is ``c_out / c_out'`` times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import Spec
from ..tensors import expand_to, sent, widest
from . import multistep as _registers_its_samplers  # noqa: F401
from .guidance import Denoise
from .losses import LOSSES, NoiseLevelDistribution, Weighting
from .objectives import Objective
from .samplers import SAMPLERS, Inpainting, NoiseSource, Sampler, StepCallback, add_noise, draw_noise
from .schedules import NoiseLevel, Schedule
from .spectral import SpectralLoss

#: Largest factor from the error of the prediction to that of the loss space: no velocity is divided by a time below
#: 0.05, as in Li & He (2025, "JiT", arXiv 2511.13720).
MAX_ERROR_SCALE = 20.0

#: ``net(c_in x_t, c_noise (b,), x0_before) -> prediction``
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class DiffusionProcess:
    """A diffusion process without parameters: it needs neither a device nor a state dict.

    Attributes:
        schedule: the noise schedule.
        objective: what the network predicts.
        noise_levels: the distribution of training times.
        weighting: the weight of each noise level in the loss.
        sampler: the default sampler.
        loss_type: "l1", "l2" or "huber".
        steps: number of sampling steps of ``sampler``. None leaves it to the sampler.
        loss_space: the objective in whose prediction the error is measured. None takes ``objective``.
        spectral: a loss of the same residual by frequency, added to the plain one before the weighting.

    Raises:
        ValueError: an unknown loss, a schedule whose log-SNR does not fall with time, or an objective that does not
            determine x0 where the schedule is all noise.
    """

    schedule: Schedule
    objective: Objective
    noise_levels: NoiseLevelDistribution
    weighting: Weighting
    sampler: Sampler
    loss_type: str = "l2"
    steps: int | None = None
    #: configured samplers, used when one of their kind is requested by name
    prepared: tuple[Sampler, ...] = ()
    loss_space: Objective | None = None
    spectral: SpectralLoss | None = None

    def __post_init__(self) -> None:
        LOSSES[self.loss_type]
        with torch.device("cpu"):  # numbers only, also if networks are built on another device or on "meta"
            low, high = self.schedule.bounds()
            noisiest = self.schedule.level(torch.tensor(low, dtype=torch.float64))
        if not low < high:
            raise ValueError(
                f"the log-SNR of {type(self.schedule).__name__} has to fall with time, it goes from {high:g} to {low:g}"
            )
        used = (self.objective,) if self.loss_space is None else (self.objective, self.loss_space)
        for objective in used:
            if all(torch.isfinite(part) for part in objective.coefficients(noisiest)):
                continue
            raise ValueError(
                f"{type(objective).__name__} does not determine x0 where {type(self.schedule).__name__} is all "
                "noise: bound its log-SNR, or predict v, flow or x_start"
            )

    def check_times(self) -> None:
        """Check that the noise levels are drawn as times of the schedule.

        Raises:
            ValueError: names the schedule and the distribution of noise levels.
        """
        if not self.noise_levels.fits(self.schedule):
            raise ValueError(
                f"the times of the noise schedule {type(self.schedule).__name__} are not those that "
                f"{type(self.noise_levels).__name__} draws in training"
            )

    @property
    def clean_scale(self) -> float:
        """Return the factor of the network's input at zero noise, for data that are given without noise."""
        return float(self.objective.coefficients(NoiseLevel.clean()).c_in)

    def level(self, t: Float[Tensor, " b"], like: Tensor) -> NoiseLevel:
        """Return the noise level at times ``t``, in float64 where the device has it, broadcast over ``like``."""
        level = self.schedule(widest(t, like.device))
        return NoiseLevel(*(expand_to(part, like).to(like.device) for part in level))

    def add_noise(self, x0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
        """Return ``alpha x0 + sigma noise`` in the precision of ``x0``."""
        return add_noise(x0, _as(level, x0), noise)

    def to_x0(self, prediction: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Convert a prediction to x0, in the precision of ``x``."""
        parts = self.objective.coefficients(_broadcast(level, x))
        return parts.c_skip.to(_dtype(x)) * x + parts.c_out.to(_dtype(x)) * prediction

    def predict(self, net: Network, x: Tensor, level: NoiseLevel, x0_before: Tensor | None) -> Tensor:
        """Run the network on the scaled input, with the noise condition as one number per item."""
        parts = self.objective.coefficients(_broadcast(level, x))
        c_noise = sent(parts.c_noise.to(_dtype(x)).flatten().expand(len(x)), x.device)
        return net(parts.c_in.to(_dtype(x)) * x, c_noise, x0_before).to(x.dtype)

    def denoiser(self, net: Network) -> Denoise:
        """Return the estimate of x0 as the function that samplers and guidance call."""

        def denoise(x: Tensor, level: NoiseLevel, x0_before: Tensor | None) -> Tensor:
            return self.to_x0(self.predict(net, x, level, x0_before), x, level)

        return denoise

    def loss(
        self,
        net: Network,
        x0: Float[Tensor, "b c *space"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c *space"],
        self_condition: bool = False,
        of_estimate: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, " b"]:
        """Return the weighted loss of each item.

        Args:
            net: the network. It receives ``c_in x_t``, ``c_noise`` and an earlier estimate of x0 or None.
            x0: data.
            t: times in the schedule's unit.
            noise: standard normal.
            self_condition: first run without gradient to get the estimate (Chen et al. 2022, arXiv 2208.04202). The
                target stays the data.
            of_estimate: an additional loss of each item, computed from the estimate of x0, added as it is.
        """
        level = self.level(t, x0)
        x_t = self.add_noise(x0, level, noise)
        estimate = None
        if self_condition:
            with torch.no_grad():
                estimate = self.denoiser(net)(x_t, level, None)
        prediction = self.predict(net, x_t, level, estimate)
        target = self.objective.target(x0, noise, _as(level, x0))
        scale, factor = self.error_scale(level)
        found, wanted = prediction.float(), target.float()
        if self.loss_space is not None:
            found, wanted = found * scale.float(), wanted * scale.float()
        error = LOSSES[self.loss_type](found, wanted).flatten(1).mean(1)
        if self.spectral is not None:
            error = error + self.spectral(found - wanted)
        loss = error * factor.flatten().to(error)
        return loss if of_estimate is None else loss + of_estimate(self.to_x0(prediction, x_t, level))

    def error_scale(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Return the factor from the error of the prediction to that in ``loss_space``, and the weight of the latter.

        The squared error of the prediction then counts the square of the first times the second. With a weighting that
        is stated in x0 space the product is the same for every ``loss_space``. The factor is at most
        `MAX_ERROR_SCALE`.
        """
        c_out = self.objective.coefficients(level).c_out
        if self.loss_space is None:
            return torch.ones_like(c_out), self.weighting.prediction_weight(level, c_out)
        scale = (c_out / self.loss_space.coefficients(level).c_out).abs().clamp(max=MAX_ERROR_SCALE)
        return scale, self.weighting.prediction_weight(level, c_out / scale)

    def plan(
        self,
        steps: int | None = None,
        sampler: Spec | None = None,
        has_init: bool = False,
        skip_steps: int | None = None,
        strength: float | None = None,
    ) -> tuple[Sampler, list[NoiseLevel], int]:
        """Return the sampler, the noise levels and the index of the first one. Arguments and errors as in `sample`."""
        chosen, count = self._resolve(sampler, steps)
        levels = chosen.discretize(self.schedule, count)
        return chosen, levels, _first(len(levels) - 1, has_init, skip_steps, strength)

    def _resolve(self, sampler: Spec | None, steps: int | None) -> tuple[Sampler, int]:
        """Return the sampler of a run and its number of steps: those of the process, unless others are given."""
        chosen = self.sampler if sampler is None else SAMPLERS.make(sampler, self.sampler, *self.prepared)
        if steps is None and _alike(chosen, self.sampler):
            steps = self.steps
        return chosen, chosen.default_steps if steps is None else steps

    def sample(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        *,
        steps: int | None = None,
        sampler: Spec | None = None,
        generator: NoiseSource = None,
        known: Inpainting | None = None,
        init: Tensor | None = None,
        skip_steps: int | None = None,
        strength: float | None = None,
        callback: StepCallback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Sample from the process.

        Args:
            denoise: estimates x0.
            shape: of the result, the batch first.
            steps, sampler: override those of the process. Another sampler has its own default number of steps. A
                sampler of the process's kind takes from it the parameters that are not stated.
            generator: source of all noise.
            known: known pixels.
            init: start from this, noised to the level given by ``skip_steps`` or ``strength``.
            skip_steps: number of steps skipped at the noisy end.
            strength: fraction of the steps that are run, 0 to 1.
            callback: called after each step.
            device, dtype: of the state.

        Raises:
            ValueError: more steps skipped than there are, or a strength outside [0, 1].
        """
        chosen, levels, first = self.plan(steps, sampler, init is not None, skip_steps, strength)
        if first == len(levels) - 1:
            x0 = init.to(device, dtype)  # type: ignore[union-attr]
            return x0 if known is None else known.composite(x0)
        noise = draw_noise(torch.empty(tuple(shape), device=device, dtype=dtype), generator)
        start = levels[first]
        x = start.sigma * noise if init is None else add_noise(init.to(noise), start, noise)
        return chosen.sample(
            denoise, self.schedule, x, levels, generator=generator, known=known, callback=callback, first=first
        )


def _alike(one: Sampler, other: Sampler) -> bool:
    """Return true if two samplers differ at most in their parameters."""
    return type(one) is type(other) and SAMPLERS.name_of(one) == SAMPLERS.name_of(other)


def _first(steps: int, has_init: bool, skip_steps: int | None, strength: float | None) -> int:
    if skip_steps is not None and strength is not None:
        raise ValueError("give skip_steps or strength, not both")
    if strength is not None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength lies between 0 (the image itself) and 1 (pure noise), got {strength}")
        skip_steps = steps - round(steps * strength)
    skip_steps = skip_steps or 0
    if skip_steps and not has_init:
        raise ValueError("skip_steps and strength need init_images to start from")
    if not 0 <= skip_steps <= steps:
        raise ValueError(f"skip_steps must lie between 0 and the {steps} steps of this run, got {skip_steps}")
    return skip_steps


def _dtype(x: Tensor) -> torch.dtype:
    # coefficients never in half precision: at a log-SNR of -30 alpha would underflow
    return torch.promote_types(x.dtype, torch.float32)


def _as(level: NoiseLevel, x: Tensor) -> NoiseLevel:
    return NoiseLevel(*(part.to(_dtype(x)) for part in level))


def _broadcast(level: NoiseLevel, x: Tensor) -> NoiseLevel:
    """Make a noise level per item broadcast over ``x``. A single level stays 0-dimensional."""
    return NoiseLevel(*(part if part.ndim in (0, x.ndim) else expand_to(part, x) for part in level))

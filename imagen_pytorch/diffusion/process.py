"""`DiffusionProcess`: schedule, objective, noise levels, weighting and sampler, joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..tensors import expand_to, sent, widest
from . import multistep as _registers_its_samplers  # noqa: F401
from .guidance import Denoise
from .losses import LOSSES, NoiseLevels, Weighting
from .objectives import Objective
from .samplers import SAMPLERS, Known, Noises, Sampler, StepCallback, corrupt, fresh_noise
from .schedules import Level, Schedule
from .spectral import SpectralLoss

#: Largest factor from the error of the prediction to that of the loss space: a velocity is never divided by less than a
#: time of 0.05, as Li & He do (2025, "JiT", arXiv 2511.13720).
LARGEST_ERROR_SCALE = 20.0

#: ``net(c_in x_t, c_noise (b,), x0_before) -> prediction``
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class DiffusionProcess:
    """Numbers and functions, no parameters: it needs no device and no state dict.

    Attributes:
        schedule: where a time lies.
        objective: what the network predicts.
        noise_levels: the law of training times.
        weighting: how much each level counts.
        sampler: used unless another is asked for.
        loss_type: "l1", "l2" or "huber".
        steps: number of sampling steps of ``sampler``; None leaves it to the sampler.
        loss_space: the objective in whose prediction the error is measured; None takes ``objective``.
        spectral: a loss of the same residual by frequency, added to the plain one before the level is weighted.

    Raises:
        ValueError: an unknown loss, or an objective that says nothing about x0 where the schedule is all noise.
    """

    schedule: Schedule
    objective: Objective
    noise_levels: NoiseLevels
    weighting: Weighting
    sampler: Sampler
    loss_type: str = "l2"
    steps: int | None = None
    #: ready samplers, taken where one of their kind is asked for by name
    prepared: tuple[Sampler, ...] = ()
    loss_space: Objective | None = None
    spectral: SpectralLoss | None = None

    def __post_init__(self) -> None:
        LOSSES[self.loss_type]
        with torch.device("cpu"):  # these are numbers, also where networks are made elsewhere or nowhere ("meta")
            noisiest = self.schedule.level(torch.tensor(self.schedule.bounds()[0], dtype=torch.float64))
        used = (self.objective,) if self.loss_space is None else (self.objective, self.loss_space)
        for objective in used:
            if all(torch.isfinite(part) for part in objective.coefficients(noisiest)):
                continue
            raise ValueError(
                f"{type(objective).__name__} says nothing about x0 where {type(self.schedule).__name__} is all "
                "noise: bound its log-SNR, or predict v, flow or x_start"
            )

    def check_times(self) -> None:
        """Refuse to train at times that are not those of the schedule.

        Raises:
            ValueError: naming the schedule and the law of noise levels.
        """
        if not self.noise_levels.fits(self.schedule):
            raise ValueError(
                f"the times of the noise schedule {type(self.schedule).__name__} are not those that "
                f"{type(self.noise_levels).__name__} draws in training"
            )

    @property
    def clean_scale(self) -> float:
        """What the network's input is multiplied with where there is no noise; for data that are given, not noised."""
        clean = Level(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
        return float(self.objective.coefficients(clean).c_in)

    def level(self, t: Float[Tensor, " b"], like: Tensor) -> Level:
        """The level at times ``t`` in float64 where there is such, broadcast over ``like``, on its device."""
        level = self.schedule(widest(t, like.device))
        return Level(*(expand_to(part, like).to(like.device) for part in level))

    def corrupt(self, x0: Tensor, level: Level, noise: Tensor) -> Tensor:
        """``alpha x0 + sigma noise`` in the precision of ``x0``."""
        return corrupt(x0, _as(level, x0), noise)

    def estimate(self, prediction: Tensor, x: Tensor, level: Level) -> Tensor:
        """The x0 that a prediction means, in the precision of ``x``."""
        parts = self.objective.coefficients(_broadcast(level, x))
        return parts.c_skip.to(_dtype(x)) * x + parts.c_out.to(_dtype(x)) * prediction

    def predict(self, net: Network, x: Tensor, level: Level, x0_before: Tensor | None) -> Tensor:
        """Ask the network, with the input scaled and the noise condition as one number per item."""
        parts = self.objective.coefficients(_broadcast(level, x))
        c_noise = sent(parts.c_noise.to(_dtype(x)).flatten().expand(len(x)), x.device)
        return net(parts.c_in.to(_dtype(x)) * x, c_noise, x0_before).to(x.dtype)

    def denoiser(self, net: Network) -> Denoise:
        """The estimate of x0 as samplers and guidance want it."""

        def denoise(x: Tensor, level: Level, x0_before: Tensor | None) -> Tensor:
            return self.estimate(self.predict(net, x, level, x0_before), x, level)

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
        """The weighted loss of each item.

        Args:
            net: the network; gets ``c_in x_t``, ``c_noise`` and an earlier estimate of x0 or None.
            x0: data.
            t: times in the schedule's unit.
            noise: standard normal.
            self_condition: a first pass without gradient gives the estimate (Chen et al. 2022, arXiv 2208.04202); the
                target stays the data.
            of_estimate: a further loss of each item, given the estimate of x0; it is added as it is.
        """
        level = self.level(t, x0)
        x_t = self.corrupt(x0, level, noise)
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
        return loss if of_estimate is None else loss + of_estimate(self.estimate(prediction, x_t, level))

    def error_scale(self, level: Level) -> tuple[Tensor, Tensor]:
        """Return the factor from the error of the prediction to that in ``loss_space``, and the weight of the latter.

        The squared error of the prediction then counts the square of the first times the second. With a weighting that
        is stated in x0 space the product is the same for every ``loss_space``. The factor is at most
        `LARGEST_ERROR_SCALE`.
        """
        c_out = self.objective.coefficients(level).c_out
        if self.loss_space is None:
            return torch.ones_like(c_out), self.weighting.factor(level, c_out)
        scale = (c_out / self.loss_space.coefficients(level).c_out).abs().clamp(max=LARGEST_ERROR_SCALE)
        return scale, self.weighting.factor(level, c_out / scale)

    def plan(
        self,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        has_init: bool = False,
        skip_steps: int | None = None,
        strength: float | None = None,
    ) -> tuple[Sampler, list[Level], int]:
        """The sampler of a run, its levels and the index of the first one; arguments and errors as `sample`."""
        chosen = self._sampler(sampler)
        own = self.steps if type(chosen) is type(self.sampler) else chosen.default_steps
        levels = chosen.levels(self.schedule, own if steps is None else steps)
        return chosen, levels, _first(len(levels) - 1, has_init, skip_steps, strength)

    def _sampler(self, asked: str | Sampler | None) -> Sampler:
        if asked is None or isinstance(asked, Sampler):
            return asked or self.sampler
        kind = SAMPLERS[asked]
        return next((own for own in (self.sampler, *self.prepared) if type(own) is kind), None) or kind()

    def sample(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        *,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        generator: Noises = None,
        known: Known | None = None,
        init: Tensor | None = None,
        skip_steps: int | None = None,
        strength: float | None = None,
        callback: StepCallback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw from the process.

        Args:
            denoise: estimates x0.
            shape: of the result, the batch first.
            steps, sampler: in place of the process's own; another sampler brings its own number of steps.
            generator: source of every draw.
            known: known pixels.
            init: start from this, noised to the level that ``skip_steps`` or ``strength`` names.
            skip_steps: number of steps left out at the noisy end.
            strength: share of the steps that are walked, 0 to 1.
            callback: after each step.
            device, dtype: of the state.

        Raises:
            ValueError: steps left out that are not there, or a strength outside [0, 1].
        """
        chosen, levels, first = self.plan(steps, sampler, init is not None, skip_steps, strength)
        if first == len(levels) - 1:
            x0 = init.to(device, dtype)  # type: ignore[union-attr]
            return x0 if known is None else known.paste(x0)
        noise = fresh_noise(torch.empty(tuple(shape), device=device, dtype=dtype), generator)
        start = levels[first]
        x = start.sigma * noise if init is None else corrupt(init.to(noise), start, noise)
        return chosen.sample(
            denoise, self.schedule, x, levels, generator=generator, known=known, callback=callback, first=first
        )


def _first(steps: int, has_init: bool, skip_steps: int | None, strength: float | None) -> int:
    if skip_steps is not None and strength is not None:
        raise ValueError("give skip_steps or strength, not both")
    if strength is not None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength lies between 0 (the picture itself) and 1 (pure noise), got {strength}")
        skip_steps = steps - round(steps * strength)
    skip_steps = skip_steps or 0
    if skip_steps and not has_init:
        raise ValueError("skip_steps and strength need init_images to start from")
    if not 0 <= skip_steps <= steps:
        raise ValueError(f"skip_steps must lie between 0 and the {steps} steps of this run, got {skip_steps}")
    return skip_steps


def _dtype(x: Tensor) -> torch.dtype:
    # coefficients never in half precision: a log-SNR of -30 would lose its alpha
    return torch.promote_types(x.dtype, torch.float32)


def _as(level: Level, x: Tensor) -> Level:
    return Level(*(part.to(_dtype(x)) for part in level))


def _broadcast(level: Level, x: Tensor) -> Level:
    """A level per item as it broadcasts over ``x``; one level for all stays 0-dimensional."""
    return Level(*(part if part.ndim in (0, x.ndim) else expand_to(part, x) for part in level))

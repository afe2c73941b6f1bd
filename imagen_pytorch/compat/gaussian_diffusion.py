"""A variance-preserving diffusion under the name and methods by which earlier code reaches it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cascade.base import CascadeBase
from ..diffusion.objectives import OBJECTIVES
from ..diffusion.samplers import add_noise, renoise
from ..diffusion.schedules import SCHEDULES, NoiseLevel
from ..registry import Spec
from ..tensors import expand_to


class Posterior(NamedTuple):
    """Mean, of the shape of the image, and variance and its logarithm, of shape ``(b, 1, ...)``."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class Noised(NamedTuple):
    """A noised image, and the log-SNR, alpha and sigma of its noise level, of shape ``(b, 1, ...)``."""

    x: Tensor
    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor


class GaussianDiffusionContinuousTimes:
    """A variance-preserving diffusion over times in [0, 1], without a network (Kingma et al. 2021, arXiv 2107.00630).

    Times are ``(b,)`` tensors, or one float for the whole batch.

    Args:
        noise_schedule: a schedule, as a name, "name(key=value)", a mapping with "name", or an object.
        timesteps: number of sampling steps.

    Raises:
        ValueError: an unknown schedule.
    """

    def __init__(self, *, noise_schedule: Spec, timesteps: int = 1000) -> None:
        self.schedule = SCHEDULES.make(noise_schedule)
        self.num_timesteps = timesteps

    def _level(self, t: Tensor | float, like: Tensor) -> NoiseLevel:
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        return NoiseLevel(*(expand_to(part, like).to(like) for part in self.schedule(times.expand(len(like)))))

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at times of any shape."""
        return self.schedule.log_snr(t)

    def get_times(self, batch_size: int, noise_level: float, *, device: torch.device | str | None = None) -> Tensor:
        """Return the same time for every item, ``(b,)``."""
        return torch.full((batch_size,), float(noise_level), device=device)

    def sample_random_times(self, batch_size: int, *, device: torch.device | str | None = None) -> Tensor:
        """Draw times uniform in [0, 1), ``(b,)``."""
        return torch.rand(batch_size, device=device)

    def get_condition(self, times: Tensor | None) -> Tensor | None:
        """Return the noise condition of a network at these times: their log-SNR. None stays None."""
        return None if times is None else self.log_snr(times)

    def get_sampling_timesteps(
        self, batch: int, *, device: torch.device | str | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of a time and the next one, each ``(b,)``, from 1 to 0."""
        times = torch.linspace(1.0, 0.0, self.num_timesteps + 1, device=device)[:, None].expand(-1, batch)
        return list(zip(times[:-1].unbind(), times[1:].unbind(), strict=True))

    def q_sample(self, x_start: Tensor, t: Tensor | float, noise: Tensor | None = None) -> Noised:
        """Return ``alpha x_start + sigma noise``. The noise is drawn if it is not given."""
        level = self._level(t, x_start)
        noise = torch.randn_like(x_start) if noise is None else noise
        return Noised(add_noise(x_start, level, noise), level.log_snr, *level)

    def q_sample_from_to(
        self, x_from: Tensor, from_t: Tensor | float, to_t: Tensor | float, noise: Tensor | None = None
    ) -> Tensor:
        """Go from a time to a noisier one, keeping the marginal distribution."""
        noise = torch.randn_like(x_from) if noise is None else noise
        return renoise(x_from, self._level(from_t, x_from), self._level(to_t, x_from), noise)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor, *, t_next: Tensor | None = None) -> Posterior:
        """Return the distribution of ``x`` at the less noisy ``t_next`` (by default one step on), given ``x_t`` and the
        clean image (Ho et al. 2020, arXiv 2006.11239, eq. 7, in continuous time)."""
        s = self._level((t - 1 / self.num_timesteps).clamp(min=0) if t_next is None else t_next, x_t)
        level = self._level(t, x_t)
        fresh = -torch.expm1(level.log_snr - s.log_snr)
        mean = s.alpha * (x_t * (1 - fresh) / level.alpha + fresh * x_start)
        variance = s.sigma.square() * fresh
        return Posterior(mean, variance, variance.clamp(min=1e-20).log())

    def _start(self, objective: str, x_t: Tensor, t: Tensor | float, prediction: Tensor) -> Tensor:
        parts = OBJECTIVES[objective]().coefficients(self._level(t, x_t))
        return parts.c_skip * x_t + parts.c_out * prediction

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """Return the clean image that corresponds to this noise."""
        return self._start("noise", x_t, t, noise)

    def predict_start_from_v(self, x_t: Tensor, t: Tensor | float, v: Tensor) -> Tensor:
        """Return the clean image that corresponds to this velocity (Salimans & Ho 2022, arXiv 2202.00512, appendix
        D)."""
        return self._start("v", x_t, t, v)


class NoiseSchedulers(CascadeBase):
    """The schedules of a model as objects of this class. Training and sampling do not need them."""

    @property
    def noise_schedulers(self) -> tuple[GaussianDiffusionContinuousTimes, ...]:
        """Schedule of each stage, with the methods of earlier versions."""
        return tuple(
            GaussianDiffusionContinuousTimes(
                noise_schedule=stage.process.schedule,
                timesteps=stage.process.steps or stage.process.sampler.default_steps,
            )
            for stage in self.stages
        )

    @property
    def lowres_noise_schedule(self) -> GaussianDiffusionContinuousTimes:
        """Schedule of the noise on low-resolution images, with the methods of earlier versions."""
        return GaussianDiffusionContinuousTimes(noise_schedule=self.augmentation.schedule)

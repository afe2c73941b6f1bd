"""The formulas of EDM as methods of a model, under the names that earlier code uses (Karras et al. 2022, arXiv
2206.00364, table 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cascade.base import CascadeBase
from ..cascade.stage import thresholded
from ..diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from ..diffusion.objectives import OBJECTIVES, Coefficients
from ..diffusion.schedules import SCHEDULES, NoiseLevel
from ..tensors import expand_to


def _level(sigma: Tensor) -> NoiseLevel:
    return NoiseLevel(torch.ones_like(sigma), sigma)


def _coefficients(sigma_data: float, sigma: Tensor) -> Coefficients:
    return OBJECTIVES["edm"](sigma_data=sigma_data).coefficients(_level(sigma))


class ElucidatedFormulas(CascadeBase):
    """Formulas of a noise level ``sigma`` of any shape. Training and sampling do not need them."""

    def c_skip(self, sigma_data: float, sigma: Tensor) -> Tensor:
        """Return the weight of the noisy image in the estimate."""
        return _coefficients(sigma_data, sigma).c_skip

    def c_out(self, sigma_data: float, sigma: Tensor) -> Tensor:
        """Return the weight of the network's prediction in the estimate."""
        return _coefficients(sigma_data, sigma).c_out

    def c_in(self, sigma_data: float, sigma: Tensor) -> Tensor:
        """Return the scale of the network's input."""
        return _coefficients(sigma_data, sigma).c_in

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return the noise condition of the network: a quarter of log sigma."""
        return _coefficients(1.0, sigma).c_noise

    def loss_weight(self, sigma_data: float, sigma: Tensor) -> Tensor:
        """Return the weight of the squared error of the estimate."""
        return WEIGHTINGS["edm"](sigma_data=sigma_data).weight(_level(sigma))

    def noise_distribution(self, P_mean: float, P_std: float, batch_size: int) -> Tensor:
        """Draw noise levels of training, ``(batch_size,)``, on the model's device."""
        return NOISE_LEVELS["log_normal"](P_mean=P_mean, P_std=P_std).draw(batch_size, device=self.device)

    def sample_schedule(self, num_sample_steps: int, rho: float, sigma_min: float, sigma_max: float) -> Tensor:
        """Return the noise levels of a sampling run, ``(num_sample_steps + 1,)``; the last one is 0."""
        schedule = SCHEDULES["karras"](sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        sigmas = [level.sigma for level in schedule.discretize(num_sample_steps)]
        return torch.stack(sigmas).to(self.device, torch.float32)

    def threshold_x_start(self, x_start: Tensor, dynamic_threshold: bool = True) -> Tensor:
        """Clip estimates of images at their quantile or at 1."""
        return thresholded(x_start, self.dynamic_thresholding_percentile if dynamic_threshold else None)

    def preconditioned_network_forward(
        self,
        unet_forward: Callable[..., Tensor],
        noised_images: Tensor,
        sigma: Tensor | float,
        *,
        sigma_data: float,
        clamp: bool = False,
        dynamic_threshold: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Estimate the image by a network that is called as ``unet_forward(x, time, **kwargs)``.

        Args:
            noised_images: ``(b, c, *space)``.
            sigma: one noise level, or one per image.
            clamp, dynamic_threshold: threshold the estimate, and by which method.
        """
        process = replace(self.stages[0].process, objective=OBJECTIVES["edm"](sigma_data=sigma_data))
        level = _level(torch.as_tensor(sigma, dtype=torch.float32, device=noised_images.device))
        level = NoiseLevel(*(expand_to(part, noised_images) for part in level))
        denoise = process.denoiser(lambda x, c_noise, _: unet_forward(x, c_noise, **kwargs))
        x0 = denoise(noised_images, level, None)
        return self.threshold_x_start(x0, dynamic_threshold) if clamp else x0

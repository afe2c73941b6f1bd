"""The probability-flow ODE to machine precision."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.guidance import Denoise
from ..diffusion.schedules import Karras, NoiseLevel, Schedule


def log_uniform_levels(schedule: Schedule, noisiest: float, cleanest: float, steps: int) -> list[NoiseLevel]:
    """Return ``steps + 1`` noise levels of the schedule's family, evenly spaced in the logarithm of ``sigma / alpha``.

    Args:
        schedule: determines the family of processes; its times are not used.
        noisiest, cleanest: first and last ``sigma / alpha``; the clean end itself is not added.
        steps: number of steps.
    """
    log_snrs = torch.linspace(-2 * math.log(noisiest), -2 * math.log(cleanest), steps + 1, dtype=torch.float64)
    return [schedule.level(value) for value in log_snrs]


def probability_flow(
    denoise: Denoise, x: Float[Tensor, "b *shape"], noisiest: float, cleanest: float, rtol: float = 1e-12
) -> Float[Tensor, "b *shape"]:
    """Integrate the probability-flow ODE to ``x / alpha``, by Dormand and Prince's method of order 8; needs scipy.

    With ``l`` the logarithm of ``sigma / alpha`` the ODE is ``d(x / alpha) / dl = x / alpha - denoise(x)`` for every
    process (Karras et al. 2022, arXiv 2206.00364, eq. 4).

    Args:
        denoise: the exact or learned denoiser.
        x: ``x / alpha`` at the noisiest level.
        noisiest, cleanest: first and last ``sigma / alpha``.
        rtol: relative error of the integration.
    """
    from scipy.integrate import solve_ivp

    process = Karras()
    start = x.double()

    def slope(log_ratio: float, flat: object) -> object:
        state = torch.as_tensor(flat, dtype=torch.float64).reshape(start.shape)
        level = process.level(torch.tensor(-2 * log_ratio, dtype=torch.float64))
        return (state - denoise(state, level, None)).flatten().numpy()

    span = (math.log(noisiest), math.log(cleanest))
    found = solve_ivp(slope, span, start.flatten().numpy(), method="DOP853", rtol=rtol, atol=rtol)
    return torch.from_numpy(found.y[:, -1]).reshape(start.shape).to(x)

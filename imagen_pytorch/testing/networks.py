"""A denoiser in place of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.guidance import Denoise
from ..diffusion.process import DiffusionProcess, Network
from ..diffusion.schedules import NoiseLevel
from ..tensors import expand_to


def as_network(denoise: Denoise, process: DiffusionProcess) -> Network:
    """Return a network whose prediction always corresponds to the x0 of ``denoise``.

    The network is called as a process calls it, ``net(c_in x_t, c_noise (b,), x0_before)``. It derives the level from
    ``c_noise`` alone, so that scaling and noise condition are tested as well.

    Args:
        denoise: ``(x_t, level, x0_before) -> x0``.
        process: its schedule maps log-SNRs to noise levels, its objective defines the prediction.

    Raises:
        ValueError: an objective whose noise condition is not a linear function of the log-SNR.
    """
    probe = torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64)
    start, one, other = process.objective.coefficients(process.schedule.level(probe)).c_noise.tolist()
    slope = one - start
    if abs(start - 3 * slope - other) > 1e-9 or slope == 0:
        raise ValueError(f"{type(process.objective).__name__}: c_noise must be a linear function of the log-SNR")

    def network(x: Tensor, c_noise: Tensor, x0_before: Tensor | None) -> Tensor:
        level = process.schedule.level((c_noise.to(x) - start) / slope)
        level = NoiseLevel(*(expand_to(part, x) for part in level))
        parts = process.objective.coefficients(level)
        x_t = x / parts.c_in
        return (denoise(x_t, level, x0_before) - parts.c_skip * x_t) / parts.c_out

    return network

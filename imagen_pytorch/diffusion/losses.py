"""Noise levels of training, and the weight of each in the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..parameters import NotNegative, Positive
from ..registry import Registry
from ..renamed import renamed
from ..tensors import BatchShard, Generators, once, rand, randn
from .schedules import NoiseLevel, Schedule

LOSSES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("loss type")


@LOSSES.register("l1")
def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the absolute error, element by element."""
    return (prediction - target).abs()


@LOSSES.register("l2")
def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error, element by element."""
    return (prediction - target).square()


@LOSSES.register("huber")
def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the Huber loss (Huber 1964), element by element: squared for errors below one, linear above."""
    return F.smooth_l1_loss(prediction, target, reduction="none")


class NoiseLevelDistribution(ABC):
    """The distribution of training times."""

    @abstractmethod
    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Draw times in the schedule's own unit, float32."""

    def fits(self, schedule: Schedule) -> bool:
        """Return true if these are times of the schedule: here, if it is defined on [0, 1]."""
        return schedule.time_range() == (1.0, 0.0)


NOISE_LEVELS: Registry[Callable[..., NoiseLevelDistribution]] = Registry(
    "distribution of noise levels", NoiseLevelDistribution
)


@NOISE_LEVELS.register("uniform")
@dataclass(frozen=True)
class Uniform(NoiseLevelDistribution):
    """Times uniform in [0, 1)."""

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Draw times in [0, 1)."""
        return rand((batch,), generator, device)


@NOISE_LEVELS.register("stratified")
@dataclass(frozen=True)
class Stratified(NoiseLevelDistribution):
    """One time in each of ``batch`` equal parts of [0, 1), in random order: the uniform distribution with less variance
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.1)."""

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Draw times in [0, 1)."""
        if isinstance(generator, BatchShard):  # stratify over the global batch
            whole = self.draw(generator.total, generator.generator, device)
            return whole[generator.first : generator.first + generator.count]
        place = rand((batch,), generator, device).argsort()
        return (place + rand((1,), once(generator), device)) / batch


@NOISE_LEVELS.register("log_normal")
@dataclass(frozen=True)
class LogNormal(NoiseLevelDistribution):
    """``log sigma ~ N(P_mean, P_std**2)`` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Args:
        P_mean, P_std: mean and standard deviation of log sigma.
        stratified: draw the quantiles in equal parts, as `Stratified` does.
    """

    P_mean: float = -1.2
    P_std: NotNegative = 1.2
    stratified: bool = False

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Draw noise levels sigma."""
        if self.stratified:
            quantile = Stratified().draw(batch, generator, device).clamp(1e-6, 1 - 1e-6)
            normal = torch.special.ndtri(quantile)
        else:
            normal = randn((batch,), generator, device)
        return (self.P_mean + self.P_std * normal).exp()

    def fits(self, schedule: Schedule) -> bool:
        """Return true if the times of the schedule are noise levels: sigma / alpha at time 0.5 is 0.5."""
        with torch.device("cpu"):
            ratio = schedule(torch.tensor(0.5, dtype=torch.float64)).sigma_edm
        return abs(float(ratio) - 0.5) < 1e-9


@NOISE_LEVELS.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal(NoiseLevelDistribution):
    """``logit t ~ N(mean, std**2)`` (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0
    std: NotNegative = 1.0

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Draw times in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * randn((batch,), generator, device))


class Weighting(ABC):
    """The weight of the squared error of x0. ``c_out**2`` converts it to the error of the prediction."""

    @abstractmethod
    def weight(self, level: NoiseLevel) -> Tensor:
        """Return the weight in x0 space at a noise level."""

    def prediction_weight(self, level: NoiseLevel, c_out: Tensor) -> Tensor:
        """Return the weight of the squared error of the prediction."""
        return self.weight(level) * c_out.square()


WEIGHTINGS: Registry[Callable[..., Weighting]] = Registry("loss weighting", Weighting)


def _snr(level: NoiseLevel) -> Tensor:
    return level.log_snr.exp()


@WEIGHTINGS.register("plain")
@dataclass(frozen=True)
class Plain(Weighting):
    """Weight 1 at every noise level, in the space of the prediction."""

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return ones. The equivalent in x0 space depends on the objective, see `prediction_weight`."""
        return torch.ones_like(level.alpha)

    def prediction_weight(self, level: NoiseLevel, c_out: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(c_out)


@WEIGHTINGS.register("min_snr")
@dataclass(frozen=True)
class MinSNR(Weighting):
    """``min(SNR, gamma)`` (Hang et al. 2023, arXiv 2303.09556, eq. 5)."""

    gamma: Positive = 5.0

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return ``min(SNR, gamma)``."""
        return _snr(level).clamp(max=self.gamma)


@WEIGHTINGS.register("soft_min_snr")
@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """``SNR gamma / (SNR + gamma)`` (Crowson et al. 2024, arXiv 2401.11605, section 4.4)."""

    gamma: Positive = 5.0

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return the smooth minimum of SNR and gamma."""
        return self.gamma * torch.sigmoid(level.log_snr - math.log(self.gamma))


@WEIGHTINGS.register("p2")
@dataclass(frozen=True)
class P2(Weighting):
    """``(k + SNR)**-gamma`` on the noise objective's loss (Choi et al. 2022, arXiv 2204.00227, eq. 8)."""

    gamma: NotNegative = 0.5
    k: Positive = 1.0

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return ``SNR (k + SNR)**-gamma``: the SNR converts the noise error into the error of x0."""
        snr = _snr(level)
        return snr * (self.k + snr) ** -self.gamma

    def prediction_weight(self, level: NoiseLevel, c_out: Tensor) -> Tensor:
        """Return ``(k + SNR)**-gamma`` for the loss of any prediction, as is usual for every objective."""
        return (self.k + _snr(level)) ** -self.gamma


@WEIGHTINGS.register("edm")
@dataclass(frozen=True)
class EDMWeight(Weighting):
    """``(sigma**2 + sigma_data**2) / (sigma sigma_data)**2`` (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    sigma_data: Positive = 0.5

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return ``1 / sigma_data**2 + SNR``, which is the same."""
        return 1 / self.sigma_data**2 + _snr(level)


@WEIGHTINGS.register("sigmoid")
@dataclass(frozen=True)
class SigmoidWeight(Weighting):
    """``sigmoid(bias - log SNR)`` on the noise error (Hoogeboom et al. 2024, arXiv 2410.19324, eq. 8)."""

    bias: float = -3.0

    def weight(self, level: NoiseLevel) -> Tensor:
        """Return the weight in x0 space."""
        return _snr(level) * torch.sigmoid(self.bias - level.log_snr)


__getattr__ = renamed(__name__, {"NoiseLevels": "NoiseLevelDistribution"})

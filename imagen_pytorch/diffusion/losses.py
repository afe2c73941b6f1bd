"""Which noise levels are trained, and how much each counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..registry import Registry
from ..tensors import Generators, Share, once, rand, randn
from .schedules import Level, Schedule

NOISE_LEVELS: Registry[type[NoiseLevels]] = Registry("law of noise levels")
WEIGHTINGS: Registry[type[Weighting]] = Registry("loss weighting")
LOSSES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("loss type")


@LOSSES.register("l1")
def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, element by element."""
    return (prediction - target).abs()


@LOSSES.register("l2")
def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error, element by element."""
    return (prediction - target).square()


@LOSSES.register("huber")
def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared for errors below one and linear above (Huber 1964), element by element."""
    return F.smooth_l1_loss(prediction, target, reduction="none")


class NoiseLevels(ABC):
    """The law of the training times."""

    @abstractmethod
    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Times in the schedule's own unit, float32."""

    def fits(self, schedule: Schedule) -> bool:
        """Whether these are times of the schedule: here, whether it is defined on [0, 1]."""
        return schedule.ends() == (1.0, 0.0)


@NOISE_LEVELS.register("uniform")
@dataclass(frozen=True)
class Uniform(NoiseLevels):
    """Times uniform in [0, 1)."""

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Times in [0, 1)."""
        return rand((batch,), generator, device)


@NOISE_LEVELS.register("stratified")
@dataclass(frozen=True)
class Stratified(NoiseLevels):
    """One time in each of ``batch`` equal parts of [0, 1), in random order: the same law with less variance
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.1)."""

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Times in [0, 1)."""
        if isinstance(generator, Share):  # the parts are those of the whole batch
            whole = self.draw(generator.total, generator.generator, device)
            return whole[generator.first : generator.first + generator.count]
        place = rand((batch,), generator, device).argsort()
        return (place + rand((1,), once(generator), device)) / batch


@NOISE_LEVELS.register("log_normal")
@dataclass(frozen=True)
class LogNormal(NoiseLevels):
    """``log sigma ~ N(P_mean, P_std**2)`` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Args:
        stratified: draw the quantiles in equal parts, as `Stratified` does.
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    stratified: bool = False

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Noise levels sigma."""
        if self.stratified:
            quantile = Stratified().draw(batch, generator, device).clamp(1e-6, 1 - 1e-6)
            normal = torch.special.ndtri(quantile)
        else:
            normal = randn((batch,), generator, device)
        return (self.P_mean + self.P_std * normal).exp()

    def fits(self, schedule: Schedule) -> bool:
        """Whether the times of the schedule are noise levels: sigma / alpha at time 0.5 is 0.5."""
        with torch.device("cpu"):
            ratio = schedule(torch.tensor(0.5, dtype=torch.float64)).ratio
        return abs(float(ratio) - 0.5) < 1e-9


@NOISE_LEVELS.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal(NoiseLevels):
    """``logit t ~ N(mean, std**2)`` (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def draw(
        self, batch: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, " b"]:
        """Times in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * randn((batch,), generator, device))


class Weighting(ABC):
    """The weight of the squared error of x0; ``c_out**2`` carries it to what the network predicts."""

    @abstractmethod
    def weight(self, level: Level) -> Tensor:
        """Weight in x0 space at a level."""

    def factor(self, level: Level, c_out: Tensor) -> Tensor:
        """Weight of the squared error of the prediction."""
        return self.weight(level) * c_out.square()


def _snr(level: Level) -> Tensor:
    return level.log_snr.exp()


@WEIGHTINGS.register("plain")
@dataclass(frozen=True)
class Plain(Weighting):
    """Every level counts the same, in the space of the prediction."""

    def weight(self, level: Level) -> Tensor:
        """Ones: what it means in x0 space depends on the objective, see `factor`."""
        return torch.ones_like(level.alpha)

    def factor(self, level: Level, c_out: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(c_out)


@WEIGHTINGS.register("min_snr")
@dataclass(frozen=True)
class MinSNR(Weighting):
    """``min(SNR, gamma)`` (Hang et al. 2023, arXiv 2303.09556, eq. 5)."""

    gamma: float = 5.0

    def weight(self, level: Level) -> Tensor:
        """``min(SNR, gamma)``."""
        return _snr(level).clamp(max=self.gamma)


@WEIGHTINGS.register("soft_min_snr")
@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """``SNR gamma / (SNR + gamma)`` (Crowson et al. 2024, arXiv 2401.11605, section 4.4)."""

    gamma: float = 5.0

    def weight(self, level: Level) -> Tensor:
        """The smooth minimum of SNR and gamma."""
        return self.gamma * torch.sigmoid(level.log_snr - math.log(self.gamma))


@WEIGHTINGS.register("p2")
@dataclass(frozen=True)
class P2(Weighting):
    """``(k + SNR)**-gamma`` on the noise objective's loss (Choi et al. 2022, arXiv 2204.00227, eq. 8)."""

    gamma: float = 0.5
    k: float = 1.0

    def weight(self, level: Level) -> Tensor:
        """``SNR (k + SNR)**-gamma``: the SNR turns the noise error into the error of x0."""
        snr = _snr(level)
        return snr * (self.k + snr) ** -self.gamma

    def factor(self, level: Level, c_out: Tensor) -> Tensor:
        """``(k + SNR)**-gamma`` on the loss of whatever is predicted, the custom for every objective."""
        return (self.k + _snr(level)) ** -self.gamma


@WEIGHTINGS.register("edm")
@dataclass(frozen=True)
class EDMWeight(Weighting):
    """``(sigma**2 + sigma_data**2) / (sigma sigma_data)**2`` (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    sigma_data: float = 0.5

    def weight(self, level: Level) -> Tensor:
        """``1 / sigma_data**2 + SNR``, which is the same."""
        return 1 / self.sigma_data**2 + _snr(level)


@WEIGHTINGS.register("sigmoid")
@dataclass(frozen=True)
class SigmoidWeight(Weighting):
    """``sigmoid(bias - log SNR)`` on the noise error (Hoogeboom et al. 2024, arXiv 2410.19324, eq. 8)."""

    bias: float = -3.0

    def weight(self, level: Level) -> Tensor:
        """In x0 space."""
        return _snr(level) * torch.sigmoid(self.bias - level.log_snr)

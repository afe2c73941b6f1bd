"""Samplers that use several estimates: past ones, one at a midpoint, or one that corrects.

The exact solution between the levels t and s (top of ``samplers``) is

    x_s = (sigma_s / sigma_t) x_t + alpha_s * integral over u in [0, h] of exp(u - h) D(l_t + u).

Let the polynomial through the estimates ``D_i`` at the nodes ``u_i = l_i - l_t`` stand for D. Its integral is linear in
the estimates, ``sum_i w_i D_i``, and exact for powers of u, so ``sum_i w_i u_i**j = I_j`` with the moments

    I_0 = 1 - exp(-h),    I_j = h**j - j I_(j-1)    (by parts).

`interpolatory_weights` solves this for any nodes. Past nodes have ``u_i <= 0`` (Adams-Bashforth); with the node of the
new level among them the same weights correct a step (predictor-corrector). DPM-Solver++ takes the line through two
estimates and ``I_1 / I_0 = h / 2``, which is true to second order. The reverse SDE with ``eta`` times its noise decays
by ``(1 + eta) h`` in place of h and adds noise of variance ``sigma_s**2 (1 - exp(-2 eta h))``. In ``r = sigma / alpha``
the ODE is ``d(x / alpha) / dr = (x - alpha D) / sigma``, whose polynomial has plain moments ``1 / (j + 1)`` (LMS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from torch import Tensor

from ..parameters import NotNegative, Range
from ..renamed import renamed
from .samplers import SAMPLERS, Sampler, Step, Walk, ddim_step, lambda_step
from .schedules import NoiseLevel

#: largest order of a multistep sampler: the weights of higher ones amplify errors of the estimates
Order = Annotated[int, Range(1, 8)]

# The weights are floats: a step has few of them, and a tensor operation costs more than all of their arithmetic.


def _moments(h: float, count: int) -> list[float]:
    """Return ``I_j``, the integral of ``exp(u - h) u**j`` over [0, h], for j below ``count``."""
    if h < 0.05:
        # the recursion cancels for small steps; the series does not
        rows = []
        for j in range(count):
            term, total = h ** (j + 1) / (j + 1), 0.0
            for m in range(12):
                total += term
                term *= -h / (j + 2 + m)
            rows.append(total)
        return rows
    rows = [-math.expm1(-h)]
    for j in range(1, count):
        rows.append(h**j - j * rows[-1])
    return rows


def interpolatory_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return the weights ``w`` of values at ``nodes`` with ``sum_i w_i nodes_i**j == moments_j`` for every j: a linear
    functional with these moments, applied to the polynomial through the values (Lagrange)."""
    weights = []
    for i, node in enumerate(nodes):
        basis = [1.0]  # coefficients of the i-th Lagrange polynomial, the constant first
        for other in (*nodes[:i], *nodes[i + 1 :]):
            shifted = zip([0.0, *basis], [*basis, 0.0], strict=True)
            basis = [(before_ - other * here) / (node - other) for before_, here in shifted]
        weights.append(sum(part * moment for part, moment in zip(basis, moments, strict=True)))
    return weights


def exponential_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """Return the weights of estimates at ``nodes`` (half log-SNRs relative to t) in the exact step of length ``h`` for
    the polynomial through them: ``x_s = (sigma_s / sigma_t) x_t + alpha_s sum_i w_i D_i``."""
    return interpolatory_weights(nodes, _moments(h, len(nodes)))


def _mixed(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add(value, alpha=weight)
    return total


def exponential_multistep(x: Tensor, t: NoiseLevel, s: NoiseLevel, known: list[tuple[NoiseLevel, Tensor]]) -> Tensor:
    """Step from ``t`` to ``s`` with estimates at any levels. First order from pure noise and to the clean end."""
    if float(s.sigma) == 0 or float(t.alpha) == 0:
        return ddim_step(x, known[0][1], t, s)
    known = [item for item in known if float(item[0].alpha) > 0]
    weights = exponential_weights(lambda_step(t, s), [lambda_step(t, level) for level, _ in known])
    return (s.sigma / t.sigma) * x + s.alpha * _mixed(weights, [estimate for _, estimate in known])


@SAMPLERS.register("ab2")
@dataclass(frozen=True)
class AdamsBashforth(Sampler):
    """Exponential Adams-Bashforth with exact weights (Hochbruck & Ostermann 2010, section 2.5).

    Args:
        order: number of estimates in the polynomial. The first steps have fewer.
    """

    order: Order = 2
    default_steps: ClassVar[int] = 20

    @property
    def memory(self) -> int:  # type: ignore[override]
        """Return the number of past estimates in the polynomial."""
        return self.order - 1

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Step with the latest ``order`` estimates."""
        x0 = walk.x0(x, t)
        past = [(item.level, item.x0) for item in reversed(walk.history)]
        return Step(exponential_multistep(x, t, s, [(t, x0), *past][: self.order]), x0)


AB3 = SAMPLERS.register("ab3")(partial(AdamsBashforth, order=3))


@SAMPLERS.register("pc2", "unipc")
@dataclass(frozen=True)
class PredictorCorrector(AdamsBashforth):
    """Predict with Adams-Bashforth, correct with the estimate at the new point, and reuse it for the next step. This
    adds one order without another evaluation (Zhao et al. 2023, arXiv 2302.04867, with exact weights)."""

    @property
    def memory(self) -> int:  # type: ignore[override]
        """Return the number of past estimates that correct."""
        return self.order

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Correct the state at ``t``, then predict the next one."""
        x0 = walk.x0(x, t)
        known = [(t, x0), *((item.level, item.x0) for item in reversed(walk.history))]
        if walk.history:
            origin = walk.history[-1]
            x = exponential_multistep(origin.x, origin.level, t, known[: self.order + 1])
        return Step(exponential_multistep(x, t, s, known[: self.order]), x0, corrected=x)


PC3 = SAMPLERS.register("pc3")(partial(PredictorCorrector, order=3))


@SAMPLERS.register("dpmpp_2m", "dpm++2m", "dpm++", "dpmpp")
@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""

    memory: ClassVar[int] = 1
    default_steps: ClassVar[int] = 20

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Take a DDIM step with the linearly extrapolated estimate."""
        x0 = walk.x0(x, t)
        ahead = x0
        if walk.history and float(s.sigma) > 0:
            slope = lambda_step(t, s) / lambda_step(walk.history[-1].level, t)
            ahead = x0 + (x0 - walk.history[-1].x0) * (slope / 2)
        return Step(ddim_step(x, ahead, t, s), x0)


@SAMPLERS.register("dpmpp_2s")
@dataclass(frozen=True)
class DPMpp2S(Sampler):
    """DPM-Solver++(2S) with the midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 1). Two evaluations a step."""

    default_steps: ClassVar[int] = 18

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Take half a step, then a full step with the estimate found there."""
        x0 = walk.x0(x, t)
        if float(s.sigma) == 0:
            return Step(x0, x0)
        middle = walk.schedule.level((t.log_snr + s.log_snr) / 2)
        halfway = walk.denoise(ddim_step(x, x0, t, middle), middle, x0)
        return Step(ddim_step(x, halfway, t, s), x0)


@SAMPLERS.register("dpmpp_2m_sde")
@dataclass(frozen=True)
class DPMpp2MSDE(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, section 5).

    Args:
        eta: amount of noise. 0 is deterministic.
        heun: extrapolate as Heun's method does, not as the midpoint method.
    """

    eta: NotNegative = 1.0
    heun: bool = False
    memory: ClassVar[int] = 1
    default_steps: ClassVar[int] = 25

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Take an exponential step of the reverse SDE."""
        x0 = walk.x0(x, t)
        if float(s.sigma) == 0:
            return Step(x0, x0)
        h = lambda_step(t, s)
        reach = (1 + self.eta) * h
        fresh = -math.expm1(-reach)
        out = (s.sigma / t.sigma) * math.exp(-self.eta * h) * x + s.alpha * fresh * x0
        if walk.history:
            ratio = lambda_step(walk.history[-1].level, t) / h
            lead = (1 - fresh / reach) if self.heun else fresh / 2
            out = out + s.alpha * (lead / ratio) * (x0 - walk.history[-1].x0)
        noise = s.sigma * math.sqrt(-math.expm1(-2 * self.eta * h))
        return Step(out + noise * walk.noise(x) if self.eta else out, x0)


DPMpp2MSDEHeun = SAMPLERS.register("dpmpp_2m_sde_heun")(partial(DPMpp2MSDE, heun=True))


@SAMPLERS.register("lms4", "lms")
@dataclass(frozen=True)
class LMS(Sampler):
    """Variable-step Adams in sigma / alpha with exactly integrated polynomials.

    Args:
        order: number of slopes in the polynomial. The first steps have fewer.
    """

    order: Order = 4
    default_steps: ClassVar[int] = 30

    @property
    def memory(self) -> int:  # type: ignore[override]
        """Return the number of past slopes in the polynomial."""
        return self.order - 1

    def step(self, walk: Walk, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Step:
        """Integrate the polynomial through the latest slopes."""
        x0 = walk.x0(x, t)
        if float(s.sigma) == 0 or float(t.alpha) == 0:
            return Step(ddim_step(x, x0, t, s), x0)
        past = [item for item in reversed(walk.history) if float(item.level.alpha) > 0]
        points = [(t, (x - t.alpha * x0) / t.sigma)]
        points += [(item.level, (item.x - item.level.alpha * item.x0) / item.level.sigma) for item in past]
        points = points[: self.order]
        # in units of the step from t, so that the powers stay moderate
        length = float(s.sigma_edm - t.sigma_edm)
        nodes = [float(level.sigma_edm - t.sigma_edm) / length for level, _ in points]
        weights = interpolatory_weights(nodes, [1 / (j + 1) for j in range(len(points))])
        slope = _mixed(weights, [value for _, value in points])
        return Step((s.alpha / t.alpha) * x + s.alpha * length * slope, x0)


__getattr__ = renamed(
    __name__, {"AB2": "AdamsBashforth", "PC2": "PredictorCorrector", "DPMpp2MSDEMidpoint": "DPMpp2MSDE"}
)

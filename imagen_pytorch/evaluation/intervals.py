"""Metrics with an interval, by bootstrap (Efron 1979) or, for fractions, by the formula of Wilson (1927)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..ranges import check_number, check_whole


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval.

    Attributes:
        value: the estimate from all data.
        low, high: ends of the 95 % interval, unless another confidence was requested.
    """

    value: float
    low: float
    high: float

    def includes(self, number: float) -> bool:
        """Return true if the interval includes a number. A difference whose interval includes 0 may be chance."""
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def mean_interval(
    values: Shaped[Tensor, " n"], *, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Estimate the mean of independent values, such as one score per image.

    The interval lies between quantiles of the means of resamples with replacement (percentile bootstrap).

    Args:
        values: numbers or booleans, one or more.
        seed: of the resamples.
        resamples: number of resamples.
        confidence: probability that the interval covers, 0 to 1.

    Raises:
        ValueError: no values, values that are not finite, or a number out of range.
    """
    check_whole(resamples, "resamples")
    check_number(confidence, "confidence", 0, 1)
    values = values.detach().cpu().double()
    if values.ndim != 1 or not len(values) or not bool(values.isfinite().all()):
        raise ValueError(f"an interval needs finite values of shape (n,), n at least 1, got {tuple(values.shape)}")
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = [values[torch.randint(count, (count,), generator=generator)].mean() for _ in range(resamples)]
    return Estimate(float(values.mean()), *quantile_ends(torch.stack(means), confidence))


def fraction_interval(fraction: float, count: int, z: float = 1.96) -> Estimate:
    """Estimate the probability of success from ``count`` independent trials, such as an R@k from ``count`` images.

    Unlike a bootstrap, the interval of Wilson (1927) has a width even if the fraction is 0 or 1.

    Args:
        fraction: of successes, 0 to 1.
        count: number of trials, at least 1.
        z: quantile of the normal distribution; 1.96 gives 95 %.

    Raises:
        ValueError: a number out of range.
    """
    check_whole(count, "count")
    check_number(fraction, "fraction", 0, 1)
    spread = z**2 / count
    middle = (fraction + spread / 2) / (1 + spread)
    half = z * ((fraction * (1 - fraction) + spread / 4) / count) ** 0.5 / (1 + spread)
    return Estimate(fraction, max(0.0, middle - half), min(1.0, middle + half))


def paired_interval(
    a: Shaped[Tensor, " n"],
    b: Shaped[Tensor, " n"],
    seed: int = 0,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate the mean difference ``a - b`` of scores of two models on the same items.

    The contribution of an item to both scores cancels, so the interval is narrower than those of two separate means.

    Args:
        a, b: scores in the order of the same prompts and seeds.
        seed, resamples, confidence: as for `mean_interval`.

    Raises:
        ValueError: different numbers of scores, or as `mean_interval`.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired scores need the same items in both, got {tuple(a.shape)} and {tuple(b.shape)}")
    return mean_interval(a.double() - b.double(), seed=seed, resamples=resamples, confidence=confidence)


def quantile_ends(draws: Float[Tensor, " n"], confidence: float = 0.95) -> tuple[float, float]:
    """Return the quantiles that enclose the middle fraction ``confidence`` of the draws."""
    tail = (1 - confidence) / 2
    low, high = draws.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high

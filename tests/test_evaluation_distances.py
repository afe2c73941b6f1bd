"""Distances between sets of feature vectors: closed forms, brute force, and intervals that cover."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from imagen_pytorch.evaluation import distances
from imagen_pytorch.evaluation.distances import frechet_distance, kid, precision_recall, real_floor
from imagen_pytorch.evaluation.intervals import Estimate, mean_interval, paired_interval


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_moments(seed: int, count: int, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Draws whose own mean and covariance are the given ones."""
    z = normal(seed, count, len(mean))
    z = z - z.mean(0)
    white = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (count - 1))).T
    return mean + white @ torch.linalg.cholesky(covariance).T


# -- kernel distance ---------------------------------------------------------------------------------------------------


def brute_kid(a: torch.Tensor, b: torch.Tensor) -> float:
    def kernel(x, y):
        return float((x @ y / len(x) + 1) ** 3)

    def mean(pairs):
        values = [kernel(x, y) for x, y in pairs]
        return sum(values) / len(values)

    return mean(itertools.permutations(a, 2)) + mean(itertools.permutations(b, 2)) - 2 * mean(itertools.product(a, b))


@pytest.mark.parametrize("cells", [12, 2**23])
def test_kid_is_the_sum_over_pairs(cells, monkeypatch):
    monkeypatch.setattr(distances, "CELLS", cells)
    a, b = normal(0, 7, 3), normal(1, 5, 3) + 0.5
    assert kid(a, b).value == pytest.approx(brute_kid(a, b), rel=1e-12)
    assert kid(b, a).value == pytest.approx(kid(a, b).value, rel=1e-12)


def gaussian_mmd(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """The squared discrepancy of two normal values under ``(x y + 1)**3``: a sum over the first three moments."""

    def moments(m, s):
        return (m, m**2 + s**2, m**3 + 3 * m * s**2)

    pairs = zip(moments(mean, std), moments(other_mean, other_std), strict=True)
    return sum(weight * (x - y) ** 2 for weight, (x, y) in zip((3, 3, 1), pairs, strict=True))


@pytest.mark.parametrize("other", [(0.0, 1.0), (0.4, 1.0), (0.0, 1.3)], ids=["same", "moved", "wider"])
def test_kid_is_unbiased_and_its_interval_covers(other):
    truth = gaussian_mmd(0.0, 1.0, *other)
    found = [kid(normal(2 * i, 60, 1), other[0] + other[1] * normal(2 * i + 1, 90, 1), seed=i) for i in range(150)]
    values = torch.tensor([each.value for each in found])
    assert float(values.mean()) == pytest.approx(truth, abs=3.5 * float(values.std()) / len(found) ** 0.5)
    assert sum(each.includes(truth) for each in found) / len(found) >= 0.9


def test_kid_is_repeatable_and_leaves_the_global_state_alone():
    a, b = normal(0, 30, 4), normal(1, 30, 4)
    before = torch.get_rng_state()
    assert kid(a, b, seed=3) == kid(a, b, seed=3)
    assert kid(a, b, seed=3) != kid(a, b, seed=4)
    assert torch.equal(before, torch.get_rng_state())


# -- Frechet distance --------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_has_its_closed_form():
    turn = torch.linalg.qr(normal(0, 4, 4)).Q
    spreads = torch.tensor([[0.5, 1.0, 2.0, 0.1], [1.5, 1.0, 0.3, 0.2]], dtype=torch.float64)
    means = normal(1, 2, 4)
    # covariances with the same axes: tr((C_a C_b)**0.5) is the sum of the products of standard deviations
    sets = [exact_moments(i, 50 + i, means[i], turn @ torch.diag(spreads[i] ** 2) @ turn.T) for i in range(2)]
    expected = (means[0] - means[1]).square().sum() + (spreads[0] - spreads[1]).square().sum()
    assert frechet_distance(*sets) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("counts", [(40, 30), (5, 9), (4, 40)], ids=str)
def test_frechet_distance_agrees_with_the_matrix_root(counts):
    scipy_linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(0, counts[0], 8), 0.7 * normal(1, counts[1], 8) @ normal(2, 8, 8) + 0.3
    covariances = [torch.cov(x.T) for x in (a, b)]
    root = torch.from_numpy(scipy_linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("count", [3, 50])
def test_frechet_distance_of_a_set_to_itself_is_zero_and_a_shift_adds_its_square(count):
    a = 100 * normal(0, count, 8)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-7)
    assert frechet_distance(a, a + 2) == pytest.approx(32, rel=1e-9)


# -- neighbourhoods ----------------------------------------------------------------------------------------------------


def brute_neighbourhoods(real: torch.Tensor, generated: torch.Tensor, k: int) -> dict[str, float]:
    def radii(x):
        return [sorted(float((p - q).norm()) for j, q in enumerate(x) if j != i)[k - 1] for i, p in enumerate(x)]

    table = [[float((x - y).norm()) for y in generated] for x in real]
    in_real = [[d <= radius for d in row] for row, radius in zip(table, radii(real), strict=True)]
    own = radii(generated)
    return {
        "precision": sum(map(any, zip(*in_real, strict=True))) / len(generated),
        "recall": sum(any(d <= r for d, r in zip(row, own, strict=True)) for row in table) / len(real),
        "density": sum(map(sum, in_real)) / k / len(generated),
        "coverage": sum(map(any, in_real)) / len(real),
    }


@pytest.mark.parametrize("cells", [99, 2**23])
def test_precision_and_recall_are_those_of_brute_force(cells, monkeypatch):
    monkeypatch.setattr(distances, "CELLS", cells)
    real, generated = normal(0, 30, 2), 0.6 * normal(1, 22, 2) + 0.8
    for k in (1, 3, 5):
        assert precision_recall(real, generated, k=k) == pytest.approx(brute_neighbourhoods(real, generated, k))


def test_density_and_coverage_of_one_distribution_have_their_expected_values():
    """Naeem et al. 2020, lemmas 1 and 2."""
    count, k = 100, 5
    found = [precision_recall(normal(2 * i, count, 3), normal(2 * i + 1, count, 3), k=k) for i in range(60)]
    coverage = 1 - math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    for name, expected in (("density", 1.0), ("coverage", coverage)):
        values = torch.tensor([each[name] for each in found])
        assert float(values.mean()) == pytest.approx(expected, abs=3.5 * float(values.std()) / 60**0.5 + 0.005)


def test_what_each_figure_sees():
    real = torch.cat([normal(0, 60, 4) - 6, normal(1, 60, 4) + 6])
    half = normal(2, 80, 4) - 6  # only one of two modes, drawn well
    dropped = precision_recall(real, half)
    assert dropped["precision"] > 0.8 and dropped["recall"] < 0.55 and dropped["coverage"] < 0.55
    apart = precision_recall(real, real + 100)
    assert set(apart.values()) == {0.0}
    same = precision_recall(real, real.flip(0))
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)


# -- the floor and intervals -------------------------------------------------------------------------------------------


def test_the_floor_compares_disjoint_halves_of_the_real_data():
    real = torch.arange(9.0)[:, None]
    halves = real_floor(real, lambda a, b: (a, b), seed=1)
    assert [len(half) for half in halves] == [4, 5] and torch.equal(torch.cat(halves).sort(0).values, real)
    assert real_floor(normal(0, 200, 3)).includes(0)
    assert real_floor(normal(0, 200, 3), frechet_distance) < 0.2
    assert set(real_floor(normal(0, 200, 3), precision_recall)) == {"precision", "recall", "density", "coverage"}


def test_intervals_of_means_cover():
    inside = [mean_interval(normal(i, 40) + 1, seed=i, resamples=300).includes(1.0) for i in range(200)]
    assert 0.88 <= sum(inside) / len(inside) <= 0.99
    flags = torch.tensor([True, True, False, True])
    assert mean_interval(flags).value == 0.75 and mean_interval(flags[:1]) == Estimate(1.0, 1.0, 1.0)
    wide, narrow = (mean_interval(normal(0, 40), confidence=part) for part in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_pairs_of_scores_need_less_data_than_two_means():
    hard = 10 * normal(0, 60)  # what both models find hard alike
    a, b = hard + 0.3 + 0.1 * normal(1, 60), hard + 0.1 * normal(2, 60)
    found = paired_interval(a, b)
    assert found.value == pytest.approx(0.3, abs=0.05) and not found.includes(0)
    assert mean_interval(a).includes(float(b.mean()))
    swapped = paired_interval(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert str(Estimate(0.5, 0.25, 1.0)) == "0.5 (0.25 to 1)"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kid(normal(0, 8, 3), normal(0, 8, 4)), "vectors of one length .*, got 3 and 4"),
        (lambda: kid(normal(0, 3, 3), normal(0, 8, 3)), "features_a needs at least 4 feature vectors, got 3"),
        (lambda: kid(normal(0, 8, 3), normal(0, 8, 3) / 0), "features_b must be finite"),
        (lambda: kid(normal(0, 8, 3), normal(0, 8, 3), subsets=1), "subsets must be at least 2, got 1"),
        (lambda: frechet_distance(normal(0, 8, 3, 2), normal(0, 8, 3)), r"a must be feature vectors \(n, d\), got"),
        (lambda: precision_recall(normal(0, 9, 3), normal(0, 5, 3)), "generated needs at least 6 feature vectors"),
        (lambda: precision_recall(normal(0, 9, 3), normal(0, 9, 3), k=0), "k must be at least 1"),
        (lambda: mean_interval(torch.zeros(0)), r"finite values of shape \(n,\)"),
        (lambda: mean_interval(normal(0, 4), confidence=2), "confidence must lie between 0 and 1"),
        (lambda: paired_interval(normal(0, 4), normal(0, 5)), "same items in both"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

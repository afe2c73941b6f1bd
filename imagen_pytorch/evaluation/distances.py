"""Distances between two sets of images, given as feature vectors, and how much of each set the other covers.

All of them compare distributions, so the order and the pairing of the vectors do not matter. A figure belongs to its
feature extractor and to the numbers of images: name both beside it. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranges import check_whole
from .intervals import Estimate, quantile_ends

Figure = TypeVar("Figure")

#: Numbers of a table of kernels or distances that are in memory at once: 64 MB.
CELLS = 2**23


def chunk_rows(columns: int) -> int:
    """Return how many rows of a table are computed at once."""
    return max(1, CELLS // columns)


def as_features(features: Float[Tensor, "n d"], name: str, least: int = 2) -> Float[Tensor, "n d"]:
    """Return feature vectors in float64 on the CPU.

    Raises:
        ValueError: another shape than ``(n, d)``, fewer than ``least`` vectors, or values that are not finite.
    """
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"{name} must be feature vectors (n, d), got {tuple(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{name} needs at least {least} feature vectors, got {len(features)}")
    features = features.detach().cpu().double()
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return features


def both(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d2"], names: tuple[str, str], least: int = 2
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Return two sets of feature vectors as `as_features` does.

    Raises:
        ValueError: as there, or vectors of different lengths.
    """
    a, b = as_features(a, names[0], least), as_features(b, names[1], least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} need vectors of one length (one extractor), got {a.shape[1]} and {b.shape[1]}"
        )
    return a, b


def distance_chunks(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Iterator[Float[Tensor, "c m"]]:
    """Yield the Euclidean distances of all ``a`` to all ``b``, `chunk_rows` of ``a`` at a time."""
    for rows in a.split(chunk_rows(len(b))):
        yield torch.cdist(rows, b)


# -- kernel distance --------------------------------------------------------------------------------------------------


def _kernel_sums(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], weights: tuple[Tensor, Tensor]
) -> Float[Tensor, " s"]:
    """Sum ``w_i v_j k(a_i, b_j)`` over all pairs for each row ``w, v`` of both weights ``(s, n)`` and ``(s, m)``."""
    total = torch.zeros(len(weights[0]), dtype=torch.float64)
    size = chunk_rows(len(b))
    for rows, parts in zip(a.split(size), weights[0].split(size, dim=1), strict=True):
        kernel = (rows @ b.T / a.shape[1] + 1) ** 3
        total += (parts @ kernel * weights[1]).sum(1)
    return total


def _within(x: Float[Tensor, "n d"], weights: Float[Tensor, "s n"]) -> Float[Tensor, " s"]:
    """Average the kernel over the pairs of different items, for each row of weights of zeros and ones."""
    same = weights @ (x.square().sum(1) / x.shape[1] + 1) ** 3
    count = weights.sum(1)
    return (_kernel_sums(x, x, (weights, weights)) - same) / (count * (count - 1))


def _halves(count: int, subsets: int, generator: torch.Generator) -> Float[Tensor, "s n"]:
    """Return weights: all items in the first row, a random half in every other one."""
    order = torch.rand(subsets, count, generator=generator).argsort(1)
    return torch.cat([torch.ones(1, count), (order < count // 2).float()]).double()


def kid(
    features_a: Float[Tensor, "n d"], features_b: Float[Tensor, "m d2"], *, subsets: int = 100, seed: int = 0
) -> Estimate:
    """Compute the kernel distance: the squared maximum mean discrepancy with the kernel ``(x.y / d + 1)**3``.

    The estimator is unbiased: two sets of one distribution have 0 on average, and half of the time a little less
    (Binkowski et al. 2018, arXiv 1801.01401, section 4). Its mean does not depend on the number of images, unlike that
    of `frechet_distance`. The value is computed from all pairs. The interval comes from subsets, not from a bootstrap,
    in which repeated images would count as pairs: the spread of the estimates of random halves around that of all
    images equals, for an average, the spread of the estimate itself (delete-half jackknife; Wu 1986).

    Args:
        features_a, features_b: four or more vectors of each set; the order of the sets does not matter.
        subsets: number of random halves.
        seed: of the halves.

    Raises:
        ValueError: other shapes, too few vectors or values that are not finite.
    """
    a, b = both(features_a, features_b, ("features_a", "features_b"), least=4)
    check_whole(subsets, "subsets", 2)
    generator = torch.Generator().manual_seed(seed)
    weights = _halves(len(a), subsets, generator), _halves(len(b), subsets, generator)
    pairs = weights[0].sum(1) * weights[1].sum(1)
    found = _within(a, weights[0]) + _within(b, weights[1]) - 2 * _kernel_sums(a, b, weights) / pairs
    value, low, high = float(found[0]), *quantile_ends(found[1:])
    return Estimate(value, min(low, value), max(high, value))


# -- Frechet distance -------------------------------------------------------------------------------------------------


def _moments(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "r d"]]:
    """Return the mean and ``R`` with ``R.T @ R`` the covariance. ``R`` has as many rows as the covariance has rank."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d2"]) -> float:
    """Compute the squared Frechet distance between normal distributions with the means and covariances of two sets.

    ``|m_a - m_b|**2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)**0.5)`` (Dowson & Landau 1982; for images Heusel et al. 2017,
    arXiv 1706.08500). With ``C = R.T R`` the last trace is the sum of the singular values of ``R_a R_b.T``, which needs
    no matrix root and holds for fewer images than dimensions, too. It is biased upwards, the more the fewer images
    there
    are: compare only values of the same numbers of images, and with `real_floor`.

    Args:
        a, b: two or more vectors of each set.

    Raises:
        ValueError: other shapes, too few vectors or values that are not finite.
    """
    a, b = both(a, b, ("a", "b"))
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * shared
    return float((mean_a - mean_b).square().sum() + spread.clamp(min=0))


# -- neighbourhoods ---------------------------------------------------------------------------------------------------


def _radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Return the distance of each item to its k-th nearest neighbour."""
    # the nearest of all is the item itself
    return torch.cat([rows.topk(k + 1, dim=1, largest=False).values[:, -1] for rows in distance_chunks(x, x)])


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d2"], *, k: int = 5) -> dict[str, float]:
    """Compute quality and diversity of generated images, from balls that reach to the k-th nearest neighbour.

    Args:
        real, generated: more than ``k`` vectors of each set.
        k: neighbours; 3 and 5 are usual.

    Returns:
        ``precision``: fraction of generated images in the ball of any real one; ``recall``: fraction of real images in
        the ball of any generated one (Kynkaanniemi et al. 2019, arXiv 1904.06991). ``density``: real balls around a
        generated image, divided by ``k``, about 1 for the same distribution and not bounded by it; ``coverage``:
        fraction of real images with a generated one in their ball (Naeem et al. 2020, arXiv 2002.09797), which few
        outliers change little.

    Raises:
        ValueError: other shapes, too few vectors or values that are not finite.
    """
    check_whole(k, "k")
    real, generated = both(real, generated, ("real", "generated"), least=k + 1)
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    covered = torch.zeros(len(generated), dtype=torch.long)
    recalled, reached = [], []
    for rows, radii in zip(distance_chunks(real, generated), real_radii.split(chunk_rows(len(generated))), strict=True):
        inside = rows <= radii[:, None]
        covered += inside.sum(0)
        reached.append(inside.any(1))
        recalled.append((rows <= generated_radii).any(1))
    return {
        "precision": float((covered > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(covered.double().mean()) / k,
        "coverage": float(torch.cat(reached).double().mean()),
    }


def real_floor(
    real: Float[Tensor, "n d"], compare: Callable[[Tensor, Tensor], Figure] = kid, *, seed: int = 0
) -> Figure:
    """Compare random halves of the real data with each other: the value of a perfect model.

    Args:
        real: feature vectors of the real images.
        compare: `kid`, `frechet_distance`, `precision_recall` or another function of two sets.
        seed: of the halves.

    Raises:
        ValueError: as ``compare``.
    """
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    middle = len(real) // 2
    return compare(real[order[:middle]], real[order[middle:]])

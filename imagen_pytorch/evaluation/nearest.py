"""The nearest training image of each generated one, to detect copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .distances import both, distance_chunks


@dataclass(frozen=True)
class Nearest:
    """Nearest training images, by Euclidean distance of their features.

    Attributes:
        index: index of the nearest training image of each generated one.
        distance: distance of each generated image to it; 0 for a copy.
        real_distance: distance of each training image to its nearest other one, in ascending order.
    """

    index: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]
    real_distance: Float[Tensor, " m"]

    def rank(self) -> Float[Tensor, " n"]:
        """Return the fraction of training images that have another one at least as near as each generated image has.

        It is uniform in 0 to 1 for images that lie among the training images as these lie among each other. Values near
        0 are copies. With training images that occur twice it is above 0 for copies, too.
        """
        return torch.searchsorted(self.real_distance, self.distance, right=True) / len(self.real_distance)

    def copied(self, quantile: float = 0.01) -> float:
        """Return the fraction of generated images whose `rank` is at most ``quantile``, which is its expected value."""
        return float((self.rank() <= quantile).double().mean())


def nearest_images(generated: Float[Tensor, "n d"], training: Float[Tensor, "m d2"]) -> Nearest:
    """Find the nearest training image of each generated one.

    Args:
        generated, training: feature vectors of one extractor, at least one and two.

    Raises:
        ValueError: other shapes, too few vectors or values that are not finite.
    """
    generated, training = both(generated, training, ("generated", "training"), least=1)
    if len(training) < 2:
        raise ValueError(f"training needs at least 2 feature vectors, got {len(training)}")
    index = torch.cat([rows.argmin(1) for rows in distance_chunks(generated, training)])
    others = []
    for rows in distance_chunks(training, training):
        first = sum(map(len, others))
        rows[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = torch.inf
        others.append(rows.amin(1))
    # computed again from the differences: a table of products leaves a copy at a small distance instead of 0
    exact = torch.linalg.vector_norm(generated - training[index], dim=1)
    return Nearest(index, exact, torch.cat(others).sort().values)

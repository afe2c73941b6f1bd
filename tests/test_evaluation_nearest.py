"""Nearest training images: brute force, copies at distance 0, and honest draws that are no copies."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.evaluation import distances
from imagen_pytorch.evaluation.nearest import nearest_images


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cells", [50, 2**23])
def test_the_nearest_is_that_of_brute_force(cells, monkeypatch):
    monkeypatch.setattr(distances, "CELLS", cells)
    made, training = normal(0, 13, 4), normal(1, 21, 4)
    found = nearest_images(made, training)
    table = (made[:, None] - training).norm(dim=2)
    own = (training[:, None] - training).norm(dim=2)
    own.fill_diagonal_(torch.inf)
    assert torch.equal(found.index, table.argmin(1))
    torch.testing.assert_close(found.distance.float(), table.amin(1))
    torch.testing.assert_close(found.real_distance.float(), own.amin(1).sort().values)


def test_a_copy_is_at_distance_zero_and_shows():
    training = 100 * normal(0, 300, 64)
    copies = training[[7, 250, 3]]
    found = nearest_images(copies, training)
    assert found.index.tolist() == [7, 250, 3] and found.distance.tolist() == [0, 0, 0]
    assert found.rank().tolist() == [0, 0, 0] and found.copied() == 1
    assert nearest_images(copies + 0.01, training).copied() == 1


def test_draws_of_the_same_distribution_are_no_copies():
    found = nearest_images(normal(0, 1000, 3), normal(1, 1000, 3))
    assert 0.45 <= float(found.rank().mean()) <= 0.55
    assert found.copied(0.1) == pytest.approx(0.1, abs=0.04)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="training needs at least 2 feature vectors, got 1"):
        nearest_images(normal(0, 3, 4), normal(1, 1, 4))
    with pytest.raises(ValueError, match="generated and training need vectors of one length"):
        nearest_images(normal(0, 3, 4), normal(1, 5, 3))

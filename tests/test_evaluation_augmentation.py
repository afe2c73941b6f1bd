"""Degraded images are exactly what they are said to be; a judge that learned them holds less against them."""

from __future__ import annotations

import pytest
import torch
from test_evaluation_retrieval import squares

from imagen_pytorch.evaluation.augmentation import Augmentation, blurred, reduced, shifted, with_noise
from imagen_pytorch.evaluation.features import feature_extractor
from imagen_pytorch.evaluation.intervals import fraction_interval
from imagen_pytorch.evaluation.retrieval import (
    caption_retrieval,
    intervals,
    recall_at,
    reference_images,
    reference_rows,
    train_probe,
)
from imagen_pytorch.images import resize
from imagen_pytorch.text import text_encoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator(9))


def test_noise_has_the_deviation_that_is_asked_for():
    middle = torch.full((3, 3, 64, 64), 0.5)
    noisy = with_noise(middle, torch.tensor([0.0, 0.02, 0.06]), generator()) - middle
    assert torch.equal(noisy[0], torch.zeros_like(noisy[0]))
    assert noisy.flatten(1).std(1)[1:].tolist() == pytest.approx([0.02, 0.06], rel=0.03)
    assert with_noise(pixels(2, 3, 8, 8), 0.5, generator()).min() >= 0


def test_a_shift_moves_pixels_and_repeats_the_edge():
    images = pixels(2, 3, 6, 7)
    moved = shifted(images, torch.tensor([[1, -2], [0, 0]]))
    assert torch.equal(moved[1], images[1])
    assert torch.equal(moved[0, :, 1:, :5], images[0, :, :5, 2:])
    assert torch.equal(moved[0, :, 0, :5], images[0, :, 0, 2:])
    assert torch.equal(moved[0, :, 1:, 6], images[0, :, :5, 6])


def test_a_blur_is_a_gaussian_of_unit_mass():
    point = torch.zeros(2, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = blurred(point, torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(spread.sum((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(spread[1], point[1])
    profile, places = spread[0, 0].sum(0), torch.arange(33.0) - 16
    assert float((profile * places**2).sum()) == pytest.approx(1.5**2, rel=0.03)
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(blurred(flat, torch.tensor([2.0])), flat)


def test_a_reduced_image_has_nothing_that_the_small_one_has_not():
    images = pixels(2, 3, 16, 16)
    assert torch.equal(reduced(images, 4), resize(resize(images, 4), 16, "bicubic"))
    assert torch.equal(reduced(images, 16), images)


def test_augmentation_is_seeded_differs_by_image_and_stays_in_range():
    images = pixels(1, 3, 32, 24).expand(40, -1, -1, -1)
    augmentation = Augmentation()
    first = augmentation(images, generator(3))
    assert torch.equal(augmentation(images, generator(3)), first) and first.shape == images.shape
    assert not torch.equal(augmentation(images, generator(4)), first)
    assert first.min() >= 0 and first.max() <= 1
    assert len(first.flatten(1).unique(dim=0)) > 30
    assert torch.equal(Augmentation(probability=0.0)(images, generator()), images)
    assert not (Augmentation(probability=1.0)(images, generator()) == images).flatten(1).all(1).any()


@pytest.fixture(scope="module")
def judges():
    """A plain and a robust judge of the same toy images."""
    images, captions = squares(seed=0)
    options = {"extractor": feature_extractor("pixels"), "encoder": text_encoder("builtin:words"), "steps": 120}
    return [train_probe(images, captions, augment=augment, **options) for augment in (False, True)]


def test_an_augmented_probe_loses_less_under_noise(judges):
    images, captions = squares(seed=5)
    truth = torch.arange(len(captions))
    noisy = Augmentation(probability=1.0, noise=0.3, shift=0.0)
    versions = [noisy(images, generator(seed)) for seed in range(12)]

    def recall(judge):
        return sum(recall_at(judge.similarity(version, captions), truth)["R@1"] for version in versions) / 12

    plain, robust = map(recall, judges)
    assert recall_at(judges[1].similarity(images, captions), truth)["R@1"] == 1
    assert robust > plain + 0.05


def test_reference_rows_stand_in_their_order(judges):
    images, captions = squares(seed=5)
    rows = reference_rows(judges[1], images, captions, candidates=captions, small_size=1)
    assert list(rows) == ["real", "enlarged", "noise 0.02", "noise 0.04"] == list(reference_images(images, 1))
    assert rows["real"]["R@1"] >= rows["noise 0.02"]["R@1"] >= rows["noise 0.04"]["R@1"] > rows["enlarged"]["R@1"]
    report = caption_retrieval(judges[1], images, captions, candidates=captions, real=images, small_size=1)
    assert report["references"] == rows and report["ceiling"] == rows["real"]
    assert set(report["intervals"]) == {"generated", "ceiling"}
    assert "references" not in caption_retrieval(judges[1], images, captions, candidates=captions, real=images)


def test_reference_images_are_what_they_are_called():
    real = pixels(3, 3, 32, 32) * 0.6 + 0.2
    found = reference_images(real, 8, seed=1)
    assert torch.equal(found["real"], real) and torch.equal(found["enlarged"], reduced(real, 8))
    for sigma in (0.02, 0.04):
        assert float((found[f"noise {sigma}"] - real).std()) == pytest.approx(sigma, rel=0.05)
    assert torch.equal(reference_images(real, 8, seed=1)["noise 0.04"], found["noise 0.04"])


@pytest.mark.parametrize(
    ("fraction", "count", "low", "high"),
    [(0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 10, 0.2366, 0.7634), (0.1, 100, 0.0552, 0.1744)],
)
def test_intervals_of_fractions_are_those_of_wilson(fraction, count, low, high):
    found = fraction_interval(fraction, count)
    assert (found.value, found.low, found.high) == pytest.approx((fraction, low, high), abs=1e-4)
    assert intervals({"row": {"R@1": fraction}}, count) == {"row": {"R@1": [found.low, found.high]}}


def test_impossible_fractions_are_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        fraction_interval(0.5, 0)
    with pytest.raises(ValueError, match=r"fraction .* 1.*got 1\.5"):
        fraction_interval(1.5, 3)

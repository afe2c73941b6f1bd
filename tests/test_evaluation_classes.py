"""Class accuracy: a classifier learns classes that exist, and generated images are held against real ones."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.evaluation.classes import class_accuracy, train_classifier


def bars(count: int, seed: int, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with a bright horizontal (0), vertical (1) or diagonal (2) bar at any place."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.randint(4, side - 4, (count,), generator=generator)[:, None, None]
    along = torch.stack([rows - side // 2, columns - side // 2, rows - columns])[labels]
    shift = places - side // 2
    images = ((along - shift).abs() < 2).float()[:, None].expand(-1, 3, -1, -1)
    noise = torch.randn(images.shape, generator=generator)
    return (0.1 + 0.8 * images + 0.05 * noise).clamp(0, 1), labels


@pytest.fixture(scope="module")
def classifier():
    return train_classifier(*bars(240, seed=0), steps=60, batch_size=48)


def test_classes_are_learned_and_wrong_images_are_found_out(classifier):
    images, labels = bars(90, seed=1)
    held_out = bars(90, seed=2)
    good = class_accuracy(classifier, images, labels, held_out=held_out)
    assert good.ceiling.value >= 0.95 and good.generated.value >= 0.95
    assert good.chance == pytest.approx(1 / 3) and set(good.by_class) == {0, 1, 2}
    wrong = class_accuracy(classifier, images, (labels + (labels == 1).long()) % 3, held_out=held_out)
    assert wrong.by_class[2] == pytest.approx(0.5, abs=0.05) and wrong.by_class[0] == good.by_class[0]
    assert wrong.generated.high < good.generated.low and wrong.ceiling == good.ceiling
    nothing = class_accuracy(classifier, torch.rand(90, 3, 16, 16), labels, held_out=held_out)
    assert nothing.generated.value <= 0.6


def test_bytes_are_the_same_images(classifier):
    images = (bars(20, seed=3)[0] * 255).round()
    assert torch.equal(classifier.predict(images.byte()), classifier.predict(images / 255))


def test_training_is_repeatable_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, second = (train_classifier(*bars(30, seed=0), steps=3, seed=4) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad


def test_mistakes_are_named(classifier):
    images, labels = bars(9, seed=0)
    for call, message in (
        (lambda: train_classifier(images, labels[:4]), "9 images need as many labels, counted from 0; got 4"),
        (lambda: train_classifier(images, labels - 1), "counted from 0"),
        (lambda: train_classifier(images, labels * 0), "two or more classes"),
        (lambda: class_accuracy(classifier, images[:2], labels, held_out=(images, labels)), "2 images need as many"),
        (lambda: class_accuracy(classifier, images, labels, held_out=(images, labels[1:])), "9 images need as many"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

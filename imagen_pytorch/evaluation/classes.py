"""Class accuracy: a small classifier is trained on the classes of real images and applied to generated ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ..images import as_float
from .intervals import Estimate, fraction_interval


class Classifier(nn.Module):
    """Three convolutions of stride 2, their last map averaged, and a linear layer.

    Args:
        channels: of the images.
        classes: number of classes.
        width: channels of the first layer.
    """

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 2 * width)
        layers = [
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU())
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of images in [0, 1]."""
        return self.layers(images * 2 - 1)

    @torch.no_grad()
    def predict(self, images: Shaped[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
        """Return the most probable class of each image, floats in [0, 1] or uint8."""
        return torch.cat([self(batch).argmax(1) for batch in as_float(images).float().split(256)])


@dataclass(frozen=True)
class ClassAccuracy:
    """The fraction of generated images with the intended class.

    Attributes:
        generated: fraction of generated images that the classifier recognises.
        ceiling: fraction of real images, held out from its training, that it recognises.
        chance: fraction that guessing the most frequent class would reach on the generated images.
        by_class: fraction of the generated images of each class.
    """

    generated: Estimate
    ceiling: Estimate
    chance: float
    by_class: dict[int, float]


def train_classifier(
    images: Shaped[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    steps: int = 400,
    batch_size: int = 128,
    seed: int = 0,
) -> Classifier:
    """Train a classifier from scratch on shifted and slightly noisy versions of the images.

    Torch's global random state is restored.

    Args:
        images: of one size, floats in [0, 1] or uint8.
        labels: classes, counted from 0.
        steps, batch_size: of the training.
        seed: of weights, order and augmentation.

    Raises:
        ValueError: other numbers of labels than images, fewer than two classes, or negative labels.
    """
    check_labels(images, labels)
    if len(labels.unique()) < 2:
        raise ValueError("a classifier needs images of two or more classes")
    images = as_float(images).float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        net = Classifier(images.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 2))
        for _ in range(steps):
            index = torch.randint(len(labels), (min(batch_size, len(labels)),))
            loss = F.cross_entropy(net(_augmented(images[index])), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def _augmented(images: Tensor) -> Tensor:
    """Shift the images by up to a sixteenth of their sides, one shift for the batch, and add noise of one strength."""
    reach = max(1, images.shape[-1] // 16)
    moves = torch.randint(-reach, reach + 1, (2,)).tolist()
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    moved = padded.roll(moves, (2, 3))[..., reach:-reach, reach:-reach]
    return moved + 0.05 * torch.rand(()) * torch.randn_like(moved)


def check_labels(images: Tensor, labels: Tensor) -> None:
    """Check that labels belong to the images.

    Raises:
        ValueError: another number than images, none, or negative ones.
    """
    if len(images) != len(labels) or not len(labels) or int(labels.min()) < 0:
        raise ValueError(f"{len(images)} images need as many labels, counted from 0; got {len(labels)}")


def class_accuracy(
    classifier: Classifier,
    generated: Shaped[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    held_out: tuple[Shaped[Tensor, "m c h w"], Int[Tensor, " m"]],
) -> ClassAccuracy:
    """Compute the fraction of generated images that are recognised as their intended class, and of real ones.

    Args:
        classifier: from `train_classifier`.
        generated: floats in [0, 1] or uint8, of the size of its training images.
        labels: the intended classes.
        held_out: real images that were not part of its training, and their classes.

    Raises:
        ValueError: labels that do not belong to the images.
    """
    right = []
    for images, truth in ((generated, labels), held_out):
        check_labels(images, truth)
        right.append(classifier.predict(images) == truth)
    found = [fraction_interval(float(each.double().mean()), len(each)) for each in right]
    by_class = {kind: float(right[0][labels == kind].double().mean()) for kind in labels.unique().tolist()}
    chance = float(labels.bincount().max()) / len(labels)
    return ClassAccuracy(*found, chance, by_class)

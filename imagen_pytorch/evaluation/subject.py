"""Input of an evaluation: generated images, real ones, and the networks that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..images import Size
from .features import FeatureExtractor
from .retrieval import CaptionJudge

#: number of images of a pool that are in memory at once
CHUNK = 256


class Pool:
    """Real images of a data set whose features are computed once, in chunks.

    Args:
        read: returns the image ``(c, h, w)`` in [0, 1] of an index of the data set.
        indices: the images of the pool.
        captions: one per image of the pool, or empty.
    """

    def __init__(self, read: Callable[[int], Tensor], indices: Sequence[int], captions: Sequence[str] = ()) -> None:
        self._read, self.indices, self.captions = read, list(indices), list(captions)
        self._features: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, places: Sequence[int] | None = None) -> Float[Tensor, "n c h w"]:
        """Return the images at some positions of the pool, or all of them."""
        chosen = range(len(self)) if places is None else places
        return torch.stack([self._read(self.indices[place]) for place in chosen])

    def features(self, extractor: FeatureExtractor) -> Float[Tensor, "n d"]:
        """Return the feature vectors of all images of the pool."""
        if extractor.name not in self._features:
            places = range(len(self))
            parts = [places[first : first + CHUNK] for first in range(0, len(self), CHUNK)]
            self._features[extractor.name] = torch.cat([extractor(self.images(part)) for part in parts])
        return self._features[extractor.name]


@dataclass(frozen=True)
class Enlarged:
    """Images that an upsampler makes from small real ones.

    Attributes:
        number: 1-based number of the U-Net.
        made: its images ``(n, c, h, w)`` in [0, 1].
        bicubic: the small images, enlarged bicubically.
        real: the real images of that size.
    """

    number: int
    made: Float[Tensor, "n c h w"]
    bicubic: Float[Tensor, "n c h w"]
    real: Float[Tensor, "n c h w"]


@dataclass
class Subject:
    """All inputs of the metrics.

    Attributes:
        generated: images ``(n, c, h, w)`` in [0, 1].
        reference: real images of the distribution that the generated ones should have.
        training: real images of the model's training, which it may have copied.
        extractors: networks whose features are compared.
        captions: one per generated image, or empty.
        real: real images of the same captions in the same order, or None.
        candidates: captions among which that of each image is to be found.
        judge: compares images with captions, or None.
        judge_learned: true if the judge was trained on the real images.
        small_size: (height, width) of the stage before the last one, or None.
        enlarged: results of the upsamplers for small real images.
        labels: class of each generated image, or empty.
        examples: returns real images with their classes, or None for data without classes.
        bits: returns the bits per dimension ``(n,)`` of real images by U-Net, or None without a model.
        seed: of halves and resamples.
    """

    generated: Float[Tensor, "n c h w"]
    reference: Pool
    training: Pool
    extractors: Sequence[FeatureExtractor]
    captions: Sequence[str] = ()
    real: Float[Tensor, "n c h w"] | None = None
    candidates: Sequence[str] = ()
    judge: CaptionJudge | None = None
    judge_learned: bool = False
    small_size: Size | None = None
    enlarged: Sequence[Enlarged] = ()
    labels: Sequence[str] = ()
    examples: Callable[[], tuple[Tensor, list[str]]] | None = None
    bits: Callable[[], dict[int, Tensor]] | None = None
    seed: int = 0
    _features: dict[str, Tensor] = field(default_factory=dict)

    def features(self, extractor: FeatureExtractor) -> Float[Tensor, "n d"]:
        """Return the feature vectors of the generated images, computed once."""
        if extractor.name not in self._features:
            self._features[extractor.name] = extractor(self.generated)
        return self._features[extractor.name]

    def counts(self) -> dict[str, Any]:
        """Return the numbers of generated and real images that are compared, and their size."""
        height, width = self.generated.shape[-2:]
        return {"generated": len(self.generated), "real": len(self.reference), "size": f"{width}x{height}"}

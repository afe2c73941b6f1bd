"""Comparison of two sets of images that were generated for the same captions and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .intervals import Estimate, paired_interval
from .retrieval import CaptionJudge, ranks


@dataclass(frozen=True)
class Comparison:
    """One metric of both sides.

    Attributes:
        name: of the metric.
        a, b: its means; larger is better.
        difference: of b and a, with its interval over images.
    """

    name: str
    a: float
    b: float
    difference: Estimate

    def sentence(self) -> str:
        """Return both means, their difference, and a note if it may be chance."""
        start = f"{self.name}: A {self.a:.3g}, B {self.b:.3g}"
        gain = self.difference
        if gain.value == 0:
            return f"{start}; no difference ({gain.low:.3g} to {gain.high:.3g})"
        better, sign = ("B", 1) if gain.value > 0 else ("A", -1)
        low, high = sorted((sign * gain.low, sign * gain.high))
        text = f"{start}; {better} is better by {sign * gain.value:.3g} ({low:.3g} to {high:.3g})"
        return f"{text}; the interval includes 0, so this may be chance" if gain.includes(0) else text

    def figures(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"a": self.a, "b": self.b, "difference": asdict(self.difference)}


def caption_scores(
    judge: CaptionJudge, images: Float[Tensor, "n c h w"], captions: Sequence[str], candidates: Sequence[str]
) -> dict[str, Float[Tensor, " n"]]:
    """Return for each image its similarity to its own caption, and true if that is the most similar candidate.

    Args:
        judge: compares images and captions.
        images: in [0, 1].
        captions: one per image.
        candidates: captions to choose from, in addition to these.

    Raises:
        ValueError: another number of captions than of images.
    """
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} images need as many captions, got {len(captions)}")
    known = {text: place for place, text in enumerate(dict.fromkeys([*captions, *candidates]))}
    truth = torch.tensor([known[caption] for caption in captions])
    similarity = judge.similarity(images, list(known))
    own = similarity.gather(1, truth[:, None])[:, 0]
    return {"caption similarity": own.double(), "R@1": (ranks(similarity, truth) == 0).double()}


def compare_images(
    judge: CaptionJudge,
    a: Float[Tensor, "n c h w"],
    b: Float[Tensor, "n c h2 w2"],
    captions: Sequence[str],
    *,
    candidates: Sequence[str] = (),
    seed: int = 0,
) -> list[Comparison]:
    """Compare two sets of images that were made for the same captions and seeds, in the same order.

    Args:
        judge: compares images and captions.
        a, b: images in [0, 1].
        captions: one per image.
        candidates: captions to choose from beside these.
        seed: of the resamples.

    Raises:
        ValueError: different numbers of images and captions.
    """
    scores = [caption_scores(judge, images, captions, candidates) for images in (a, b)]
    return [
        Comparison(
            name, float(scores[0][name].mean()), float(scores[1][name].mean()),
            paired_interval(scores[1][name], scores[0][name], seed),
        )
        for name in scores[0]
    ]  # fmt: skip

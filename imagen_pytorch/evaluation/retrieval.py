"""Do pictures fit their captions? A small probe learns it from real pictures, then looks for each caption.

The idea is CLIP's (Radford et al. 2021, arXiv 2103.00020) at the size of a data set: two small networks on top of
frozen picture features and a frozen text encoder map both into one space. How often the right caption is among the k
nearest to a picture is R@k. The same figure for real pictures is what a perfect model can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..text.base import TextEncoder
from .features import FeatureExtractor

#: The k of R@k.
RANKS = (1, 5, 10)


def ranks(similarity: Float[Tensor, "n m"], truth: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Place of the right one of ``m`` candidates for each of ``n`` queries, 0 = best; ties count against it."""
    right = similarity.gather(1, truth[:, None])
    return (similarity >= right).sum(1) - 1


def recall_at(similarity: Float[Tensor, "n m"], truth: Int[Tensor, " n"]) -> dict[str, float]:
    """R@1, R@5 and R@10: the share of queries whose right candidate is among the k most similar ones."""
    place = ranks(similarity, truth)
    return {f"R@{k}": (place < k).float().mean().item() for k in RANKS}


def chance(candidates: int) -> dict[str, float]:
    """What guessing reaches among so many candidates."""
    return {f"R@{k}": min(1.0, k / candidates) for k in RANKS}


class Tower(nn.Module):
    """From feature vectors to unit vectors of the common space: standardise, two layers, normalise.

    Args:
        example: vectors ``(n, d)`` whose mean and spread standardise all others.
        hidden, out: widths.
        dropout: strong, for the data are few.
    """

    def __init__(self, example: Float[Tensor, "n d"], hidden: int = 512, out: int = 128, dropout: float = 0.4) -> None:
        super().__init__()
        self.register_buffer("mean", example.mean(0))
        self.register_buffer("std", example.std(0, correction=0).clamp(min=1e-3))
        self.layers = nn.Sequential(
            nn.LayerNorm(example.shape[1]),
            nn.Dropout(dropout),
            nn.Linear(example.shape[1], hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
        """Unit vectors."""
        return F.normalize(self.layers((features - self.mean) / self.std), dim=1)


@dataclass(frozen=True)
class CaptionProbe:
    """A trained pair of towers with the frozen networks below them; made by `train_probe`."""

    extractor: FeatureExtractor
    encoder: TextEncoder
    picture_tower: Tower
    text_tower: Tower

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Float[Tensor, "n m"]:
        """Cosine of every picture in [0, 1] with every caption."""
        texts = text_features(self.encoder, captions)
        return self.picture_tower(self.extractor(images)) @ self.text_tower(texts).T


@torch.no_grad()
def text_features(encoder: TextEncoder, captions: Sequence[str], batch_size: int = 128) -> Float[Tensor, "m d"]:
    """One vector per caption: the mean of its tokens' states."""
    means = []
    for first in range(0, len(captions), batch_size):
        embeds, mask = encoder.encode(list(captions[first : first + batch_size]))
        weight = mask[..., None].float()
        means.append(((embeds.float() * weight).sum(1) / weight.sum(1).clamp(min=1)).cpu())
    return torch.cat(means)


def train_probe(
    images: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    *,
    extractor: FeatureExtractor,
    encoder: TextEncoder,
    steps: int = 200,
    batch_size: int = 256,
    seed: int = 0,
) -> CaptionProbe:
    """Learn from real pictures in [0, 1] which caption belongs to which picture.

    Symmetric contrastive loss with a learned temperature. Torch's global random state is left as it was.

    Raises:
        ValueError: fewer than two pictures, or another number of captions.
    """
    if len(images) != len(captions) or len(images) < 2:
        raise ValueError(f"a probe needs two or more pictures with a caption each, got {len(images)}, {len(captions)}")
    different = {text: index for index, text in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([different[text] for text in captions])
    features = extractor(images), text_features(encoder, list(different))[labels]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        towers = Tower(features[0]), Tower(features[1])
        _align(towers, features, labels, steps, min(batch_size, len(labels)))
    return CaptionProbe(extractor, encoder, *(tower.eval().requires_grad_(False) for tower in towers))


def _align(
    towers: tuple[Tower, Tower], features: tuple[Tensor, Tensor], labels: Tensor, steps: int, batch_size: int
) -> None:
    """Train both towers so that vectors of one label meet and those of different labels part."""
    temperature = nn.Parameter(torch.tensor(20.0).log())
    parameters = [*towers[0].parameters(), *towers[1].parameters(), temperature]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(steps, 2))
    with torch.enable_grad():
        for _ in range(steps):
            index = torch.randperm(len(labels))[:batch_size]
            picture, text = (tower(each[index]) for tower, each in zip(towers, features, strict=True))
            logits = picture @ text.T * temperature.exp().clamp(max=100)
            # pictures with the same caption are right answers to each other
            same = (labels[index, None] == labels[index]).float()
            target = same / same.sum(1, keepdim=True)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def caption_retrieval(
    probe: CaptionProbe,
    generated: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    *,
    candidates: Sequence[str],
    real: Float[Tensor, "n c h2 w2"] | None = None,
) -> dict[str, Any]:
    """R@1, R@5 and R@10 of finding its own caption for each generated picture.

    Args:
        probe: from `train_probe`.
        generated: pictures in [0, 1].
        captions: what each was asked to show.
        candidates: the captions to choose from; repeated ones count once.
        real: true pictures of the same captions, for the ceiling.

    Returns:
        A dict of plain values: "generated", "chance" and, given real pictures, "ceiling", each with "R@1", "R@5" and
        "R@10" in [0, 1]; "pictures" and "candidates" are counts; "extractor" and "encoder" name what was used.

    Raises:
        ValueError: a caption that is no candidate, or as many captions as pictures are not given.
    """
    known = {text: index for index, text in enumerate(dict.fromkeys(candidates))}
    missing = [text for text in captions if text not in known]
    if missing or len(captions) != len(generated):
        raise ValueError(
            f"{len(generated)} pictures need as many captions, all of them candidates; got {len(captions)}"
            + (f", of which {missing[0]!r} is no candidate" if missing else "")
        )
    truth = torch.tensor([known[text] for text in captions])
    report: dict[str, Any] = {
        "pictures": len(generated),
        "candidates": len(known),
        "extractor": probe.extractor.name,
        "encoder": probe.encoder.name,
        "chance": chance(len(known)),
        "generated": recall_at(probe.similarity(generated, list(known)), truth),
    }
    if real is not None:
        report["ceiling"] = recall_at(probe.similarity(real, list(known)), truth)
    return report

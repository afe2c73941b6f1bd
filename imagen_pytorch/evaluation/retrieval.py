"""Caption retrieval: a small probe is trained on real images and captions, then retrieves the caption of each image.

The idea is CLIP's (Radford et al. 2021, arXiv 2103.00020) at the size of a data set: two small networks on top of
frozen image features and a frozen text encoder map both into one space. R@k is the fraction of images whose own caption
is among the k nearest. The same metric for real images is the value of a perfect model. For real images with small
defects (`reference_images`) it shows the influence of defects that are unrelated to the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..images import Size
from ..text.base import TextEncoder
from .augmentation import Augmentation, reduced, with_noise
from .features import FeatureExtractor
from .intervals import fraction_interval

#: The k of R@k.
RANKS = (1, 5, 10)

#: Number of augmented versions of each image that `train_probe` uses in addition to the image itself.
VERSIONS = 4

#: Standard deviations of the noise on the real images of `reference_images`.
NOISE = (0.02, 0.04)


def ranks(similarity: Float[Tensor, "n m"], truth: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the rank of the right one of ``m`` candidates for each of ``n`` queries, 0 = best. Ties count against
    it."""
    right = similarity.gather(1, truth[:, None])
    return (similarity >= right).sum(1) - 1


def recall_at(similarity: Float[Tensor, "n m"], truth: Int[Tensor, " n"]) -> dict[str, float]:
    """Return R@1, R@5 and R@10: the fraction of queries whose right candidate is among the k most similar ones."""
    place = ranks(similarity, truth)
    return {f"R@{k}": (place < k).float().mean().item() for k in RANKS}


def chance(candidates: int) -> dict[str, float]:
    """Return R@1, R@5 and R@10 of guessing among ``candidates`` captions."""
    return {f"R@{k}": min(1.0, k / candidates) for k in RANKS}


class Tower(nn.Module):
    """A network from feature vectors to unit vectors of the common space: standardise, two layers, normalise.

    Args:
        example: vectors ``(n, d)`` whose mean and standard deviation standardise all others.
        hidden, out: widths.
        dropout: high, because the data are few.
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
        """Return unit vectors."""
        return F.normalize(self.layers((features - self.mean) / self.std), dim=1)


class CaptionJudge(Protocol):
    """An object that compares images with captions: a `CaptionProbe`, or the embedded `Emoji64Probe`."""

    @property
    def networks(self) -> dict[str, str]:
        """Names of the "extractor" and the "encoder"."""

    def similarity(self, images: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Float[Tensor, "n m"]:
        """Return the similarity of every image in [0, 1] with every caption. The largest fits best."""


@dataclass(frozen=True)
class CaptionProbe:
    """A trained pair of towers with the frozen networks below them, from `train_probe`."""

    extractor: FeatureExtractor
    encoder: TextEncoder
    image_tower: Tower
    text_tower: Tower

    @property
    def networks(self) -> dict[str, str]:
        """Names of the frozen networks."""
        return {"extractor": self.extractor.name, "encoder": self.encoder.name}

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Float[Tensor, "n m"]:
        """Return the cosine of every image in [0, 1] with every caption."""
        texts = text_features(self.encoder, captions)
        return self.image_tower(self.extractor(images)) @ self.text_tower(texts).T


@torch.no_grad()
def text_features(encoder: TextEncoder, captions: Sequence[str], batch_size: int = 128) -> Float[Tensor, "m d"]:
    """Return one vector per caption: the mean of its tokens' states."""
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
    augment: bool = False,
) -> CaptionProbe:
    """Train a probe of image and caption on real images in [0, 1].

    Symmetric contrastive loss with a learned temperature. Torch's global random state is restored.

    Args:
        images: real images.
        captions: one each.
        extractor, encoder: frozen networks.
        steps, batch_size: of the training.
        seed: of all random numbers.
        augment: train on `VERSIONS` augmented versions of each image as well, with noise, blur, shifts, resampling and
            changed colours (`Augmentation`), so that the judge ignores such defects. Every version costs a pass of
            the extractor.

    Raises:
        ValueError: fewer than two images, or another number of captions.
    """
    if len(images) != len(captions) or len(images) < 2:
        raise ValueError(f"a probe needs two or more images with a caption each, got {len(images)}, {len(captions)}")
    different = {text: index for index, text in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([different[text] for text in captions])
    generator, augmentation = torch.Generator().manual_seed(seed), Augmentation()
    seen = [extractor(images)]
    seen += [extractor(augmentation(images, generator)) for _ in range(VERSIONS if augment else 0)]
    labels = labels.repeat(len(seen))
    features = torch.cat(seen), text_features(encoder, list(different))[labels]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        towers = Tower(features[0]), Tower(features[1])
        _align(towers, features, labels, steps, min(batch_size, len(labels)))
    return CaptionProbe(extractor, encoder, *(tower.eval().requires_grad_(False) for tower in towers))


def _align(
    towers: tuple[Tower, Tower], features: tuple[Tensor, Tensor], labels: Tensor, steps: int, batch_size: int
) -> None:
    """Train both towers so that vectors of one label are similar and those of different labels are not."""
    temperature = nn.Parameter(torch.tensor(20.0).log())
    parameters = [*towers[0].parameters(), *towers[1].parameters(), temperature]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(steps, 2))
    with torch.enable_grad():
        for _ in range(steps):
            index = torch.randperm(len(labels))[:batch_size]
            image, text = (tower(each[index]) for tower, each in zip(towers, features, strict=True))
            logits = image @ text.T * temperature.exp().clamp(max=100)
            # images with the same caption are right answers to each other
            same = (labels[index, None] == labels[index]).float()
            target = same / same.sum(1, keepdim=True)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def reference_images(
    real: Float[Tensor, "n c h w"], small_size: int | Size, *, seed: int = 0
) -> dict[str, Float[Tensor, "n c h w"]]:
    """Return real images as they are and with known defects, as references for generated ones.

    Args:
        real: images in [0, 1].
        small_size: of the previous stage, in pixels; "enlarged" images are shrunk to it and enlarged bicubically.
        seed: of the noise.

    Returns:
        "real", "enlarged", and one entry for each standard deviation of `NOISE`, such as "noise 0.02".
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = {f"noise {sigma:g}": with_noise(real, sigma, generator) for sigma in NOISE}
    return {"real": real, "enlarged": reduced(real, small_size), **noisy}


def reference_rows(
    judge: CaptionJudge,
    real: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    *,
    candidates: Sequence[str],
    small_size: int | Size,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return R@1, R@5 and R@10 of each kind of `reference_images`.

    Raises:
        ValueError: as `caption_retrieval`.
    """
    known, truth = _places(captions, candidates, len(real))
    return {
        name: recall_at(judge.similarity(images, known), truth)
        for name, images in reference_images(real, small_size, seed=seed).items()
    }


def caption_retrieval(
    probe: CaptionJudge,
    generated: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    *,
    candidates: Sequence[str],
    real: Float[Tensor, "n c h2 w2"] | None = None,
    small_size: int | Size | None = None,
) -> dict[str, Any]:
    """Return R@1, R@5 and R@10 of retrieving its own caption for each generated image.

    Args:
        probe: from `train_probe`, or the embedded `Emoji64Probe`.
        generated: images in [0, 1].
        captions: the caption of each image.
        candidates: the captions to choose from; repeated ones count once.
        real: true images of the same captions, for the ceiling.
        small_size: of the previous stage; with it, the real images are also judged with defects (`reference_images`).

    Returns:
        a dict of plain values: "generated", "chance" and, given real images, "ceiling", each with "R@1", "R@5" and
        "R@10" in [0, 1]; "intervals" with the 95 % interval ``[low, high]`` of each of those but chance; "references"
        with the rows of `reference_rows`, given ``small_size``; the counts ``"pictures"`` and ``"candidates"``; and
        the names of the networks, "extractor" and "encoder".

    Raises:
        ValueError: a caption that is not a candidate, or another number of captions than of images.
    """
    known, truth = _places(captions, candidates, len(generated))
    rows = {"generated": recall_at(probe.similarity(generated, known), truth)}
    report: dict[str, Any] = {"pictures": len(generated), "candidates": len(known), **probe.networks}
    if real is not None:
        rows["ceiling"] = recall_at(probe.similarity(real, known), truth)
        if small_size is not None:
            report["references"] = reference_rows(probe, real, captions, candidates=known, small_size=small_size)
    return {**report, "chance": chance(len(known)), **rows, "intervals": intervals(rows, len(generated))}


def intervals(rows: dict[str, dict[str, float]], count: int) -> dict[str, dict[str, list[float]]]:
    """Return the 95 % interval ``[low, high]`` (`fraction_interval`) of every R@k of rows of ``count`` images each."""
    ends = {name: {key: fraction_interval(value, count) for key, value in row.items()} for name, row in rows.items()}
    return {name: {key: [end.low, end.high] for key, end in row.items()} for name, row in ends.items()}


def _places(captions: Sequence[str], candidates: Sequence[str], images: int) -> tuple[list[str], Tensor]:
    """Return the different candidates, and the index of each image's caption among them."""
    known = {text: index for index, text in enumerate(dict.fromkeys(candidates))}
    missing = [text for text in captions if text not in known]
    if missing or len(captions) != images:
        raise ValueError(
            f"{images} images need as many captions, all of them candidates; got {len(captions)}"
            + (f", of which {missing[0]!r} is not a candidate" if missing else "")
        )
    return list(known), torch.tensor([known[text] for text in captions])

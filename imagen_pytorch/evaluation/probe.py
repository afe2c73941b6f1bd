"""The embedded judge of emoji64: an image tower and a text tower, trained together from scratch on its train split.

It contains no other model, so its metrics are independent of the feature extractors and text encoders that a model may
be trained with. ``scripts/train_emoji64_probe.py`` trains it. ``training.json``, next to the weights, holds the
settings, the log and the metrics on the splits that were not part of its training.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..images import resize
from .features import EXTRACTORS, FeatureExtractor

#: Record of the training of the embedded weights, and the weights in half precision.
FOLDER = Path(__file__).parent / "emoji64_probe"
WEIGHTS = FOLDER / "weights.safetensors"

#: Side of the images in the image tower.
SIZE = 64

#: Rows of the table of hashed pieces of captions.
BUCKETS = 9216

WORD = re.compile(r"\w+|[^\w\s]")


def _bucket(piece: str) -> int:
    return zlib.crc32(piece.encode("utf-8", "replace")) % BUCKETS


@functools.lru_cache(2**14)
def _word_pieces(word: str) -> tuple[int, ...]:
    """Return the rows of the word and its runs of three characters, so that an unknown word is close to similar
    ones."""
    marked = f"<{word}>"
    return (_bucket(word), *(_bucket(f"~{marked[first : first + 3]}") for first in range(len(marked) - 2)))


@functools.lru_cache(2**16)
def pieces(caption: str) -> tuple[int, ...]:
    """Return the table rows of a caption: words, pairs of neighbouring words, and runs of three characters."""
    words = WORD.findall(caption.lower())
    pairs = [_bucket(f"{first} {second}") for first, second in zip(["", *words], [*words, ""], strict=True)]
    return (*pairs, *(row for word in words for row in _word_pieces(word)))


class TextTower(nn.Module):
    """Map captions to vectors: the mean of hashed pieces, then two layers.

    Args:
        width, hidden, out: length of the table's vectors, of the hidden layer, and of the result.
        dropout: fraction of pieces that training leaves out.
    """

    def __init__(self, width: int = 64, hidden: int = 192, out: int = 128, dropout: float = 0.15) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, width, mode="sum")
        nn.init.zeros_(self.table.weight)  # a piece that training never sees adds nothing
        self.dropout = dropout
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "m out"]:
        """Return vectors of any length. `DualEncoder.texts` normalises them."""
        rows = [pieces(caption) for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        flat = torch.tensor([piece for row in rows for piece in row])
        weights = (1 / lengths.clamp(min=1)).repeat_interleave(lengths)
        if self.training:
            weights = weights * (torch.rand(len(weights)) >= self.dropout)
        bags = self.table(flat, lengths.cumsum(0) - lengths, per_sample_weights=weights)
        return self.layers(bags)


class Block(nn.Module):
    """A residual block: a depthwise 3 x 3 convolution followed by two pointwise ones."""

    def __init__(self, dim: int, expansion: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim * expansion, 1),
            nn.GELU(),
            nn.Conv2d(dim * expansion, dim, 1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return a map of the same shape."""
        return x + self.layers(x)


class ImageTower(nn.Module):
    """An image encoder for 64 x 64: a depthwise-separable network with pooled maps.

    Args:
        stem: channels at half the side.
        dims, depths: channels and blocks at a quarter, an eighth and a sixteenth of the side.
    """

    def __init__(self, stem: int = 16, dims: Sequence[int] = (64, 144, 208), depths: Sequence[int] = (1, 3, 2)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.GELU()]
        for before, dim, depth in zip((stem, *dims), dims, depths, strict=False):
            layers += [nn.Conv2d(before, dim, 2, 2, bias=False), nn.BatchNorm2d(dim)]
            layers += [Block(dim) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(dims[-1]))
        self.dim = dims[-1]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return pooled features of RGB images in [0, 1]."""
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return F.gelu(self.layers(x)).mean((2, 3))


class DualEncoder(nn.Module):
    """Both towers, whose unit vectors are compared by their cosine (Radford et al. 2021, arXiv 2103.00020)."""

    def __init__(self, out: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.image_tower = ImageTower().to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.image_tower.dim, out))
        self.text_tower = TextTower(out=out)

    def images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b out"]:
        """Return unit vectors of RGB images in [0, 1] of 64 x 64."""
        return self.vectors(self.image_tower(images))

    def vectors(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b out"]:
        """Return unit vectors of pooled features."""
        return F.normalize(self.head(features), dim=1)

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "m out"]:
        """Return unit vectors of captions."""
        return F.normalize(self.text_tower(captions), dim=1)


def save_weights(model: DualEncoder, path: Path) -> str:
    """Write weights in half precision, normalisation in single, and return the SHA-256 of the file."""
    from safetensors.torch import save

    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    raw = save({name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in state.items()})
    path.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def load_weights(path: Path, sha256: str) -> DualEncoder:
    """Load the model whose weights `save_weights` wrote, in evaluation mode.

    Raises:
        ValueError: the file is not the one with this SHA-256.
    """
    from safetensors.torch import load

    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(
            f"the weights {path.name} are damaged: SHA-256 {found[:12]}..., expected {sha256[:12]}...; install the "
            "package again"
        )
    model = DualEncoder()
    model.load_state_dict({name: value.float() for name, value in load(raw).items()}, strict=False)
    return model.eval().requires_grad_(False)


@functools.cache
def training_record() -> dict[str, Any]:
    """Return the record of the training: settings, log, metrics, and the SHA-256 of the file of weights."""
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@functools.cache
def embedded_model() -> DualEncoder:
    """Return the embedded model, loaded once.

    Raises:
        ValueError: the file of weights is damaged.
    """
    return load_weights(WEIGHTS, training_record()["sha256"])


@EXTRACTORS.register("emoji64-probe")
class Emoji64Probe(FeatureExtractor):
    """The embedded judge of emoji64: pooled features of its image tower, and captions by `similarity`.

    Images of another size are resized to 64 x 64. It learned the train split of emoji64 in all styles, on random
    backgrounds, with noise, blur, shifts, resampling and changed colours, and never the splits "pair" and "concept".

    Args:
        model: a model in place of the embedded one.
    """

    name = "emoji64-probe"
    dim = 208
    weights = WEIGHTS
    #: names of both networks in reports of caption retrieval
    networks: ClassVar[dict[str, str]] = {"extractor": "emoji64-probe", "encoder": "emoji64-probe"}

    def __init__(self, model: DualEncoder | None = None) -> None:
        self.model = embedded_model() if model is None else model

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the vectors of one batch of RGB images in [0, 1]."""
        return self.model.image_tower(resize(images, SIZE, "bicubic"))

    @torch.no_grad()
    def similarity(self, images: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Float[Tensor, "n m"]:
        """Return the cosine of every image in [0, 1] with every caption."""
        return self.model.vectors(self(images)) @ self.model.texts(captions).T

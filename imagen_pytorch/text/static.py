"""Static vectors of word pieces that ship with the package: nothing to install, no transformer to run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from .base import ENCODERS, TextEncoder
from .words import word_vector

FOLDER = Path(__file__).parent / "minilm_static"

#: Width of the parts of a state: the vector of the piece, then the encoding of its position.
CONTENT, POSITION = 96, 32

#: The ratio of the longest to the shortest wavelength of the position encoding.
WAVELENGTHS = 1000.0


class Tables(NamedTuple):
    """The WordPiece tokenizer, the vectors of its pieces as integers, and the factor of each vector."""

    tokenizer: Any
    vectors: Int8[Tensor, "n d"]
    scale: Float[Tensor, " n"]


@functools.cache
def tables() -> Tables:
    """Return vocabulary and vectors, read once per process."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = (FOLDER / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token=pieces[0]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tables(tokenizer, **load_file(FOLDER / "vectors.safetensors"))


@functools.lru_cache(8)
def positions(length: int) -> Float[Tensor, "n d"]:
    """Return the sinusoidal encoding of the positions 0 to ``length - 1``, of mean square 1 (Vaswani et al. 2017)."""
    frequencies = WAVELENGTHS ** -(torch.arange(POSITION // 2) / (POSITION // 2))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1) * 2**0.5


@ENCODERS.register("builtin:minilm-static")
class StaticPieces(TextEncoder):
    """Word pieces of an English caption as static vectors with positions; a last state ends the caption.

    The vector of a piece is the mean state of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers and
    Gurevych 2019) for that piece alone, as in Model2Vec (Tulkens and van Dongen 2024), reduced to 96 principal
    components and multiplied by its smooth inverse frequency (Arora, Liang and Ma 2017): related words have similar
    vectors, and articles have short ones. The sinusoidal position next to it tells "a green apple on a black
    background" from "a black apple on a green background". Every state has mean square 1. A word in another script
    gets a pseudo-random vector of its own. ``scripts/build_minilm_static.py`` made the vectors; their licence is in
    ``text/minilm_static/LICENSE-minilm-static.txt``.

    Args:
        name: "builtin:minilm-static".
        max_length: largest number of states per caption.

    Raises:
        ValueError: another name, such as one with a width.
    """

    def __init__(self, name: str = "builtin:minilm-static", max_length: int = 256) -> None:
        super().__init__(name)
        if name != "builtin:minilm-static":
            raise ValueError(
                f'the text encoder "builtin:minilm-static" has the fixed width {self.dim} and takes nothing after its '
                f'name, got "{name[:60]}"'
            )
        self.max_length = max_length

    @property
    def dim(self) -> int:
        """Width of the states."""
        return CONTENT + POSITION

    def states(self, captions: Sequence[str], device: torch.device) -> list[Float[Tensor, "_ d"]]:
        """Return one state per piece and one for the end."""
        return [self._state(caption) for caption in captions]

    def _state(self, caption: str) -> Float[Tensor, "_ d"]:
        tokenizer, vectors, scale = tables()
        found = tokenizer.encode(caption)
        ids = torch.tensor(found.ids[: self.max_length - 1], dtype=torch.long)
        content = vectors[ids].float() * scale[ids, None].float()
        for place in (ids == 0).nonzero().flatten().tolist():
            content[place] = word_vector(caption[slice(*found.offsets[place])].lower(), CONTENT)
        content = torch.cat([content, content.new_zeros(1, CONTENT)])
        states = torch.cat([content, positions(len(content))], 1)
        return states / states.square().mean(1, keepdim=True).sqrt()

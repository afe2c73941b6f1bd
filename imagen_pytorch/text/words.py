"""Words as fixed pseudo-random vectors: no weights, nothing to install."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .base import ENCODERS, TextEncoder

#: A run of letters and digits (in any script, apostrophes inside), or one other visible character.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@functools.lru_cache(2**15)
def word_vector(word: str, dim: int) -> Float[Tensor, " d"]:
    """Return the vector of a word: uniform values of mean 0 and variance 1, read from a cryptographic hash of the word.

    It is the same on every machine and in every version. Vectors of different words are nearly orthogonal.
    """
    raw = np.frombuffer(hashlib.shake_256(word.encode()).digest(2 * dim), dtype="<u2")
    return torch.from_numpy(((raw / 65535 * 2 - 1) * 3**0.5).astype(np.float32))


@ENCODERS.register("builtin:words")
class HashedWords(TextEncoder):
    """Words of a caption, in lower case, as fixed vectors; a last vector ends the caption.

    For demonstrations and tests: related words have unrelated vectors, and the order of words is not encoded.

    Args:
        name: "builtin:words", or "builtin:words:256" for another width than 128.
        max_length: largest number of vectors per caption.

    Raises:
        ValueError: the width is not a whole number from 1 to 65,536.
    """

    default_dim: ClassVar[int] = 128

    def __init__(self, name: str = "builtin:words", max_length: int = 256) -> None:
        super().__init__(name)
        width = name.removeprefix("builtin:words").removeprefix(":") or str(self.default_dim)
        if not (width.isascii() and width.isdecimal() and len(width) <= 5 and 0 < int(width) <= 2**16):
            shown = name if len(name) <= 40 else f"{name[:40]}..."
            raise ValueError(f'the width in "builtin:words:256" is a whole number from 1 to 65,536, got "{shown}"')
        self._dim = int(width)
        self.max_length = max_length

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._dim

    def states(self, captions: Sequence[str], device: torch.device) -> list[Float[Tensor, "_ d"]]:
        """Return one vector per word and one for the end."""
        words = [WORD.findall(caption.lower())[: self.max_length - 1] for caption in captions]
        return [torch.stack([word_vector(word, self.dim) for word in (*each, "")]) for each in words]

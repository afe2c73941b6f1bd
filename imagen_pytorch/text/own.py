"""Text encoders that are functions or objects of the user's program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..tensors import token_mask
from .base import OWN, TextEncoder

#: The caption that determines the width of the states of a function.
PROBE = "a"


class OwnEncoder(TextEncoder):
    """A function from captions to embeddings as a text encoder.

    The function must be frozen: the embeddings of a caption are cached. Checkpoints record its name with the prefix
    "own:", and a model that is opened from one needs the function again.

    Args:
        function: called with a list of captions. It returns embeddings ``(b, n, d)`` in which rows of zeros are
            padding; or these and a mask ``(b, n)``, true where there is a token; or one vector per caption ``(b, d)``.
            Tensors or NumPy arrays.
        dim: width of the embeddings; by default the function is called once to find it.
        name: for messages and records.

    Raises:
        TypeError, ValueError: the function returns something else.
    """

    def __init__(self, function: Callable[[list[str]], Any], dim: int | None = None, name: str = "encoder") -> None:
        super().__init__(f"{OWN}{name}")
        self.function = function
        self._dim = int(dim) if dim is not None else self._answer([PROBE])[0].shape[-1]

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._dim

    def states(self, captions: Sequence[str], device: torch.device) -> list[Float[Tensor, "_ d"]]:
        """Return the embeddings of the tokens of each caption."""
        embeds, mask = self._answer(list(captions))
        if embeds.shape[-1] != self.dim:
            raise ValueError(f"{self._what} gives embeddings of width {embeds.shape[-1]}, expected were {self.dim}")
        return [each[keep] for each, keep in zip(embeds, mask, strict=True)]

    @property
    def _what(self) -> str:
        return f'the text encoder "{self.name.removeprefix(OWN)}"'

    @torch.no_grad()
    def _answer(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Call the function, and return embeddings ``(b, n, d)`` and their mask ``(b, n)``."""
        found = self.function(captions)
        embeds, mask = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        try:
            embeds = torch.as_tensor(embeds).detach()
            mask = None if mask is None else torch.as_tensor(mask).to(embeds.device)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(found).__name__
            raise TypeError(f"{self._what} must return a tensor, or a tensor and a mask; got {kind}") from error
        embeds = embeds[:, None] if embeds.ndim == 2 else embeds
        if embeds.ndim != 3 or len(embeds) != len(captions) or not embeds.is_floating_point():
            raise ValueError(
                f"{self._what} must return floats (batch, tokens, width) for a list of captions; for {len(captions)} "
                f"it returned {tuple(embeds.shape)} of {embeds.dtype}"
            )
        if mask is None:
            return embeds, (embeds != 0).any(dim=-1)
        if mask.shape != embeds.shape[:2]:
            raise ValueError(
                f"the mask of {self._what} must be {tuple(embeds.shape[:2])} as its embeddings, got {tuple(mask.shape)}"
            )
        return embeds, token_mask(mask, f"the mask of {self._what}")


def as_encoder(given: Any, dim: int | None = None) -> TextEncoder:
    """Return a text encoder from a `TextEncoder`, any other object with ``encode``, or a function.

    Args:
        given: a `TextEncoder` is returned as it is; for everything else see `OwnEncoder`.
        dim: width of its embeddings, if known; an attribute ``dim`` of the object takes precedence.

    Raises:
        TypeError: an object that cannot be called. A name belongs into ``text_encoder_name``.
    """
    if isinstance(given, TextEncoder):
        return given
    if isinstance(given, str):
        raise TypeError(f'text_encoder must be an object or a function; for a name write text_encoder_name="{given}"')
    function = getattr(given, "encode", given)
    if not callable(function) or isinstance(given, type):
        raise TypeError(f"text_encoder must be a TextEncoder or a function of captions, got {type(given).__name__}")
    own = getattr(given, "dim", None)
    name = getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__)
    return OwnEncoder(function, own if isinstance(own, int) else dim, str(name))

"""Functions of text encoders under the names that users know. `imagen_pytorch.text` has the classes.

Any transformers encoder works, not only T5. Weights are loaded at the first use of a name and kept for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..tensors import token_mask
from ..text import DEFAULT_T5_NAME, TransformersEncoder, text_encoder


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _pretrained(name: str) -> TransformersEncoder:
    encoder = text_encoder(name)
    if not isinstance(encoder, TransformersEncoder):
        raise ValueError(f'the text encoder "{name}" has no tokenizer and no weights; call t5_encode_text')
    return encoder


def get_encoded_dim(name: str) -> int:
    """Return the width of an encoder's states, without loading its weights.

    Raises:
        FileNotFoundError: an encoder that is neither well known nor found.
    """
    return text_encoder(name).dim


def get_tokenizer(name: str) -> Any:
    """Return the tokenizer of an encoder.

    Raises:
        FileNotFoundError: it can neither be found nor fetched.
        ValueError: an embedded encoder, which has none.
    """
    return _pretrained(name).loaded.tokenizer


def get_model(name: str) -> Any:
    """Return the frozen network of an encoder.

    Raises:
        FileNotFoundError: it can neither be found nor fetched.
        ValueError: an embedded encoder, which has none.
    """
    return _pretrained(name).loaded.model


def get_model_and_tokenizer(name: str) -> tuple[Any, Any]:
    """Return network and tokenizer of an encoder. See `get_model`."""
    return get_model(name), get_tokenizer(name)


def t5_tokenize(texts: Sequence[str], name: str = DEFAULT_T5_NAME) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return token ids, padded to the longest caption and cut at 256, and their mask, on the GPU if there is one.

    Raises:
        TypeError: one string instead of a list.
        FileNotFoundError: the encoder can neither be found nor fetched.
    """
    ids, mask = _pretrained(name).tokenize(texts)
    return ids.to(_device()), mask.to(_device())


def t5_encode_tokenized_text(
    token_ids: Int[Tensor, "b n"],
    attn_mask: Shaped[Tensor, "b n"] | None = None,
    pad_id: int | None = None,
    name: str = DEFAULT_T5_NAME,
) -> Float[Tensor, "b n d"]:
    """Return the states of tokens, zero where there is none.

    Args:
        token_ids: from `t5_tokenize`.
        attn_mask: true or 1 at tokens.
        pad_id: the id that marks padding, in place of a mask.
        name: of the encoder.

    Raises:
        ValueError: neither a mask nor a padding id; a mask of other numbers than 0 and 1.
        FileNotFoundError: the encoder can neither be found nor fetched.
    """
    if attn_mask is None and pad_id is None:
        raise ValueError("give attn_mask, or pad_id for the id that marks padding")
    mask = token_ids != pad_id if attn_mask is None else token_mask(attn_mask, "attn_mask")
    return _pretrained(name).encode_tokens(token_ids, mask.to(token_ids.device))


def t5_encode_text(
    texts: Sequence[str], name: str = DEFAULT_T5_NAME, return_attn_mask: bool = False
) -> Float[Tensor, "b n d"] | tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    """Return the states of captions, zero at padding, on request with their mask, on the GPU if there is one.

    Raises:
        TypeError: one string instead of a list.
        FileNotFoundError: the encoder can neither be found nor fetched.
    """
    embeds, mask = text_encoder(name).encode(texts, device=_device())
    return (embeds, mask) if return_attn_mask else embeds

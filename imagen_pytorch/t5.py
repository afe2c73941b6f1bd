"""The functions of text encoders under the module name that users know; `imagen_pytorch.text` has the classes."""

from __future__ import annotations

from .compat.t5 import (
    get_encoded_dim,
    get_model,
    get_model_and_tokenizer,
    get_tokenizer,
    t5_encode_text,
    t5_encode_tokenized_text,
    t5_tokenize,
)
from .text import DEFAULT_T5_NAME, MAX_LENGTH

__all__ = [
    "DEFAULT_T5_NAME",
    "MAX_LENGTH",
    "get_encoded_dim",
    "get_model",
    "get_model_and_tokenizer",
    "get_tokenizer",
    "t5_encode_text",
    "t5_encode_tokenized_text",
    "t5_tokenize",
]

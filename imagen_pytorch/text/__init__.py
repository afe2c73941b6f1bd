"""Captions as tensors: one file per kind of encoder."""

from .base import ENCODERS, TextCondition, TextEncoder, text_encoder
from .t5 import DEFAULT_T5_NAME, MAX_LENGTH, TransformersEncoder
from .words import HashedWords

__all__ = [
    "DEFAULT_T5_NAME",
    "ENCODERS",
    "HashedWords",
    "MAX_LENGTH",
    "TextCondition",
    "TextEncoder",
    "TransformersEncoder",
    "text_encoder",
]

"""Captions as tensors: one file per kind of encoder."""

from .base import ENCODERS, TextCondition, TextEncoder, check_name
from .by_name import known_dim, text_encoder
from .own import OwnEncoder, as_encoder
from .static import StaticPieces
from .t5 import DEFAULT_T5_NAME, MAX_LENGTH, TransformersEncoder
from .words import HashedWords

__all__ = [
    "DEFAULT_T5_NAME",
    "ENCODERS",
    "HashedWords",
    "MAX_LENGTH",
    "OwnEncoder",
    "StaticPieces",
    "TextCondition",
    "TextEncoder",
    "TransformersEncoder",
    "as_encoder",
    "check_name",
    "known_dim",
    "text_encoder",
]

"""Text encoders by name: embedded ones, transformers models, and folders of them."""

from __future__ import annotations

import functools
import os

from ..registry import import_members
from .base import EMBEDDED, ENCODERS, OWN, TextEncoder, check_name
from .t5 import DIMS, TransformersEncoder


def _family(name: str) -> str | None:
    """Return the entry of `ENCODERS` for this name, or None for an encoder of the transformers library.

    Raises:
        ValueError: an unknown name with the prefix of embedded encoders.
    """
    family = next((key for key in ENCODERS if name == key or name.startswith(f"{key}:")), None)
    if family is None and name.startswith(EMBEDDED):
        ENCODERS[name]
    return family


def known_dim(name: str) -> int | None:
    """Return the width of the states of an embedded or well-known encoder, or None for every other one.

    Nothing is read, imported or fetched, because models that are opened from files name their encoder too.

    Raises:
        TypeError, ValueError: a name that cannot be that of an encoder.
    """
    import_members(__package__)
    family = _family(check_name(name))
    return DIMS.get(name) if family is None else ENCODERS[family](name).dim


def text_encoder(name: str) -> TextEncoder:
    """Return the encoder with this name, always the same object. Its weights are loaded at the first caption.

    Args:
        name: an embedded encoder ("builtin:words"), a transformers encoder on the hub ("google/t5-v1_1-base"), a local
            folder of one, or ``pkg:package/path`` for a folder inside an installed package.

    Raises:
        TypeError: the name is not a string.
        ValueError: an unknown embedded encoder (the message lists the known ones), or the name of an encoder that was
            an object of the user's program.
    """
    if check_name(name).startswith(OWN):
        raise ValueError(
            f'this model was made with a text encoder of its own program, "{name.removeprefix(OWN)}", which no file '
            "holds: pass it as text_encoder= where the model is opened in Python, or give text_embeds= instead of texts"
        )
    folder = os.path.expanduser(name)
    return _encoder(os.path.abspath(folder) if os.path.isdir(folder) else name)


@functools.cache
def _encoder(name: str) -> TextEncoder:
    import_members(__package__)
    family = _family(name)
    if family is not None:
        return ENCODERS[family](name)
    return TransformersEncoder(name)

"""The common part of all text encoders: a name, a width, captions in, padded states and a mask out."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import Registry

#: Encoders with a name of their own. All other names belong to transformers encoders.
ENCODERS: Registry[type[TextEncoder]] = Registry("text encoder")

#: Prefix of the names in `ENCODERS`, so that a misspelt one is not searched on the hub.
EMBEDDED = "builtin:"

#: Prefix of the recorded name of an encoder that was an object of the user's program and has no name of its own.
OWN = "own:"

#: Largest number of characters of a name: a path on any file system fits.
_MAX_NAME_LENGTH = 4096


class TextCondition(NamedTuple):
    """Encoded captions.

    Attributes:
        embeds: one state per token ``(b, n, d)``, zero at padding.
        mask: true at tokens ``(b, n)``.
    """

    embeds: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]


class CaptionMemory:
    """A cache of the states of captions. The least recently used are dropped first. Threads may share it.

    Args:
        limit: largest number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def __reduce__(self) -> tuple[type[CaptionMemory], tuple[int]]:
        """Copy without contents."""
        return CaptionMemory, (self.limit,)

    def get(self, caption: str) -> Tensor | None:
        """Return the states ``(n, d)`` of a caption, or None if they are not cached."""
        with self._lock:
            states = self._states.get(caption)
            if states is not None:
                self._states.move_to_end(caption)
        return states

    def put(self, caption: str, states: Tensor) -> None:
        """Cache the states of a caption."""
        with self._lock:
            before = self._states.pop(caption, None)
            self._states[caption] = states
            self.used += states.nbytes - (0 if before is None else before.nbytes)
            while self.used > self.limit:
                self.used -= self._states.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Remove all captions."""
        with self._lock:
            self._states.clear()
            self.used = 0


def encodable(caption: str) -> str:
    """Replace lone surrogates by "?". No file in UTF-8 has them and no tokenizer accepts them."""
    return caption.encode("utf-8", "replace").decode()


def check_captions(texts: Any) -> None:
    """Check that this is a list of captions.

    Raises:
        TypeError: a single string, or captions that are not strings.
        ValueError: no caption.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a list of captions, got one string; write [text]")
    wrong = [item for item in texts if not isinstance(item, str)]
    if wrong:
        raise TypeError(f"captions must be strings, got {type(wrong[0]).__name__}: {wrong[0]!r}")
    if not texts:
        raise ValueError("texts must hold at least one caption, got none")


class TextEncoder(ABC):
    """A frozen function from captions to states.

    A subclass computes the states of captions. This class caches them, so that captions that recur in training cost
    nothing, and pads them.

    Args:
        name: by which `text_encoder` finds it again.
        memory: bytes of CPU memory for the states of captions; 0 caches nothing.
    """

    #: Captions per pass.
    batch_size = 128

    def __init__(self, name: str, memory: int = 2**28) -> None:
        self.name = name
        self.memory = CaptionMemory(memory)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out cached captions when an encoder is sent to another process."""
        return {**self.__dict__, "memory": CaptionMemory(self.memory.limit)}

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the states, known without loading weights."""

    @abstractmethod
    def states(self, captions: Sequence[str], device: torch.device) -> list[Float[Tensor, "_ d"]]:
        """Return the states of a few captions of similar length, without padding, at least one for each."""

    def encode(self, texts: Sequence[str], device: torch.device | str | None = None) -> TextCondition:
        """Encode captions to padded states and their mask.

        Args:
            texts: one or more captions; an empty one is allowed.
            device: of the result, and of the encoding of new captions; default: the CPU.

        Returns:
            float32 states ``(b, n, d)``, zero at padding, and a mask ``(b, n)``; n is the longest caption's length.

        Raises:
            TypeError: a single string, or captions that are not strings.
            ValueError: no caption, or an encoder whose states are not finite.
            FileNotFoundError: the encoder's files can neither be found nor fetched.
        """
        check_captions(texts)
        device = torch.device(device or "cpu")
        found = {caption: self.memory.get(caption) for caption in texts}
        found.update(self._encode_new([caption for caption, states in found.items() if states is None], device))
        return _padded([found[caption] for caption in texts], device)

    @torch.no_grad()
    def _encode_new(self, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        # batches of similar lengths need the least padding
        captions = sorted(captions, key=len)
        found = {}
        for first in range(0, len(captions), self.batch_size):
            part = captions[first : first + self.batch_size]
            for caption, states in zip(part, self.states([encodable(text) for text in part], device), strict=True):
                found[caption] = states.float().cpu().clone()
                if not bool(found[caption].isfinite().all()):
                    raise ValueError(
                        f'the text encoder "{self.name}" gives NaN or infinities for {caption[:100]!r}: its weights '
                        "are damaged, or too imprecise (T5 overflows in float16)"
                    )
                self.memory.put(caption, found[caption])
        return found


def _padded(states: Sequence[Tensor], device: torch.device) -> TextCondition:
    lengths = torch.tensor([len(item) for item in states])
    embeds = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    mask = torch.arange(embeds.shape[1]) < lengths[:, None]
    return TextCondition(embeds.to(device), mask.to(device))


@functools.cache
def _discover() -> None:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def check_name(name: Any) -> str:
    """Check that a name can be that of a text encoder, and return it.

    Raises:
        TypeError: not a string.
        ValueError: an empty or very long name, or one with control characters.
    """
    if not isinstance(name, str):
        raise TypeError(f"text_encoder_name must be a string, got {type(name).__name__}")
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME_LENGTH:
        shown = ascii(name if len(name) <= 40 else f"{name[:40]}...")
        raise ValueError(f"text_encoder_name must be 1 to {_MAX_NAME_LENGTH} printable characters, got {shown}")
    return name


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
    _discover()
    from .t5 import DIMS

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
    _discover()
    family = _family(name)
    if family is not None:
        return ENCODERS[family](name)
    from .t5 import TransformersEncoder

    return TransformersEncoder(name)

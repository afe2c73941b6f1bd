"""The common part of all text encoders: a name, a width, captions in, padded states and a mask out."""

from __future__ import annotations

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
    """A cache of the states of captions, in the precision of the encoder and in the memory of the CPU.

    The least recently used are dropped first. Threads may share it.

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
        known = {caption: self.memory.get(caption) for caption in texts}
        new = self._encode_new([caption for caption, states in known.items() if states is None], device)
        return _padded([(known | new)[caption] for caption in texts], device)

    @torch.no_grad()
    def _encode_new(self, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        # batches of similar lengths need the least padding
        captions = sorted(captions, key=len)
        found = {}
        for first in range(0, len(captions), self.batch_size):
            part = captions[first : first + self.batch_size]
            states = self.states([encodable(text) for text in part], device)
            states = [each if each.element_size() == 2 else each.float() for each in states]
            if not bool(torch.cat(states).isfinite().all()):
                damaged = next(text for text, each in zip(part, states, strict=True) if not bool(each.isfinite().all()))
                raise ValueError(
                    f'the text encoder "{self.name}" gives NaN or infinities for {damaged[:100]!r}: its weights are '
                    "damaged, or too imprecise (T5 overflows in float16)"
                )
            for caption, each in zip(part, states, strict=True):
                found[caption] = each
                self.memory.put(caption, each.to("cpu", copy=True))
        return found


def _padded(states: Sequence[Tensor], device: torch.device) -> TextCondition:
    """Pad states in the precision of the encoder, and convert them on the device."""
    lengths = torch.tensor([len(item) for item in states])
    if len({item.device for item in states}) > 1:
        states = [item.to(device) for item in states]
    embeds = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    mask = torch.arange(embeds.shape[1]) < lengths[:, None]
    return TextCondition(embeds.to(device).float(), mask.to(device))


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

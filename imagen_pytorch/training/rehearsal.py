"""Networks made without memory, so that those that are too large are known before it is taken."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

Made = TypeVar("Made")


class TooLarge(ValueError):
    """Networks of more numbers or parts than may be."""


class _Tally:
    """Counts what is put into modules.

    Args:
        numbers: of all parameters and buffers together, at most.
        parts: of parameters, buffers and modules, at most.
    """

    def __init__(self, numbers: int, parts: int) -> None:
        self.numbers, self.parts = numbers, parts
        self.thread = threading.get_ident()
        self.seen_numbers = self.seen_parts = 0

    def __call__(self, owner: nn.Module, name: str, item: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        self.seen_parts += 1
        if isinstance(item, Tensor):
            self.seen_numbers += item.numel()
        if self.seen_numbers > self.numbers:
            raise TooLarge(f"its networks have more than {self.numbers:,} weights")
        if self.seen_parts > self.parts:
            raise TooLarge(f"its networks have more than {self.parts:,} parts")


@contextmanager
def limited(numbers: int, parts: int) -> Iterator[None]:
    """Limit the weights and parts that modules made by this thread inside the block have together.

    Raises:
        TooLarge: they have more.
    """
    tally = _Tally(numbers, parts)
    with ExitStack() as stack:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
            hooks.register_module_module_registration_hook,
        ):
            stack.callback(register(tally).remove)
        yield


def main_memory() -> int:
    """Bytes of this machine's memory; very many where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 50


def rehearse(make: Callable[[], Made], numbers: int, parts: int) -> Made | None:
    """Make modules that have shapes and no memory.

    Returns:
        what was made; None if a network looks at its weights while it is made.

    Raises:
        TooLarge: they have more weights or parts than may be.
        Exception: whatever keeps them from being made at all.
    """
    with limited(numbers, parts), suppress(NotImplementedError), torch.device("meta"):
        return make()
    return None

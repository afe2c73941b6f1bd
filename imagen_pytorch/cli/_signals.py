"""Ctrl-C and SIGTERM end a training after its present step, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """While this context is open, the first signal is only remembered; the second one acts as it always does."""

    _CAUGHT = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self._CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def __bool__(self) -> bool:
        return self.number is not None

    def exit_code(self) -> int:
        """128 plus the signal's number, as shells have it: 130 or 143; 0 without a signal."""
        return 0 if self.number is None else 128 + self.number


def is_main_process() -> bool:
    """Whether a launcher of several processes, if there is one, made this the one that writes and talks."""
    return os.environ.get("RANK", "0") == "0"

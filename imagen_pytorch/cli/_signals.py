"""Signals that end a training after its present step, with a checkpoint: Ctrl-C, SIGTERM, a closed terminal or pipe.

A second signal ends it at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

#: numbers of signals that some systems lack
_HANGUP, _PIPE = getattr(signal, "SIGHUP", 1), getattr(signal, "SIGPIPE", 13)


class LastingStream:
    """A stream that never fails: text that can no longer be written is dropped.

    Args:
        stream: where the text goes, such as ``sys.stderr``.
        lost: called with `SIGPIPE` or `SIGHUP` when the reader of the pipe or the terminal has gone.
    """

    def __init__(self, stream: Any, lost: Callable[[int], None]) -> None:
        self._stream, self._lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> LastingStream:
        """The stream of bytes below, if there is one; it does not fail either."""
        return LastingStream(self._stream.buffer, self._lost)

    def write(self, text: str | bytes) -> int:
        """Write a text, or bytes where the stream takes them, if that is possible; returns the length."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if that is possible."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            number = getattr(error, "errno", None)
            if number in (errno.EPIPE, errno.EIO):
                self._silence()
                self._lost(_PIPE if number == errno.EPIPE else _HANGUP)

    def _silence(self) -> None:
        """Discard all further text, also what the interpreter flushes at its end."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class Interruption:
    """Record the first signal while this context is open; the second one has its normal effect.

    Standard output and standard error do not fail in the meantime: a closed pipe counts as SIGPIPE, a closed terminal
    as SIGHUP. A process that ignores SIGHUP, as under ``nohup``, goes on ignoring it.
    """

    _CAUGHT = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._streams: dict[str, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            caught = [number for number in self._CAUGHT if not (number == _HANGUP and self._ignored(number))]
            self._before = {number: signal.signal(number, self._remember) for number in caught}
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None:  # closed before the start
                self._streams[name] = stream
                setattr(sys, name, LastingStream(stream, self._lost))
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        for name, stream in self._streams.items():
            setattr(sys, name, stream)
        self._streams = {}

    @staticmethod
    def _ignored(number: int) -> bool:
        return signal.getsignal(number) is signal.SIG_IGN

    def _restore(self, heard: bool = False) -> None:
        for number, handler in self._before.items():
            # a background job of a script ignores Ctrl-C; the first one was heard, so the second one is as well
            again = signal.default_int_handler if (number, handler) == (signal.SIGINT, signal.SIG_IGN) else handler
            signal.signal(number, again if heard else handler)
        self._before = {}

    def _lost(self, number: int) -> None:
        if self.number is None:
            self.number = number

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore(heard=True)

    def __bool__(self) -> bool:
        return self.number is not None

    def exit_code(self) -> int:
        """128 plus the signal's number, as shells have it, such as 130 or 143; 0 without a signal."""
        return 0 if self.number is None else 128 + self.number


def is_main_process() -> bool:
    """Return whether a launcher of several processes, if there is one, made this the one that writes and talks."""
    return os.environ.get("RANK", "0") == "0"

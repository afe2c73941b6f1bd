"""Writing while training goes on: one file at a time per writer, in a thread that the interpreter waits for."""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

logger = logging.getLogger(__name__)

#: after this many seconds of work a writer pauses `REST` times as long: training needs the cores and Python's lock
WORK, REST = 0.005, 5.0

#: every writer of this process, and the one whose thread this is
_WRITERS: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()
_THREAD = threading.local()


class BackgroundWriter:
    """Runs one function at a time in a thread; its error is raised by the next `wait` or `submit`.

    Each trainer has its own writer, so the error of one is never raised by another. A copy is a new writer.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._last: Future[Any] | None = None
        self._awaited = threading.Event()
        self._since = 0.0
        _WRITERS.add(self)

    def __deepcopy__(self, _: dict[int, Any]) -> BackgroundWriter:
        return BackgroundWriter()

    def submit(self, function: Callable[[], object]) -> None:
        """Start a function in the background, after the one before it has ended; if that failed, its error is raised
        and nothing is started. Whatever it needs must not be changed meanwhile: see `snapshot`."""
        self.wait()
        _wait_at_exit()
        self._awaited.clear()
        self._since = time.perf_counter()
        self._last = self._pool.submit(self._run, function)

    def _run(self, function: Callable[[], object]) -> None:
        _THREAD.writer = self
        try:
            function()
        except BaseException as error:
            logger.error("a write in the background failed: %s", error)
            raise

    def settle(self) -> None:
        """Wait until nothing is being written; errors stay for `wait`. Inside any write this does nothing."""
        if self._last is not None and not hasattr(_THREAD, "writer"):
            self._awaited.set()
            wait([self._last])

    def wait(self) -> None:
        """Wait until nothing is being written, and raise the error of the write, once."""
        self.settle()
        if self._last is not None and self._last.done():
            last, self._last = self._last, None
            last.result()

    def failed(self) -> bool:
        """Return whether a write has failed and its error was not raised yet. Does not wait."""
        return self._last is not None and self._last.done() and self._last.exception() is not None


def settle() -> None:
    """Wait until no writer of this process is writing; errors stay for their owners."""
    for writer in list(_WRITERS):
        writer.settle()


def pause() -> None:
    """Pause between the pieces of a write in a writer's thread, unless it is waited for; elsewhere do nothing."""
    writer = getattr(_THREAD, "writer", None)
    if writer is not None and (worked := time.perf_counter() - writer._since) >= WORK:
        writer._awaited.wait(REST * worked)
        writer._since = time.perf_counter()


@functools.cache
def _wait_at_exit() -> None:
    """Wait before thread pools are closed, which uploads and name look-ups need."""
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(settle)  # after the hook of `concurrent.futures`, so it runs before that

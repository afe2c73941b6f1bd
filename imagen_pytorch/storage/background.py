"""Writing while training goes on: each writer writes one file at a time, in a thread that the interpreter waits for."""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

#: after so many seconds of work a writer rests `REST` times as long: the training needs the cores and Python's lock
WORK, REST = 0.005, 5.0

#: every writer of this process, and the one whose thread this is
_WRITERS: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()
_THREAD = threading.local()


class BackgroundWriter:
    """Runs one function at a time in a thread of its own; an error waits until the owner asks.

    Each trainer has its own writer, so the error of one is never raised by another. A copy is a new writer.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._awaited = threading.Event()
        self._since = 0.0
        _WRITERS.add(self)

    def __deepcopy__(self, _: dict[int, Any]) -> BackgroundWriter:
        return BackgroundWriter()

    def submit(self, function: Callable[[], object]) -> None:
        """Start a function in the background, after the one before it has ended.

        Whatever it needs must not be changed meanwhile: see `snapshot`.

        Raises:
            whatever the function before raised, if nobody has been told yet; nothing is started then.
        """
        self.wait()
        _wait_at_exit()
        self._awaited.clear()
        self._since = time.perf_counter()
        # no daemon: a process that ends waits for its threads
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint-writer")
        self._thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        _THREAD.writer = self
        try:
            function()
        except BaseException as error:
            self._error = error
            logger.error("a write in the background failed: %s", error)

    def settle(self) -> None:
        """Wait until nothing is being written; an error stays for `wait`. Inside any write this does nothing."""
        thread = self._thread
        if thread is not None and not hasattr(_THREAD, "writer"):
            self._awaited.set()
            thread.join()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            whatever the write raised, once.
        """
        self.settle()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def failed(self) -> bool:
        """Whether a write has failed and nobody has been told yet. Does not wait."""
        return self._error is not None

    def rest(self) -> None:
        """Called between pieces of a write: in the background it takes a part of the time, unless somebody waits."""
        if threading.current_thread() is not self._thread:
            return
        worked = time.perf_counter() - self._since
        if worked >= WORK:
            self._awaited.wait(REST * worked)
            self._since = time.perf_counter()


def settle() -> None:
    """Wait until no writer of this process is writing; errors stay for their owners. Inside a write it does nothing."""
    for writer in list(_WRITERS):
        writer.settle()


def rest() -> None:
    """`BackgroundWriter.rest` of the writer whose thread this is; elsewhere nothing."""
    writer = getattr(_THREAD, "writer", None)
    if writer is not None:
        writer.rest()


@functools.cache
def _wait_at_exit() -> None:
    """Wait before thread pools are closed, which uploads and name look-ups need; threads end after that."""
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        import concurrent.futures.thread  # noqa: F401 - its own hook must be older, so that ours runs before it

        register(settle)

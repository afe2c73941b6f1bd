"""Detect lost processes of a run: each sends a sign of life every few seconds, whatever else it does.

A process that is killed closes its connections, and the others notice at once. One that is frozen, or cut off from the
network, keeps them open, and the timeout of collective operations is hours long, because one process may have work of
its own for long, such as a sample or a checkpoint.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

#: Seconds between two signs of life, and seconds of silence after which a process counts as lost.
BEAT, SILENCE = 3.0, 40.0

#: Seconds that a thread stands still in one operation before it counts as waiting for a lost process.
STILL = 8.0

#: Exit code of a process that ends because another one is lost.
EXIT_CODE = 1

SENTENCE = (
    "another process of this run has ended or does not answer, so this one ends too: look for its own message above; "
    "the same command goes on from the last checkpoint"
)


class Heartbeat:
    """Tells the other processes of a run that this one lives, and notices which of them do not.

    When one of them has been silent for too long and this process waits for it, this process ends with a sentence on
    standard error: nothing else ends a collective operation of every back end. While it does work of its own it goes
    on; `check` then tells it before it talks to the others the next time.

    Args:
        store: the key-value store of the launcher, with a connection of its own.
        rank, count: number of this process, and how many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._store, self._rank = store, rank
        self._keys = [f"imagen_pytorch/alive/{number}" for number in range(count)]
        self._ended = threading.Event()
        self._values = [b""] * count
        self._heard = [time.monotonic()] * count
        self._main = threading.main_thread().ident
        store.add(self._keys[rank], 1)  # before anything else: a process that freezes at once is missed too
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Say no more and listen no more; called when the interpreter ends."""
        self._ended.set()
        for thread in self._threads:
            thread.join(2)

    @property
    def lost(self) -> list[int]:
        """The processes that have been silent for too long; all others if the store itself does not answer."""
        limit = time.monotonic() - SILENCE
        return [rank for rank, heard in enumerate(self._heard) if heard < limit and rank != self._rank]

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._store.add(self._keys[self._rank], 1)
                self._note(self._read())
            except RuntimeError:  # the store has gone for good: from now on there is silence
                return

    def _read(self) -> list[bytes]:
        """Return the counter of every process, empty for one that has not begun to count."""
        if self._store.check(self._keys):
            return self._store.multi_get(self._keys)
        return [self._store.get(key) if self._store.check([key]) else b"" for key in self._keys]

    def _note(self, values: list[bytes]) -> None:
        now = time.monotonic()
        for rank, value in enumerate(values):
            if value != self._values[rank]:
                self._heard[rank] = now
        self._values = values

    def _watch(self) -> None:
        place, since, before = None, time.monotonic(), time.monotonic()
        while not self._ended.wait(BEAT / 3):
            now = time.monotonic()
            if now - before > SILENCE / 2:  # this process itself was frozen, and has received no signs of life
                self._heard = [now] * len(self._keys)
            before = now
            frame = sys._current_frames().get(self._main or 0)
            here = None if frame is None else (id(frame), frame.f_lasti)
            del frame
            if here is None or here != place:
                place, since = here, now
            if self.lost and now - since > STILL:
                self._end()

    def _end(self) -> None:
        silent = ", ".join(map(str, self.lost))
        sys.stdout.flush()
        sys.stderr.write(f"imagen_pytorch: {SENTENCE} (no sign of life from process {silent} for {SILENCE:g} s)\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)


_running: dict[int, Heartbeat] = {}


def heartbeat(rank: int, count: int) -> Heartbeat | None:
    """Return the heartbeat of this process, begun at the first call; None if the launcher's store cannot carry it."""
    from torch.distributed import distributed_c10d

    if os.getpid() not in _running:
        store = distributed_c10d._get_default_store()
        if not (hasattr(store, "clone") and store.has_extended_api()):
            return None
        _running.clear()  # of the process that this one was forked from
        _running[os.getpid()] = Heartbeat(store.clone(), rank, count)
    return _running[os.getpid()]


def lost_processes() -> list[int]:
    """Return the processes of the run that have been silent for too long."""
    found = _running.get(os.getpid())
    return [] if found is None else found.lost

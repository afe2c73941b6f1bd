"""Processes that read items for the training: whether they help, and what becomes of a run that loses one."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import statistics
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..data.cache import kept_of

#: Worker processes that are started by default, at most.
MAX_WORKERS = 4

#: Items after whose reading it is decided whether workers are worth while.
MEASURED = 8

#: Seconds of an epoch's reading, and seconds per item, from which on workers are worth being started.
WORTH_STARTING, SLOW_ITEM = 2.0, 0.002

#: Times that a stream starts new workers in the place of lost ones.
RESTARTS = 3

#: Steps over which waiting for data is compared with working.
STEPS = 50

#: How torch says that a worker process has gone, or that it finds no shared memory for a batch.
LOST = ("dataloader worker (pid", "unable to allocate shared memory", "unable to open shared memory", "ancdata")

#: What a loader was made with, beside its data and their order.
OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


class WorkersLost(RuntimeError):
    """Worker processes of a data loader end again and again; the training's state is whole."""


def is_lost_worker(error: BaseException) -> bool:
    """Return whether an error of a loader says that a worker process has ended or has no shared memory."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in LOST)


def like(loader: DataLoader, **changes: Any) -> DataLoader:
    """Return a new loader of the same items in the same order.

    Args:
        loader: to be followed.
        changes: of the options of torch's constructor, ``batch_sampler`` included.
    """
    options = {name: getattr(loader, name) for name in OPTIONS} | changes
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        order = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        if not isinstance(loader.dataset, IterableDataset):
            order["sampler"] = loader.sampler
        return DataLoader(loader.dataset, **order, **options)
    return DataLoader(loader.dataset, **{"batch_sampler": loader.batch_sampler, **options})


def usual_workers() -> int:
    """Worker processes that are started by default: one per core that this process may use, at most four.

    Processes of one run on one machine share its cores. 0 where processes cannot be forked: a new interpreter would
    import the user's script once more.
    """
    if not sys.platform.startswith("linux") or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    together = max(int(os.environ.get("LOCAL_WORLD_SIZE") or 1), 1)
    return max(1, min(len(os.sched_getaffinity(0)) // together, MAX_WORKERS))


@contextmanager
def without_child_signals() -> Iterator[None]:
    """Remove torch's handler of SIGCHLD after the block, regardless of who set it; any other one is as before.

    It raises an error wherever the training happens to be, in the middle of an update if need be. Without it a lost
    worker is noticed where the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if _is_torchs(signal.getsignal(signal.SIGCHLD)):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None or _is_torchs(before) else before)


def _is_torchs(handler: Any) -> bool:
    return (getattr(handler, "__module__", None) or "").startswith("torch.utils.data.")


def _known(thing: Any) -> bool:
    """Return whether code is torch's or this package's own: other code may hold a connection, or use a GPU."""
    return getattr(thing, "__module__", "").partition(".")[0] in ("torch", __package__.partition(".")[0])


def _any_process(dataset: Any) -> bool:
    """Return whether a forked process can read the items of a data set as well."""
    if not _known(type(dataset)) and not getattr(dataset, "any_process", False):
        return False
    parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return bool(getattr(dataset, "any_process", False)) or all(
        part is not None and _any_process(part) for part in parts
    )


def unread(loader: Any) -> bool:
    """Return whether a loader has items that have still to be read from their source, and any process could do that."""
    if not isinstance(loader, DataLoader) or loader.num_workers or loader.worker_init_fn is not None:
        return False
    if not (inspect.isfunction(loader.collate_fn) and _known(loader.collate_fn) and _any_process(loader.dataset)):
        return False
    kept = kept_of(loader.dataset)
    return kept is not None and not bool(kept.all())


class Staff:
    """Chooses, epoch by epoch, how many processes read for a stream.

    Args:
        chooses: whether the trainer chooses the number, because the caller stated none. It stays 0 where data set or
            ``collate_fn`` are not of this package: a forked process may not be able to use them.
    """

    def __init__(self, chooses: bool) -> None:
        self.chooses, self.losses = chooses and usual_workers() > 0, 0
        self.slow = self.hired = False
        self._seconds: deque[float] = deque(maxlen=4 * MEASURED)

    def opened(self, loader: Any) -> Iterator[Any]:
        """Begin a pass over a loader, read by as many processes as seems best."""
        self.hired = self.chooses and self.slow and unread(loader)
        with without_child_signals():
            if self.hired:
                try:
                    return iter(like(loader, num_workers=usual_workers(), multiprocessing_context="fork"))
                except OSError:  # no more processes, no memory for them
                    self.chooses = self.hired = False
            return iter(loader)

    def noted(self, loader: Any, seconds: float, items: int, left: int) -> bool:
        """Note how long reading took; returns whether the pass is to be opened anew, with workers.

        Args:
            loader: of the pass.
            seconds: for the last batch.
            items: in it.
            left: items of this epoch that this process has still to read.
        """
        if not self.chooses or self.hired or self.slow or not items:
            return False
        self._seconds += [seconds / items] * min(items, self._seconds.maxlen or items)
        if len(self._seconds) < MEASURED:
            return False
        each = statistics.fmean(self._seconds)
        self.slow = each > SLOW_ITEM and each * left > WORTH_STARTING and unread(loader)
        return self.slow

    def replace(self, error: Exception) -> str:
        """Take notice of a lost worker; returns what to warn of. The stream then opens its pass anew.

        Raises:
            WorkersLost: it is not the first, and new ones end as well.
        """
        reason = str(error).strip().splitlines()[-1][:200]
        cause = f"a process that reads data was lost ({reason}), most likely for want of memory or of shared memory"
        if self.hired:
            self.chooses = self.hired = False
            return f"{cause}; the training process reads the data itself from now on"
        self.losses += 1
        if self.losses > RESTARTS:
            raise WorkersLost(
                f"{cause}, {self.losses} times in all: set a smaller num_workers (0 reads in the training process), a "
                "smaller batch_size, or give the machine or container more (shared) memory"
            ) from error
        return f"{cause}; new ones are started at the same place ({self.losses} of {RESTARTS} times)"


class Waiting:
    """The fraction of the time of the last steps that went into waiting for data."""

    def __init__(self) -> None:
        self._waited: deque[float] = deque(maxlen=STEPS)
        self._worked: deque[float] = deque(maxlen=STEPS)

    def note(self, waited: float, worked: float) -> None:
        """Seconds of one step: until its data were there, and before that since the data of the step before."""
        self._waited.append(waited)
        self._worked.append(worked)

    @property
    def share(self) -> float | None:
        """From 0 to 1; None before anything can be said.

        A step's work is the usual one, so that samples and checkpoints in between do not count.
        """
        if len(self._waited) < 3:
            return None
        waited, worked = statistics.fmean(self._waited), statistics.median(self._worked)
        return waited / (waited + worked) if waited + worked > 0 else 0.0

"""Calls of a model in a thread of their own, one at a time, watched from outside and stopped between two steps."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Result, Shown = TypeVar("Result"), TypeVar("Shown")

#: Seconds between two steps that are shown, and between two looks for one.
INTERVAL, _LOOK = 0.3, 0.05


class Stopped(Exception):
    """A call whose result is no longer wanted."""


class Step(NamedTuple):
    """A step of a call.

    Attributes:
        unet: number of the U-Net, from 1 on.
        step: number of the step, from 1 on.
        total: number of steps of this U-Net.
        images: the estimates of the results; of a video the frame in its middle.
    """

    unet: int
    step: int
    total: int
    images: list[Image.Image]


class Watch:
    """The callback of `Cascade.sample` that passes steps to another thread, or ends the call."""

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self.stop = threading.Event()
        self._shown = 0.0

    def __call__(self, unet: int, step: int, total: int, estimate: Tensor) -> None:
        """Take the estimate after a step.

        Raises:
            Stopped: the call is to end.
        """
        from ..images import to_pil

        if self.stop.is_set():
            raise Stopped
        if time.monotonic() - self._shown < INTERVAL and step + 1 < total:
            return
        self._shown = time.monotonic()
        images = estimate if estimate.ndim == 4 else estimate[:, :, estimate.shape[2] // 2]
        self.steps.put(Step(unet, step + 1, total, to_pil(images)))


class Worker:
    """One thread that makes calls in their order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "sampling")

    def watched(self, call: Callable[[Watch], Result], show: Callable[[Step], Shown]) -> Generator[Shown, Any, Result]:
        """Make a call and yield its latest step whenever there is a new one; return its result.

        Closing the generator ends the call at its next step.

        Args:
            call: takes the callback of `Cascade.sample`.
            show: converts a step to what is yielded.

        Raises:
            Exception: the error of the call.
        """
        watch = Watch()
        future = self._thread.submit(call, watch)
        try:
            while True:
                done, latest = future.done(), None
                while not watch.steps.empty():
                    latest = watch.steps.get()
                if latest is not None:
                    yield show(latest)
                elif done:
                    return future.result()
                else:
                    time.sleep(_LOOK)
        finally:
            watch.stop.set()
            future.cancel()

    def close(self) -> None:
        """Take no more calls."""
        self._thread.shutdown(wait=False, cancel_futures=True)

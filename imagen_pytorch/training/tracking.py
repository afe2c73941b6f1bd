"""Values for Accelerate's trackers: the loss and the rate of every update."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .distributed import Distributed


class Tracking:
    """Hands loss and rate to the trackers, names or objects, that were asked for with ``accelerate_log_with``; the main
    process logs. A ValueError if the package of a tracker is not installed."""

    def __init__(self, processes: Distributed, asked: Any) -> None:
        self.processes, self._losses = processes, []
        wanted = [] if asked is None else list(asked) if isinstance(asked, list | tuple) else [asked]
        found = [str(item) for item in processes.accelerator.log_with]
        for item in wanted:
            if str(item) not in (*found, "all"):
                raise ValueError(
                    f"accelerate_log_with={item!r}: the package of this tracker is not installed; install it, or take "
                    "another tracker"
                )
        if wanted:
            processes.accelerator.init_trackers("imagen")
        self.active = bool(wanted)

    def take(self, loss: float) -> None:
        """Take note of the loss of a batch."""
        if self.active:
            self._losses.append(loss)

    def log(self, unet_number: int, rate: float, steps: Tensor) -> None:
        """Tell the trackers ``unet<number>/loss``, the mean since the last update, and ``unet<number>/lr``, with which
        the U-Net was updated; the step is the sum of all updates. All processes call this."""
        if not self.active or not self._losses:
            return
        loss = self.processes.mean(sum(self._losses) / len(self._losses))
        self._losses.clear()
        values = {f"unet{unet_number}/loss": loss, f"unet{unet_number}/lr": rate}
        self.processes.accelerator.log(values, step=int(steps.sum()))

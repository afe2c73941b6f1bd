"""Values for Accelerate's trackers: the loss and the rate of every update."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .distributed import Distributed


class Tracking:
    """Hands loss and rate to the trackers that were asked for with ``accelerate_log_with``.

    Args:
        processes: of the run; the main one logs.
        asked: names of trackers, or trackers, one or several; None for none.

    Raises:
        ValueError: the package of a tracker is not installed.
    """

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
        """Tell the trackers ``unet<number>/loss``, the mean since the last update, and ``unet<number>/lr``.

        All processes call this.

        Args:
            unet_number: the U-Net that was updated.
            rate: with which it was updated.
            steps: updates of each U-Net so far; logged as the step is their sum.
        """
        if not self.active or not self._losses:
            return
        loss = self.processes.mean(sum(self._losses) / len(self._losses))
        self._losses.clear()
        values = {f"unet{unet_number}/loss": loss, f"unet{unet_number}/lr": rate}
        self.processes.accelerator.log(values, step=int(steps.sum()))

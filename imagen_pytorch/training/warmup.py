"""The warm-up of a learning rate, to be looked at: it is a part of the schedule."""

from __future__ import annotations

from torch.optim.lr_scheduler import LambdaLR

from .optim import rate_factor


class Warmup:
    """The progress of the warm-up of one U-Net.

    Args:
        scheduler: the schedule that it is a part of.
        warmup_period: the rate is full from this update on.
    """

    def __init__(self, scheduler: LambdaLR, warmup_period: int) -> None:
        self._scheduler, self._warmup_period = scheduler, warmup_period

    @property
    def warmup_period(self) -> int:
        """The rate is full from this update on."""
        return self._warmup_period

    @property
    def last_step(self) -> int:
        """The number of updates so far."""
        return int(self._scheduler.last_epoch)

    def warmup_factor(self, step: int | None = None) -> float:
        """The factor of the warm-up after this number of updates, by default now: from 1 / period up to 1."""
        return rate_factor(self.last_step if step is None else step, self.warmup_period)

    def state_dict(self) -> dict[str, int]:
        """``last_step`` by its name; a checkpoint has it in the schedule."""
        return {"last_step": self.last_step}

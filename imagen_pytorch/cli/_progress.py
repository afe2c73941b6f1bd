"""Progress of a training run: a bar on a terminal, plain lines elsewhere, and a file of numbers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..wording import excerpt
from ._errors import say
from ._metrics import MetricsLog

#: fraction of the time from which on reading is what a training waits for
MOSTLY = 0.5


class Span(NamedTuple):
    """The range of steps that a training still has to do."""

    unet_number: int
    first: int
    last: int


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _mean(losses: list[float]) -> float:
    """The mean of those that are finite: the trainer skips the steps of the others."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan


class Progress:
    """Shows the training of one U-Net, and writes its losses to the log.

    Args:
        span: which U-Net, from and to which step.
        images_per_step: the batch size.
        log: where the losses go.
        every: steps between two lines of the log, and between two lines of output without a terminal.
        quiet: show nothing.
        unit: what the batches consist of.
        mean: of a number over all processes of the run; all of them call it when a line is due.
        reading_share: fraction of the time of the last steps spent waiting for data; None where it is unknown.
        epoch: number of steps that are one pass over the data.
    """

    def __init__(
        self,
        span: Span,
        images_per_step: int,
        log: MetricsLog,
        every: int,
        quiet: bool,
        unit: str = "img",
        mean: Callable[[float], float] = float,
        reading_share: Callable[[], float | None] = lambda: None,
        epoch: int | None = None,
    ) -> None:
        self.span, self.images_per_step, self.log, self.every, self.quiet = span, images_per_step, log, every, quiet
        self.unit, self.mean, self.reading_share, self.epoch = unit, mean, reading_share, epoch
        self.step, self._rate = span.first, 0.0
        self.shown = math.nan  # mean loss of the last interval; of the first one while it lasts
        self._losses: list[float] = []
        self._finite, self._flushed, self._told = 0, False, False
        self._began = self._logged = time.monotonic()
        self._paused = 0.0
        self._bar = self._make_bar() if not quiet and sys.stderr is not None and sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._losses and kind is None:  # after an error the other processes may not be there
            self._flush()
        if self._bar is not None:
            self._bar.close()

    def _make_bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=f"U-Net {self.span.unet_number}",
            initial=self.span.first,
            total=self.span.last,
            unit="step",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]",
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def say(self, text: str) -> None:
        """Print one line of output above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(excerpt(text), file=sys.stderr)
        else:
            say(text)

    def pause(self, seconds: float) -> None:
        """Exclude time that was spent on something else than training."""
        self._paused += seconds
        self._logged += seconds

    def speed(self) -> float:
        """Images per second."""
        busy = time.monotonic() - self._began - self._paused
        return (self.step - self.span.first) * self.images_per_step / max(busy, 1e-9)

    def advance(self, step: int, loss: float, rate: float) -> None:
        """Count a training step.

        Args:
            step: number of steps so far, those of earlier runs included.
            loss: of this step.
            rate: the learning rate of this step.
        """
        self._losses.append(loss)
        self._rate = rate
        if not self._flushed and math.isfinite(loss):
            self._finite += 1
            self.shown = loss if self._finite == 1 else self.shown + (loss - self.shown) / self._finite
        moved, self.step = step - self.step, step
        if self._bar is not None:
            figures = f"loss {self.shown:.4f}, lr {rate:.2g}, {self.speed():.0f} {self.unit}/s"
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(moved)
        if step % self.every == 0 or step >= self.span.last:
            self._flush()

    def _flush(self) -> None:
        now = time.monotonic()
        speed = len(self._losses) * self.images_per_step / max(now - self._logged, 1e-9)
        # every process takes part, also one that has nothing to say
        self.shown = self.mean(_mean(self._losses))
        self._losses, self._logged, self._flushed = [], now, True
        loss = self.shown if math.isfinite(self.shown) else None
        reading = self.reading_share()
        waits = {} if reading is None else {"reading": round(reading, 3)}
        self._write(loss=loss, images_per_second=round(speed, 2), **waits)
        if self._bar is None:
            left = (self.span.last - self.step) * self.images_per_step / max(self.speed(), 1e-9)
            whole = now - self._began + left
            self.say(
                f"U-Net {self.span.unet_number}  step {self.step}/{self.span.last}  loss {self.shown:.4f}  "
                f"lr {self._rate:.2g}  {speed:.0f} {self.unit}/s  {clock(whole)} in all, {clock(left)} left"
            )
        if reading is not None and reading > MOSTLY and not self._told:
            self._told = True
            self.say(f"reading the data takes {reading:.0%} of the time (dataset.num_workers: processes that read)")

    def _write(self, **values: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        passes = {} if self.epoch is None else {"epoch": round(self.step / self.epoch, 3)}
        place = {"unet": self.span.unet_number, "step": self.step, "from_step": self.span.first}
        self.log.write(**place, **passes, time=now, lr=self._rate, **values)

    def validated(self, loss: float, by_level: Mapping[str, float] | None = None) -> None:
        """Record a validation.

        Args:
            loss: its mean loss.
            by_level: further losses for the log, such as those of parts of the noise levels.
        """
        self._write(valid_loss=loss, **(by_level or {}))
        self.say(f"U-Net {self.span.unet_number}  step {self.step}  validation loss {loss:.4f}")

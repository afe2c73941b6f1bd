"""How a training run tells what it does: a bar on a terminal, plain lines elsewhere, and a file of numbers."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..wording import excerpt
from ._errors import say
from ._files import append_line

#: weight of the newest loss in the one that is shown
_SMOOTHING = 0.05


class MetricsLog:
    """``metrics.jsonl``: one JSON object per line, only ever appended to.

    Args:
        path: where the file is; it is made with the first line.
        writes: false makes it a log that only reads, as the processes beside the main one have it.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def write(self, **values: Any) -> None:
        """Append one object."""
        if not self.writes:
            return
        append_line(json.dumps(values), self.path)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """The losses in the file as curves of (step, loss), by U-Net; a line cut off by a crash is passed over."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            for key, name in (("loss", ""), ("valid_loss", " validation")):
                if entry.get(key) is not None:
                    curves.setdefault(f"U-Net {entry['unet']}{name}", []).append((entry["step"], entry[key]))
        return curves


class Span(NamedTuple):
    """The part of a training that lies ahead: from one number of steps to another."""

    unet_number: int
    first: int
    last: int


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows the training of one U-Net, and writes its losses to the log.

    Args:
        span: which U-Net, from and to which step.
        images_per_step: the batch size.
        log: where the losses go.
        every: number of steps between two lines of the log, and between two lines of talk where there is no terminal.
        quiet: show nothing.
        unit: what the batches consist of.
        mean: of a number over all processes of the run; all of them call it when a line is due.
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
    ) -> None:
        self.span, self.images_per_step, self.log, self.every, self.quiet = span, images_per_step, log, every, quiet
        self.unit, self.mean = unit, mean
        self.step, self.shown, self._rate = span.first, 0.0, 0.0
        self._losses: list[float] = []
        self._weight = 0.0
        self._began = self._logged = time.monotonic()
        self._paused = 0.0
        self._bar = self._make_bar() if not quiet and sys.stderr.isatty() else None

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
        """One line of talk; it does not tear the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(excerpt(text), file=sys.stderr)
        else:
            say(text)

    def pause(self, seconds: float) -> None:
        """Time that was spent on something else than training."""
        self._paused += seconds
        self._logged += seconds

    def speed(self) -> float:
        """Pictures per second."""
        busy = time.monotonic() - self._began - self._paused
        return (self.step - self.span.first) * self.images_per_step / max(busy, 1e-9)

    def advance(self, step: int, loss: float, rate: float) -> None:
        """A training step is done.

        Args:
            step: number of steps so far, those of earlier runs included.
            loss: of this step.
            rate: the learning rate.
        """
        self._losses.append(loss)
        self._rate = rate
        if math.isfinite(loss):  # any other was skipped by the trainer, and must not stick to the mean
            self._weight = (1 - _SMOOTHING) * self._weight + _SMOOTHING
            self.shown += (loss - self.shown) * _SMOOTHING / self._weight
        moved, self.step = step - self.step, step
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {self.shown:.4f}, {self.speed():.0f} {self.unit}/s", refresh=False)
            self._bar.update(moved)
        if step % self.every == 0 or step >= self.span.last:
            self._flush()

    def _flush(self) -> None:
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        now = time.monotonic()
        speed = len(self._losses) * self.images_per_step / max(now - self._logged, 1e-9)
        self._losses, self._logged = [], now
        # every process takes part, also one that has nothing to say
        mean = self.mean(sum(finite) / len(finite) if finite else math.nan)
        loss = mean if math.isfinite(mean) else None
        self.log.write(
            unet=self.span.unet_number, step=self.step, loss=loss, lr=self._rate, images_per_second=round(speed, 2)
        )
        if self._bar is None:
            left = (self.span.last - self.step) * self.images_per_step / max(self.speed(), 1e-9)
            self.say(
                f"U-Net {self.span.unet_number}  step {self.step}/{self.span.last}  loss {self.shown:.4f}  "
                f"{speed:.0f} {self.unit}/s  {clock(left)} left"
            )

    def validated(self, loss: float) -> None:
        """A validation is done."""
        self.log.write(unet=self.span.unet_number, step=self.step, valid_loss=loss)
        self.say(f"U-Net {self.span.unet_number}  step {self.step}  validation loss {loss:.4f}")

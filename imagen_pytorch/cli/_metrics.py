"""``metrics.jsonl``: the numbers of a training, one JSON object per line, only ever appended to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..lines import append_lines, lines_of
from ._errors import described

#: entries of a row that hold a loss, and what their curves are called beside the U-Net
_LOSSES = {"loss": "", "valid_loss": " validation"}

Curve = list[tuple[int, float]]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**63) < value < 2.0**63


def _drop(curve: Curve, step: float) -> None:
    """Remove the points from a step on."""
    while curve and curve[-1][0] >= step:
        curve.pop()


class MetricsLog:
    """The file, and the curves in it.

    Args:
        path: where the file is; it is made with the first line.
        writes: false makes it a log that only reads, as the processes beside the main one have it.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._warned = False

    def write(self, **values: Any) -> None:
        """Append one object. Where that fails there is one warning, and the training goes on."""
        if not self.writes:
            return
        try:
            append_lines([json.dumps(values)], self.path)
        except OSError as error:
            if not self._warned:
                warnings.warn(f"cannot write {self.path}: {described(error)}; the training goes on", stacklevel=2)
            self._warned = True

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """The rows that belong to curves; damaged lines are passed over."""
        for line in lines_of(self.path):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and _number(row.get("step")) and _number(row.get("unet")):
                yield row

    def history(self) -> dict[str, Curve]:
        """The losses in the file as curves of (step, loss), by U-Net.

        What a run learned and lost, because it was killed before it was saved, is left out: rows of an earlier run that
        are beyond the step at which a later run went on.
        """
        curves: dict[str, Curve] = {}
        began: dict[str, int] = {}
        for row in self._rows():
            for key, kind in _LOSSES.items():
                if key not in row:
                    continue
                name = f"U-Net {row['unet']}{kind}"
                curve = curves.setdefault(name, [])
                first = row.get("from_step")
                if _number(first) and first != began.get(name):  # another run
                    began[name] = first
                    _drop(curve, first + 1)
                _drop(curve, row["step"])
                if _number(row[key]):
                    curve.append((row["step"], row[key]))
        return {name: curve for name, curve in curves.items() if curve}

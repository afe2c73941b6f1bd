"""``metrics.jsonl``: the numbers of a training, one JSON object per line, only ever appended to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lines import append_lines, lines_of
from ..training.diagnosis import Curve, curves
from ._errors import format_error

#: entries of a row that hold a loss, and what their curves are called beside the U-Net
_LOSSES = {"loss": "", "valid_loss": " validation"}


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
                warnings.warn(f"cannot write {self.path}: {format_error(error)}; the training goes on", stacklevel=2)
            self._warned = True

    def rows(self) -> list[Mapping[str, Any]]:
        """Return the objects in the file; damaged lines are passed over."""
        found = []
        for line in lines_of(self.path):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                found.append(row)
        return found

    def history(self) -> dict[str, Curve]:
        """The losses in the file as curves of (step, loss), by U-Net; see `curves`."""
        found = curves(self.rows(), _LOSSES)
        return {f"U-Net {unet}{_LOSSES[key]}": curve for (unet, key), curve in found.items()}

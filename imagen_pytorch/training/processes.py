"""The one place that touches Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Processes:
    """Where this process runs and what it is among others.

    Args:
        options: keywords of ``accelerate.Accelerator``.

    Raises:
        RuntimeError: the run was launched on several processes.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(**options)
        if self.accelerator.num_processes > 1:
            raise RuntimeError(
                f"this version trains on one process, but {self.accelerator.num_processes} were launched; "
                "start it with --num_processes 1"
            )

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def precision(self) -> str:
        """The mixed precision that the launcher or its configuration asks for: "no", "fp16" or "bf16"."""
        return self.accelerator.mixed_precision

    @property
    def rank(self) -> int:
        """Number of this process, 0 for the main one."""
        return self.accelerator.process_index

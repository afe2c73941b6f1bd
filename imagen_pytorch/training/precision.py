"""Mixed precision: where the network computes in half precision, and how its gradients are kept from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from ..cascade.module_state import PRECISIONS, autocasting, check_precision, warn_if_emulated


def chosen_precision(fp16: bool, precision: str | None, otherwise: str, forwarded: str | None = None) -> str:
    """Return the name of the precision that was asked for.

    ``fp16`` is short for ``precision="fp16"``; ``forwarded`` is the same choice by the name
    ``accelerate_mixed_precision``; ``otherwise`` holds if nothing was asked for, such as the choice of ``accelerate
    launch``. A ValueError for choices that contradict each other, or an unknown name.
    """
    if fp16 and precision is not None:
        raise ValueError(f"give either fp16=True or precision={precision!r}, not both")
    if forwarded is not None and (fp16 or precision not in (None, forwarded)):
        raise ValueError(
            f"precision={'fp16' if fp16 else precision!r} and accelerate_mixed_precision={forwarded!r} contradict each "
            "other: give one of them"
        )
    precision = precision or forwarded
    name = "fp16" if fp16 else otherwise if precision is None else precision
    return check_precision(name)


class Precision:
    """Half precision inside the network, single precision around it (Micikevicius et al. 2017, arXiv 1710.03740): "no",
    "fp16" or "bf16" on the device of the network."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device, self.dtype = name, device, PRECISIONS[name]
        warn_if_emulated(name, device)

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which matrix products and convolutions run in half precision."""
        return autocasting(self.device, self.name)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, active for fp16 only: bf16 has the exponents of float32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

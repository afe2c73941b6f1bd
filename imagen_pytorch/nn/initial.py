"""Initial values of parameters that are no layer of torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normal(*shape: int, std: float = 1.0) -> Tensor:
    """Return normal numbers with this standard deviation, as ``torch.randn(shape) * std``.

    On the device "meta", where models are built to see their shapes, nothing is drawn: torch would import its compiler
    for that, which takes seconds.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_() * std


def normal_parameter(*shape: int, std: float = 1.0) -> nn.Parameter:
    """Return a parameter of normal numbers, see `normal`."""
    return nn.Parameter(normal(*shape, std=std))

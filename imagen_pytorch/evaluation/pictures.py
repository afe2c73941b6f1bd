"""The earlier name of `plots`, until version 4.0."""

from __future__ import annotations

from .plots import captioned_grid, loss_curve

__all__ = ["captioned_grid", "loss_curve"]

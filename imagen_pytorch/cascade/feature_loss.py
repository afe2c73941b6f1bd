"""The perceptual loss of a batch: estimates of a stage as images, compared with the real ones in feature maps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..nn.efficientnet import FEATURE_MAPS
from .batch import TrainingBatch
from .lowres import target_space
from .stage import Stage


def perceptual_loss(batch: TrainingBatch, stage: Stage) -> Callable[[Tensor], Tensor] | None:
    """Return a function from estimates of ``x0`` to the perceptual loss of each item, or None without such a loss.

    Estimates of a residual stage are added to the enlarged low-resolution image first.

    Raises:
        ImportError: the network of the features is not installed.
    """
    loss, chosen = stage.perceptual, batch.perceptual
    if loss is None or chosen is None:
        return None
    rows = chosen.nonzero().flatten()

    def of_estimate(estimate: Tensor) -> Tensor:
        values = estimate.new_zeros(len(estimate))
        if not len(rows):
            return values
        space = target_space(None if batch.base is None else batch.base[rows], stage.residual)
        found, real = space.decode(estimate[rows]), space.decode(batch.x0[rows])
        return values.index_copy(0, rows, loss(FEATURE_MAPS[loss.features], found, real).to(values))

    return of_estimate

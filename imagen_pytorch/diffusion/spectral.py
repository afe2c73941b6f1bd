"""A loss that weights the error of each spatial frequency: the discrete cosine transform of 8 x 8 blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranges import check_number
from ..registry import Registry

#: from the quantisation steps of JPEG ``(2, 8, 8)``, luma then chroma, to positive weights of the same shape
SPECTRA: Registry[Callable[[Tensor], Tensor]] = Registry("table of frequency weights")

_BLOCK = 8
#: quantisation steps of luma and chroma at quality 50 (ITU-T T.81, annex K, tables K.1 and K.2)
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
#: from RGB to Y, Cb, Cr without offsets (ITU-T T.871)
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@SPECTRA.register("jpeg85")
def jpeg85(steps: Float[Tensor, "2 8 8"]) -> Float[Tensor, "2 8 8"]:
    """Return the reciprocals of the quantisation steps: low frequencies count most."""
    return 1 / steps


@SPECTRA.register("sharp")
def sharp(steps: Float[Tensor, "2 8 8"]) -> Float[Tensor, "2 8 8"]:
    """Return the quantisation steps themselves: high frequencies count most."""
    return steps


@SPECTRA.register("flat")
def flat(steps: Float[Tensor, "2 8 8"]) -> Float[Tensor, "2 8 8"]:
    """Return ones: all frequencies of all channels count the same, which repeats the mean squared error."""
    return torch.ones_like(steps)


@dataclass(frozen=True)
class SpectralLoss:
    """The mean squared error of 8 x 8 cosine coefficients, each frequency with its own weight, added to the plain loss.

    Ma et al. 2025 (DeCo), arXiv 2511.19365: the residual goes to YCbCr, luma is weighted by the reciprocals of JPEG's
    luma table at quality 85 and chroma by those of its chroma table. The weights of a table have mean 1. Images of
    another number of channels than 3, and the table "flat", are transformed channel by channel, with the luma table.

    The loss is a positive definite quadratic form of the residual. With ``loss_type="l2"`` its minimiser is therefore
    the one of the plain loss, for every objective, noise level and weight.

    Args:
        table: "jpeg85", "sharp" (the inverse tilt) or "flat" (a control).
        weight: factor of this loss, at least 0.

    Raises:
        ValueError: an unknown table or a weight out of range.
        TypeError: a weight that is not a number, or a table that is not a name.
    """

    table: str = "jpeg85"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.table, str):
            raise TypeError(f"table must be a name, got {self.table!r}")
        SPECTRA[self.table]
        check_number(self.weight, "weight", 0, 1e6)

    def __call__(self, residual: Float[Tensor, "b c *space"]) -> Float[Tensor, " b"]:
        """Return the weighted loss of each item, in single precision.

        Args:
            residual: prediction minus target; images ``(b, c, h, w)`` or clips ``(b, c, f, h, w)`` of any size. Sides
                that 8 does not divide are continued by reflection.
        """
        with torch.autocast(residual.device.type, enabled=False):  # a product of matrices would be rounded
            planes = residual.float().movedim(1, -3)  # frames belong to the batch
            colour = planes.shape[-3] == len(_YCBCR) and SPECTRA[self.table] is not flat
            if colour:
                planes = torch.einsum("kc,...chw->...khw", torch.tensor(_YCBCR).to(planes), planes)
            power = _block_dct(planes).square()
            error = (self.weights(colour).to(power) * power).flatten(1).mean(1)
        return self.weight * error

    def weights(self, colour: bool = True) -> Float[Tensor, "k 1 1 8 8"]:
        """Return the weights of the frequencies, with mean 1 in each table.

        Args:
            colour: tables for Y, Cb and Cr instead of one for all channels.
        """
        table = SPECTRA[self.table](_steps(85))
        table = table / table.mean((1, 2), keepdim=True)
        return table[[0, 1, 1] if colour else [0]][:, None, None]


def _steps(quality: int) -> Float[Tensor, "2 8 8"]:
    """Return JPEG's quantisation steps at a quality of 50 to 100, scaled as the reference implementation does."""
    scale = 200 - 2 * quality
    return torch.tensor((_LUMA, _CHROMA)).mul(scale).add(50).div(100, rounding_mode="floor").clamp(1, 255).float()


def _cosines() -> Float[Tensor, "8 8"]:
    """Return the orthonormal matrix of the discrete cosine transform (type II), one frequency a row."""
    place = torch.arange(_BLOCK, dtype=torch.float64)
    rows = torch.cos(math.pi / _BLOCK * (place + 0.5) * place[:, None]) * math.sqrt(2 / _BLOCK)
    rows[0] *= math.sqrt(0.5)
    return rows.float()


def _reflected(side: int) -> Tensor:
    """Return indices that continue a side by reflection to the next multiple of the block."""
    place = torch.arange(side + -side % _BLOCK)
    period = max(1, 2 * (side - 1))
    place = place % period
    return torch.minimum(place, period - place) if side > 1 else place


def _block_dct(planes: Float[Tensor, "*items c h w"]) -> Float[Tensor, "*items c rows columns 8 8"]:
    """Return the cosine coefficients of all blocks."""
    for axis in (-2, -1):
        if planes.shape[axis] % _BLOCK:
            planes = planes.index_select(axis, _reflected(planes.shape[axis]).to(planes.device))
    blocks = planes.unflatten(-2, (-1, _BLOCK)).unflatten(-1, (-1, _BLOCK)).transpose(-3, -2)
    cosines = _cosines().to(planes)
    return cosines @ blocks @ cosines.T

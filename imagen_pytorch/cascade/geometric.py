"""Random geometric changes of training images, described to the network by a label that is zero in sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..images import Size
from ..ranges import check_number
from ..tensors import Generators, rand, randn
from .limits import check_flag, check_fraction

#: Length of a label: flip, shift down and to the right, log2 of the scale, cosine minus 1 and sine of the rotation.
LABEL_DIM = 6


@dataclass(frozen=True)
class GeometricAugmentation:
    """Flip, shift, scale and rotate training images at random (Karras et al. 2022, arXiv 2206.00364, appendix F.2).

    Each of the four is applied to an image with the same probability, independently of the others. The label of an
    image that stays as it is consists of zeros.

    Args:
        probability: of each of the four, 0 to 1.
        flips: flip images from left to right.
        shifts: standard deviation of shifts by whole pixels of the stage, as a fraction of the side; 0 for none.
        scales: standard deviation of log2 of the scale, which is the same for both sides; 0 for none.
        rotations: largest angle in degrees, to either side; 0 for none.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number, or not a switch.
    """

    probability: float = 0.12
    flips: bool = True
    shifts: float = 0.125
    scales: float = 0.2
    rotations: float = 180.0

    def __post_init__(self) -> None:
        check_fraction(self.probability, "probability")
        check_flag(self.flips, "flips")
        check_number(self.shifts, "shifts", 0, 1)
        check_number(self.scales, "scales", 0, 2)
        check_number(self.rotations, "rotations", 0, 180)

    def draw(
        self, batch: int, size: Size, generator: Generators = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "b 6"]:
        """Return the label of each image: the parameters of `changed`.

        Args:
            batch: number of images.
            size: height and width of the stage, whose pixels are the unit of shifts.
            generator: source of the draws.
            device: of the labels.
        """
        flip, shift, scale, turn = (rand((batch, 4), generator, device) < self.probability).float().unbind(1)
        amounts = randn((batch, 3), generator, device)
        angle = (2 * rand((batch,), generator, device) - 1) * turn * math.radians(self.rotations)
        sides = torch.tensor(size, device=device)
        moved = (amounts[:, :2] * self.shifts * sides).round() / sides * shift[:, None]
        described = [flip * bool(self.flips), *moved.unbind(1), amounts[:, 2] * self.scales * scale]
        return torch.stack([*described, angle.cos() - 1, angle.sin()], dim=1)


def changed(images: Float[Tensor, "b c *space"], label: Float[Tensor, "b 6"]) -> Float[Tensor, "b c *space"]:
    """Return images, or all frames of clips, changed as their labels say: flipped, scaled, rotated, then shifted.

    Pixels outside of an image are its reflection. Values stay within those of each image, and an image whose label
    is zero stays as it is to the last bit.
    """
    rows = label.any(dim=1).nonzero().flatten()
    if not len(rows):
        return images
    found = images[rows].to(torch.promote_types(images.dtype, torch.float32))  # half precision has no such kernel
    named = label[rows].to(found.dtype)
    planes = found.transpose(1, 2).flatten(0, 1) if found.ndim == 5 else found
    theta = _to_source(named, planes.shape[-1] / planes.shape[-2]).repeat_interleave(len(planes) // len(found), dim=0)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    planes = F.grid_sample(planes, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    made = planes.unflatten(0, (len(found), -1)).transpose(1, 2) if found.ndim == 5 else planes
    axes = tuple(range(1, found.ndim))  # bicubic interpolation overshoots
    made = made.clamp(found.amin(axes, keepdim=True), found.amax(axes, keepdim=True))
    return images.index_copy(0, rows, made.to(images.dtype))


def _to_source(label: Float[Tensor, "b 6"], aspect: float) -> Float[Tensor, "b 2 3"]:
    """Return the matrices from places in changed images to places in the images, both from -1 to 1.

    Args:
        label: of each image.
        aspect: width over height.
    """
    flip, down, right, log_scale, cosine, sine = label.unbind(1)
    cosine, shrink = cosine + 1, torch.exp2(-log_scale)
    mirrored = 1 - 2 * flip
    x = torch.stack([cosine, sine / aspect], dim=1) * (shrink * mirrored)[:, None]
    y = torch.stack([-sine * aspect, cosine], dim=1) * shrink[:, None]
    matrix = torch.stack([x, y], dim=1)
    moved = matrix @ torch.stack([-2 * right, -2 * down], dim=1)[:, :, None]
    return torch.cat([matrix, moved], dim=2)

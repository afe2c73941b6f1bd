"""Small textures that move over an image and bounce off its borders, rendered at positions between pixels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..images import Size

FOLDER = Path(__file__).parent / "digits"

#: Side of a texture in cells.
CELLS = 8

#: One of this many samples of each class (the last ones, by other writers) is held out for testing.
TEST_SHARE = 5

#: Ink up to this value need not stay inside the image.
FAINT = 2 / 16


@functools.cache
def handwriting(split: str) -> tuple[np.ndarray, ...]:
    """Return samples of each digit from 0 to 9, (n, 8, 8) in [0, 1]. "train" and "test" share none."""
    with np.load(FOLDER / "digits8x8.npz") as file:
        samples, target = file["images"].astype(np.float32) / 16, file["target"]
    parts = []
    for digit in range(10):
        found = samples[target == digit]
        kept = len(found) - len(found) // TEST_SHARE
        parts.append(found[kept:] if split == "test" else found[:kept])
    return tuple(parts)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys's interpolation kernel with a = -1/2 (1981, eq. 15): 1 at 0, 0 at 1, below zero up to 2, and 0 beyond."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)


class Sprites(NamedTuple):
    """Moving textures. All positions are (y, x) in pixels, and those of the centre of a texture's brightness.

    Attributes:
        textures: (n, 8, 8), their opacity.
        tints: (n, c), their colours in [0, 1].
        middle: (n, 2), the centre of the brightness in cells of the texture.
        low, high: (n, 2), the first and the last position with all of its light inside the image.
        start: (n, 2), position at time 0.
        velocity: (n, 2), in pixels per second.
        cell: side of a cell in pixels.
    """

    textures: np.ndarray
    tints: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    start: np.ndarray
    velocity: np.ndarray
    cell: float

    @classmethod
    def at_rest(cls, textures: np.ndarray, tints: np.ndarray, cell: float, size: Size) -> Sprites:
        """Return sprites whose starting positions and velocities are still to be set."""
        reach = _reach(cell)
        cells = np.arange(CELLS, dtype=np.float32)
        middle, low, high = [], [], []
        for axis, side in ((2, size[0]), (1, size[1])):
            profile = textures.sum(axis)
            centre = profile @ cells / profile.sum(1)
            ink = textures.max(axis) > FAINT
            first, last = ink.argmax(1), CELLS - 1 - ink[:, ::-1].argmax(1)
            least = (centre - first + reach) * cell - 0.5
            most = side - 0.5 - (last + reach - centre) * cell
            fits = least <= most
            middle.append(centre)
            low.append(np.where(fits, least, (least + most) / 2))
            high.append(np.where(fits, most, (least + most) / 2))
        middle, low, high = (np.stack(pair, 1).astype(np.float32) for pair in (middle, low, high))
        return cls(textures, tints, middle, low, high, low.copy(), np.zeros_like(low), cell)

    def places(self, times: np.ndarray) -> np.ndarray:
        """Return positions (n, f, 2) of the sprites at the given seconds, reflected at the first and the last
        position."""
        room = np.maximum(self.high - self.low, 1e-6)[:, None]
        way = (self.start - self.low)[:, None] + self.velocity[:, None] * times[None, :, None]
        return self.low[:, None] + room - np.abs(np.mod(way, 2 * room) - room)


def _reach(cell: float) -> float:
    """Return the distance in cells up to which a cell is visible: one, or the number that a pixel covers."""
    return max(1.0, 1 / cell)


def render(sprites: Sprites, times: np.ndarray, size: Size) -> np.ndarray:
    """Render sprites over black as (c, f, h, w) in [0, 1], later ones in front; one channel if all of them are grey.

    The interpolation kernel is evaluated at the distances of pixels and cells, so that motion is as smooth as the
    positions are.
    """
    places, reach = sprites.places(times), _reach(sprites.cell)
    weights = []
    for axis, side in enumerate(size):
        pixels = np.arange(side, dtype=np.float32)
        where = (pixels - places[:, :, axis, None]) / sprites.cell + sprites.middle[:, axis, None, None]
        weights.append(_cubic((where[..., None] - np.arange(CELLS, dtype=np.float32)) / reach) / reach)
    rows, columns = weights
    opaque = rows @ sprites.textures[:, None] @ columns.swapaxes(-1, -2)
    np.clip(opaque, 0, 1, out=opaque)
    tints = sprites.tints
    if (tints == tints[:, :1]).all():
        tints = tints[:, :1]
    image = np.zeros((tints.shape[1], len(times), *size), np.float32)
    for cover, tint in zip(opaque, tints, strict=True):
        image += cover * (tint[:, None, None, None] - image)
    return image

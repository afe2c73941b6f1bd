"""Colours of emoji64: the named colours of an image and their positions, and images of another colour.

Colours are compared in OKLab (Ottosson 2020), in which equal distances look equally different. A colour's polar
coordinates there are lightness, chroma and hue.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

#: Names of colours: the eleven basic colour terms of English (Berlin and Kay 1969) and beige.
NAMES = (
    "black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige"
)  # fmt: skip

#: Names of colours without a hue.
ACHROMATIC = ("black", "gray", "white")

#: Colours that `recoloured` gives: lightness, chroma and hue in degrees.
TARGETS = {
    "red": (0.60, 0.22, 27.0),
    "orange": (0.74, 0.17, 58.0),
    "yellow": (0.88, 0.17, 96.0),
    "green": (0.68, 0.18, 144.0),
    "blue": (0.58, 0.19, 258.0),
    "purple": (0.54, 0.21, 302.0),
    "pink": (0.77, 0.15, 355.0),
}

_ANY = (0.0, 9.0)

#: Which colours have a name, chosen by eye: hue in degrees, lightness and chroma, each from and below. The last rule
#: that holds decides; without one the colour is red.
RULES = (
    ("orange", (43, 76), _ANY, _ANY),
    ("orange", (35, 43), (0.68, 9), _ANY),
    ("yellow", (76, 115), _ANY, _ANY),
    ("yellow", (70, 76), (0.82, 9), _ANY),
    ("green", (115, 195), _ANY, _ANY),
    ("blue", (195, 281), _ANY, _ANY),
    ("purple", (281, 338), _ANY, _ANY),
    ("pink", (338, 360), _ANY, _ANY),
    ("pink", (0, 35), (0.70, 9), _ANY),
    ("pink", (0, 13), (0.60, 9), _ANY),
    ("red", (352, 13), (0, 0.60), _ANY),
    ("pink", (310, 338), (0.70, 9), _ANY),
    ("purple", (338, 352), (0, 0.55), _ANY),
    ("brown", (40, 85), (0, 0.70), (0, 0.125)),
    ("brown", (25, 105), (0, 0.64), (0, 0.13)),
    ("brown", (33, 60), (0, 0.61), (0, 0.145)),
    ("brown", (15, 100), (0, 0.50), (0, 0.15)),
    ("brown", (338, 40), (0, 0.57), (0, 0.10)),
    ("beige", (40, 110), (0.70, 9), (0, 0.09)),
    ("gray", (0, 360), _ANY, (0, 0.035)),
    ("gray", (195, 300), (0, 0.75), (0, 0.06)),
    ("white", (0, 360), (0.84, 9), (0, 0.035)),
    ("white", (195, 340), (0.84, 9), (0, 0.055)),
    ("black", (0, 360), (0, 0.40), (0, 0.03)),
    ("black", (0, 360), (0, 0.36), (0, 0.045)),
    ("black", (0, 360), (0, 0.30), (0, 0.075)),
    ("black", (0, 360), (0, 0.20), _ANY),
)

#: Bits of each channel by which colours are looked up.
BITS = 5

#: Rows and columns of the grid on which colours are located.
GRID = 3

#: Alpha, 0 to 255, from which a pixel belongs to the figure.
OPAQUE = 128

_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def _times(matrix: tuple[tuple[float, ...], ...] | Tensor, colours: Tensor) -> Tensor:
    return torch.einsum("ij,...j->...i", torch.as_tensor(matrix, dtype=colours.dtype), colours)


def to_oklab(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Return the OKLab coordinates of sRGB colours in [0, 1]."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return _times(_TO_LAB, _times(_TO_LMS, linear) ** (1 / 3))


def from_oklab(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Return the sRGB colours in [0, 1] of OKLab coordinates, clipped."""
    lms = _times(torch.linalg.inv(torch.tensor(_TO_LAB, dtype=torch.float64)).to(colours.dtype), colours) ** 3
    linear = _times(torch.linalg.inv(torch.tensor(_TO_LMS, dtype=torch.float64)).to(colours.dtype), lms).clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_polar(lab: Float[Tensor, "*n 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return lightness, chroma, and hue in degrees from 0 to 360."""
    lightness, a, b = lab.unbind(-1)
    return lightness, (a * a + b * b).sqrt(), torch.rad2deg(torch.atan2(b, a)) % 360


def named(colours: Float[Tensor, "*n 3"]) -> Int[Tensor, "*n"]:
    """Return the index in `NAMES` of the name of each sRGB colour in [0, 1]."""
    lightness, chroma, hue = to_polar(to_oklab(colours))
    found = torch.full(hue.shape, NAMES.index("red"))
    for name, hues, lightnesses, chromas in RULES:
        first, last = hues
        inside = (hue >= first) & (hue < last) if first < last else (hue >= first) | (hue < last)
        for value, (low, high) in ((lightness, lightnesses), (chroma, chromas)):
            inside = inside & (value >= low) & (value < high)
        found[inside] = NAMES.index(name)
    return found


@functools.cache
def _table() -> Int[Tensor, " colours"]:
    """Return the name of each colour that is different in its first `BITS` bits."""
    axis = (torch.arange(2**BITS) + 0.5) / 2**BITS
    return named(torch.cartesian_prod(axis, axis, axis))


def names_of(tiles: UInt8[Tensor, "n 4 h w"]) -> Int[Tensor, "n h w"]:
    """Return the index in `NAMES` of the name of each pixel; alpha is ignored."""
    red, green, blue = (tiles[:, :3].int() >> (8 - BITS)).unbind(1)
    return _table()[(red << 2 * BITS) + (green << BITS) + blue]


class Colour(NamedTuple):
    """A colour of an image: its name, its fraction of the figure, and its position, "" if all over."""

    name: str
    fraction: float
    place: str


class Look(NamedTuple):
    """The colours of an image, the most frequent first, and the fraction of the tile that it covers."""

    colours: tuple[Colour, ...]
    covered: float


def _place(counts: Float[Tensor, "rows columns"]) -> str:
    """Return the words for the part of the grid that holds most of a colour, "" if there is none."""
    share = counts / counts.sum()
    rows, columns = share.sum(1).tolist(), share.sum(0).tolist()
    row = next((name for name, part in zip(("top", "middle", "bottom"), rows, strict=True) if part > 0.6), "")
    column = next((name for name, part in zip(("left", "middle", "right"), columns, strict=True) if part > 0.6), "")
    if column == "middle":
        return "in the middle" if row == "middle" else f"at the {row}" if row else ""
    if row == "middle" or not row:
        return f"on the {column}" if column else ""
    return f"at the {row} {column}".rstrip()


def looks(tiles: UInt8[Tensor, "n 4 h w"]) -> list[Look]:
    """Return the colours of images, their positions relative to the figure, and the fraction of the tile it covers."""
    figure = tiles[:, 3] >= OPAQUE
    count, height, width = figure.shape
    cells = []
    for axis, size in ((2, height), (1, width)):
        occupied = figure.any(axis).int()
        first = occupied.argmax(1, keepdim=True)
        extent = (size - occupied.flip(1).argmax(1, keepdim=True) - first).clamp(min=1)
        cells.append(((torch.arange(size) - first) * GRID).div(extent, rounding_mode="floor").clamp(0, GRID - 1))
    places = names_of(tiles) * GRID**2 + cells[0][:, :, None] * GRID + cells[1][:, None, :]
    bins = len(NAMES) * GRID**2
    places = places + torch.arange(count)[:, None, None] * bins
    counts = torch.bincount(places[figure], minlength=count * bins).view(count, len(NAMES), GRID, GRID).float()
    return [_look(each, covered) for each, covered in zip(counts, figure.float().mean((1, 2)).tolist(), strict=True)]


def _look(counts: Float[Tensor, "names rows columns"], covered: float) -> Look:
    fractions = counts.sum((1, 2)) / counts.sum().clamp(min=1)
    order = fractions.argsort(descending=True, stable=True).tolist()
    colours = [Colour(NAMES[each], fractions[each].item(), _place(counts[each])) for each in order if fractions[each]]
    return Look(tuple(colours), covered)


def recoloured(
    tile: UInt8[Tensor, "4 h w"], target: str, spread: float = 40.0, keep: float = 0.35
) -> UInt8[Tensor, "4 h w"]:
    """Change the dominant hue of an image to that of a colour. Other hues and grey pixels stay.

    Args:
        tile: RGBA.
        target: one of `TARGETS`.
        spread: pixels within this many degrees of the dominant hue change.
        keep: the fraction of differences in hue that stays.
    """
    visible = tile[3] > 0
    lightness, chroma, hue = to_polar(to_oklab(tile[:3, visible].T.float() / 255))
    weight = chroma * (tile[3, visible] >= OPAQUE)
    away = (hue - _main_hue(hue, weight) + 180) % 360 - 180
    inside = ((spread + 12 - away.abs()) / 12).clamp(0, 1) * ((chroma - 0.02) / 0.03).clamp(0, 1)
    weight = weight * inside
    total = weight.sum().clamp(min=1e-6)
    mean_lightness, mean_chroma = ((part * weight).sum() / total for part in (lightness, chroma))
    changed = inside > 0
    lightness, chroma, away, inside = (part[changed] for part in (lightness, chroma, away, inside))
    new_lightness, new_chroma, new_hue = TARGETS[target]
    factor = (new_chroma / mean_chroma.clamp(min=1e-3)).clamp(0.5, 2.5)
    lightness = lightness + inside * (new_lightness - mean_lightness)
    chroma = chroma * (1 + inside * (factor - 1))
    angle = torch.deg2rad(new_hue + keep * away)
    colours = from_oklab(torch.stack([lightness, chroma * angle.cos(), chroma * angle.sin()], -1))
    result = tile.clone()
    visible = visible.nonzero()[changed]
    result[:3, visible[:, 0], visible[:, 1]] = (colours.T * 255).round().to(torch.uint8)
    return result


def _main_hue(hue: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Tensor:
    """Return the centre of the 60 degrees that hold most of the chroma."""
    counts = torch.bincount((hue / 10).long().clamp(0, 35), weight, minlength=36)
    six = torch.stack([counts.roll(-shift) for shift in range(6)]).sum(0)
    first = six.argmax() * 10.0
    offset = (hue - first) % 360
    inside = weight * (offset < 60)
    return (first + (offset * inside).sum() / inside.sum().clamp(min=1e-6)) % 360


def paintable(look: Look) -> bool:
    """Return true if one hue is dominant in an image, so that another one can replace it."""
    hues = [colour.fraction for colour in look.colours if colour.name not in ACHROMATIC]
    return bool(hues) and sum(hues) >= 0.4


def is_painted(look: Look, target: str) -> bool:
    """Return true if a colour is clearly the dominant one of an image."""
    fractions = {colour.name: colour.fraction for colour in look.colours if colour.name not in ACHROMATIC}
    return fractions.pop(target, 0.0) >= max(0.4, 2 * max(fractions.values(), default=0.0))

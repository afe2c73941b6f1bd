"""emoji64: the embedded data set, 1907 concepts drawn in up to eight styles, 11261 images with captions.

The artwork is from Noto Emoji, Twemoji, Fluent Emoji, Emoji One and Firefox OS Emoji, the names from emojibase and the
Unicode CLDR; their licences are in ``emoji64/LICENSE-emoji64.txt``. ``scripts/build_emoji64.py`` made the files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..images import MODES, Size, resize
from .base import SOURCES, DataError, check_known, item_size, split_names
from .cache import from_levels, levels
from .emoji_captions import (
    BACKGROUNDS,
    COLOURFUL,
    STYLES,
    UNCOLOURED,
    WORDINGS,
    Entry,
    Scene,
    backgrounds,
    painted,
)  # fmt: skip
from .emoji_colours import TARGETS, Look, is_painted, looks, paintable, recoloured

FOLDER = Path(__file__).parent / "emoji64"

#: Parts of the data: 92 % to train on; known concepts in held-out styles; held-out concepts.
SPLITS = ("train", "pair", "concept", "all")

#: Held-out fractions of the concepts, and of the other (concept, style) pairs: split, hashed name, fraction.
HELD_OUT = (("concept", "concept/{code}", 0.03), ("pair", "pair/{code}/{style}", 0.05))

#: Backgrounds that vary, and the fraction of the images that is white for certain.
VARYING = {"random": 0.0, "half-white": 0.5}

#: Number of images that are rendered at once.
CHUNK = 256

#: Largest number of versions of each image, because all of them are held in memory.
MAX_COPIES = 100

#: Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow.
LUMA = (0.299, 0.587, 0.114)


class Key(NamedTuple):
    """Identifies an image: code points of the concept, style, and its index in the style's atlas."""

    code: str
    style: str
    place: int


class Variant(NamedTuple):
    """The version of an image: its number among the copies, and its changed colour, "" for its own."""

    copy: int = 0
    colour: str = ""


class Index(NamedTuple):
    """The table of contents: side of a tile, tiles per row of an atlas, concepts by style, entries by concept."""

    tile: int
    columns: int
    styles: dict[str, list[str]]
    entries: dict[str, Entry]


@functools.cache
def index() -> Index:
    """Return the table of contents."""
    raw = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    entries = {code: Entry(**{**entry, "tags": tuple(entry["tags"])}) for code, entry in raw["entries"].items()}
    return Index(raw["tile"], raw["columns"], raw["styles"], entries)


@functools.cache
def atlas(style: str) -> UInt8[Tensor, "n 4 h w"]:
    """Return all images of a style as RGBA, decoded once per process."""
    import numpy as np
    from PIL import Image

    side, columns, styles, _ = index()
    with Image.open(FOLDER / f"{style}.webp") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGBA")))
    tiles = pixels.reshape(-1, side, columns, side, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, side, side)
    return tiles[: len(styles[style])].contiguous()


@functools.cache
def atlas_looks(style: str) -> list[Look]:
    """Return the colours of each image of a style, computed once per process."""
    return [look for part in atlas(style).split(CHUNK) for look in looks(part)]


def tile_of(key: Key, colour: str = "") -> UInt8[Tensor, "4 h w"]:
    """Return an image, on request with its dominant colour changed to another one."""
    tile = atlas(key.style)[key.place]
    return recoloured(tile, colour) if colour else tile


@functools.cache
def repainted(key: Key, colour: str) -> Look | None:
    """Return the colours of an image after a change of its dominant colour, or None if the change does not work.

    The figure must be named by that colour then, and no concept may have the resulting name already.
    """
    entry = index().entries[key.code]
    if entry.group in UNCOLOURED or key.style == "mono" or painted(entry.text, colour) in _texts():
        return None
    before = atlas_looks(key.style)[key.place]
    if not paintable(before) or is_painted(before, colour):
        return None
    look = looks(tile_of(key, colour)[None])[0]
    return look if is_painted(look, colour) else None


@functools.cache
def _texts() -> frozenset[str]:
    return frozenset(entry.text for entry in index().entries.values())


@functools.cache
def split_of(code: str, style: str) -> str:
    """Return "train", "pair" or "concept", from a hash of the image's name, so that new images never move old ones."""
    for split, name, share in HELD_OUT:
        digest = hashlib.sha256(name.format(code=code, style=style).encode()).hexdigest()
        if int(digest[:8], 16) / 2**32 < share:
            return split
    return "train"


def render(
    tiles: UInt8[Tensor, "n 4 a b"], colours: Float[Tensor, "n 3"], size: Size, channels: int
) -> Float[Tensor, "n c h w"]:
    """Render RGBA tiles over backgrounds in [0, 1], resized to fit and centred; transparent with 2 or 4 channels."""
    pixels = tiles.float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)  # hidden colours must not bleed
    side = min(size)
    pixels = resize(pixels, side)
    above, left = (size[0] - side) // 2, (size[1] - side) // 2
    around = (left, size[1] - side - left, above, size[0] - side - above)
    pixels = torch.nn.functional.pad(pixels, around)
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    if channels in (1, 3):
        colour = colour + colours[..., None, None] * (1 - alpha)
    else:
        colour = colour / alpha.clamp(min=1e-4)
    if channels < 3:
        colour = (colour * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return (colour if channels in (1, 3) else torch.cat([colour, alpha], 1)).clamp(0, 1)


@SOURCES.register("emoji64")
class Emoji64(TorchDataset):
    """Emoji with captions. An item is a float tensor ``(c, h, w)`` in [0, 1] and its caption, always the same.

    Args:
        split: "train", "pair" (held-out drawings of concepts that "train" has in another style), "concept" (held-out
            concepts) or "all".
        styles: any of noto, twemoji, flat, 3d, mono, blob, emojione, fxemoji; default: all.
        groups: any of smileys-emotion, people-body, animals-nature, food-drink, travel-places, activities, objects,
            symbols, flags; default: all.
        image_size: side in pixels, or (height, width); the drawings have 64 x 64.
        background: a colour's name, "random" for one per image, or "half-white" for white in half of the images and
            a random one in the others. Captions name it. Black silhouettes on black are left out.
        limit: largest number of images, spread evenly over the selection.
        wording: "plain" captions name style, concept and background, "bare" ones the concept alone, "varied" ones are
            worded in several ways. "short" ones are like requests of users, with everyday words and sometimes the
            dominant colour; "dense" ones name colours, their positions, and keywords; "mixed" ones are short, plain or
            dense, a third each.
        seed: of random backgrounds, wording and colours.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. With alpha the background is transparent, and captions name
            none. Grey images have no colours, and captions name none.
        recolour: fraction of the images with one dominant colour, 0 to 1, that get another one, which every caption
            names: "a 3d render of a purple automobile". Flags, people, silhouettes and grey images keep theirs.
        copies: versions of each image, 1 to 100, each with a background, wording and colour of its own. Those of
            the first are the same with any number. Each image takes 12 kB of memory at 64 x 64.

    Attributes:
        captions: one per image.
        names: of the concepts, without article.
        keys: code points and style of each image.
        backgrounds: name of the background colour of each image.
        variants: number of the copy and changed colour of each image.

    Raises:
        ValueError: an unknown split, style, group, background, wording or number of channels; a fraction outside 0 to
            1, or one of grey images; a number of copies outside 1 to 100.
        DataError: the selection is empty.
    """

    def __init__(
        self,
        split: str = "train",
        styles: str | Sequence[str] | None = None,
        groups: str | Sequence[str] | None = None,
        image_size: int | Size = 64,
        background: str = "white",
        limit: int | None = None,
        *,
        wording: str = "plain",
        seed: int = 0,
        channels: int = 3,
        recolour: float = 0.0,
        copies: int = 1,
    ) -> None:
        check_known("split", split, SPLITS)
        check_known("wording", wording, WORDINGS)
        check_known("background", background, (*BACKGROUNDS, *VARYING))
        check_known("number of channels", channels, MODES)
        if not 0 <= recolour <= 1:
            raise ValueError(f"recolour must be a fraction from 0 to 1, got {recolour}")
        if recolour and channels < 3:
            raise ValueError(f"images of {channels} channels have no colours: recolour=0 or channels=3")
        if not 1 <= copies <= MAX_COPIES:
            raise ValueError(f"copies must be a whole number from 1 to {MAX_COPIES}, got {copies}")
        self.size, self.channels, self.seed, self.wording = item_size(image_size), channels, seed, wording
        self.keys = _select(split, split_names(styles), split_names(groups), background)
        if limit is not None and limit < len(self.keys):
            self.keys = [self.keys[place * len(self.keys) // limit] for place in range(max(limit, 0))]
        if not self.keys:
            raise DataError(f"no image of emoji64 is left with {split=}, {styles=}, {groups=}, {background=}, {limit=}")
        self.variants = [Variant(copy) for copy in range(copies) for _ in self.keys]
        self.keys = self.keys * copies
        self.backgrounds = [background] * len(self)
        if background in VARYING:
            self.backgrounds = [self._ground(place, VARYING[background]) for place in range(len(self))]
        if recolour:
            self.variants = [self._painted(place, recolour) for place in range(len(self))]
        self._pixels: Tensor | None = None

    def identity(self) -> list[object]:
        """Return values that identify the images of this selection."""
        varied = [variant for variant in self.variants if variant != Variant()]
        return [*self.keys, *self.backgrounds, *varied]

    @property
    def names(self) -> list[str]:
        """Concept of each image, without article."""
        return [index().entries[key.code].text for key in self.keys]

    @functools.cached_property
    def captions(self) -> list[str]:
        """Caption of each image."""
        return [self._caption(place) for place in range(len(self))]

    def _caption(self, place: int) -> str:
        key, colour = self.keys[place], self.variants[place].colour
        background = self.backgrounds[place] if self.channels in (1, 3) else None
        scene = Scene(index().entries[key.code], key.style, background, self._seed("caption", place), colour or None)
        if self.wording in COLOURFUL and self.channels >= 3 and key.style != "mono":
            scene = scene._replace(look=repainted(key, colour) if colour else atlas_looks(key.style)[key.place])
        return WORDINGS[self.wording](scene)

    def _seed(self, what: str, place: int) -> str:
        """Return the seed of random numbers of an image, independent of the selection."""
        key, copy = self.keys[place], self.variants[place].copy
        return f"{self.seed}/{what}/{key.code}/{key.style}{f'/{copy}' if copy else ''}"

    def _draw(self, what: str, place: int) -> random.Random:
        return random.Random(self._seed(what, place))

    def _ground(self, place: int, white: float) -> str:
        """Return a random background of an image, which is white with a probability of at least ``white``."""
        if white and self._draw("white", place).random() < white:
            return "white"
        return self._draw("background", place).choice(backgrounds(self.keys[place].style))

    def _painted(self, place: int, fraction: float) -> Variant:
        """Return the variant of an image with another colour, or with its own."""
        draw, variant = self._draw("colour", place), self.variants[place]
        if draw.random() >= fraction:
            return variant
        targets = draw.sample(list(TARGETS), len(TARGETS))
        visible = (target for target in targets if target != self.backgrounds[place])
        found = (target for target in visible if repainted(self.keys[place], target))
        return variant._replace(colour=next(found, ""))

    def _render(self, first: int, last: int) -> Float[Tensor, "n c h w"]:
        keys, names = self.keys[first:last], self.backgrounds[first:last]
        colours = [variant.colour for variant in self.variants[first:last]]
        tiles = torch.stack([tile_of(key, colour) for key, colour in zip(keys, colours, strict=True)])
        grounds = torch.tensor([BACKGROUNDS[name] for name in names], dtype=torch.float32) / 255
        return render(tiles, grounds, self.size, self.channels)

    @property
    def pixels(self) -> UInt8[Tensor, "n c h w"]:
        """All images, 0 to 255, rendered once."""
        if self._pixels is None:
            parts = (self._render(first, first + CHUNK) for first in range(0, len(self.keys), CHUNK))
            self._pixels = torch.cat([levels(part) for part in parts])
        return self._pixels

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], str]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} images, got index {index}")
        place = index % len(self)
        if max(self.size) > 64:  # larger than the originals: not worth the memory
            return from_levels(levels(self._render(place, place + 1)[0])), self.captions[place]
        return from_levels(self.pixels[place]), self.captions[place]


def _select(split: str, styles: tuple[str, ...], groups: tuple[str, ...], background: str) -> list[Key]:
    contents = index()
    known_groups = dict.fromkeys(entry.group for entry in contents.entries.values())
    for style in styles:
        check_known("style", style, STYLES)
    for group in groups:
        check_known("group", group, known_groups)
    return [
        Key(code, style, place)
        for style in styles or STYLES
        if background in (*backgrounds(style), *VARYING)
        for place, code in enumerate(contents.styles[style])
        if not groups or contents.entries[code].group in groups
        if split == "all" or split == split_of(code, style)
    ]


#: Name of the data set in Python.
emoji64 = Emoji64

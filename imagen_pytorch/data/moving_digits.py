"""moving-digits: videos of handwritten digits that move and bounce, with captions that can be checked.

Clips are computed on access, from the number of the clip and the seed alone. The handwriting is that of
scikit-learn; its licence is in ``digits/LICENSE-digits.txt``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..images import MODES, Size
from .base import SOURCES, check_known, item_size, split_names
from .decoding import MAX_PIXELS
from .frames import check_positive, strides_of
from .sprites import CELLS, Sprites, handwriting, render

#: Largest number of digits, or of distractors, of one clip.
MAX_SPRITES = 1000

#: Directions of motion as (down, right).
DIRECTIONS = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up and left": (-1, -1),
    "up and right": (-1, 1),
    "down and left": (1, -1),
    "down and right": (1, 1),
}

#: Colours of digits.
COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.15, 0.15),
    "orange": (1.0, 0.55, 0.0),
    "yellow": (1.0, 0.95, 0.2),
    "green": (0.15, 0.85, 0.2),
    "cyan": (0.2, 0.95, 0.95),
    "blue": (0.25, 0.4, 1.0),
    "pink": (1.0, 0.45, 0.8),
}

SPLITS = ("train", "test")

#: Side of a digit as a fraction of the image's; smallest side in pixels, used up to the largest fraction.
DIGIT_SIDE, LEAST_SIDE, LARGEST_SHARE = 0.4, 8, 0.75

#: Brightness of distractors.
DIM = (0.25, 0.5)

#: Number of starting places that are tried for a digit, so that it does not overlap others.
PLACES = 8


class Actor(NamedTuple):
    """The part of a caption about one digit: its class, its direction and its colour; None without a colour."""

    digit: int
    direction: str
    colour: str | None

    def __str__(self) -> str:
        colour = f"{self.colour} " if self.colour else ""
        return f"the {colour}digit {self.digit} moves {self.direction}"


class Scene(NamedTuple):
    """A clip before it is rendered: sprites from back to front, the digits last, and steps per frame."""

    actors: tuple[Actor, ...]
    sprites: Sprites
    stride: int


class Captions(Sequence[str]):
    """A sequence of captions that are made on access.

    Args:
        count: number of captions.
        caption: from the number of a clip to its caption.
    """

    def __init__(self, count: int, caption: Callable[[int], str]) -> None:
        self.count, self.caption = count, caption

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.caption(place) for place in range(self.count)[index]]
        return self.caption(range(self.count)[index])


def _draw(dice: random.Random, low: float, high: float) -> float:
    return low + (high - low) * dice.random()


def _pick(dice: random.Random, choices: Sequence[Any] | np.ndarray) -> Any:
    # only random() is guaranteed to give the same numbers in every version of Python
    return choices[int(dice.random() * len(choices))]


def _span(name: str, value: Any, kinds: type | tuple[type, ...], least: float) -> tuple[Any, Any]:
    """Return a number, or the smallest and the largest, as a pair.

    Raises:
        ValueError: another value, or one below the smallest possible.
    """
    pair = (value, value) if isinstance(value, kinds) else value
    fits = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(item, kinds) for item in pair)
    if not fits or not least <= pair[0] <= pair[1]:
        kind = "a whole number" if kinds is int else "a number"
        raise ValueError(f"{name} is {kind} of at least {least}, or (least, most), got {value!r}")
    return tuple(pair)


def _classes(digits: int | str | Sequence[int | str]) -> tuple[int, ...]:
    symbols = [symbol for symbol in ((digits,) if isinstance(digits, int) else digits) if symbol not in (",", " ")]
    for symbol in symbols:
        check_known("digit", str(symbol), map(str, range(10)))
    if not symbols:
        raise ValueError("digits is empty; choose some of 0123456789")
    return tuple(dict.fromkeys(map(int, symbols)))


def _names(what: str, given: str | Sequence[str], known: dict[str, Any]) -> tuple[str, ...]:
    names = split_names(given)
    for name in names:
        check_known(what, name, known)
    if not names:
        raise ValueError(f"no {what} is chosen; known: {', '.join(known)}")
    return names


@SOURCES.register("moving-digits")
class MovingDigits(TorchDataset):
    """Handwritten digits that move straight over black, each at its own constant speed, and bounce off the borders.

    An item is a dict of ``images`` (c, f, h, w) in [0, 1], ``texts`` ("the digit 3 moves left and the digit 7 moves
    up") and ``fps`` (frames per second of these frames). It depends only on the arguments and its number. The
    caption gives the initial direction of a digit; none bounces in the first half of a clip.

    Args:
        num_frames: number of frames of an item.
        image_size: side in pixels, or (height, width). Digits are about 0.4 times as large.
        num_digits: in each clip, or (least, most). They are different, if ``digits`` has enough.
        distractors: darker blocks and pieces of digits that move under the digits and are in no caption; a number, or
            (least, most).
        directions: any of ``DIRECTIONS``: left, right, up, down, and diagonals such as "up and left".
        digits: the classes, "0123456789" or (0, 1, 2).
        speed: (least, most) in frame widths per second. Slower if a digit would bounce in the first half otherwise.
        colours: true for all of ``COLOURS``, or some of them; captions then name them ("the red digit 3 moves left").
            False: all digits are white.
        fps: frames per second at a stride of 1.
        frame_stride: steps from one frame to the next, or several of which one is drawn per item; ``fps`` of an item is
            divided by it.
        length: number of clips.
        seed: of all random numbers.
        split: "train" or "test": other clips, in the handwriting of other people.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; nothing is transparent.

    Attributes:
        captions: one per clip, made on access.

    Raises:
        ValueError: an impossible value; the message states the possible ones.
    """

    def __init__(
        self,
        num_frames: int = 8,
        image_size: int | Size = 32,
        num_digits: int | Sequence[int] = 1,
        distractors: int | Sequence[int] = 0,
        directions: str | Sequence[str] = ("left", "right", "up", "down"),
        digits: int | str | Sequence[int | str] = "0123456789",
        speed: float | Sequence[float] = (0.5, 1),
        colours: bool | str | Sequence[str] = False,
        *,
        fps: float = 8.0,
        frame_stride: int | Sequence[int] = 1,
        length: int = 10_000,
        seed: int = 0,
        split: str = "train",
        channels: int = 3,
    ) -> None:
        check_known("split", split, SPLITS)
        check_known("number of channels", channels, MODES)
        check_positive("num_frames", num_frames, int)
        check_positive("length", length, int)
        check_positive("fps", fps, (int, float))
        self.size = item_size(image_size)
        if num_frames * math.prod(self.size) > MAX_PIXELS:
            raise ValueError(
                f"num_frames: {num_frames:,} frames of {self.size[0]}x{self.size[1]} pixels are too many for one clip"
            )
        if min(self.size) < LEAST_SIDE:
            raise ValueError(f"image_size must be at least {LEAST_SIDE} for digits to be readable, got {image_size}")
        self.num_frames, self.fps, self.strides = num_frames, float(fps), strides_of(frame_stride)
        self.num_digits = _span("num_digits", num_digits, int, 1)
        self.distractors = _span("distractors", distractors, int, 0)
        for name, span in (("num_digits", self.num_digits), ("distractors", self.distractors)):
            if max(span) > MAX_SPRITES:
                raise ValueError(f"{name}: {MAX_SPRITES} in a clip are the most, got {max(span):,}")
        self.speed = _span("speed", speed, (int, float), 0)
        self.directions, self.digits = _names("direction", directions, DIRECTIONS), _classes(digits)
        self.colours = _names("colour", tuple(COLOURS) if colours is True else colours, COLOURS) if colours else ()
        if self.colours and channels < 3:
            raise ValueError(f"colours need channels=3 or 4 to be seen, got {channels}")
        self.length, self.seed, self.split, self.channels = length, seed, split, channels

    def __len__(self) -> int:
        return self.length

    def identity(self) -> tuple[object, ...]:
        """Return values that identify the clips of this choice of arguments."""
        drawn = (self.num_digits, self.distractors, self.speed, self.directions, self.digits, self.colours)
        return (self.length, self.seed, self.split, self.num_frames, self.fps, self.strides, *drawn)

    @property
    def captions(self) -> Captions:
        """Caption of each clip."""
        return Captions(self.length, self._caption)

    def _dice(self, index: int) -> random.Random:
        """Return the source of a clip's random numbers: first its actors, then everything else."""
        if not -self.length <= index < self.length:
            raise IndexError(f"there are {self.length} clips, got index {index}")
        return random.Random(f"moving-digits/{self.seed}/{self.split}/{index % self.length}")

    def _cast(self, dice: random.Random) -> tuple[Actor, ...]:
        least, most = self.num_digits
        left: list[int] = []
        actors = []
        for _ in range(_pick(dice, range(least, most + 1))):
            left = left or list(self.digits)
            digit = left.pop(int(dice.random() * len(left)))
            actors.append(Actor(digit, _pick(dice, self.directions), _pick(dice, self.colours or (None,))))
        return tuple(actors)

    def actors(self, index: int) -> tuple[Actor, ...]:
        """Return the digits of a clip with their descriptions in the caption, in its order.

        Raises:
            IndexError: the clip does not exist.
        """
        return self._cast(self._dice(index))

    def _caption(self, index: int) -> str:
        return _sentence(self.actors(index))

    def _scene(self, index: int) -> Scene:
        dice = self._dice(index)
        actors = self._cast(dice)
        stride = _pick(dice, self.strides)
        number = _pick(dice, range(self.distractors[0], self.distractors[1] + 1))
        textures = [self._distraction(dice) for _ in range(number)]
        headings = [_pick(dice, tuple(DIRECTIONS)) for _ in textures]
        tints = [self._tint(_pick(dice, self.colours or (None,))) * _draw(dice, *DIM) for _ in textures]
        for actor in actors:
            textures.append(self._glyph(dice, actor.digit))
            headings.append(actor.direction)
            tints.append(self._tint(actor.colour))
        small = min(self.size)
        side = max(DIGIT_SIDE * small, min(LEAST_SIDE, LARGEST_SHARE * small))
        sprites = Sprites.at_rest(np.stack(textures), np.stack(tints), side / CELLS, self.size)
        self._set_going(dice, sprites, headings, number, self.num_frames // 2 * stride / self.fps)
        return Scene(actors, sprites, stride)

    def _tint(self, colour: str | None) -> np.ndarray:
        tint = COLOURS[colour or "white"]
        return np.array(tint if self.channels > 2 else tint[:1], np.float32)

    def _glyph(self, dice: random.Random, digit: int) -> np.ndarray:
        return _pick(dice, handwriting(self.split)[digit])

    def _distraction(self, dice: random.Random) -> np.ndarray:
        """Return a block, or a half of a digit."""
        block, piece = np.zeros((2, CELLS, CELLS), np.float32)
        block[: _pick(dice, range(3, 7)), : _pick(dice, range(3, 7))] = 1
        half = _pick(dice, (np.s_[:4], np.s_[4:], np.s_[:, :4], np.s_[:, 4:]))
        piece[half] = self._glyph(dice, int(dice.random() * 10))[half]
        # a half of a thin digit may be empty
        return piece if dice.random() < 0.5 and piece.max() > 0.5 else block

    def _set_going(
        self, dice: random.Random, sprites: Sprites, headings: Sequence[str], number: int, free: float
    ) -> None:
        """Draw speeds and starting places. All but the first ``number`` move straight for ``free`` seconds."""
        room = sprites.high - sprites.low
        slow, fast = self.speed
        for place, heading in enumerate(headings):
            way = np.array(DIRECTIONS[heading], np.float32)
            way /= np.linalg.norm(way)
            time = free if place >= number else 0.0
            # in frame widths per second; speeds with an early bounce are not drawn
            ways = float((room[place] / np.maximum(np.abs(way) * time * self.size[1], 1e-9)).min())
            speed = _draw(dice, min(slow, ways), min(fast, ways))
            sprites.velocity[place] = way * speed * self.size[1]
            run = sprites.velocity[place] * time
            first = sprites.low[place] + np.maximum(-run, 0)
            rest = np.maximum(room[place] - np.abs(run), 0)
            drawn = [first + rest * np.array([dice.random(), dice.random()], np.float32) for _ in range(PLACES)]
            sprites.start[place] = _apart(drawn, sprites.start[number:place], sprites.cell * CELLS)

    def _times(self, stride: int) -> np.ndarray:
        return np.arange(self.num_frames, dtype=np.float32) * (stride / self.fps)

    def tracks(self, index: int) -> Float[Tensor, "digits frames 2"]:
        """Return the positions of the digits of a clip, in the caption's order: their centres of brightness (y, x) in
        pixels.

        The centre of the first pixel is (0, 0).

        Raises:
            IndexError: the clip does not exist.
        """
        actors, sprites, stride = self._scene(index)
        return torch.from_numpy(sprites.places(self._times(stride))[-len(actors) :].copy())

    def __getitem__(self, index: int) -> dict[str, Any]:
        actors, sprites, stride = self._scene(index)
        images = torch.from_numpy(render(sprites, self._times(stride), self.size))
        if self.channels > 2 and len(images) == 1:
            images = images.expand(3, -1, -1, -1)
        if self.channels in (2, 4):
            images = torch.cat([images, torch.ones_like(images[:1])])
        return {"images": images.contiguous(), "texts": _sentence(actors), "fps": self.fps / stride}


def _sentence(actors: tuple[Actor, ...]) -> str:
    *others, last = map(str, actors)
    return f"{', '.join(others)} and {last}" if others else last


def _apart(spots: list[np.ndarray], others: np.ndarray, far: float) -> np.ndarray:
    """Return the first spot that is far from all others, or else the farthest one."""
    if not len(others):
        return spots[0]
    distances = [np.linalg.norm(others - spot, axis=1).min() for spot in spots]
    return next((spot for spot, away in zip(spots, distances, strict=True) if away >= far), spots[np.argmax(distances)])


def centre_track(video: Float[Tensor, "c f h w"], threshold: float = 0.0) -> Float[Tensor, "f 2"]:
    """Return the centre of the brightness of each frame as (y, x) in pixels; of a black frame its middle.

    Args:
        video: in [0, 1]; with 2 or 4 channels the last is alpha, and transparent pixels count as black.
        threshold: values up to this count as black.
    """
    colours = video[:-1] * video[-1:] if len(video) in (2, 4) else video
    light = colours.mean(0).double()
    light = light.where(light > threshold, 0).clamp(min=0)
    total = light.sum((1, 2))
    axes = [torch.arange(side, dtype=torch.float64, device=video.device) for side in light.shape[1:]]
    sums = torch.stack([light.sum(2) @ axes[0], light.sum(1) @ axes[1]], 1)
    middle = torch.stack([axis.mean() for axis in axes])
    return torch.where(total[:, None] > 0, sums / total.clamp(min=1e-12)[:, None], middle).float()


#: Name of the data set in Python.
moving_digits = MovingDigits

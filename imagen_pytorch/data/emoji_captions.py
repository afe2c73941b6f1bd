"""English captions for the images of emoji64: content, style and background."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from .emoji_colours import NAMES, Look
from .emoji_words import EVERYDAY

#: Art styles, as in captions.
STYLES = {
    "noto": "a glossy cartoon emoji",
    "twemoji": "a simple flat emoji",
    "flat": "a flat vector icon",
    "3d": "a 3d render",
    "mono": "a black and white silhouette",
    "blob": "a blob emoji",
    "emojione": "a detailed cartoon icon",
    "fxemoji": "a bold flat sticker",
}

#: Colours of backgrounds, 0 to 255.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (228, 60, 60),
    "orange": (250, 150, 50),
    "yellow": (250, 225, 90),
    "green": (90, 190, 100),
    "blue": (70, 130, 230),
    "purple": (150, 90, 210),
    "pink": (250, 170, 200),
}

#: Words before names that take no "a", by subgroup.
INTRODUCTIONS = {"keycap": "the", "zodiac": "the sign", "alphanum": "the symbol"}

PLURAL = re.compile(r"\b(?:(?:wo)?men|people|children)\b|(?<![sui])s$")
VOWEL = re.compile(r"(?!uni|euro|one|ufo)[aeiou]")

#: A colour's name inside a concept's name.
COLOUR_WORD = re.compile(rf"\b(?:(?:light|dark) )?(?:{'|'.join(NAMES)})\b")

#: Groups whose colours are part of their meaning: they are never named in short captions.
UNCOLOURED = ("flags", "people-body")

#: Fractions of a figure from which a colour is the dominant one, most of it, and mentioned at all.
DOMINANT, MOST, MENTIONED = 0.6, 0.5, 0.08

#: Fractions of a tile from which a figure fills it, and below which it is small.
FILLED, SMALL = 0.7, 0.22


class Entry(NamedTuple):
    """A concept: its name, keywords, group and subgroup, from the Unicode CLDR."""

    text: str
    tags: tuple[str, ...]
    group: str
    sub: str


def painted(text: str, colour: str) -> str:
    """Return a concept's name with a colour, which replaces its own: "purple heart" for "red heart"."""
    found, count = COLOUR_WORD.subn(colour, text, count=1)
    return found if count else f"{colour} {text}"


@functools.cache
def noun_phrase(entry: Entry, colour: str | None = None) -> str:
    """Return the concept's name with its article: "a cat", "an apple", "grapes", "the flag of Japan", "an orange
    car"."""
    text = entry.text
    if text.startswith("flag of "):
        return f"the {text}"
    if entry.sub in INTRODUCTIONS or text[:1].isupper() or text[:1].isdigit():
        article, *kind = INTRODUCTIONS.get(entry.sub, "the").split()
        return " ".join([article, *([colour] if colour else []), *kind, text])
    text = painted(text, colour) if colour else text
    head = re.split(r" (?:with|in|of) ", text)[0]
    if PLURAL.search(head):
        return text
    return f"{'an' if VOWEL.match(text) else 'a'} {text}"


@functools.cache
def backgrounds(style: str) -> tuple[str, ...]:
    """Return the backgrounds on which a style is visible: the silhouettes are black."""
    return tuple(name for name in BACKGROUNDS if not (style == "mono" and name == "black"))


@functools.cache
def _on(background: str | None) -> str:
    if background is None:
        return ""
    return f" on {'an' if VOWEL.match(background) else 'a'} {background} background"


class Scene(NamedTuple):
    """The content of an image, for captions.

    Attributes:
        entry: the concept.
        style: one of `STYLES`.
        background: the colour's name; None for a transparent one.
        seed: varies the wording.
        colour: name of the changed colour of the figure, which every caption names.
        look: the colours of the figure; None if they are not to be named.
    """

    entry: Entry
    style: str
    background: str | None
    seed: str
    colour: str | None = None
    look: Look | None = None


def plain(scene: Scene) -> str:
    """Return style, concept and background: "a 3d render of a grinning cat on a blue background"."""
    return f"{STYLES[scene.style]} of {bare(scene)}{_on(scene.background)}"


def bare(scene: Scene) -> str:
    """Return the concept alone: "a grinning cat"."""
    return noun_phrase(scene.entry, scene.colour)


def varied(scene: Scene) -> str:
    """Return a plain caption in half of the cases, else one without background, reordered, or with keywords."""
    draw, tags = random.Random(scene.seed), _tags(scene)
    choice = draw.random()
    if choice < 0.2:
        return plain(scene._replace(background=None))
    if choice < 0.7:
        return plain(scene)
    if choice < 0.85 or not tags:
        short = STYLES[scene.style].split(" ", 1)[1]
        ground = f", {scene.background} background" if scene.background else ""
        return f"{bare(scene)}, {short} style{ground}"
    return f"{plain(scene)}, {', '.join(draw.sample(tags, min(3, len(tags))))}"


def short(scene: Scene) -> str:
    """Return a caption like a user's request: "a car", "a red car on a blue background", "a 3d render of an
    automobile".

    Half of the captions have the everyday word where the concept has one, a third the dominant colour, two thirds the
    style. A white background is named in half of the captions and every other one always.
    """
    draw = random.Random(scene.seed)
    entry = scene.entry
    if draw.random() < 0.5:
        entry = entry._replace(text=EVERYDAY.get(entry.text, entry.text))
    colour = scene.colour or (dominant_colour(scene) if draw.random() < 1 / 3 else None)
    style = f"{STYLES[scene.style]} of " if draw.random() < 2 / 3 else ""
    ground = "" if scene.background == "white" and draw.random() < 0.5 else _on(scene.background)
    return f"{style}{noun_phrase(entry, colour)}{ground}"


def dense(scene: Scene) -> str:
    """Return style, concept, colours and their positions, size, background, and up to three keywords.

    "a 3d render of a red apple, mostly red with some green at the top, on a white background, fruit, food".
    """
    parts = [f"{STYLES[scene.style]} of {bare(scene)}"]
    if scene.look is not None:
        parts += [_colours(scene.look), *_size(scene.look)]
    if scene.background:
        parts.append(_on(scene.background).strip())
    tags = [tag for tag in scene.entry.tags if not COLOUR_WORD.search(tag)]
    return ", ".join([*parts, *random.Random(scene.seed).sample(tags, min(3, len(tags)))])


def mixed(scene: Scene) -> str:
    """Return a short, a plain or a dense caption, each in a third of the cases."""
    return random.Random(f"{scene.seed}/length").choice((short, plain, dense))(scene)


def dominant_colour(scene: Scene) -> str | None:
    """Return the name of the colour of most of the figure, or None without one or if the concept's name contains it."""
    if scene.look is None or scene.entry.group in UNCOLOURED or COLOUR_WORD.search(scene.entry.text):
        return None
    first = scene.look.colours[0]
    return first.name if first.fraction >= DOMINANT else None


def _tags(scene: Scene) -> tuple[str, ...]:
    """Return the keywords, without those that name another colour than the changed one."""
    return tuple(tag for tag in scene.entry.tags if not (scene.colour and COLOUR_WORD.search(tag)))


def _colours(look: Look) -> str:
    first, *others = (colour for colour in look.colours[:3] if colour.fraction >= MENTIONED)
    words = f"mostly {first.name}" if first.fraction >= MOST else f"{first.name} {first.place}".strip()
    if first.fraction >= 0.9:
        words = f"all {first.name}"
    parts = [f"some {other.name} {other.place}".strip() for other in others]
    return f"{words} with {' and '.join(parts)}" if parts else words


def _size(look: Look) -> tuple[str, ...]:
    return ("filling the image",) if look.covered >= FILLED else ("small",) if look.covered < SMALL else ()


#: Ways to word a caption, by name.
WORDINGS: dict[str, Callable[[Scene], str]] = {
    "plain": plain, "bare": bare, "varied": varied, "short": short, "dense": dense, "mixed": mixed
}  # fmt: skip

#: Wordings that name colours.
COLOURFUL = ("short", "dense", "mixed")

"""English captions for the pictures of emoji64: what is shown, in which style, on which background."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import NamedTuple

#: Art styles, as captions say it.
STYLES = {
    "noto": "a glossy cartoon emoji",
    "twemoji": "a simple flat emoji",
    "flat": "a flat vector icon",
    "3d": "a 3d render",
    "mono": "a black and white silhouette",
}

#: Colours, 0 to 255, that pictures can be laid over.
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
VOWEL = re.compile(r"(?!uni|euro|one)[aeiou]")


class Entry(NamedTuple):
    """A concept: its name, keywords, group and subgroup, as the Unicode CLDR has them."""

    text: str
    tags: tuple[str, ...]
    group: str
    sub: str


@functools.cache
def noun_phrase(entry: Entry) -> str:
    """The concept's name with its article: "a cat", "an apple", "grapes", "the flag of Japan"."""
    text = entry.text
    if text.startswith("flag of "):
        return f"the {text}"
    if entry.sub in INTRODUCTIONS or text[:1].isupper() or text[:1].isdigit():
        return f"{INTRODUCTIONS.get(entry.sub, 'the')} {text}"
    head = re.split(r" (?:with|in|of) ", text)[0]
    if PLURAL.search(head):
        return text
    return f"{'an' if VOWEL.match(text) else 'a'} {text}"


def backgrounds(style: str) -> tuple[str, ...]:
    """The backgrounds on which a style can be seen: the silhouettes are black."""
    return tuple(name for name in BACKGROUNDS if not (style == "mono" and name == "black"))


@functools.cache
def _on(background: str | None) -> str:
    if background is None:
        return ""
    return f" on {'an' if VOWEL.match(background) else 'a'} {background} background"


class Scene(NamedTuple):
    """What a caption can tell of a picture; no background where it is transparent; ``seed`` varies the wording."""

    entry: Entry
    style: str
    background: str | None
    seed: str


def plain(scene: Scene) -> str:
    """Style, concept and background: "a 3d render of a grinning cat on a blue background"."""
    return f"{STYLES[scene.style]} of {noun_phrase(scene.entry)}{_on(scene.background)}"


def bare(scene: Scene) -> str:
    """The concept alone: "a grinning cat"."""
    return noun_phrase(scene.entry)


def varied(scene: Scene) -> str:
    """Half of the captions are plain; the others leave out the background, change the order, or add keywords."""
    draw, tags = random.Random(scene.seed), scene.entry.tags
    fate = draw.random()
    if fate < 0.2:
        return plain(scene._replace(background=None))
    if fate < 0.7:
        return plain(scene)
    if fate < 0.85 or not tags:
        short = STYLES[scene.style].split(" ", 1)[1]
        ground = f", {scene.background} background" if scene.background else ""
        return f"{noun_phrase(scene.entry)}, {short} style{ground}"
    return f"{plain(scene)}, {', '.join(draw.sample(tags, min(3, len(tags))))}"


#: Ways to word a caption, by name.
WORDINGS: dict[str, Callable[[Scene], str]] = {"plain": plain, "bare": bare, "varied": varied}

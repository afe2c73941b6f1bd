"""Grids of images with captions, and loss curves, drawn with Pillow alone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..images import from_pil, to_pil
from .fonts import built_in, font_for, letters_of

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PAPER, INK, FAINT, ACCENT = (255, 255, 255), (32, 32, 36), (222, 222, 226), (176, 70, 20)
COLOURS = ((31, 95, 170), (200, 80, 20), (40, 135, 70), (140, 60, 150), (110, 110, 110))

#: Pixels: smallest width of an enlarged image (about) and of a caption, margin, and size of the font.
IMAGE_WIDTH, CAPTION_WIDTH, MARGIN, FONT_SIZE = 128, 128, 12, 13

#: Largest number of letters of a caption that is shown, a page of text. More would only make a sheet of gigabytes.
MAX_CHARACTERS = 2000

Curve = Sequence[tuple[int, float]]


def _page(text: str) -> str:
    """Cut a text after `MAX_CHARACTERS`."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


def wrap(text: str, width: float, font: Any) -> list[str]:
    """Break a text into lines of at most ``width`` pixels. A word that is too long is cut into pieces."""
    lines, line = [], ""
    for word in letters_of(text, font).split():
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            fits = max(1, bisect_right(range(1, len(word)), width, key=lambda n, word=word: font.getlength(word[:n])))
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def opaque(images: Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    """Convert images to RGB Pillow images, with transparency composed over white."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"a grid needs images of shape (b, c, h, w), got {tuple(images.shape)}")
        images = to_pil(images)
    return [to_pil(from_pil(image)[None])[0] for image in images]


@dataclass(frozen=True)
class _Text:
    """A wrapped text with its font and colour."""

    lines: list[str]
    font: Any
    colour: tuple[int, int, int]

    @property
    def pitch(self) -> int:
        return round(getattr(self.font, "size", 11) * 1.25)

    @property
    def height(self) -> int:
        return self.pitch * len(self.lines)

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, y: float) -> float:
        """Draw the lines centred on ``x`` from ``y`` down, and return the ordinate below them."""
        for line in self.lines:
            canvas.text((x - self.font.getlength(line) / 2, y), line, font=self.font, fill=self.colour)
            y += self.pitch
        return y


def _usual_columns(count: int) -> int:
    """Return the columns of a grid that is square to twice as wide as high: the fewest empty cells, then the widest."""
    return min(
        range(math.ceil(math.sqrt(count)), math.ceil(math.sqrt(2 * count)) + 1),
        key=lambda columns: (-count % columns, -columns),
    )


def captioned_grid(
    images: Tensor | Sequence[Image.Image],
    captions: Sequence[str],
    columns: int | None = None,
    scale: int | None = None,
    *,
    title: str = "",
    notes: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange images in rows, each with its caption below it.

    Args:
        images: a tensor ``(b, c, h, w)`` in [0, 1], or Pillow images of one size.
        captions: one per image; wrapped, and cut off after 2,000 letters.
        columns: images in a row; by default the grid is up to twice as wide as high, with few cells empty.
        scale: integer by which pixels are enlarged (nearest neighbour); by default small images become about 128
            pixels wide.
        title: a line above everything.
        notes: a remark per image, below the caption; an empty one takes no room.

    Raises:
        ValueError: no images, another number of captions or notes, or tensors of another rank.
    """
    from PIL import Image, ImageDraw

    images = opaque(images)
    count = len(images)
    notes = list(notes) if notes is not None else [""] * count
    if not count or count != len(captions) or count != len(notes):
        raise ValueError(f"{count} images need as many captions, got {len(captions)}, and notes, got {len(notes)}")
    captions, notes = ([_page(text) for text in texts] for texts in (captions, notes))
    width, height = images[0].size
    scale = scale or max(1, round(IMAGE_WIDTH / width))
    columns = min(columns or _usual_columns(count), count)
    cell = max(width * scale, CAPTION_WIDTH) + MARGIN
    font = font_for([*captions, *notes], FONT_SIZE)
    texts = [
        (_Text(wrap(caption, cell - MARGIN, font), font, INK), _Text(wrap(note, cell - MARGIN, font), font, ACCENT))
        for caption, note in zip(captions, notes, strict=True)
    ]
    head_font = font_for([title], FONT_SIZE + 4)
    head = _Text(wrap(title, columns * cell - MARGIN, head_font), head_font, INK)
    rows = [range(first, min(first + columns, count)) for first in range(0, count, columns)]
    heights = [height * scale + MARGIN + max(texts[i][0].height + texts[i][1].height for i in row) for row in rows]
    top = MARGIN + (head.height + MARGIN if head.lines else 0)

    sheet = Image.new("RGB", (columns * cell + MARGIN, top + sum(heights) + MARGIN * len(rows)), PAPER)
    canvas = ImageDraw.Draw(sheet)
    head.draw(canvas, sheet.width / 2, MARGIN)
    for row, row_height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            centre = MARGIN / 2 + column * cell + cell / 2
            enlarged = images[index].resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (round(centre - enlarged.width / 2), top))
            caption, note = texts[index]
            note.draw(canvas, centre, caption.draw(canvas, centre, top + enlarged.height + MARGIN / 2))
        top += row_height + MARGIN
    return sheet


def smoothed(curve: Curve) -> list[tuple[int, float]]:
    """Return a running mean centred on each value, over about a 25th of the curve, less at the ends."""
    sums = [0.0, *accumulate(value for _, value in curve)]
    half, last = len(curve) // 50, len(curve) - 1
    out = []
    for index, (step, _) in enumerate(curve):
        before = min(half, index)  # a symmetric window: a curve that falls fast at first is not flattened
        ahead = min(before, last - index)
        out.append((step, (sums[index + ahead + 1] - sums[index - before]) / (before + ahead + 1)))
    return out


def step_ticks(first: int, last: int, count: int = 6) -> list[int]:
    """Return at most about ``count`` multiples of 1, 2 or 5 times a power of ten within [first, last]."""
    power = 10 ** max(0, math.floor(math.log10(max(1, last - first) / count)))
    apart = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= last - first)
    return list(range(math.ceil(first / apart) * apart, last + 1, apart))


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a logarithmic axis: 1, 2, 5 per decade, only powers of ten over many decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = math.log10(high / low)
    factors = (1,) if many > 4 else (1, 2, 5) if many > 0.7 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    inside = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in inside if low * 0.999 <= tick <= high * 1.001]


@dataclass(frozen=True)
class Axes:
    """The map from (step, loss) to pixels of a plot whose ordinate is logarithmic."""

    box: tuple[float, float, float, float]
    steps: tuple[int, int]
    losses: tuple[float, float]

    def x(self, step: float) -> float:
        """Return the abscissa of a step."""
        left, _, right, _ = self.box
        first, last = self.steps
        return left + (right - left) * (step - first) / max(last - first, 1)

    def y(self, loss: float) -> float:
        """Return the ordinate of a loss."""
        _, top, _, bottom = self.box
        low, high = (math.log(value) for value in self.losses)
        share = (math.log(max(loss, self.losses[0])) - low) / (high - low)
        return bottom - (bottom - top) * min(share, 1.0)

    def line(self, curve: Curve) -> list[tuple[float, float]]:
        """Return a curve in pixels."""
        return [(self.x(step), self.y(value)) for step, value in curve]


def axes_of(curves: Mapping[str, Curve], box: tuple[float, float, float, float]) -> Axes:
    """Return axes that show all smoothed curves and all but the most extreme raw values."""
    values = sorted(value for curve in curves.values() for _, value in curve)
    steady = [value for curve in curves.values() for _, value in smoothed(curve)]
    low = min(values[len(values) // 200], *steady) if steady else 0.1
    high = max(values[-1 - len(values) // 200], *steady) if steady else 1.0
    steps = [step for curve in curves.values() for step, _ in curve] or [0, 1]
    return Axes(box, (min(0, *steps), max(1, *steps)), (low / 1.12, high * 1.12))


def _draw_axes(canvas: ImageDraw.ImageDraw, axes: Axes, size: int) -> None:
    left, top, right, bottom = axes.box
    font = built_in(size)
    for loss in log_ticks(*axes.losses):
        y, label = axes.y(loss), f"{loss:.3g}"
        canvas.line([(left, y), (right, y)], fill=FAINT, width=max(1, size // 13))
        canvas.text((left - size * 0.6 - font.getlength(label), y - size * 0.62), label, font=font, fill=INK)
    for step in step_ticks(*axes.steps):
        x, label = axes.x(step), str(step) if step < 1e5 else f"{step / 1000:g}k"
        canvas.line([(x, bottom), (x, bottom + size * 0.4)], fill=INK, width=max(1, size // 13))
        canvas.text((x - font.getlength(label) / 2, bottom + size * 0.55), label, font=font, fill=INK)
    canvas.line([(left, top), (left, bottom), (right, bottom)], fill=INK, width=max(1, size // 9))
    middle = (left + right - font.getlength("training step")) / 2
    canvas.text((middle, bottom + size * 2), "training step", font=font, fill=INK)
    canvas.text((left - size * 3, top - size * 2.2), "loss (logarithmic)", font=font, fill=INK)


def loss_curve(history: Mapping[str, Curve], size: tuple[int, int] = (880, 480)) -> Image.Image:
    """Plot losses over training steps, one colour per name: pale raw values, and a running mean in full colour.

    Args:
        history: name of each curve and its (step, loss) pairs in order. Values that are not finite and positive are
            left out, because the ordinate is logarithmic.
        size: width and height in pixels.
    """
    from PIL import Image, ImageDraw

    fine = 2  # drawn larger, then reduced: Pillow's own lines are jagged
    curves = {name: [(s, v) for s, v in curve if math.isfinite(v) and v > 0] for name, curve in history.items()}
    width, height, letter = size[0] * fine, size[1] * fine, 14 * fine
    axes = axes_of(curves, (letter * 5, letter * 3.2, width - letter * 2, height - letter * 4))
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(sheet)
    _draw_axes(canvas, axes, letter)
    font, legend = font_for(curves, letter), axes.box[2]
    for index, (name, curve) in reversed(list(enumerate(curves.items()))):
        colour = COLOURS[index % len(COLOURS)]
        pale = tuple(round(255 - (255 - channel) * 0.3) for channel in colour)
        if len(curve) > 1:
            canvas.line(axes.line(curve), fill=pale, width=fine)
            canvas.line(axes.line(smoothed(curve)), fill=colour, width=2 * fine + 1, joint="curve")
        for x, y in axes.line(curve) if len(curve) == 1 else ():
            canvas.ellipse([x - 3 * fine, y - 3 * fine, x + 3 * fine, y + 3 * fine], fill=colour)
        last = f"{smoothed(curve)[-1][1]:.3g}" if curve else "no steps"
        last = f"{letters_of(name, font)}: {last}"
        legend -= font.getlength(last)
        canvas.text((legend, letter), last, font=font, fill=colour)
        legend -= letter * 2
        canvas.line([(legend, letter * 1.65), (legend + letter * 1.5, letter * 1.65)], fill=colour, width=2 * fine + 1)
        legend -= letter
    return sheet.resize(size, Image.Resampling.LANCZOS)

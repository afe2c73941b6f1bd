"""Sheets of images with labelled rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .fonts import font_for
from .plots import FONT_SIZE, IMAGE_WIDTH, INK, MARGIN, PAPER, opaque, wrap

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

#: largest width of the labels of rows in pixels
LABEL_WIDTH = 150


def _write(canvas: ImageDraw.ImageDraw, lines: Sequence[str], font: Any, x: float, y: float, align: float) -> None:
    """Draw lines from ``y`` down. ``align`` is the fraction of a line's width to the left of ``x``."""
    for line in lines:
        canvas.text((x - font.getlength(line) * align, y), line, font=font, fill=INK)
        y += _pitch(font)


def _pitch(font: Any) -> int:
    return round(getattr(font, "size", 11) * 1.25)


def labelled_grid(
    images: Sequence[Tensor | Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Arrange images in a table with a label for each row and each column.

    Args:
        images: one entry per row, each a tensor ``(columns, c, h, w)`` in [0, 1] or Pillow images of one size.
        rows: labels at the left, wrapped at `LABEL_WIDTH` pixels. If all are empty, no room is left for them.
        columns: labels above the table.
        title: a line above everything.
        scale: integer by which pixels are enlarged (nearest neighbour); by default small images become about 128
            pixels wide.

    Raises:
        ValueError: no images, or another number of rows or columns than of labels.
    """
    from PIL import Image, ImageDraw

    table = [opaque(row) for row in images]
    if not table or not columns or len(table) != len(rows) or any(len(row) != len(columns) for row in table):
        counts = sorted({len(row) for row in table})
        raise ValueError(
            f"a sheet needs one label per row and column; got {len(table)} rows with {counts} images, {len(rows)} "
            f"labels of rows and {len(columns)} of columns"
        )
    width, height = table[0][0].size
    scale = scale or max(1, round(IMAGE_WIDTH / width))
    width, height = width * scale, height * scale
    font = font_for([*rows, *columns, title], FONT_SIZE)
    cell = max(width, IMAGE_WIDTH // 2) + MARGIN
    labels = [wrap(label, LABEL_WIDTH, font) for label in rows]
    heads = [wrap(label, cell - MARGIN, font) for label in columns]
    gutter = max((font.getlength(line) for lines in labels for line in lines), default=0)
    left = MARGIN + (round(gutter) + MARGIN if gutter else 0)
    total = left + cell * len(columns)
    head = wrap(title, max(total - 2 * MARGIN, cell), font)
    heights = [max(height, len(lines) * _pitch(font)) + MARGIN for lines in labels]
    below_title = MARGIN + (len(head) * _pitch(font) + MARGIN if head else 0)
    top = below_title + max(map(len, heads)) * _pitch(font) + MARGIN // 2

    sheet = Image.new("RGB", (max(total, cell + 2 * MARGIN), top + sum(heights)), PAPER)
    canvas = ImageDraw.Draw(sheet)
    _write(canvas, head, font, sheet.width / 2, MARGIN, 0.5)
    for column, lines in enumerate(heads):
        _write(canvas, lines, font, left + column * cell + (cell - MARGIN) / 2, below_title, 0.5)
    for row, lines, row_height in zip(table, labels, heights, strict=True):
        _write(canvas, lines, font, left - MARGIN, top + (height - len(lines) * _pitch(font)) / 2, 1.0)
        for column, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * cell + (cell - MARGIN - width) // 2, top))
        top += row_height
    return sheet

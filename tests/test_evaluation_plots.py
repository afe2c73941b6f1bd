"""Grids show every pixel and every word; curves have honest axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pytorch.evaluation import plots
from imagen_pytorch.evaluation.fonts import built_in
from imagen_pytorch.evaluation.plots import captioned_grid, log_ticks, loss_curve, smoothed, step_ticks, wrap


def dark_pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) < 128


def test_grid_enlarges_by_whole_pixels():
    images = torch.rand(2, 3, 16, 16)
    sheet = torch.from_numpy(np.asarray(captioned_grid(images, ["", ""], columns=2)).copy()).permute(2, 0, 1)
    enlarged = (images * 255).round().repeat_interleave(8, 2).repeat_interleave(8, 3)
    top, left = plots.MARGIN, plots.MARGIN
    step = plots.CAPTION_WIDTH + plots.MARGIN
    for index in range(2):
        x = left + index * step
        assert torch.equal(sheet[:, top : top + 128, x : x + 128].float(), enlarged[index])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grid_takes_tensors_of_any_channels_and_pillow(channels):
    sheet = captioned_grid(torch.rand(3, channels, 8, 8), list("abc"))
    assert sheet.mode == "RGB"
    captioned_grid([Image.new(mode, (20, 30)) for mode in ("RGB", "RGBA", "L", "P")], list("abcd"), columns=3)


def test_every_word_is_drawn_inside_the_sheet():
    font = built_in(plots.FONT_SIZE)
    text = "a 3d render of an extraordinarily " + "long" * 30 + " caption with many many many words"
    lines = wrap(text, plots.CAPTION_WIDTH, font)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= plots.CAPTION_WIDTH for line in lines)
    sheet = captioned_grid(torch.ones(1, 3, 8, 8), [text])
    dark = dark_pixels(sheet)
    margin = plots.MARGIN // 2 - 1
    assert dark.any() and not dark[-margin:].any() and not dark[:, :margin].any() and not dark[:, -margin:].any()
    written = np.flatnonzero(dark.any(1))
    assert written.max() - written.min() > 0.8 * (len(lines) - 1) * plots.FONT_SIZE * 1.25


def test_accents_and_curly_quotes_become_letters_that_the_font_has():
    assert wrap("S\u00e3o Tom\u00e9\u2019s  \u201cflag\u201d", 1000, built_in(13)) == ['Sao Tome\'s "flag"']
    assert wrap("", 100, built_in(13)) == []


def test_rows_grow_with_their_longest_caption_and_notes_are_added():
    images = torch.rand(4, 3, 8, 8)
    short = captioned_grid(images, ["a"] * 4, columns=2)
    long = captioned_grid(images, ["a", "word " * 20, "a", "a"], columns=2)
    noted = captioned_grid(images, ["a"] * 4, columns=2, notes=["seen", "", "", ""], title="After training")
    assert short.width == long.width == noted.width and short.height < noted.height < long.height


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (torch.rand(2, 3, 4, 4), ["one"], "2 images need as many captions, got 1"),
        ([], [], "0 images"),
        (torch.rand(3, 4, 4), ["a", "b", "c"], r"shape \(b, c, h, w\), got \(3, 4, 4\)"),
    ],
)
def test_grid_mistakes(images, captions, message):
    with pytest.raises(ValueError, match=message):
        captioned_grid(images, captions)


def test_smoothing_keeps_constants_lengths_and_straight_lines():
    constant = [(step, 2.5) for step in range(300)]
    assert smoothed(constant) == [(step, pytest.approx(2.5)) for step in range(300)]
    line = [(step, 0.1 * step) for step in range(300)]
    assert [value for _, value in smoothed(line)][:290] == pytest.approx([value for _, value in line][:290])
    assert smoothed([]) == [] and smoothed([(7, 1.0)]) == [(7, 1.0)]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 7), (0, 1999), (0, 2000), (1, 10), (500, 123456), (3, 3)])
def test_step_ticks_are_few_whole_and_inside(first, last):
    ticks = step_ticks(first, last)
    assert all(first <= tick <= last and isinstance(tick, int) for tick in ticks)
    assert len(ticks) <= 8 and (last - first < 2 or len(ticks) >= 2)


@pytest.mark.parametrize(("low", "high"), [(0.05, 2.0), (1e-6, 10.0), (0.9, 1.1), (0.11, 0.23), (3.0, 4.0)])
def test_log_ticks_are_inside_and_enough(low, high):
    ticks = log_ticks(low, high)
    assert ticks == sorted(ticks) and all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert 1 <= len(ticks) <= 12


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"unet 1": []},
        {"unet 1": [(1, 0.5)]},
        {"unet 1": [(step, 1.0) for step in range(5)]},
        {"unet 1": [(1, float("nan")), (2, float("inf")), (3, -1.0), (4, 0.0), (5, 0.3)]},
        {"unet 1": [(step, 1 / step) for step in range(1, 500)], "unet 2": [(step, 2 / step) for step in range(1, 9)]},
    ],
)
def test_loss_curve_of_anything(history):
    assert loss_curve(history, (400, 300)).size == (400, 300)


def test_a_falling_loss_is_drawn_falling():
    """The dark pixels of the curve go down and to the right."""
    curve = [(step, 2.0 * 0.99**step) for step in range(400)]
    pixels = np.asarray(loss_curve({"a": curve}).convert("RGB")).astype(int)
    blue = (abs(pixels - np.array(plots.COLOURS[0])).sum(2) < 60)[60:]
    columns = np.flatnonzero(blue.any(0))
    height = [np.flatnonzero(blue[:, column]).mean() for column in columns]
    assert height[-5] > height[5] + 100 and np.all(np.diff(height) >= -1)


def test_a_caption_of_any_length_is_a_sheet_of_bounded_size():
    """Writing without spaces is one word; a caption may have a million letters."""
    font = plots.built_in(plots.FONT_SIZE)
    lines = wrap("x" * 2_000, plots.CAPTION_WIDTH, font)
    assert "".join(lines) == "x" * 2_000
    assert all(font.getlength(line) <= plots.CAPTION_WIDTH for line in lines)
    assert all(font.getlength(f"{line}x") > plots.CAPTION_WIDTH for line in lines[:-1])
    short, long = (captioned_grid(torch.ones(1, 3, 8, 8), ["x" * count]) for count in (plots.MAX_CHARACTERS, 10**6))
    assert 0 <= long.height - short.height < 40

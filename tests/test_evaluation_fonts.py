"""Captions show their letters: in Pillow's own font where it has them, else in one of the machine."""

from __future__ import annotations

import warnings

import pytest
from PIL import Image, ImageFont

from imagen_pytorch.evaluation import fonts
from imagen_pytorch.evaluation.fonts import built_in, font_for, has_letter, letters_of
from imagen_pytorch.evaluation.plots import captioned_grid


class Alphabet:
    """A font that draws the given letters each in a way of its own, and a box for all others."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def getmask(self, text: str) -> Image.core.ImagingCore:
        place = self.letters.find(text) + 1
        return Image.new("L", (8, 8), place).im


@pytest.fixture
def machine(monkeypatch):
    """A machine with some fonts, by the letters that they have; Pillow's own has Latin letters."""
    monkeypatch.setattr(fonts, "built_in", lambda size: Alphabet(""))

    def has(*alphabets: str) -> None:
        files = dict(zip(fonts.SYSTEM_FONTS, alphabets, strict=False))

        def opened(name: str, size: int) -> Alphabet:
            if name not in files:
                raise OSError("cannot open resource")
            return Alphabet(files[name])

        monkeypatch.setattr(ImageFont, "truetype", opened)

    return has


def test_latin_captions_keep_the_font_of_pillow():
    assert font_for(["a red heart", "S\u00e3o Tom\u00e9"], 13).getname() == built_in(13).getname()
    assert not has_letter(built_in(13), "\u0436") and has_letter(built_in(13), "a")


def test_the_first_font_with_all_letters_is_taken(machine):
    machine("\u0436\u0439", "\u0436\u732b", "\u0436\u0439\u732b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert font_for(["a \u0436"], 13).letters == "\u0436\u0439"
        assert font_for(["\u0436", "\u0439 \u732b"], 13).letters == "\u0436\u0439\u732b"
        assert font_for(["a cat"], 13).letters == ""


def test_letters_that_no_font_has_are_named(machine):
    machine("\u0436")
    with pytest.warns(UserWarning, match="no font of this machine has the letters \u732b: captions show boxes"):
        assert font_for(["\u0436 \u732b"], 13).letters == "\u0436"
    machine()
    with pytest.warns(UserWarning, match="letters \u0436\u732b"):
        assert font_for(["\u0436 \u732b \u0436"], 13).letters == ""


def test_letters_that_a_font_has_stay_as_they_are():
    assert letters_of("\u0439\u00e9", Alphabet("\u0439\u00e9")) == "\u0439\u00e9"
    assert letters_of("e\u0301", Alphabet("\u00e9")) == "\u00e9"
    assert letters_of("\u00e9 \u2019", Alphabet("")) == "e '"
    assert letters_of("\u0439", Alphabet("\u0438")) == "\u0438"


SHAPES = [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (6, 2, 3), (16, 4, 4)]


@pytest.mark.parametrize(("count", "rows", "columns"), SHAPES)
def test_a_grid_has_few_empty_cells(count, rows, columns):
    one = captioned_grid([Image.new("RGB", (128, 128))], [""])
    sheet = captioned_grid([Image.new("RGB", (128, 128))] * count, [""] * count)
    width, height = one.width - 12, one.height - 12
    assert (sheet.width - 12) / width == columns and (sheet.height - 12) / height == rows

"""File names made from captions, and files that never replace others."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from PIL import Image

from imagen_pytorch.cli._files import check_image_name, encoded, image_suffixes, slug, write_new
from imagen_pytorch.lines import backup, next_free


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("a red heart", "a_red_heart"),
        ("black-and-white, striped", "black_and_white_striped"),
        ("one|two", "one--two"),
        ("-_ dashes at the ends _-", "dashes_at_the_ends"),
        ("a/b: c?", "a_b__c"),
        ("../../etc/passwd", "etc_passwd"),
        ("...", "sample"),
        ("", "sample"),
        ("ünïcode ❤", "ünïcode_❤"),
        ('tab\there <x> "y"', "tab_here__x___y"),
    ],
)
def test_slug(caption, name):
    assert slug(caption) == name


@pytest.mark.parametrize("caption", ["x" * 1000, "é" * 1000, "a " * 600, "❤" * 300])
def test_long_captions_fit_into_a_file_name(caption, tmp_path):
    name = f"{slug(caption)}-unet1-123.png"
    assert len(name.encode()) <= 255
    (tmp_path / name).touch()


def test_nothing_is_replaced(tmp_path):
    paths = [write_new(text.encode(), tmp_path / "deep" / "a.b.png") for text in "xyz"]
    assert [path.name for path in paths] == ["a.b.png", "a.b-1.png", "a.b-2.png"]
    assert [path.read_text() for path in paths] == ["x", "y", "z"]
    assert next_free(paths[0]).name == "a.b-3.png"


def test_the_end_of_a_long_row_of_names_is_found_quickly(tmp_path, monkeypatch):
    """By halving: thousands of images of one caption do not ask for every name before."""
    asked, taken = [], 5000
    monkeypatch.setattr(
        "imagen_pytorch.cli._files.os.path.lexists",
        lambda path: asked.append(path) or path.stem == "x" or int(path.stem.split("-")[1]) < taken,
    )
    assert next_free(tmp_path / "x.png").name == "x-5000.png" and len(asked) < 40
    for taken in range(1, 20):
        assert next_free(tmp_path / "x.png").name == f"x-{taken}.png"


def test_set_aside_renames_what_is_there(tmp_path):
    log = tmp_path / "metrics.jsonl"
    backup(log)
    for text in ("first", "second"):
        log.write_text(text)
        backup(log)
    assert not log.exists()
    assert (tmp_path / "metrics-1.jsonl").read_text() == "first"
    assert (tmp_path / "metrics-2.jsonl").read_text() == "second"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".PNG"])
def test_pictures_of_every_mode_can_be_written(mode, suffix, tmp_path):
    check_image_name(tmp_path / f"x{suffix}")
    path = write_new(encoded(Image.new(mode, (4, 4)), suffix), tmp_path / f"x{suffix}")
    assert Image.open(path).size == (4, 4)


def test_a_suffix_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(click.UsageError, match=r'"\.txt" .* is not an image format'):
        check_image_name(tmp_path / "x.txt")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_cannot_be_written_is_refused_beforehand(mode):
    """Of all suffixes that Pillow can write in principle: each is refused by name, or holds the picture."""
    refused = set()
    for suffix in sorted(image_suffixes()):
        try:
            check_image_name(Path(f"x{suffix}"), mode)
        except click.UsageError as error:
            refused.add(suffix)
            assert f'"{suffix}" of x{suffix} cannot hold images of the mode {mode}' in str(error)
        else:
            assert encoded(Image.new(mode, (5, 3)), suffix)
    assert refused >= {".wmf", ".xbm"} and not refused & {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tiff", ".avif"}

"""Unusual kinds of pictures look as in a viewer: the same scene in every format and mode, with known pixel values."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, features

from imagen_pytorch.data import Dataset, TableDataset, VideoDataset
from imagen_pytorch.data import decoding as data_decoding
from imagen_pytorch.data.decoding import decode, pixels
from imagen_pytorch.data.skipping import DataError

#: (height, width) of the scene: four different colours, so that every way of turning it shows
SIZE = (16, 24)
CORNERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 0))

#: what brings an upright picture into the position from which this EXIF orientation turns it back
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene():
    picture = Image.new("RGB", SIZE[::-1])
    for place, colour in enumerate(CORNERS):
        picture.paste(colour, (place % 2 * 12, place // 2 * 8, place % 2 * 12 + 12, place // 2 * 8 + 8))
    return picture


SCENE, GREY = scene(), scene().convert("L")
OTHER = Image.new("RGB", SIZE[::-1], "purple")
LEVELS = np.asarray(GREY).astype(np.uint16) * 257  # of 16 bits
EXPECTED = torch.from_numpy(np.array(SCENE)).permute(2, 0, 1) / 255
EXPECTED_GREY = torch.from_numpy(np.array(GREY))[None] / 255


def exif(orientation):
    note = Image.Exif()
    note[274] = orientation
    return note


def shown(path, channels=3):
    (item,) = Dataset(path.parent, SIZE, path.suffix, channels=channels, random_flip=False)
    return item


def png(depth, kind, rows):
    """A PNG of SIZE, written by hand: Pillow writes no colours of 16 bits."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def by_hand(content):
    return lambda path: path.write_bytes(content)


COLOUR = {
    "CMYK JPEG with Adobe's inversion": (".jpg", lambda path: SCENE.convert("CMYK").save(path, quality=100), 0.03),
    "CMYK TIFF": (".tif", lambda path: SCENE.convert("CMYK").save(path), 0.01),
    "LAB TIFF": (".tif", lambda path: SCENE.convert("LAB").save(path), 0.1),
    "YCbCr TIFF": (".tif", lambda path: SCENE.convert("YCbCr").save(path), 0.02),
    "palette": (".png", lambda path: SCENE.quantize(8).save(path), 0.0),
    "16 bits a colour": (".png", by_hand(png(16, 2, np.asarray(SCENE).astype(">u2") * 257)), 0.0),
    "animated GIF": (".gif", lambda path: SCENE.quantize(8).save(path, save_all=True, append_images=[OTHER]), 0.01),
    "animated PNG": (".png", lambda path: SCENE.save(path, save_all=True, append_images=[OTHER]), 0.0),
    "a still for viewers without animations": (
        ".png",
        lambda path: OTHER.save(path, save_all=True, default_image=True, append_images=[SCENE, SCENE]),
        0.0,
    ),
    "JFIF": (".jfif", lambda path: SCENE.save(path, "JPEG", quality=100, subsampling=0), 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOUR)
def test_colours_are_those_of_a_viewer(tmp_path, name):
    ending, write, tolerance = COLOUR[name]
    write(tmp_path / f"a{ending}")
    if name == "YCbCr TIFF" and int(PIL.__version__.split(".")[0]) < 13:  # which does not read what it writes
        with pytest.raises(DataError, match="a.tif: truncated"), pytest.warns(UserWarning, match="left out"):
            shown(tmp_path / f"a{ending}")
        return
    assert (shown(tmp_path / f"a{ending}") - EXPECTED).abs().max() <= tolerance + 1e-6


def test_the_marker_of_adobe_tells_colours_that_stand_for_cmyk(tmp_path):
    """YCCK, as Photoshop writes it: the same bytes as CMYK, three of them luminance and colour of the negative."""
    luminance = 200
    Image.new("CMYK", (24, 16), (255 - luminance, 127, 127, 0)).save(tmp_path / "a.jpg", quality=100)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    (tmp_path / "a.jpg").write_bytes(content)
    assert (shown(tmp_path / "a.jpg") * 255 - (255 - luminance)).abs().max() < 4


def tiff_of_16_bits(**tags):
    white_is_zero = tags.get("photometric") == 0
    values = 65535 - LEVELS if white_is_zero else LEVELS
    info = {262: 0} if white_is_zero else {}
    return lambda path: Image.fromarray(values).save(path, tiffinfo=info)


GREYS = {
    "8 bits": (".png", GREY.save),
    "16-bit PNG": (".png", Image.fromarray(LEVELS).save),
    "16-bit TIFF": (".tiff", tiff_of_16_bits()),
    "16-bit TIFF in the other byte order": (
        ".tiff",
        Image.frombytes("I;16B", SIZE[::-1], LEVELS.astype(">u2").tobytes()).save,
    ),
    "16-bit TIFF in which 0 is white": (".tiff", tiff_of_16_bits(photometric=0)),
    "32-bit whole numbers of 16 bits": (".tiff", Image.fromarray(LEVELS.astype(np.int32)).save),
    "32-bit whole numbers": (".tiff", Image.fromarray((LEVELS >= 40_000).astype(np.int32) * 10**9).save),
    "fractions up to 1": (".tiff", Image.fromarray(np.asarray(GREY, np.float32) / 255).save),
    "fractions up to 255": (".tiff", Image.fromarray(np.asarray(GREY, np.float32)).save),
    "16-bit grey with alpha": (
        ".png",
        by_hand(png(16, 4, np.stack([LEVELS, np.full_like(LEVELS, 65535)], -1).astype(">u2"))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GREYS)
def test_grey_levels_keep_their_picture(tmp_path, name):
    ending, write = GREYS[name]
    write(tmp_path / f"a{ending}")
    expected = (EXPECTED_GREY * 65535 >= 40_000).float() if name == "32-bit whole numbers" else EXPECTED_GREY
    assert (shown(tmp_path / f"a{ending}", 1) - expected).abs().max() < 0.005
    assert (shown(tmp_path / f"a{ending}") - expected).abs().max() < 0.005


def test_fractions_that_are_no_numbers_are_black(tmp_path):
    values = np.asarray(GREY, np.float32) / 255
    values[:8] = [[np.nan, np.inf, -np.inf] * 8] * 8
    Image.fromarray(values).save(tmp_path / "a.tif")
    item = shown(tmp_path / "a.tif")
    assert (item[:, :8] == 0).all() and (item[:, 8:] - EXPECTED_GREY[:, 8:]).abs().max() < 0.005


TRANSPARENT = {
    "of a palette": (SCENE.quantize(8), lambda: SCENE.quantize(8).getpixel((0, 0)), EXPECTED),
    "of a grey level": (GREY, lambda: GREY.getpixel((0, 0)), EXPECTED_GREY),
    "of a level of 16 bits": (Image.fromarray(LEVELS), lambda: int(LEVELS[0, 0]), EXPECTED_GREY),
    "of a colour": (SCENE, lambda: CORNERS[0], EXPECTED),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency(tmp_path, name):
    """The first corner is clear: white without an alpha channel, and nothing with one."""
    picture, clear, expected = TRANSPARENT[name]
    picture.save(tmp_path / "a.png", transparency=clear())
    white = expected.clone().expand(3, -1, -1).clone()
    white[:, :8, :12] = 1
    assert (shown(tmp_path / "a.png") - white).abs().max() < 0.01
    alpha = shown(tmp_path / "a.png", 4)[3]
    assert alpha[:8, :12].max() == 0 and alpha[8:].min() == 1 and alpha[:, 12:].min() == 1
    assert torch.equal(shown(tmp_path / "a.png", 2)[1], alpha)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif", "16 bits"])
def test_every_format_is_turned_upright(tmp_path, ending, orientation):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture = Image.fromarray(LEVELS) if ending == "16 bits" else SCENE
    path = tmp_path / f"a.{'png' if ending == '16 bits' else ending}"
    picture.transpose(TURNS[orientation]).save(
        path, exif=exif(orientation), **({} if ending == "tif" else {"quality": 100})
    )
    expected = EXPECTED_GREY if ending == "16 bits" else EXPECTED
    middles = np.ix_(range(3), (4, 12), (6, 18))
    assert np.abs(shown(path).numpy()[middles] - expected.expand(3, -1, -1).numpy()[middles]).max() < 0.05


# -- sizes that would take too much -----------------------------------------------------------------------------------


def test_of_a_very_long_picture_the_middle_is_cut_out_first(monkeypatch):
    """Resized as a whole, a line of 60,000 pixels would become one of 3,840,000 by 64."""
    line = np.zeros((1, 60_000, 3), np.uint8)
    line[:, 30_000:] = 255
    picture = decode(Image.fromarray(line), (64, 64))
    assert picture.size[0] < 10 and picture.size[1] == 1
    (item,) = TableDataset([{"image": line}], 64, random_flip=False)
    assert item.shape == (3, 64, 64)
    assert torch.allclose(item[0].mean(), torch.tensor(0.5), atol=0.02) and item[0, 0, 0] < 0.5 < item[0, 0, -1]


def test_the_middle_of_a_long_picture_is_the_middle():
    ramp = np.tile(np.arange(1000, dtype=np.uint16)[:, None] // 4, (1, 10)).astype(np.uint8)
    assert abs(float(pixels(decode(Image.fromarray(ramp), (8, 8)), 1).mean()) * 255 - 499.5 / 4) < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "CMYK"])
def test_huge_pictures_are_reduced_before_they_become_floats(monkeypatch, mode):
    monkeypatch.setattr(data_decoding, "MANY_PIXELS", 1000)
    large = SCENE.resize((240, 160), Image.Resampling.NEAREST)
    large = large.quantize(8) if mode == "P" else large.convert(mode)
    small = decode(large, SIZE)
    assert small.size == (48, 32)
    expected = pixels(large.convert("RGB"), 3)[:, 5::10, 5::10]
    if mode != "1":  # dithered
        assert (pixels(small, 3)[:, 1::2, 1::2] - expected).abs().max() < 0.02


def test_clips_of_numbered_pictures_are_shown_alike(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.fromarray(LEVELS).save(tmp_path / "clip" / f"{number}.png")
    (item,) = VideoDataset(tmp_path, SIZE, 2, random_flip=False)
    assert (item["images"] - EXPECTED_GREY[:, None]).abs().max() < 0.005

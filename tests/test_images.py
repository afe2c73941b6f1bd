"""Ranges, sizes, crops and Pillow: what goes in comes out, and nothing is aliased, shifted or leaked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pytorch.images import (
    RESIZE_MODES,
    as_float,
    as_size,
    crop,
    crop_offsets,
    from_pil,
    normalize,
    resize,
    shrink_known,
    to_pil,
    unnormalize,
)


def plain(function):
    """The function itself: the import hook that checks annotations would refuse an argument before it can."""
    return getattr(function, "__wrapped__", function)


# -- ranges and sizes -------------------------------------------------------------------------------------------------


def test_normalizing_and_back():
    x = torch.linspace(0, 1, 11)
    assert normalize(x)[[0, 5, 10]].tolist() == [-1, 0, 1] and torch.allclose(unnormalize(normalize(x)), x)
    assert unnormalize(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


def test_bytes_become_fractions_and_floats_pass():
    assert as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    half = torch.rand(2).half()
    assert as_float(half) is half
    with pytest.raises(TypeError, match="init_images must be floating point in .* or uint8 .* got torch.int64"):
        as_float(torch.tensor([1]), "init_images")


def test_sizes():
    assert as_size(8) == (8, 8) and as_size([4, 6]) == (4, 6) and as_size(torch.zeros(3, 5).shape) == (3, 5)


@pytest.mark.parametrize("size", [0, -8, (8,), (8, 8, 8), (8, 0), (8, 4.5), 8.5, "64", "8x", None])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match=r"an image size is a positive int or \(height, width\), got "):
        plain(as_size)(size)


# -- resizing ---------------------------------------------------------------------------------------------------------


def checkerboard(side):
    return (torch.arange(side)[:, None] + torch.arange(side)).remainder(2).float()[None, None]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
def test_a_checkerboard_of_single_pixels_becomes_grey(mode):
    """Where a filter reaches over the border, the corners keep a trace; everywhere else half is exactly half."""
    small = resize(checkerboard(16), 8, mode)
    assert small.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert torch.allclose(small[..., 2:-2, 2:-2], torch.tensor(0.5), atol=1e-6)
    assert small.sub(0.5).abs().max() < 0.011


def test_resizing_antialiases_unless_told_otherwise():
    assert torch.equal(resize(checkerboard(16), 8), resize(checkerboard(16), 8, "bilinear"))
    assert resize(checkerboard(16), 8, "nearest").unique().numel() == 1


@pytest.mark.parametrize(("mode", "filter"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
def test_resizing_agrees_with_pillow_to_a_grey_level(mode, filter):
    x = torch.rand(1, 3, 37, 41)
    theirs = from_pil(to_pil(x)[0].resize((16, 24), filter))
    ours = resize((x * 255).round() / 255, (24, 16), mode)[0].clamp(0, 1)
    assert (ours - theirs).abs().max() < 1.5 / 255


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [4, (5, 3), (8, 8), (12, 20)])
def test_every_mode_keeps_plain_areas_and_the_range(mode, size):
    flat = torch.full((1, 2, 8, 8), 0.3)
    assert torch.allclose(resize(flat, size, mode), torch.tensor(0.3))
    edge = (torch.arange(8) > 3).float().expand(2, 1, 8, 8)
    resized = resize(edge, size, mode)
    assert resized.shape == (2, 1, *as_size(size)) and resized.min() >= 0 and resized.max() <= 1


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_frames_of_a_video_are_resized_one_by_one(mode):
    video = torch.rand(2, 3, 5, 8, 6)
    resized = resize(video, (4, 9), mode)
    assert resized.shape == (2, 3, 5, 4, 9)
    for number in range(5):
        frame = video[:, :, number]
        # "bicubic" clips to the range of the whole: of a clip here, of a picture there
        low, high = frame.amin((1, 2, 3), keepdim=True), frame.amax((1, 2, 3), keepdim=True)
        assert torch.allclose(resized[:, :, number].clamp(low, high), resize(frame, (4, 9), mode), atol=1e-6)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(mode, dtype):
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    resized = resize(x.to(dtype), 4, mode)
    assert resized.dtype == dtype
    assert (resized.double() - resize(x, 4, mode)).abs().max() < 2 * torch.finfo(dtype).eps


def test_nothing_to_do_and_unknown_modes():
    x = torch.rand(1, 1, 4, 4)
    assert resize(x, 4) is x
    with pytest.raises(ValueError, match='no resize mode "lanczos"; known: nearest, bilinear, trilinear, bicubic'):
        resize(x, 2, "lanczos")


# -- known regions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 16, 12), (2, 3, 4, 16, 12)])
@pytest.mark.parametrize("unknown", [1e9, float("nan"), float("inf")])
def test_no_unknown_value_leaks_into_a_smaller_picture(shape, unknown):
    image = torch.rand(shape)
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.1
    known, small = shrink_known(image.masked_fill(~mask, unknown), mask, (8, 6))
    clean, again = shrink_known(image.masked_fill(~mask, 0.0), mask, (8, 6))
    assert torch.equal(known, clean) and torch.equal(small, again) and torch.isfinite(known).all()


def test_a_small_pixel_is_known_if_all_that_it_covers_is():
    mask = torch.rand(2, 1, 16, 12) > 0.2
    image = torch.rand(2, 3, 16, 12)
    known, small = shrink_known(image, mask, (8, 6))
    blocks = mask.reshape(2, 1, 8, 2, 6, 2)
    assert torch.equal(small, blocks.all(5).all(3)) and 0 < small.sum() < small.numel()
    means = image.reshape(2, 3, 8, 2, 6, 2).mean((3, 5))
    assert torch.allclose(known[small.expand_as(known)], means[small.expand_as(known)], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_unknown_pixel_among_very_many_is_not_overlooked(dtype):
    mask = torch.ones(1, 1, 512, 512, dtype=torch.bool)
    mask[..., 300, 200] = False
    known, small = shrink_known(torch.ones(1, 1, 512, 512, dtype=dtype), mask, (2, 2))
    assert small[0, 0].tolist() == [[True, True], [False, True]]
    assert known.dtype == dtype and torch.allclose(known.float(), torch.tensor(1.0), atol=0.01)


def test_where_nothing_is_known_the_value_is_finite():
    known, small = shrink_known(
        torch.full((1, 1, 4, 4), float("nan")), torch.zeros(1, 1, 4, 4, dtype=torch.bool), (2, 2)
    )
    assert not small.any() and torch.equal(known, torch.zeros(1, 1, 2, 2))


# -- crops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_crops_reach_every_corner_and_no_further(dtype):
    almost_one = 1 - torch.finfo(dtype).eps / 2
    draws = torch.tensor([[0, 0], [almost_one, almost_one], [0.5, 0]], dtype=dtype)
    assert crop_offsets((600, 9), (301, 4), draws)[::2] == [(0, 0), (150, 0)]
    bottom, right = crop_offsets((600, 9), (301, 4), draws)[1]
    assert 295 < bottom <= 299 and right == 5
    assert crop_offsets((8, 8), (8, 8), draws) == [(0, 0)] * 3


def test_crops_are_uniform():
    offsets = crop_offsets((5, 4), (3, 3), torch.rand(6000, 2))
    counts = torch.zeros(3, 2)
    for place in offsets:
        counts[place] += 1
    assert (counts - 1000).abs().max() < 4 * (6000 * 5 / 36) ** 0.5  # four standard deviations


def test_pairs_and_frames_share_their_window():
    """A ramp that names its own column: companion and all frames show the same columns."""
    ramp = torch.arange(16.0).expand(3, 1, 16, 16)
    video = torch.arange(16.0).expand(3, 1, 4, 16, 16)
    offsets = crop_offsets((16, 16), (6, 8), torch.rand(3, 2))
    still, moving, rows = (crop(x, offsets, (6, 8)) for x in (ramp, video, ramp.transpose(-1, -2)))
    assert still.shape == (3, 1, 6, 8) and moving.shape == (3, 1, 4, 6, 8)
    for item, (top, left) in enumerate(offsets):
        assert (still[item] == torch.arange(left, left + 8)).all() and (moving[item] == still[item, :, None]).all()
        assert (rows[item, 0] == torch.arange(top, top + 6)[:, None]).all()


def test_a_crop_that_does_not_fit():
    with pytest.raises(ValueError, match=r"crop of \(9, 4\) does not fit into .* \(8, 8\).*random_crop_sizes"):
        crop_offsets((8, 8), (9, 4), torch.rand(1, 2))


# -- Pillow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_to_pillow_and_back_is_exact(channels, mode):
    x = torch.randint(0, 256, (2, channels, 5, 7)).float() / 255
    pictures = to_pil(x)
    assert [picture.mode for picture in pictures] == [mode] * 2 and pictures[0].size == (7, 5)
    assert torch.equal(torch.stack([from_pil(picture, channels) for picture in pictures]), x)


def test_values_outside_are_clipped_not_wrapped():
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5]).reshape(1, 1, 1, 5).requires_grad_()
    assert np.asarray(to_pil(x)[0]).tolist() == [[0, 0, 128, 255, 255]]
    assert np.asarray(to_pil(x.detach().bfloat16())[0]).tolist() == [[0, 0, 128, 255, 255]]


def test_numbers_of_channels_that_pictures_cannot_have():
    for wrong in (lambda: to_pil(torch.rand(1, 5, 2, 2)), lambda: from_pil(Image.new("L", (2, 2)), 5)):
        with pytest.raises(ValueError, match="1 .L., 2 .LA., 3 .RGB. or 4 .RGBA. channels, got 5"):
            wrong()


COLOURED = ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA"]
GREY = ["1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B"]


def in_mode(mode, colour):
    """A picture of one colour in any of Pillow's modes."""
    picture = Image.new("RGB", (3, 2), colour)
    if mode in ("RGBa", "La"):
        return picture.convert(mode[:-1] + "A").convert(mode)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    if mode.startswith("I"):
        levels = np.full((2, 3), colour[0] * 257)
        return Image.new(mode, (3, 2), int(levels[0, 0]))
    return picture.convert("P").convert(mode) if mode == "PA" else picture.convert(mode)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", COLOURED)
def test_coloured_modes(mode, channels):
    colour = (204, 51, 102)  # one of the colours of a web palette
    pixel = from_pil(in_mode(mode, colour), channels)[:, 1, 2]
    grey = [0.299 * 0.8 + 0.587 * 0.2 + 0.114 * 0.4]
    expected = ([0.8, 0.2, 0.4] if channels > 2 else grey) + ([1.0] if channels in (2, 4) else [])
    assert pixel.tolist() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", GREY)
def test_grey_modes(mode, channels):
    for level in (0, 255) if mode == "1" else (0, 51, 255):
        pixels = from_pil(in_mode(mode, (level,) * 3), channels)
        assert pixels.shape == (channels, 2, 3)
        expected = [level / 255] * (1 if channels < 3 else 3) + ([1.0] if channels in (2, 4) else [])
        assert pixels[:, 0, 0].tolist() == pytest.approx(expected, abs=0.004)


def palette(transparent):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    picture.info["transparency"] = transparent
    return picture


def keyed(mode, colour):
    picture = Image.new(mode, (2, 1), colour)
    picture.putpixel((1, 0), 255 if mode == "L" else (0, 0, 255))
    picture.info["transparency"] = colour
    return picture


CLEAR_THEN_NOT = {
    "RGBA": (lambda: Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 255, 255]]], np.uint8)), (0, 0, 1)),
    "LA": (lambda: Image.fromarray(np.array([[[0, 0], [255, 255]]], np.uint8)), (1, 1, 1)),
    "palette with an index": (lambda: palette(0), (0, 0, 1)),
    "palette with a table": (lambda: palette(bytes([0, 255])), (0, 0, 1)),
    "RGB with a key": (lambda: keyed("RGB", (255, 0, 0)), (0, 0, 1)),
    "L with a key": (lambda: keyed("L", 7), (1, 1, 1)),
}


@pytest.mark.parametrize("name", CLEAR_THEN_NOT)
def test_what_is_transparent_shows_white_unless_alpha_is_wanted(name):
    make, second = CLEAR_THEN_NOT[name]
    assert from_pil(make(), 3)[:, 0].T.tolist() == [[1, 1, 1], list(second)]
    assert from_pil(make(), 1)[0, 0, 0] == 1
    for channels in (2, 4):
        assert from_pil(make(), channels)[-1, 0].tolist() == [0, 1]


def test_half_transparent_is_half_white():
    picture = Image.new("RGBA", (1, 1), (255, 0, 0, 51))
    assert from_pil(picture, 3).flatten().tolist() == pytest.approx([1, 0.8, 0.8], abs=0.003)
    assert from_pil(picture, 4).flatten().tolist() == pytest.approx([1, 0, 0, 0.2])

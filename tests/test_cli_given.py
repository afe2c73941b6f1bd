"""Images in, images out: ``--init``, ``--inpaint``, ``--mask``, ``--start-at-unet``, ``--fit``, and their settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_toys import write_model
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch import Unet3D
from imagen_pytorch.cli import main
from imagen_pytorch.cli._files import encoded
from imagen_pytorch.cli._given import fitted
from imagen_pytorch.image_metadata import metadata_texts, read_settings
from imagen_pytorch.images import shrink_known


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen`` in a folder with models and given images."""
    monkeypatch.chdir(tmp_path)
    write_model("imagen.pt")
    write_model("grey.pt", channels=1, condition_on_text=False)
    draws = np.random.default_rng(0)
    Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("exact.png")
    Image.fromarray(draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.png")
    mask = Image.new("L", (8, 8), "black")
    mask.paste("white", (2, 2, 6, 6))
    mask.save("mask.png")
    return lambda *arguments: CliRunner().invoke(main, [str(item) for item in arguments])


def made(done) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


def levels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


PAINTED = np.zeros((8, 8), bool)
PAINTED[2:6, 2:6] = True


# -- from an image ----------------------------------------------------------------------------------------------------


def test_strength_goes_from_the_image_itself_to_noise_alone(run):
    far = []
    for strength in (0, 0.5, 1):
        options = ["--seed", 1, "--steps", 4, "--strength", f"{strength},{strength}", "-o", f"{strength}.png"]
        done = run("sample", "x", "--init", "exact.png", *options)
        assert made(done) == [f"{strength}.png"] and "from exact.png with strength" in done.stderr
        far.append(np.abs(levels(f"{strength}.png") - levels("exact.png")).mean())
    assert far[0] <= 1 and far[0] < far[1]
    made(run("sample", "x", "--seed", 1, "--steps", 4, "-o", "plain.png"))
    assert np.abs(levels("plain.png") - levels("1.png")).max() <= 12  # the image is still there, below the noise


def test_one_strength_is_that_of_the_first_unet(run):
    made(run("sample", "x", "--init", "exact.png", "--strength", 0, "--seed", 1, "-o", "a.png"))
    made(run("sample", "x", "--init", "exact.png", "--strength", "0,1", "--seed", 1, "-o", "b.png"))
    assert (levels("a.png") == levels("b.png")).all() and read_settings("a.png")["strength"] == 0
    made(run("sample", "--from-png", "a.png", "-o", "c.png"))
    assert Path("a.png").read_bytes() == Path("c.png").read_bytes()


def test_a_caption_is_not_needed_and_the_image_lends_its_name(run):
    done = run("sample", "--init", "photo.png", "-n", 2)
    assert made(done) == ["photo-1.png", "photo-2.png"] and "guidance cfg 0" in done.stderr
    assert "photo.png: 60x40 pixels, fitted to 8x8 (--fit crop)" in done.stderr
    assert read_settings("photo-1.png")["strength"] == 0.4 and "prompt" not in read_settings("photo-1.png")


def test_an_upsampler_enlarges_a_small_image(run):
    Image.open("exact.png").resize((4, 4)).save("small.png")
    done = run("sample", "x", "--start-at-unet", 2, "--init", "small.png", "--steps", "9,2", "--save-stages")
    assert made(done) == ["x.png"] and "enlarging small.png from U-Net 2 on" in done.stderr
    assert "2 steps" in done.stderr and "9,2" not in done.stderr
    assert Image.open("x.png").size == (8, 8) and "fitted" not in done.stderr
    again = made(run("sample", "--from-png", "x.png", "-o", "y.png"))
    assert Path("x.png").read_bytes() == Path(again[0]).read_bytes()


# -- inpainting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask", "grey model", "drawn layer", "transparent image", "start", "stage"])
def test_known_pixels_are_exactly_those_of_the_image(run, kind):
    image, options, name = "exact.png", ["x", "--mask", "mask.png"], "out.png"
    if kind == "grey model":
        Image.open(image).convert("L").save("grey.png")
        image, options = "grey.png", ["--mask", "mask.png", "-m", "grey.pt"]
    if kind == "drawn layer":  # white strokes on a transparent layer
        layer = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
        layer.paste((255, 255, 255, 255), (2, 2, 6, 6))
        layer.save("mask.png")
    if kind == "transparent image":
        clear = Image.open(image).convert("RGBA")
        clear.paste((9, 9, 9, 0), (2, 2, 6, 6))
        clear.save("clear.png")
        image, options = "clear.png", ["x"]
    if kind == "start":
        options += ["--init", "photo.png", "--strength", "0.5"]
    if kind == "stage":
        options += ["--save-stages"]
    made(run("sample", *options, "--inpaint", image, "-o", name))
    result, given = levels(name), levels(image)
    assert (result[~PAINTED] == given[~PAINTED]).all()
    assert (result[PAINTED] != given[PAINTED]).any()
    assert Image.open(name).mode == ("L" if kind == "grey model" else "RGB")


def test_nothing_of_the_painted_part_is_seen(run):
    """The colours that the mask hides change no pixel, also where the image is shrunk."""
    Image.new("L", (60, 40)).save("wide.png")
    mask = Image.new("L", (60, 40), "black")
    mask.paste("white", (23, 9, 37, 31))
    mask.save("mask.png")
    for name, colour in (("a", "red"), ("b", "blue")):
        photo = Image.open("photo.png")
        photo.paste(colour, (23, 9, 37, 31))
        photo.save(f"{name}-photo.png")
        made(
            run("sample", "x", "--inpaint", f"{name}-photo.png", "--mask", "mask.png", "--seed", 3, "-o", f"{name}.png")
        )
    assert (levels("a.png") == levels("b.png")).all()


def test_a_margin_is_painted(run):
    Image.new("RGB", (8, 4), "red").save("wide.png")
    Image.new("L", (8, 4), "black").save("mask.png")
    made(run("sample", "x", "--inpaint", "wide.png", "--mask", "mask.png", "--fit", "pad", "-o", "out.png"))
    result = levels("out.png")
    assert (result[2:6] == (255, 0, 0)).all() and not (result[:2] == 255).all()


# -- shapes and kinds of images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitting(fit):
    """A wide image with thirds of red, green and blue; how many columns of six are green."""
    image = Image.new("RGBA", (300, 100))
    for third, colour in enumerate(("red", "lime", "blue")):
        image.paste(colour, (100 * third, 0, 100 * third + 100, 100))
    small = np.asarray(fitted(image, (6, 6), fit)).astype(int)
    green = (small[3, :, 1] > 128) & (small[3, :, 0] < 128)
    assert green.sum() == {"crop": 6, "pad": 2, "stretch": 2}[fit]
    assert (small[0, :, 3] == (0 if fit == "pad" else 255)).all()
    assert (small[3, :, 3] >= 128).all()


def test_shrinking_with_a_mask_is_the_mean_over_known_pixels():
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 24, 24), generator=draws).byte()
    known = torch.rand((1, 24, 24), generator=draws) > 0.1
    rgba = torch.cat([pixels, known.byte() * 255]).permute(1, 2, 0).numpy()
    small = torch.from_numpy(np.array(fitted(Image.fromarray(rgba), (8, 8), "crop", average=True))).permute(2, 0, 1)
    expected, mask = shrink_known(pixels[None] / 255, known[None], (8, 8))
    assert ((small[3:] == 255) == mask[0]).all()
    assert ((small[:3] / 255 - expected[0]).abs() * mask[0]).max() <= 1 / 255


def test_an_image_is_taken_as_a_viewer_shows_it(run):
    """Turned by its EXIF tag, over white where it is transparent, of every mode."""
    image, exif = Image.open("exact.png"), Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    image.rotate(90).save("turned.png", exif=exif)
    clear = Image.open("exact.png").convert("RGBA")
    clear.paste((9, 9, 9, 0), (0, 0, 8, 4))
    clear.save("clear.png")
    for name in ("exact", "turned", "clear"):
        made(run("sample", "x", "--init", f"{name}.png", "--strength", "0,0", "-o", f"{name}-out.png"))
    assert np.abs(levels("turned-out.png") - levels("exact-out.png")).max() <= 1
    assert levels("clear-out.png")[:4].min() >= 254
    for mode in ("1", "P", "L", "LA", "CMYK", "I;16"):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        Image.new(mode, (5, 7)).save(f"kind{suffix}")
        made(run("sample", "x", "--init", f"kind{suffix}", "--strength", "0,0"))


# -- settings ---------------------------------------------------------------------------------------------------------


def test_given_images_are_named_in_the_settings_and_found_again(run):
    Path("in").mkdir()
    for name in ("photo", "exact", "mask"):
        Path(f"{name}.png").rename(f"in/{name}.png")
    words = ["--init", "in/photo.png", "--strength", "0.5,1", "--inpaint", "in/exact.png", "--mask", "in/mask.png"]
    made(run("sample", "x", *words, "--fit", "stretch", "--seed", 3, "--save-stages", "-o", "in/a.png"))
    found = read_settings("in/a.png")
    assert [found[name]["name"] for name in ("init", "inpaint", "mask")] == ["photo.png", "exact.png", "mask.png"]
    assert (found["strength"], found["fit"]) == ([0.5, 1.0], "stretch") and "in/" not in json.dumps(found)
    for name in ("a", "a-unet1"):
        made(run("sample", "--from-png", f"in/{name}.png", "-o", f"{name}.png"))
        assert Path(f"{name}.png").read_bytes() == Path(f"in/{name}.png").read_bytes()
    Path("in/exact.png").rename("exact.png")
    made(run("sample", "--from-png", "in/a.png", "-o", "b.png"))
    Path("exact.png").write_bytes(Path("in/photo.png").read_bytes())
    done = run("sample", "--from-png", "in/a.png", "-o", "c.png")
    assert done.exit_code == 2 and "exact.png, which is another one now: give it with --inpaint FILE" in done.stderr
    Path("exact.png").unlink()
    done = run("sample", "--from-png", "in/a.png", "-o", "c.png")
    assert done.exit_code == 2 and "exact.png, which is not here" in done.stderr
    done = run("sample", "--from-png", "in/a.png", "--inpaint", "in/mask.png", "-o", "c.png")
    assert made(done) == ["c.png"] and "inpaint in/mask.png for exact.png" in done.stderr


@pytest.mark.parametrize(
    "entry", [7, {}, {"name": "../a.png", "sha256": "0"}, {"name": "a.png"}, {"name": "", "sha256": ""}]
)
def test_damaged_entries_are_one_sentence(run, entry):
    made(run("sample", "x", "--init", "exact.png", "-o", "a.png"))
    wrong = {**read_settings("a.png"), "init": entry}
    Path("b.png").write_bytes(encoded(Image.new("RGB", (8, 8)), ".png", metadata_texts(wrong)))
    done = run("sample", "--from-png", "b.png")
    assert done.exit_code == 3 and "cannot be used: init: " in done.stderr and len(done.stderr.splitlines()) == 1


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mask", "mask.png"], "--mask says where to paint: give the image with --inpaint FILE"),
        (["--strength", "0.5"], "--strength says how far to change an image: give it with --init FILE"),
        (["--start-at-unet", 2], "--start-at-unet 2 enlarges an image: give it with --init FILE"),
        (["--start-at-unet", 2, "--init", "exact.png", "--strength", "0.5"], "does not go with --start-at-unet"),
        (["--start-at-unet", 3, "--init", "exact.png"], "--start-at-unet 3: the model has 2 U-Nets"),
        (["--init", "exact.png", "--strength", "1.5"], "1.5"),
        (["--init", "none.png"], "--init none.png cannot be used: missing"),
        (["--init", "imagen.pt"], "--init imagen.pt cannot be used: not an image"),
        (["--init", "."], "--init . cannot be used: a folder"),
        (
            ["--inpaint", "exact.png"],
            "nothing of exact.png is to be painted: --inpaint has no transparent pixels: give",
        ),
        (
            ["--inpaint", "exact.png", "--mask", "black.png"],
            "nothing of exact.png is to be painted: --mask has no white",
        ),
        (
            ["--inpaint", "photo.png", "--mask", "mask.png"],
            "--mask has 8x8 pixels and --inpaint 60x40: they must be alike",
        ),
        (["--inpaint", "exact.png", "--mask", "none.png"], "--mask none.png cannot be used: missing"),
        (["--init", "thin.png", "--fit", "pad"], "--fit pad of thin.png: too large"),
    ],
)
def test_mistakes(run, arguments, words):
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (1, 20_000)).save("thin.png")
    done = run("sample", "x", *arguments, "-o", "out.png")
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert words in done.stderr.splitlines()[-1], done.stderr
    assert not Path("out.png").exists()


def test_models_of_videos_take_none(run):
    from imagen_pytorch import ElucidatedImagen, ImagenTrainer

    small = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
    video = ElucidatedImagen(
        Unet3D(**small, cond_on_text=False), image_sizes=8, condition_on_text=False, video_frames=2
    )
    torch.nn.init.ones_(video.unets[0].final_conv.weight)
    ImagenTrainer(video, use_ema=False).save("video.pt")
    done = run("sample", "-m", "video.pt", "--init", "exact.png")
    assert done.exit_code == 2 and "this model makes videos" in done.stderr

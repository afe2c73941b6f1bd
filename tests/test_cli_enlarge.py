"""``imagen enlarge``: small images through the upsamplers, and long videos in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_toys import write_model
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch import ElucidatedImagen, ImagenTrainer, Unet3D, load_imagen_from_checkpoint
from imagen_pytorch.cli import main
from imagen_pytorch.evaluation.videos import as_frames
from imagen_pytorch.image_metadata import read_settings

MODELS: dict[str, bytes] = {}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen`` in a folder with models."""
    monkeypatch.chdir(tmp_path)
    if not MODELS:
        write_model("imagen.pt", image_sizes=(4, 8, 16), trained=3)
        write_model("one.pt", image_sizes=(8,), trained=1)
        small = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
        small |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}
        for name, prob in (("video.pt", 0.5), ("repaint.pt", 0.0)):
            video = ElucidatedImagen(Unet3D(**small), image_sizes=(8,), text_encoder_name="builtin:words", fps=6.0,
                                     num_sample_steps=2, video_frames=4, given_frames_prob=prob)  # fmt: skip
            for item in video.parameters():
                item.data += 0.2 * torch.randn_like(item)
            ImagenTrainer(video, use_ema=False).save(name)
        MODELS.update((path.name, path.read_bytes()) for path in Path().glob("*.pt"))
    for name, contents in MODELS.items():
        Path(name).write_bytes(contents)
    draws = np.random.default_rng(0)
    for name, shape in {"four": (4, 4), "eight": (8, 8), "photo": (30, 20), "tiny": (2, 3)}.items():
        Image.fromarray(draws.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(f"{name}.png")
    return lambda *arguments: CliRunner().invoke(main, [str(item) for item in arguments])


def made(done) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


# -- enlarging --------------------------------------------------------------------------------------------------------


def test_each_image_begins_with_the_unet_for_its_size(run):
    done = run("enlarge", "four.png", "eight.png", "--seed", 3, "--steps", 1)
    assert made(done) == ["four_16x16.png", "eight_16x16.png"]
    assert [Image.open(name).size for name in made(run("enlarge", "four.png", "--scale", 2, "-o", "a/"))] == [(8, 8)]
    assert [read_settings(name)["start_at_unet"] for name in ("four_16x16.png", "eight_16x16.png")] == [2, 3]
    assert "enlarging four.png from U-Net 2 on, guidance cfg 0" in done.stderr


def test_it_is_what_the_model_makes_in_python(run):
    made(run("enlarge", "eight.png", "--prompt", "a cat", "--cond-scale", 2, "--seed", 3, "-o", "a.png"))
    imagen = load_imagen_from_checkpoint("imagen.pt")
    given = torch.from_numpy(np.array(Image.open("eight.png"))).permute(2, 0, 1)[None]
    (expected,) = imagen.sample(texts=["a cat"], start_image_or_video=given, start_at_unet_number=3, seed=3,
                                cond_scale=2.0, return_pil_images=True)  # fmt: skip
    assert (np.asarray(Image.open("a.png")) == np.asarray(expected)).all()
    again = made(run("sample", "--from-png", "a.png", "-o", "b.png"))
    assert Path(again[0]).read_bytes() == Path("a.png").read_bytes()


@pytest.mark.parametrize(("name", "fit", "start"), [("photo", "crop", 3), ("photo", "pad", 3), ("tiny", "stretch", 2)])
def test_other_sizes_are_fitted_where_that_is_asked_for(run, name, fit, start):
    done = run("enlarge", f"{name}.png", "--fit", fit, "--steps", 1)
    (path,) = made(done)
    assert Image.open(path).size == (16, 16) and read_settings(path)["start_at_unet"] == start
    assert f"(--fit {fit})" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "FILE"),
        (
            ["photo.png"],
            "photo.png has 20x30 pixels; this model enlarges 4x4 or 8x8 to 16x16: --fit crop, pad or stretch",
        ),
        (["four.png", "--scale", 3], "--scale 3: images of 4x4 are enlarged to 8x8 or 16x16"),
        (["four.png", "none.png"], "none.png cannot be used: missing"),
        (["four.png", "imagen.pt"], "imagen.pt cannot be used: not an image"),
        (["four.png", "eight.png", "-o", "-"], "--output - takes a single image"),
        (["eight.png", "-m", "one.pt"], "this model has no U-Net that enlarges images"),
        (["eight.png", "-m", "video.pt"], "this model has no U-Net that enlarges images"),
        (["eight.png", "--negative", "x"], "--negative belongs to a caption"),
    ],
)
def test_mistakes(run, arguments, words):
    before = sorted(Path().iterdir())
    done = run("enlarge", *arguments)
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert words in done.stderr.splitlines()[-1], done.stderr
    assert sorted(Path().iterdir()) == before


def test_the_pretrained_model_enlarges_emoji(run):
    Path("imagen.pt").unlink()
    Image.new("RGB", (16, 16), "white").save("white.png")
    done = run("enlarge", "white.png", "-m", "emoji", "--steps", 2)
    assert made(done) == ["white_64x64.png"] and Image.open("white_64x64.png").size == (64, 64)


# -- long videos ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["video.pt", "repaint.pt"])
def test_a_video_is_made_in_parts_of_a_window(run, model):
    options = ["a ball", "-m", model, "--seed", 3, "--steps", 1, "--cond-scale", 1]
    made(run("sample", *options, "--frames", 8, "--window", 4, "-o", "a.png"))
    imagen = load_imagen_from_checkpoint(model)
    given = {"texts": ["a ball"], "seed": 3, "steps": 1, "cond_scale": 1.0, "fps": 6.0}
    expected = imagen.sample_long(8, 4, inpaint=model == "repaint.pt", **given)
    frames = [np.asarray(frame) for frame in as_frames(expected[0])]
    film = Image.open("a.png")
    for index, frame in enumerate(frames):
        film.seek(index)
        assert (np.asarray(film.convert("RGB")) == frame).all(), index
    assert film.n_frames == 8 and read_settings("a.png")["window"] == 4
    made(run("sample", "--from-png", "a.png", "-o", "b.png"))
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_length_in_seconds(run):
    options = ["a ball", "-m", "video.pt", "--seed", 3, "--steps", 1]
    made(run("sample", *options, "--seconds", 1.25, "-o", "a.gif"))
    assert Image.open("a.gif").n_frames == 8
    made(run("sample", *options, "--seconds", 1, "--fps", 3, "-o", "b.gif"))
    assert Image.open("b.gif").n_frames == 3 and "window" not in read_settings("b.gif")
    made(run("sample", "--from-png", "b.gif", "--seconds", 2, "-o", "c.gif"))
    assert read_settings("c.gif")["frames"] == 6 and "window" not in read_settings("c.gif")


@pytest.mark.parametrize("window", [[], ["--window", 6]])
def test_without_a_shorter_window_all_frames_are_made_at_once(run, monkeypatch, window):
    monkeypatch.setattr(ElucidatedImagen, "sample_long", None)
    made(run("sample", "a ball", "-m", "video.pt", "--frames", 6, *window, "--steps", 1, "-o", "a.gif"))
    made(run("sample", "--from-png", "a.gif", "-o", "b.gif"))
    assert Path("a.gif").read_bytes() == Path("b.gif").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frames", 8, "--seconds", 1], "--frames and --seconds both say how long"),
        (["--frames", 8, "--window", 4, "--save-stages"], "a video of more than 4 frames is made in parts"),
        (["--frames", 8, "--window", 1], "window of 2"),
        (["--seconds", 1e9], "is not in the range"),
        (["-m", "imagen.pt", "--seconds", 1], "this model makes images: it takes no --seconds"),
    ],
)
def test_impossible_lengths(run, arguments, words):
    done = run("sample", "a ball", "-m", "video.pt", *arguments, "-o", "a.gif")
    assert done.exit_code == 2 and words in done.stderr.splitlines()[-1], done.stderr
    assert not Path("a.gif").exists() and "Traceback" not in done.stderr

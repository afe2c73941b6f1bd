"""``imagen sample --sweep``: sheets with labelled axes, each cell the image that the options themselves would make."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_toys import write_model
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch import ElucidatedImagen, ImagenTrainer, Unet3D
from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.cli import main
from imagen_pytorch.evaluation import sheets
from imagen_pytorch.evaluation.sheets import labelled_grid


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen sample`` in a folder with a model in it."""
    monkeypatch.chdir(tmp_path)
    write_model("imagen.pt")
    return lambda *arguments: CliRunner().invoke(main, ["sample", *map(str, arguments)])


def cells(path: str, rows: int, columns: int) -> list[np.ndarray]:
    """The enlarged images of a sheet: what is neither paper nor letters has the size of an 8 x 8 image by 16."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    coloured = (sheet.max(2) - sheet.min(2)) > 12  # letters are grey
    found = []
    ys, xs = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    for row in range(rows):
        for column in range(columns):
            y, x = ys[0] + row * 140, xs[0] + column * 140
            found.append(sheet[y : y + 128 : 16, x : x + 128 : 16])
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--sweep", "cond_scale=1,4", "--sweep", "steps=1,2"],
        ["x", "--sweep", "cond_scale=1,4", "steps=1,2"],
        ["--sweep", "scale=1,4", "num_inference_steps=1,2", "x"],
        ["--sweep", "cond-scale=1, 4", "--sweep", "steps=1,2", "x"],
    ],
)
def test_both_axes_in_every_spelling(run, arguments, monkeypatch):
    calls = []
    own = Cascade.sample
    spy = functools.wraps(own)(lambda self, **given: calls.append(given) or own(self, **given))
    monkeypatch.setattr(Cascade, "sample", spy)
    done = run(*arguments, "--seed", 5)
    assert (done.exit_code, done.stdout) == (0, "x-sweep.png\n"), done.stderr
    assert [(call["steps"], call["cond_scale"]) for call in calls] == [
        (steps, scale) for steps in (1, 2) for scale in (1, 4)
    ]
    assert all(call["seed"] == [5] for call in calls) and "but for cond_scale and steps, seed 5" in done.stderr
    assert not Path("x.png").exists()


def test_each_cell_is_the_image_of_its_settings(run):
    assert run("x", "--seed", 1, "--steps", 2, "--sweep", "sampler=ddim,heun").exit_code == 0
    for cell, sampler in zip(cells("x-sweep.png", 1, 2), ("ddim", "heun"), strict=True):
        done = run("x", "--seed", 1, "--steps", 2, "--sampler", sampler, "-o", f"{sampler}.png", "-q")
        alone = np.asarray(Image.open(done.stdout.strip()).convert("RGB")).astype(int)
        assert np.abs(cell - alone).max() <= 1


def test_one_sheet_per_caption_and_seed(run):
    Path("captions.txt").write_text("one\ntwo\n")
    done = run("--prompts", "captions.txt", "-n", 2, "--sweep", "steps=1,2", "-o", "out/")
    assert done.stdout.split() == [
        "out/one-sweep.png", "out/one-sweep-1.png", "out/two-sweep.png", "out/two-sweep-1.png"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep", "steps=1,2", "--sweep", "steps=3"], ["steps twice"]),
        (["--sweep", "steps=1,1"], ["same value twice"]),
        (["--sweep", "steps"], ["form cond_scale=1,2,4"]),
        (["--sweep", "steps=1,,2"], ["form cond_scale=1,2,4"]),
        (["--sweep", "steps=0,2"], ["steps", "below 1"]),
        (["--sweep", "cond_scale=1,many"], ["cond_scale", "'many'"]),
        (["--sweep", "stesp=1,2"], ["stesp", 'did you mean "steps"']),
        (["--sweep", "device=cpu"], ['no option "device"', "cond_scale"]),
        (["--sweep", "sampler=ddim,ddmi"], ["ddmi", "ddim"]),
        (["--sweep", "guidance=cfg,cgf"], ["cgf"]),
        (["--sweep", "steps=1,2", "--steps", "3"], ["contradict"]),
        (["--sweep", "steps=1,2", "--grid"], ["--grid"]),
        (["--sweep", "steps=1,2", "-o", "-"], ["--output -"]),
        (["--sweep", "steps=1", "--sweep", "cond_scale=1", "--sweep", "sampler=ddim"], ["two axes"]),
        (["--sweep", "steps=1,2", "-n", "3000"], ["too many"]),
    ],
)
def test_mistakes_are_named_before_anything_is_made(run, arguments, words, monkeypatch):
    never = functools.wraps(Cascade.sample)(lambda self, **_: pytest.fail("something was made"))
    monkeypatch.setattr(Cascade, "sample", never)
    done = run("x", *arguments)
    assert done.exit_code == 2 and done.stdout == "" and all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(Path().glob("*.png"))


def test_videos_have_a_moving_sheet(run):
    small = {"dim": 8, "dim_mults": (1,), "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
    imagen = ElucidatedImagen([Unet3D(**small)], image_sizes=(4,), text_encoder_name="builtin:words", video_frames=2)
    for item in imagen.unets[0].parameters():
        item.data += 0.1 * torch.randn_like(item)
    ImagenTrainer(imagen, use_ema=False).save("video.pt")
    done = run("x", "--model", "video.pt", "--sweep", "steps=1,2", "cond_scale=1,3", "--fps", 4)
    assert (done.exit_code, done.stdout) == (0, "x-sweep.gif\n"), done.stderr
    with Image.open("x-sweep.gif") as sheet:
        assert sheet.n_frames == 2 and sheet.width > 2 * 64


def test_a_caption_with_an_equals_sign_is_a_caption(run):
    assert run("steps=3", "-q").stdout == "steps=3.png\n"


def test_a_table_has_its_images_where_its_labels_say():
    images = torch.rand(3, 2, 3, 16, 16)
    sheet = labelled_grid(list(images), ["a", "b", "c"], ["left", "right"], title="a title", scale=8)
    pixels = torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)
    for row in range(3):
        for column in range(2):
            enlarged = (images[row, column] * 255).round().repeat_interleave(8, 1).repeat_interleave(8, 2)
            left = sheet.width - (2 - column) * 140
            tops = [
                y
                for y in range(sheet.height - 127)
                if torch.equal(pixels[:, y : y + 128, left : left + 128].float(), enlarged)
            ]
            assert len(tops) == 1 and tops[0] == sheet.height - (3 - row) * 140
    assert labelled_grid(list(images), [""] * 3, ["", ""], scale=8).width < sheet.width


def test_a_table_refuses_labels_that_do_not_fit():
    images = [torch.rand(2, 3, 8, 8)]
    for rows, columns in ((["a", "b"], ["c", "d"]), (["a"], ["c"]), (["a"], [])):
        with pytest.raises(ValueError, match="one label per row and column"):
            labelled_grid(images, rows, columns)
    long = labelled_grid(images, ["word " * 60], ["c", "d"])
    assert long.height > 200 and long.width > sheets.LABEL_WIDTH

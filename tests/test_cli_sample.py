"""``imagen sample``: names, seeds, captions from files, stages, sheets, and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageChops, ImageStat

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Unet
from imagen_pytorch.cli import main

TRAINED = {}


def model(path: str, *, trained: int = 2, kind: type = ElucidatedImagen, **changes) -> None:
    """Write a tiny two-stage cascade whose first ``trained`` U-Nets have weights that are not zero at the end."""
    small = {"dim": 8, "dim_mults": (1, 2), "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
    arguments = {"text_encoder_name": "builtin:words", "image_sizes": (4, 8), **changes}
    arguments |= {"num_sample_steps": 2} if kind is ElucidatedImagen else {"timesteps": 2}
    imagen = kind([Unet(**small), Unet(**small)], **arguments)
    for unet in imagen.unets[:trained]:
        for item in unet.parameters():
            item.data += 0.2 * torch.randn_like(item)
    ImagenTrainer(imagen, use_ema=False).save(path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen sample`` in a folder with a model in it."""
    monkeypatch.chdir(tmp_path)
    if "bytes" not in TRAINED:
        torch.manual_seed(0)
        model("imagen.pt")
        TRAINED["bytes"] = Path("imagen.pt").read_bytes()
    Path("imagen.pt").write_bytes(TRAINED["bytes"])

    def call(*arguments: object, text: str | None = None):
        return CliRunner().invoke(main, ["sample", *(str(item) for item in arguments)], input=text)

    return call


def made(done) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.split()


def pixels(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def test_a_picture_under_the_name_of_its_caption(run):
    done = run("a red heart", "--seed", 3)
    assert made(done) == ["a_red_heart.png"] and pixels("a_red_heart.png").size == (8, 8)
    assert "seed 3" in done.stderr and "imagen.pt" in done.stderr


def test_the_seed_is_told_and_repeats_the_picture(run):
    done = run("x")
    seed = done.stderr.split("seed ")[1].split()[0]
    again = made(run("x", "--seed", seed))
    assert again == ["x-1.png"]
    assert ImageChops.difference(pixels("x.png"), pixels("x-1.png")).getbbox() is None


def test_pictures_do_not_depend_on_their_neighbours(run):
    names = made(run("x", "--seed", 7, "-n", 3, "--batch-size", 2))
    assert names == ["x.png", "x-1.png", "x-2.png"]
    alone = made(run("x", "--seed", 9, "--output", "alone/"))
    difference = ImageChops.difference(pixels(names[2]), pixels(alone[0]))
    assert max(high for _, high in difference.getextrema()) <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cond_scale", "3.5"],
        ["--cond-scale", "3,1"],
        ["--cond_scale=1"],
        ["--load_ema", "false"],
        ["--load-ema"],
        ["--no-load-ema"],
        ["--model", "./imagen.pt"],
        ["--steps", "1"],
        ["--steps", "2,1"],
        ["--sampler", "ddim"],
        ["--sampler", "heun,dpmpp_2m"],
        ["--guidance", "apg"],
        ["--negative", "a blue heart"],
        ["--device", "cpu"],
        ["--num_inference_steps", "1"],
    ],
)
def test_options(run, arguments):
    assert made(run("x", *arguments)) == ["x.png"]


def test_options_change_the_picture(run):
    made(run("x", "--seed", 1, "--cond-scale", 1, "--output", "a.png"))
    for name, arguments in {"b": ["--cond-scale", 4], "c": ["--steps", 3], "d": ["--sampler", "ddim"]}.items():
        made(run("x", "--seed", 1, *arguments, "--output", f"{name}.png"))
        assert ImageChops.difference(pixels("a.png"), pixels(f"{name}.png")).getbbox() is not None, name


def test_captions_from_a_file_and_from_standard_input(run):
    Path("captions.txt").write_text("# a comment\n\none\ntwo\n", encoding="utf-8")
    assert made(run("--prompts", "captions.txt")) == ["one.png", "two.png"]
    assert made(run("--prompts", "-", text="three\n")) == ["three.png"]
    done = run("zero", "--prompts", "captions.txt", "-o", "out/")
    assert made(done) == ["out/zero.png", "out/one.png", "out/two.png"]


def test_captions_of_one_call_start_from_the_same_seed(run):
    Path("captions.txt").write_text("one\ntwo\n")
    made(run("--prompts", "captions.txt", "--seed", 4))
    made(run("two", "--seed", 4, "-o", "again.png"))
    difference = ImageChops.difference(pixels("two.png"), pixels("again.png"))
    assert max(high for _, high in difference.getextrema()) <= 1


def test_stages_and_sheets(run):
    names = made(run("x", "-n", 2, "--save-stages", "--grid"))
    assert names == ["x.png", "x-unet1.png", "x-1.png", "x-1-unet1.png", "x-grid.png"]
    assert pixels("x-unet1.png").size == (4, 4) and pixels("x-grid.png").width > 100


def test_stopping_early(run):
    made(run("x", "--stop-at-unet", 1))
    assert pixels("x.png").size == (4, 4)


def test_an_untrained_stage_is_left_out(run):
    model("half.pt", trained=1)
    done = run("x", "--model", "half.pt")
    made(done)
    assert "U-Net 2 has not been trained yet" in done.stderr and pixels("x.png").size == (4, 4)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("a.png", "a.png"),
        ("deep/a.webp", "deep/a.webp"),
        ("new/", "new/x.png"),
        ("new", "new/x.png"),
        ("a.JPG", "a.JPG"),
    ],
)
def test_where_the_picture_goes(run, output, name):
    assert made(run("x", "--output", output)) == [name]
    assert made(run("x", "--output", output)) == [str(Path(name).with_stem(f"{Path(name).stem}-1"))]
    Image.open(name).load()


def test_bytes_on_standard_output(run):
    done = run("x", "--output", "-")
    assert done.exit_code == 0 and Image.open(io.BytesIO(done.stdout_bytes)).size == (8, 8)
    assert not list(Path().glob("*.png"))


def test_unsafe_captions(run):
    assert made(run("a/b: c?")) == ["a_b__c.png"]


def test_a_folder_of_checkpoints(run):
    Path("run").mkdir()
    Path("run/checkpoint.7.pt").write_bytes(TRAINED["bytes"])
    assert "checkpoint.7.pt" in run("x", "--model", "run").stderr
    Path("run/imagen.pt").write_bytes(TRAINED["bytes"])
    assert "run/imagen.pt" in run("x", "--model", "run").stderr


def test_a_checkpoint_at_an_address(run):
    import fsspec

    fsspec.filesystem("memory").pipe("/models/a.pt", TRAINED["bytes"])
    assert made(run("x", "--model", "memory://models/a.pt")) == ["x.png"]


def test_the_other_kind_of_model(run):
    model("original.pt", kind=Imagen)
    made(run("x", "--model", "original.pt", "--sampler", "ddim"))


def test_a_model_that_cannot_be_guided_is_not_by_default(run):
    model("plain.pt", cond_drop_prob=0.0)
    made(run("x", "--model", "plain.pt"))
    refused = run("x", "--model", "plain.pt", "--cond-scale", 3)
    assert refused.exit_code == 2 and "cond_drop_prob" in refused.stderr


def test_quiet_prints_the_result_alone(run):
    done = run("x", "--quiet")
    assert (done.stdout, done.stderr) == ("x.png\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["what to draw"]),
        (["x", "--model", "none.pt"], ["none.pt", "imagen train"]),
        (["x", "--model", "."], ["no checkpoint"]),
        (["x", "--cond-scale", "many"], ["'many'"]),
        (["x", "--cond-scale", "-1"], ["-1"]),
        (["x", "--cond-scale", "1,2,3"], ["cond_scale", "2 U-Nets"]),
        (["x", "--sampler", "ddmi"], ["ddmi", "ddim"]),
        (["x", "--guidance", "cgf"], ["cgf", "cfg"]),
        (["x", "--steps", "0"], ["0"]),
        (["x", "--stop-at-unet", "3"], ["2 U-Nets"]),
        (["x", "--output", "a.txt"], [".txt"]),
        (["x", "-n", "2", "--output", "-"], ["single picture"]),
        (["--prompts", "none.txt"], ["none.txt", "No such file"]),
        (["x", "--load-ema", "perhaps"], ["perhaps"]),
        (["x", "--device", "cuda:63"], ["cuda:63"]),
    ],
)
def test_mistakes(run, arguments, words):
    if "." in arguments:
        Path("imagen.pt").unlink()
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == "", done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and all(word in line for word in words), line
    assert not list(Path().glob("*.png"))


def test_a_file_that_could_run_code_is_refused(run):
    torch.save({"model": Path}, "evil.pt")
    done = run("x", "--model", "evil.pt")
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1 and "nothing was executed" in done.stderr


# -- speed ------------------------------------------------------------------------------------------------------------


def test_processes_share_the_pictures_and_make_those_of_one(run, monkeypatch):
    """Each file has its seed in its name, which no two processes share."""
    expected = made(run("x", "-n", 5, "--seed", 3, "--cond-scale", 5, "-o", "alone/"))
    found = []
    for rank in range(2):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        done = run("x", "-n", 5, "--seed", 3, "--cond-scale", 5, "-o", "shared/")
        assert ("seed 3" in done.stderr) == (rank == 0)
        found += made(done)
    assert sorted(found) == [f"shared/x-{seed}.png" for seed in range(3, 8)]
    for one, other in zip(expected, sorted(found), strict=True):
        assert ImageChops.difference(pixels(one), pixels(other)).getbbox() is None
    for arguments, words in {
        ("--grid", "--seed", 1): "2 processes write files of their own: leave out --grid and --output -",
        ("-o", "-", "--seed", 1): "2 processes write files of their own: leave out --grid and --output -",
        (): "2 processes need --seed, so that each of them makes other pictures",
    }.items():
        done = run("x", *arguments)
        assert done.exit_code == 2 and words in done.stderr


def test_half_precision_and_compilation(run, monkeypatch):
    """They change the picture, far less than another seed does, and each network is compiled once."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self)))
    plain = pixels(*made(run("x", "--seed", 3)))
    assert not compiled
    half = pixels(*made(run("x", "--seed", 3, "--precision", "bf16", "--compile")))
    assert compiled == [Unet, Unet]
    other = pixels(*made(run("x", "--seed", 4)))
    changed, different = (ImageStat.Stat(ImageChops.difference(plain, one)).rms for one in (half, other))
    assert 0 < max(changed) < min(different) / 5

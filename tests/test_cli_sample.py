"""``imagen sample``: names, seeds, captions from files, stages, sheets, and what it refuses."""

from __future__ import annotations

import io
import os
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from cli_toys import write_model as model
from click.testing import CliRunner
from PIL import Image, ImageChops, ImageStat

from imagen_pytorch import Imagen, ImagenTrainer, Unet, load_imagen_from_checkpoint
from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.cli import _models, main
from imagen_pytorch.cli._models import newest_below
from imagen_pytorch.diffusion.guidance import GUIDANCE
from imagen_pytorch.diffusion.samplers import SAMPLERS

TRAINED = {}


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


def test_a_sheet_of_captions_from_a_file_has_the_name_of_the_file(run):
    Path("animals.txt").write_text("one\ntwo\n")
    assert made(run("--prompts", "animals.txt", "--grid")) == ["one.png", "two.png", "animals-grid.png"]
    assert made(run("--prompts", "-", "--grid", text="a\nb\n")) == ["a.png", "b.png", "captions-grid.png"]
    assert made(run("--prompts", "animals.txt", "--grid", "-o", "d.png"))[-1] == "d-grid.png"


def test_a_png_says_what_was_asked_for(run):
    words = "\u0447\u0451\u0440\u043d\u044b\u0439 \u732b"
    made(run(words, "-n", 2, "--seed", 4, "--steps", 2, "--cond-scale", 2, "-o", "a.png"))
    for name, seed in (("a.png", 4), ("a-1.png", 5)):
        texts = Image.open(name).info
        assert texts["Description"] == words and texts["Comment"].startswith("guidance cfg 2, sampler ")
        assert texts["Comment"].endswith(f", 2 steps, seed {seed}")


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
        (["x", "-n", "2", "--output", "-"], ["single image"]),
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


# -- what the model says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, [], "guidance cfg 3, sampler edm, 2 steps"),
        ({}, ["--cond-scale", 1], "no guidance, sampler edm, 2 steps"),
        ({}, ["--cond-scale", "3,1"], "guidance cfg 3,1, sampler edm"),
        ({}, ["--sampler", "dpmpp_2m,ddim", "--steps", "3,1"], "sampler dpmpp_2m,ddim, 3,1 steps"),
        ({}, ["--guidance", "apg"], "guidance apg 3,"),
        ({}, ["--guidance", "cfgpp"], "guidance cfgpp 1,"),  # the largest weight that this method takes
        ({}, ["--guidance", "cfgpp", "--cond-scale", 0.5], "guidance cfgpp 0.5,"),
        ({"cond_scale": 1.5}, [], "guidance cfg 1.5,"),
        ({"cond_scale": [2.0, 1.0], "guidance": "rescale"}, [], "guidance rescale 2,1,"),
        ({"cond_scale": 1.5, "guidance": "apg"}, ["--cond-scale", 4, "--guidance", "cfg"], "guidance cfg 4,"),
        ({"cond_drop_prob": 0.0}, [], "no guidance,"),
    ],
)
def test_guidance_sampler_and_steps_are_the_models_own_unless_given_and_said(
    run, monkeypatch, changes, arguments, words
):
    model("own.pt", **changes)
    calls = []
    own = Cascade.sample
    monkeypatch.setattr(Cascade, "sample", lambda self, **given: calls.append(given) or own(self, **given))
    done = run("x", "--model", "own.pt", *arguments)
    assert made(done) == ["x.png"] and words in done.stderr.splitlines()[0], done.stderr
    first = calls[0]["cond_scale"]
    weight = float(first[0] if isinstance(first, list) else first)
    assert words.startswith(("sampler", "no guidance" if weight == 1 and "cfgpp" not in words else "guidance"))
    assert not words.startswith("guidance") or float(words.split(",")[0].split()[-1]) == weight


def test_the_help_lists_every_sampler_and_guidance(run):
    words = " ".join(CliRunner().invoke(main, ["sample", "--help"]).stdout.split())
    start = words.index("Sampler, one or one per U-Net: ") + len("Sampler, one or one per U-Net: ")
    assert tuple(words[start:].split(".")[0].split(", ")) == SAMPLERS.names()
    start = words.index("Guidance method: ") + len("Guidance method: ")
    listed = re.sub(r" \([^)]*\)", "", words[start:].split(".  [")[0].split(". [")[0]).split(", ")
    assert tuple(listed) == GUIDANCE.names()


# -- which model ------------------------------------------------------------------------------------------------------


def test_without_a_model_here_the_newest_below_is_taken_and_said(run):
    Path("imagen.pt").unlink()
    for age, place in enumerate(("runs/a/checkpoint.7.pt", "runs/demo/imagen.pt", "b/imagen.pt", ".hidden/imagen.pt")):
        Path(place).parent.mkdir(parents=True)
        Path(place).write_bytes(TRAINED["bytes"])
        os.utime(place, (10**9 + age, 10**9 + age))
    Path("outside").symlink_to("runs", target_is_directory=True)
    assert newest_below(".") == "b/imagen.pt"
    done = run("x", "--seed", 1)
    assert made(done) == ["x.png"] and done.stderr.startswith("b/imagen.pt on cpu: ")
    Path("b/imagen.pt").unlink()
    assert newest_below(".") == "runs/demo/imagen.pt"


def test_the_search_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(_models, "_ENTRIES", 50)
    deep = tmp_path / "a/b/c/d/e/f"
    deep.mkdir(parents=True)
    (deep / "imagen.pt").touch()
    assert newest_below(str(tmp_path)) is None
    for number in range(60):
        (tmp_path / "a" / f"{number:03}").mkdir()
    (tmp_path / "imagen.pt").touch()
    assert newest_below(str(tmp_path)) == str(tmp_path / "imagen.pt")
    os.mkfifo(tmp_path / "checkpoint.1.pt")
    assert newest_below(str(tmp_path)) == str(tmp_path / "imagen.pt")


def test_without_any_model_the_pretrained_one_draws_and_says_so(run):
    Path("imagen.pt").unlink()
    done = run("a red heart", "--steps", 2)
    assert made(done) == ["a_red_heart.png"]
    assert done.stderr.startswith('no model here: pretrained model "emoji" on cpu: '), done.stderr


def test_a_folder_that_cannot_be_written_to_holds_a_model_all_the_same(run, monkeypatch):
    Path("run").mkdir()
    Path("run/checkpoint.7.pt").write_bytes(TRAINED["bytes"])
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    before = os.listdir("run")
    assert made(run("x", "--model", "run")) == ["x.png"] and os.listdir("run") == before


@pytest.mark.parametrize("stop", [[], ["--stop-at-unet", 1]])
@pytest.mark.parametrize(("trained", "words"), [(0, "trained: none"), (2, "trained: 2")])
def test_a_first_unet_that_was_not_trained_is_refused(run, trained, words, stop):
    model("second.pt", trained=trained)
    if trained:
        imagen = load_imagen_from_checkpoint("second.pt")
        for item in imagen.unets[0].final_conv.parameters():
            item.data.zero_()
        ImagenTrainer(imagen, use_ema=False).save("second.pt")
    done = run("x", "--model", "second.pt", *stop)
    assert done.exit_code == 2 and done.stdout == "" and not Path("x.png").exists()
    assert "U-Net 1 of second.pt has not been trained" in done.stderr and words in done.stderr
    assert "--unet 1" in done.stderr.splitlines()[-1]


def test_an_untrained_stage_that_was_asked_for_is_said_to_be_noise(run):
    model("half.pt", trained=1)
    done = run("x", "--model", "half.pt", "--stop-at-unet", 2)
    assert made(done) == ["x.png"] and "U-Net 2 has not been trained yet: what it makes is noise" in done.stderr


# -- captions ---------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_caption(run):
    Path("captions.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert made(run("--prompts", "captions.txt", "--seed", 1, "-o", "a/")) == ["a/one.png", "a/two.png"]
    assert made(run("--prompts", "-", "--seed", 1, "-o", "b/", text="\ufeffone\n")) == ["b/one.png"]
    made(run("one", "--seed", 1, "-o", "c/"))
    assert pixels("b/one.png").tobytes() == pixels("c/one.png").tobytes()


@pytest.mark.parametrize("data", [b"\xff\xfeo\0n\0", b"caf\xe9\n"])
def test_captions_in_another_encoding_are_refused(run, data):
    Path("captions.txt").write_bytes(data)
    done = run("--prompts", "captions.txt")
    assert done.exit_code == 2 and "not valid UTF-8" in done.stderr
    done = CliRunner().invoke(main, ["sample", "--prompts", "-"], input=data)
    assert done.exit_code == 2 and "cannot read captions from -: it is not valid UTF-8" in done.stderr


def test_a_file_that_is_no_list_of_captions_is_refused_before_it_is_read_whole(run):
    done = run("--prompts", "/dev/zero")
    assert done.exit_code == 2 and "more than 64 MiB" in done.stderr


def test_ordinary_dashes_and_braces_are_no_options(run):
    Path("captions.txt").write_text("a well-known thing - at night\nan arrow --> here\n{curly} hair\nx -- y\n")
    done = run("--prompts", "captions.txt")
    assert len(made(done)) == 4 and "options" not in done.stderr


@pytest.mark.parametrize("option", ["--load_ema", "--load-ema"])
def test_a_bare_flag_leaves_the_caption_alone(run, option):
    assert made(run(option, "a red heart")) == ["a_red_heart.png"]
    assert made(run(option, "false", "x")) == ["x.png"]
    assert made(run("y", option)) == ["y.png"]
    assert made(run("--", option)) == ["load_ema.png"]


def test_any_number_of_pictures_takes_no_memory_before_the_first(run, monkeypatch):
    """The loop over them ends here with the first batch."""

    class Enough(Exception):
        pass

    def sample(self, **given):
        raise Enough(f"{len(given['texts'])} at once")

    monkeypatch.setattr(Cascade, "sample", sample)
    tracemalloc.start()
    done = run("x", "-n", 10**12, "--batch-size", 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "7 at once" in done.stderr and peak < 50e6


def test_a_sheet_has_an_end(run):
    done = run("x", "-n", 10**6, "--grid")
    assert done.exit_code == 2 and "room for 4,096" in done.stderr


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--cond-scale", ["1e308", "nan", "inf", "-1", "3,nan", "1e7", "x", ""]),
        ("--steps", ["0", "-1", "2.5", "1000000000", "x", "9" * 5000, "1,0"]),
        ("--cache-interval", ["0", "-1", "2.5", "1000000000", "x"]),
        ("--fps", ["0", "-1", "nan", "inf", "x", "1e400"]),
        ("--seed", ["-1", "2.5", str(2**63), "x"]),
        ("--num-images", ["0", "-1", "2.5", "x"]),
        ("--frames", ["0", "-1", "2.5", "x", "1000000000"]),
        ("--batch-size", ["0", "-1", "2.5", "x", "1000000000"]),
        ("--stop-at-unet", ["0", "-1", "3", "x"]),
        ("--guidance", ["", "x"]),
        ("--sampler", ["", "x", "ddim,"]),
    ],
)
def test_impossible_numbers_and_names_are_refused_in_a_sentence(run, option, values):
    for value in values:
        done = run("x", option, value)
        assert done.exit_code == 2 and done.stdout == "" and not Path("x.png").exists(), (value, done.stderr)
        line = done.stderr.splitlines()[-1]
        assert len(line) < 800 and "unexpected" not in line and "Traceback" not in done.stderr, line


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
        (): "2 processes need --seed, so that each of them makes other images",
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

"""What a command is given is used or refused in one line, and what it says to type next can be typed."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toys import WORDS, small_imagen

from imagen_pytorch import Imagen, ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli import _demo, main
from imagen_pytorch.cli._options import Caption, Place
from imagen_pytorch.data import remote

ROOT = Path(__file__).resolve().parents[1]
UNET = {"dim": 8, "dim_mults": [1], "num_resnet_blocks": 1, "layer_attns": False, "layer_cross_attns": False,
        "attn_heads": 2, "attn_dim_head": 8}  # fmt: skip
CONTEXT = click.Context(main)
COMMANDS = {name: main.get_command(CONTEXT, name) for name in main.list_commands(CONTEXT)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bytes of a checkpoint of a small model with captions."""
    path = tmp_path_factory.mktemp("model") / "imagen.pt"
    made = small_imagen()
    for unet in made.unets:  # as after a training: the last layer is not zero
        torch.nn.init.normal_(unet.final_conv.weight, std=0.1)
    ImagenTrainer(made, use_ema=False, verbose=False).save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch, model):
    """A folder inside another one, with a model, two captioned pictures and a configuration for them."""
    inner = tmp_path / "outer" / "inner"
    (inner / "in").mkdir(parents=True)
    monkeypatch.chdir(inner)
    (inner / "imagen.pt").write_bytes(model)
    for name, colour in {"red": (200, 40, 40), "blue": (50, 70, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(f"in/{name}.png")
        Path(f"in/{name}.txt").write_text(f"a {name} square")
    configure()
    return inner


def configure(path="a.json", stages=1, model=None, **changes):
    cascade = {"unets": [UNET] * stages, "image_sizes": [4, 8, 8][:stages], "text_encoder_name": WORDS, "timesteps": 2}
    values = {"imagen": {**cascade, **(model or {})}, "dataset_name": "in", "dataset": {"batch_size": 2}}
    Path(path).write_text(json.dumps({**values, "sample_at_every": 0, **changes}))


def imagen(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def succeed(*arguments):
    done = imagen(*arguments)
    assert done.exit_code == 0, done.stderr
    return done


def refused(done, *words, codes=(2,)):
    """One line with these words and nothing else, and the exit code of a mistake."""
    lines = done.stderr.splitlines()
    assert done.exit_code in codes and done.stdout == "" and len(lines) == 1, (done.exit_code, done.stderr)
    assert lines[0].startswith("imagen") and "Traceback" not in lines[0]
    assert all(word in lines[0] for word in words), (words, lines[0])


# -- arguments --------------------------------------------------------------------------------------------------------


def options(command):
    return [item for item in COMMANDS[command].params if isinstance(item, click.Option)]


def value_of_no_use(option):
    """Something that this option cannot mean; None if it takes any text, which the command itself looks at."""
    if isinstance(option.type, Caption):
        return "\udcff"
    if isinstance(option.type, Place):
        return ""
    return None if "str" in option.type.name or option.type.name == "text" else "???"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_value_that_an_option_cannot_have_is_refused_with_its_name(command):
    tried = 0
    for option in options(command):
        name, value = option.opts[-1], value_of_no_use(option)
        if value is not None:
            refused(imagen(command, f"{name}={value}"), name)
            tried += 1
    assert tried >= {"config": 1, "demo": 6, "sample": 14, "train": 15}.get(command, 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_option_is_named_with_the_one_that_was_meant(command):
    for option in options(command):
        name = max(option.opts, key=len)
        for wrong in (f"{name}x", f"{name[:-1]}" if len(name) > 6 else f"{name}s"):
            if wrong not in {other for item in options(command) for other in item.opts}:
                refused(imagen(command, wrong), wrong, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "x", "--cond-scale", "nan"], ["--cond-scale", "nan"]),
        (["sample", "x", "--cond-scale", "1,inf"], ["--cond-scale", "inf"]),
        (["train", "--cond-scale", "-inf"], ["--cond-scale", "-inf"]),
        (["train", "--seed", 2**63], ["--seed", "9223372036854775807"]),
        (["sample", "x", "--seed", 10**30], ["--seed", "9223372036854775807"]),
        (["demo", "--seed", 10**30], ["--seed", "9223372036854775807"]),
        (["sample", "\udcff"], ["TEXT", r"\udcff", "not valid UTF-8"]),
        (["train", "--steps", 0], ["--steps", "0"]),
        (["sample", "x", "--fps", "0"], ["--fps", "0"]),
    ],
)
def test_numbers_and_texts_that_cannot_be_used(folder, arguments, words):
    refused(imagen(*arguments), *words)
    assert sorted(os.listdir()) == ["a.json", "imagen.pt", "in"]


@pytest.mark.parametrize(("changes", "words"), [({"steps": None}, 'needs "steps"'),
                                                ({"sample_texts": []}, "needs sample_texts")])  # fmt: skip
def test_a_configuration_that_is_none_of_a_demo_is_a_mistake_of_usage(folder, changes, words):
    configure(**{"steps": 1, "sample_texts": ["x"], **changes})
    refused(imagen("demo", "--config", "a.json", "--steps", 1, "-o", "run"), words)
    assert not Path("run").exists()


# -- captions are no paths --------------------------------------------------------------------------------------------

PROMPTS = {
    "../../x": "x",
    "/etc/passwd": "etc_passwd",
    "..\\..\\y": "y",
    "a\0b": "a_b",
    "a\nb": "a_b",
    "x" * 100_000: "x" * 231,
    "\U0001f600\u2764": "\U0001f600\u2764",
    "\u202eb\u200b": "b",
    "?!.,;:": "!.;",
    "///": "sample",
    "": "sample",
    ".hidden": "hidden",
    "~w": "w",
    "%s%n%04d": "_s_n_04d",
    "-rf *": "rf",
}


def test_no_caption_leaves_the_folder(folder):
    """Neither of a file nor on the command line, where it may have several lines or none."""
    before = set(folder.parent.parent.rglob("*"))
    in_file = {prompt: name for prompt, name in PROMPTS.items() if prompt.strip() and "\n" not in prompt}
    Path("in/lines").write_text("\n".join(in_file), encoding="utf-8")
    done = succeed("sample", "-q", "--steps", 1, "--batch-size", 99, "--prompts", "in/lines", "-o", "out/")
    assert done.stdout.splitlines() == [f"out/{name}.png" for name in in_file.values()]
    for prompt in PROMPTS.keys() - in_file.keys() | {"../../x"}:
        done = succeed("sample", "-q", "--steps", 1, "--", prompt)
        assert done.stdout == f"{PROMPTS[prompt]}.png\n"
    made = set(folder.parent.parent.rglob("*.png")) - before
    assert all(folder in path.parents for path in made) and len(made) == len(PROMPTS) + 1


# -- places -----------------------------------------------------------------------------------------------------------

PLACES = {
    "a file in the way": ("file/a.png", "file"),
    "a file as folder": ("file/", "file"),
    "no folder can be made": ("/proc/imagen/a.png", "/proc/imagen"),
    "no file can be made": ("/proc/self/a.png", "/proc/self"),
    "a name that is too long": (f"{'x' * 300}/", "x" * 300),
}


@pytest.fixture
def no_work(folder, monkeypatch):
    """Nothing may be sampled or trained."""

    def work(*_, **__):
        raise AssertionError("too late")

    Path("file").write_text("mine")
    monkeypatch.setattr(Imagen, "sample", work)
    monkeypatch.setattr(ImagenTrainer, "train_step", work)
    yield
    assert Path("file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="folders that even root cannot write to")
@pytest.mark.parametrize("place", PLACES)
def test_a_place_for_pictures_that_cannot_be_written_to_is_known_before_they_are_made(no_work, place):
    output, words = PLACES[place]
    refused(imagen("sample", "x", "-o", output), words, "choose another one")
    refused(imagen("config", "--path", f"{os.path.dirname(output)}/a.json"), words)


@pytest.mark.parametrize("arguments", [["--checkpoint", "in"], ["--checkpoint", "file/a.pt"], ["-o", "file"]])
def test_a_place_for_a_model_that_cannot_be_written_to_is_known_before_it_is_trained(no_work, arguments):
    words = arguments[1].split("/")[0]
    refused(imagen("train", "--config", "a.json", "--steps", 1, "-q", *arguments), words, codes=(2, 4))


# -- what is said to be next ------------------------------------------------------------------------------------------


def test_the_command_after_a_configuration_trains_with_it(folder):
    done = succeed("config", "--path", "my runs/my config.json")
    hint = re.search(r"next: (imagen .*)$", done.stderr.strip())[1]
    configure("my runs/my config.json")  # edited
    program, *arguments = shlex.split(hint)
    assert program == "imagen"
    assert succeed(*arguments, "--steps", 1, "-q", "-o", "new").stdout == "new/imagen.pt\n"


def test_the_commands_after_a_demo_are_some():
    said = []
    demo = SimpleNamespace(
        options=SimpleNamespace(cond_scale=[1.5, 2], config="my config.json", output="my run"),
        training=SimpleNamespace(checkpoint=Path("my run/imagen.pt"), taken=lambda: [10]),
        outputs=SimpleNamespace(noun="picture"),
        prompts=['a "red" heart for $5'],
        seconds={"total": 3},
        files=lambda: {Path("my run/a.png"): "it"},
        say=said.append,
    )
    with CliRunner().isolation():
        _demo.Demo.conclude(demo)
    commands = [shlex.split(line)[1:] for line in said[0].splitlines() if "imagen " in line.removeprefix("next")]
    commands = [words[words.index("imagen") + 1 :] if "imagen" in words else words for words in commands]
    commands = [[*words, "pictures"] if words[-1] == "--data" else words for words in commands]  # left to the reader
    parsed = [COMMANDS[name].make_context(name, rest, CONTEXT).params for name, *rest in commands]
    assert [name for name, *_ in commands] == ["sample", "demo", "train"]
    assert parsed[0]["text"] == 'a "red" heart for $5' and parsed[0]["model"] == "my run/imagen.pt"
    assert parsed[1]["output"] == "my run" and parsed[2]["data"] == "pictures"
    assert parsed[0]["cond_scale"] == [1.5, 2] and parsed[1]["config"] == parsed[2]["config"] == "my config.json"


# -- models -----------------------------------------------------------------------------------------------------------


def test_the_third_of_three_networks_is_the_third(folder):
    configure(stages=3)
    succeed("train", "--config", "a.json", "--unet", 3, "--steps", 1, "-q", "-o", "new")
    assert read_checkpoint("new/imagen.pt")["steps"].tolist() == [0, 0, 1]
    for number in (4, 30):
        refused(imagen("train", "--config", "a.json", "--unet", number, "-q"), f"--unet {number}", "3 U-Nets")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (4, "RGBA")])
def test_pictures_have_the_channels_of_the_model(folder, channels, mode):
    configure(model={"channels": channels, "unets": [{**UNET, "channels": channels}]})
    succeed("train", "--config", "a.json", "--steps", 1, "-q", "-o", "new")
    (name,) = succeed("sample", "x", "--model", "new/imagen.pt", "-q").stdout.split()
    assert Image.open(name).mode == mode


def test_the_default_configuration_trains_on_a_table_of_the_hub(folder, monkeypatch):
    """As it is written, but for the size of its networks and batches and for shorter periods: nobody fills in labels,
    and samples, validations and checkpoints come each at its own period.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    rows = [{"URL": f"http://host/{number}", "TEXT": f"number {number}"} for number in range(41)]
    table = type("Rows", (list,), {"column_names": ("URL", "TEXT")})(rows)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: table))
    monkeypatch.setattr("imagen_pytorch.data.huggingface.fetch", lambda *_, **__: buffer.getvalue(), raising=False)
    monkeypatch.setattr(remote, "fetch", lambda *_, **__: buffer.getvalue())
    succeed("config", "--preset", "paper")
    values = json.loads(Path("imagen_config.json").read_text())
    values["imagen"] |= {
        "image_sizes": [4, 8, 8],
        "random_crop_sizes": None,
        "timesteps": 2,
        "text_encoder_name": WORDS,
    }
    small = {"dim": 8, "num_resnet_blocks": 1, "attn_heads": 2, "attn_dim_head": 8, "attn_pool_text": False}
    values["imagen"]["unets"] = [unet | small for unet in values["imagen"]["unets"]]
    values["dataset"]["batch_size"] = 13
    values |= {"sample_at_every": 3, "validate_at_every": 2, "save_at_every": 1}
    Path("imagen_config.json").write_text(json.dumps(values))
    succeed("train", "--epoches", 1, "--log-every", 1, "-q", "-o", "new")
    assert read_checkpoint("new/imagen.pt")["steps"].tolist() == [3, 0, 0]
    assert read_checkpoint("new/imagen.previous.pt")["steps"].tolist() == [2, 0, 0]
    lines = [json.loads(line) for line in Path("new/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss" in line] == [2]
    assert [path.name for path in Path("new").glob("sample*")] == ["sample-000003.png"]


# -- other doors ------------------------------------------------------------------------------------------------------


def test_nothing_phones_home(folder, monkeypatch):
    """Neither training nor sampling asks for an address or opens a connection."""

    def refuse(*arguments, **_):
        raise AssertionError(f"a connection was opened: {arguments}")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    succeed("train", "--config", "a.json", "--steps", 1, "--sample-every", 1, "-q", "-o", "new")
    succeed("sample", "x", "--model", "new/imagen.pt", "-q")
    assert torch.load("new/imagen.pt", weights_only=True)["steps"].tolist() == [1]


def test_dependencies_are_looked_through_by_hand():
    """`make audit` looks for known weaknesses, and the tests, which need no network, do not."""
    makefile = (ROOT / "Makefile").read_text()
    audit = re.search(r"^audit:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    assert "-m pip_audit" in audit and "audit" not in re.search(r"^test:.*", makefile, re.MULTILINE)[0].split("##")[0]

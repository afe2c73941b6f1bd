"""Every option of every command with values that it cannot take, and texts of files that would steer a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.cli._options import PerStage, Positive
from imagen_pytorch.cli.train import UnetChoice

CONTEXT = click.Context(main)
NUMBERS = (click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT), Positive, UnetChoice)


def numeric(option: click.Parameter) -> bool:
    kind = option.type
    return isinstance(kind, NUMBERS) or (isinstance(kind, PerStage) and kind.kind in (int, float))


OPTIONS = [
    (name, option.opts[-1])
    for name in main.list_commands(CONTEXT)
    for option in main.get_command(CONTEXT, name).params
    if isinstance(option, click.Option) and numeric(option)
]


def option_of(command: str, name: str) -> click.Parameter:
    return next(option for option in main.get_command(CONTEXT, command).params if option.name == name)


PRECISE = ("info", "profile", "sample", "train")


@pytest.mark.parametrize("command", PRECISE)
@pytest.mark.parametrize(
    ("given", "meant"),
    [("no", "no"), ("fp32", "no"), ("float32", "no"), ("fp16", "fp16"), ("float16", "fp16"), ("bf16", "bf16"),
     ("bfloat16", "bf16")],
)  # fmt: skip
def test_precisions_have_the_names_of_other_libraries_too(command, given, meant):
    assert option_of(command, "precision").type.convert(given, None, None) == meant
    with pytest.raises(click.BadParameter, match="'fp8' is not one of 'fp32', 'bf16', 'fp16', 'auto'"):
        option_of(command, "precision").type.convert("fp8", None, None)


def test_all_commands_have_options_with_numbers():
    numbered = {command for command, _ in OPTIONS}
    assert numbered == set(main.list_commands(CONTEXT)) - {"doctor", "completion", "report"} and len(OPTIONS) > 25


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda word: word.strip("-"))
def test_numbers_that_are_none_are_refused_before_anything_is_done(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ("-1", "nan", "inf", "1e400", "x", "", "1,,2", "9" * 5000 + "x", "\x1b[2J"):
        done = CliRunner().invoke(main, [command, option, value])
        assert done.exit_code == 2 and done.stdout == "", (value, done.stderr)
        (line,) = done.stderr.splitlines()
        assert "Traceback" not in line and "unexpected)" not in line and "\x1b" not in line and len(line) < 900
        assert option in line or "-1" in line, line
    assert not list(tmp_path.iterdir())


#: options of which no number is too large: they end something, are a rate, or count what is made one after another
ENDLESS = {"--num-images", "--unet", "--stop-at-unet", "--steps", "--max-steps", "--epochs", "--judge", "--valid",
           "--log-every", "--save-every", "--sample-every", "--lr", "--fps", "--keep"}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command, option in OPTIONS if option not in ENDLESS or (command, option) in (
        ("sample", "--steps"), ("profile", "--steps"))],
    ids=lambda word: word.strip("-"),
)  # fmt: skip
def test_numbers_that_no_memory_holds_are_refused_before_anything_is_done(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [command, option, str(10**30)])
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 2 and option in line and "unexpected" not in line and not list(tmp_path.iterdir())


HOSTILE = "x\x1b]0;OWNED\x07\x1b[2J\x9b31m\u202e"
MODEL = {
    "image_sizes": [8],
    "condition_on_text": False,
    "timesteps": 1,
    "unets": [{"dim": 8, "dim_mults": [1], "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {HOSTILE: 1},
        {"imagen": {**MODEL, HOSTILE: 1}},
        {"imagen": {**MODEL, "text_encoder_name": HOSTILE, "condition_on_text": True}},
        {"imagen": {**MODEL, "loss_type": HOSTILE}},
        {"trainer": {HOSTILE: 1}},
        {"dataset_name": HOSTILE},
        {"dataset": {"batch_size": 2, HOSTILE: 1}},
        {"checkpoint_path": f"{HOSTILE}.pt"},
        {"type": HOSTILE},
        {"sample_texts": [HOSTILE]},
    ],
    ids=["key", "model", "encoder", "loss", "trainer", "data", "loader", "checkpoint", "type", "captions"],
)
@pytest.mark.parametrize("command", ["train --steps 1 --sample-every 1", "info", "config --path"])
def test_a_configuration_cannot_steer_the_terminal(changes, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8)).save("pictures/a.png")
    values = {"imagen": MODEL, "dataset_name": "pictures", "dataset": {"batch_size": 2}, **changes}
    Path("imagen_config.json").write_text(json.dumps(values))
    arguments = (
        [*command.split(), "imagen_config.json"] if "config" in command or command == "info" else command.split()
    )
    done = CliRunner().invoke(main, arguments)
    spoken = done.stderr + ("" if "checkpoint_path" in changes else done.stdout)  # programs get a path as it is
    assert not set(spoken) & set("\x1b\x07\x9b\u202e"), spoken
    assert "Traceback" not in spoken and "unexpected)" not in spoken


def test_names_of_files_cannot_steer_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["info", HOSTILE], ["sample", "x", "--model", HOSTILE], ["train", "--config", HOSTILE],
                      ["train", "--data", HOSTILE], ["config", "--preset", HOSTILE], ["sample", "--prompts", HOSTILE],
                      ["sample", "x", "--device", HOSTILE], ["config", "--path", f"{HOSTILE}/c.json"]):  # fmt: skip
        done = CliRunner().invoke(main, arguments)
        assert not set(done.stderr) & set("\x1b\x07\x9b\u202e") and "unexpected)" not in done.stderr, arguments

"""The command line as a process: quick to start, honest exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imagen_pytorch import cli
from imagen_pytorch.cli._presets import preset_path
from imagen_pytorch.configs import loader_arguments
from imagen_pytorch.data import open_source
from imagen_pytorch.version import __version__

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("compare", "config", "demo", "eval", "sample", "train")


CONTEXT = click.Context(cli.main)


def process(*arguments: str, code: str | None = None, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """A new interpreter that runs ``imagen`` or some code."""
    start = ["-c", code] if code else ["-m", "imagen_pytorch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, cwd=folder, env=environment
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_quick_and_loads_nothing_heavy(arguments):
    code = (
        "import json, sys\n"
        "from imagen_pytorch.cli import main\n"
        "try: main(prog_name='imagen')\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'pydantic', 'numpy', 'PIL'} & set(sys.modules)\n"
        "import time; print('\\n' + json.dumps([code, sorted(heavy), time.process_time()]))"
    )
    done = process(*arguments, code=code)
    status, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and heavy == [] and done.stderr == ""
    assert seconds < 1.0  # 0.1 s on an idle machine
    assert __version__ in done.stdout if "--version" in arguments else "Usage: imagen" in done.stdout


def test_module_and_script_are_the_same_command():
    assert cli.main is cli.imagen is cli.imagen_pytorch
    done = process("--version")
    assert done.returncode == 0 and done.stdout == f"imagen, version {__version__}\n"


def test_commands_are_listed_in_the_order_of_use_and_described_in_full():
    listed = CliRunner().invoke(cli.main, ["--help"], terminal_width=80).stdout
    lines = listed[listed.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == [*cli.ORDER] and all(line.endswith(".") for line in lines)
    assert "..." not in listed[listed.index("Commands:") :]


def test_commands_are_the_files_of_the_folder():
    listed = CliRunner().invoke(cli.main, ["--help"]).stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        assert name in cli.main.list_commands(CONTEXT)
    assert not [name for name in cli.main.list_commands(CONTEXT) if name.startswith("_")]


@pytest.mark.parametrize(
    "arguments", [["smaple"], ["sample", "--cond-scal", "3", "x"], ["sample", "a", "b"], ["--nope"]]
)
def test_usage_errors_are_one_line(arguments):
    done = process(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("imagen")
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["smaple"], 'did you mean "sample"'),
        (["sample", "--cond-scal", "3"], "--cond-scale"),
        (["train", "--epoch", "3"], "--epochs"),
    ],
)
def test_did_you_mean(arguments, hint):
    assert hint in CliRunner().invoke(cli.main, arguments).stderr


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("cond_scale", "cond-scale"),
        ("epoches", "epochs"),
        ("load_ema", "load-ema"),
        ("dataset", "data"),
        ("guidance_scale", "cond-scale"),
        ("max_train_steps", "max-steps"),
        ("num_inference_steps", "steps"),
        ("mixed_precision", "precision"),
        ("seed", "seed"),
    ],
)
def test_spellings_of_others(given, ours):
    assert cli.canonical_option(given) == ours


def test_an_alias_leads_to_an_option_that_exists():
    options = [item for command in COMMANDS for item in cli.main.get_command(CONTEXT, command).params]
    known = {name for item in options for name in item.opts}
    assert {f"--{name}" for name in cli.ALIASES.values()} <= known


def test_every_command_takes_debug_once():
    for command in COMMANDS:
        for _ in range(2):
            options = [item for item in cli.main.get_command(CONTEXT, command).params if "--debug" in item.opts]
        assert len(options) == 1


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    plain = CliRunner().invoke(cli.main, ["train", "--config", str(broken)])
    shown = CliRunner().invoke(cli.main, ["train", "--config", str(broken), "--debug"])
    assert plain.exit_code == shown.exit_code == 2
    assert "Traceback" not in plain.stderr and "Traceback" in shown.stderr
    assert "line 1, column 2" in plain.stderr


@pytest.mark.parametrize(
    ("before", "count"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "5"}, "5")],
)
def test_waiting_threads_soon_sleep_unless_told_otherwise(before, count, monkeypatch):
    """Before torch is imported, or it would not be read."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    code = (
        "import os, sys\n"
        "from imagen_pytorch.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    assert process(code=code).stdout.split()[-1] == count


def test_captions_in_the_help_are_known_to_the_ready_made_models():
    """What the first page and the help of `sample` show is a caption that a preset was trained with."""
    known = set()
    for name in ("emoji", "moving-digits"):
        config = json.loads(preset_path(name).read_text(encoding="utf-8"))
        size = config["imagen"]["image_sizes"][0]
        options = {key: item for key, item in config["dataset"].items() if key not in loader_arguments()}
        known |= set(open_source(config["dataset_name"], image_size=size, **options).captions)
    pages = [CliRunner().invoke(cli.main, words).output for words in (["--help"], ["sample", "--help"])]
    shown = {caption for page in pages for caption in re.findall(r'imagen sample "([^"]+)"', page)}
    assert shown and shown <= known, shown - known

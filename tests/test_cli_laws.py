"""What every command has in common: its help, --json and --quiet."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from imagen_pytorch.cli import ORDER, main

#: commands that print a report and nothing else, on which --quiet would have no effect
REPORTS = {"info", "report", "doctor", "completion"}


def context(name: str) -> click.Context:
    parent = click.Context(main, info_name="imagen", terminal_width=80, max_content_width=80)
    return click.Context(main.get_command(parent, name), parent=parent, info_name=name)


COMMANDS = main.list_commands(click.Context(main))
OPTIONS = {
    f"{name} {option.opts[-1]}": (name, option)
    for name in COMMANDS
    for option in context(name).command.params
    if isinstance(option, click.Option)
}


def test_commands_stand_in_order_of_use_with_whole_descriptions():
    assert set(ORDER) >= set(COMMANDS)
    text = main.get_help(click.Context(main, info_name="imagen", terminal_width=80, max_content_width=80))
    assert not [line for line in text.splitlines()[1:] if line.endswith("...")]
    assert not [line for line in text.splitlines() if len(line) > 80]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name):
    text = context(name).command.get_help(context(name))
    assert not [line for line in text.splitlines() if len(line) > 80]


@pytest.mark.parametrize("place", OPTIONS)
def test_every_option_says_what_it_does_its_choices_and_its_default(place):
    name, option = OPTIONS[place]
    record = "  ".join(option.get_help_record(context(name)))
    assert option.help and option.help.rstrip()[-1] in ".])"
    if isinstance(option.type, click.Choice):
        assert all(str(choice) in record for choice in option.type.choices)
    default = option.get_default(context(name))
    stated = isinstance(default, str | int | float) and default != "" and not option.is_flag
    assert not stated or (str(default) in record and "default" in record)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_quiet_where_it_speaks(name):
    options = {text for option in context(name).command.params for text in option.opts}
    assert "--json" in options and ("--quiet" in options) == (name not in REPORTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_one_json_object_too(name):
    done = CliRunner().invoke(main, [name, "--nonsense", "--json"])
    assert done.exit_code == 2 and json.loads(done.stdout) == {"error": done.stderr.strip(), "exit_code": 2}


def test_results_are_one_json_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["config", "--json"])
    wanted = {"command": "config", "outputs": ["imagen_config.json"], "exit_code": 0}
    assert done.exit_code == 0 and json.loads(done.stdout) == wanted
    shown = json.loads(CliRunner().invoke(main, ["config", "-o", "-", "--json"]).stdout)
    assert json.loads(shown["text"]) == json.loads((tmp_path / "imagen_config.json").read_text())
    again = CliRunner().invoke(main, ["config", "--json"])
    assert again.exit_code == 2 and "exists already" in json.loads(again.stdout)["error"]
    assert CliRunner().invoke(main, ["config", "--force", "--quiet"]).stderr == ""


def test_an_image_and_an_object_do_not_share_standard_output():
    done = CliRunner().invoke(main, ["sample", "a red heart", "-o", "-", "--json"])
    assert done.exit_code == 2 and "both take standard output" in json.loads(done.stdout)["error"]


def test_json_is_a_word_after_the_end_of_options(tmp_path):
    done = CliRunner().invoke(main, ["export", "--nonsense", "--", "--json"])
    assert done.exit_code == 2 and done.stdout == ""


def test_the_command_line_as_a_program():
    words = [sys.executable, "-m", "imagen_pytorch", "nonsense", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and json.loads(done.stdout)["error"] == done.stderr.strip()

"""Paths on the command line: "~" is the home folder wherever it comes from, and no path is empty."""

from __future__ import annotations

import os

import click
import pytest
from click.testing import CliRunner

from imagen_pytorch.cli import main
from imagen_pytorch.cli._options import Place

#: options whose value is a path
PATHS = {
    "compare": ["--prompts", "--output"],
    "config": ["--path", "--data"],
    "eval": [None, "--output"],
    "demo": ["--config", "--output"],
    "export": ["--output"],
    "info": [None],
    "profile": ["--config", "--model", "--output"],
    "sample": ["--model", "--output", "--prompts", "--from-png", "--init", "--inpaint", "--mask"],
    "train": ["--config", "--checkpoint", "--output"],
}
for options in PATHS.values():
    options.append("--import")
EVERY = [(command, option) for command, options in PATHS.items() for option in options]


@pytest.mark.parametrize("command", PATHS)
def test_every_option_of_a_path_is_known(command):
    """Those whose help names a path, a file or a folder."""
    parameters = main.get_command(click.Context(main), command).params
    named = [item for item in parameters if item.metavar in ("PATH", "FILE", "FOLDER") or item.name == "target"]
    assert len(named) == len(PATHS[command]) and all(isinstance(item.type, Place) for item in named)
    assert all(option is None or any(option in item.opts for item in named) for option in PATHS[command])


@pytest.mark.parametrize("value", ["", " ", "~nobody9/x"])
@pytest.mark.parametrize(("command", "option"), EVERY)
def test_no_path(command, option, value, tmp_path, monkeypatch):
    """An unset variable of a script, or a user that does not exist, and nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [command, *([] if option is None else [option]), value])
    reason = f"{value}: this user does not exist; a name that begins so is" if value.strip() else "must not be empty"
    assert done.exit_code == 2 and reason in done.stderr.replace("\n", " ") and not os.listdir(tmp_path)


def test_the_home_folder_is_meant(tmp_path, monkeypatch):
    """A shell leaves it as it is in --path=~/x and in quotes."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["config", "--path=~/deep/c.json"]).exit_code == 0
    assert (tmp_path / "home" / "deep" / "c.json").is_file() and os.listdir(tmp_path) == ["home"]
    for arguments in (["info", "~/a.pt"], ["sample", "--model=~/a.pt", "a"], ["train", "--config=~/a.pt"]):
        assert f"{tmp_path / 'home' / 'a.pt'}" in CliRunner().invoke(main, arguments).stderr

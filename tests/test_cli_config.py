"""``imagen config`` and the ready-made configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from imagen_pytorch.cli import _presets, main
from imagen_pytorch.cli._settings import Request, build_settings
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.construction import build_on_meta
from imagen_pytorch.profiling.estimates import Plan, estimate_training
from imagen_pytorch.signatures import parse, read_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(item) for item in arguments])


def test_writes_a_small_configuration_where_peers_expect_it(run, tmp_path):
    """Bare, it is one that any machine can train, and it says what to edit; the paper's cascade has a name."""
    done = run("config")
    assert done.exit_code == 0 and done.stdout == "imagen_config.json\n"
    assert json.loads((tmp_path / "imagen_config.json").read_text()) == read_json(ROOT / "configs" / "emoji.json")
    assert (
        "preset emoji" in done.stderr and "edit dataset_name" in done.stderr and "moving-digits, paper" in done.stderr
    )
    assert "next: imagen train --config imagen_config.json" in done.stderr
    run("config", "--preset", "paper", "-o", "paper.json")
    assert read_json(tmp_path / "paper.json") == read_json(ROOT / "imagen_pytorch" / "default_config.json")


def test_what_is_written_bare_trains_within_a_gigabyte():
    """Weights, averages, gradients, moments and what the forward pass of each network takes."""
    config = parse(TrainingConfig, read_json(_presets.preset_path("default")))
    plan = Plan(batch_size=config.dataset["batch_size"], enough=0)
    cascade = build_on_meta(config.imagen._make)
    assert all(estimate_training(cascade, number, plan).total < 10**9 for number in (1, 2))


def test_captions_of_a_preset_are_not_drawn_for_other_data(run, tmp_path):
    """They are replaced by captions of the data; edited ones stay."""
    run("config")
    request = replace(Request(**dict.fromkeys(Request.__dataclass_fields__)), data="pictures", text=(), quiet=True)
    assert build_settings(request).config.sample_texts == []
    values = read_json(tmp_path / "imagen_config.json")
    Path("imagen_config.json").write_text(json.dumps({**values, "sample_texts": ["mine"]}))
    assert build_settings(request).config.sample_texts == ["mine"]


def test_makes_the_folder(run, tmp_path):
    assert run("config", "--path", "a/b/c.json").exit_code == 0
    assert (tmp_path / "a/b/c.json").is_file()


def test_never_replaces_without_force(run, tmp_path):
    target = tmp_path / "mine.json"
    target.write_text("mine")
    refused = run("config", "--path", target)
    assert refused.exit_code == 2 and "--force" in refused.stderr and target.read_text() == "mine"
    assert run("config", "--path", target, "--force").exit_code == 0
    assert read_json(target) == read_json(ROOT / "configs" / "emoji.json")


def test_a_folder_gets_the_usual_name(run, tmp_path):
    assert run("config", "--path", tmp_path).exit_code == 0
    assert (tmp_path / "imagen_config.json").is_file()


def test_shows_a_preset(run, tmp_path):
    done = run("config", "--preset", "emoji", "--path", "-")
    assert json.loads(done.stdout) == json.loads((ROOT / "configs" / "emoji.json").read_text())
    assert not list(tmp_path.iterdir())


def test_an_unknown_preset_lists_what_there_is(run):
    done = run("config", "--preset", "emojy")
    assert done.exit_code == 2 and 'did you mean "emoji"' in done.stderr and "default" in done.stderr


def test_a_misspelt_preset_is_recognized_wherever_a_configuration_is_named(run):
    for command in ("train", "profile"):
        done = run(command, "--config", "emojy")
        assert done.exit_code == 2 and 'did you mean "emoji"' in done.stderr


def test_every_json_file_of_the_checkout_is_a_preset():
    assert set(_presets.preset_names()) == {
        "default",
        "paper",
        *(path.stem for path in (ROOT / "configs").glob("*.json")),
    }
    assert _presets.preset_path("emoji").is_file()


def test_presets_inside_the_package_come_first(monkeypatch, tmp_path):
    """As in an installed wheel, where setup.py has put them."""
    package = tmp_path / "site-packages" / "imagen_pytorch"
    (package / "presets").mkdir(parents=True)
    (package.parent / "configs").mkdir()
    (package / "presets" / "emoji.json").write_text("{}")
    (package.parent / "configs" / "foreign.json").write_text("{}")
    monkeypatch.setattr(_presets.resources, "files", lambda _: package)
    assert _presets.preset_names() == ("default", "emoji", "paper")
    assert _presets.preset_path("paper") == package / "default_config.json"
    assert _presets.preset_path("emoji") == package / "presets" / "emoji.json"


def test_which_configuration_is_used(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert _presets.find_config(None) == (_presets.preset_path("emoji"), True)
    assert _presets.find_config("default") == (_presets.preset_path("default"), True)
    Path("imagen_config.json").write_text("{}")
    assert _presets.find_config(None) == (Path("imagen_config.json"), False)
    Path("emoji").write_text("{}")
    assert _presets.find_config("emoji") == (Path("emoji"), False)


def test_options_may_be_environment_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEN_CONFIG_PRESET", "moving-digits")
    monkeypatch.setenv("IMAGEN_CONFIG_PATH", "from_the_environment.json")
    assert CliRunner().invoke(main, ["config"]).exit_code == 0
    assert read_json("from_the_environment.json") == read_json(ROOT / "configs" / "moving-digits.json")
    done = CliRunner().invoke(main, ["config", "--path", "stated.json"])  # what is typed wins
    assert done.exit_code == 0 and (tmp_path / "stated.json").is_file()
    monkeypatch.setenv("IMAGEN_CONFIG_PRESET", "nonsense")
    assert 'no ready-made configuration "nonsense"' in CliRunner().invoke(main, ["config", "--path", "x"]).stderr

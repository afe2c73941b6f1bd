"""``imagen config`` and the ready-made configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli import _doctor, _presets, _recipe, main
from imagen_pytorch.cli._settings import Request, build_settings
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.construction import build_on_meta
from imagen_pytorch.profiling.advice import this_machine
from imagen_pytorch.profiling.estimates import Plan, estimate_training
from imagen_pytorch.signatures import parse, read_config

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
    assert json.loads((tmp_path / "imagen_config.json").read_text()) == read_config(ROOT / "configs" / "emoji.json")
    assert (
        "preset emoji" in done.stderr and "edit dataset_name" in done.stderr and "moving-digits, paper" in done.stderr
    )
    assert "next: imagen train --config imagen_config.json" in done.stderr
    run("config", "--preset", "paper", "-o", "paper.json")
    assert read_config(tmp_path / "paper.json") == read_config(ROOT / "imagen_pytorch" / "default_config.json")


def test_what_is_written_bare_trains_within_a_gigabyte():
    """Weights, averages, gradients, moments and what the forward pass of each network takes."""
    config = parse(TrainingConfig, read_config(_presets.preset_path("default")))
    plan = Plan(batch_size=config.dataset["batch_size"], enough=0)
    cascade = build_on_meta(config.imagen._make)
    assert all(estimate_training(cascade, number, plan).total < 10**9 for number in (1, 2))


def test_captions_of_a_preset_are_not_drawn_for_other_data(run, tmp_path):
    """They are replaced by captions of the data; edited ones stay."""
    run("config")
    request = replace(Request(**dict.fromkeys(Request.__dataclass_fields__)), data="pictures", text=(), quiet=True)
    assert build_settings(request).config.sample_texts == []
    values = read_config(tmp_path / "imagen_config.json")
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
    assert read_config(target) == read_config(ROOT / "configs" / "emoji.json")


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
    assert read_config("from_the_environment.json") == read_config(ROOT / "configs" / "moving-digits.json")
    done = CliRunner().invoke(main, ["config", "--path", "stated.json"])  # what is typed wins
    assert done.exit_code == 0 and (tmp_path / "stated.json").is_file()
    monkeypatch.setenv("IMAGEN_CONFIG_PRESET", "nonsense")
    assert 'no ready-made configuration "nonsense"' in CliRunner().invoke(main, ["config", "--path", "x"]).stderr


# -- other formats, and the schema ------------------------------------------------------------------------------------


def test_yaml_is_written_by_the_suffix_and_toml_is_not(run, tmp_path):
    assert run("config", "-o", "mine.yaml").exit_code == 0
    assert read_config(tmp_path / "mine.yaml") == read_config(ROOT / "configs" / "emoji.json")
    assert not (tmp_path / "mine.yaml").read_text().startswith("{")
    refused = run("config", "-o", "mine.toml")
    assert refused.exit_code == 2 and "TOML is read but not written" in refused.stderr


def test_the_schema_fits_every_shipped_configuration_and_finds_mistakes(run):
    jsonschema = pytest.importorskip("jsonschema", reason="comes with moto, a package of the tests")
    schema = json.loads(run("config", "--schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    files = [*(ROOT / "configs").glob("*.json"), ROOT / "imagen_pytorch" / "default_config.json"]
    for path in files:
        values = json.loads(path.read_text())
        assert validator.is_valid({"$schema": "config.schema.json", **values}), path
        network = {**values["imagen"]["unets"][0], "dimm": 1}
        for mistake in ({"stepss": 1}, {"steps": "x"}, {"dataset": {"batch_sizee": 1}}, {"trainer": {"lr": {}}},
                        {"imagen": {**values["imagen"], "timestep": 1}},
                        {"imagen": {**values["imagen"], "unets": [network]}}):  # fmt: skip
            assert not validator.is_valid({**values, **mistake}), mistake


# -- a configuration for a folder -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twelve images with captions."""
    place = tmp_path / "images"
    place.mkdir()
    for index in range(12):
        Image.new("RGB", (40 + index, 24), (20 * index, 100, 50)).save(place / f"{index:02}.png")
        (place / f"{index:02}.txt").write_text(f"colour {index}")
    return place


@pytest.fixture
def quick(monkeypatch):
    """Networks of a toy's width, steps of known length, and a processor that gains nothing from bfloat16."""
    monkeypatch.setattr(_recipe, "_CPU", (16, 8, 4))
    monkeypatch.setattr(_recipe, "_seconds", lambda config: [0.5, 0.25][: len(config.imagen.unets)])
    monkeypatch.setattr(_doctor, "product_seconds", lambda *_: 1.0)


def test_a_configuration_for_a_folder_trains(run, folder, quick, tmp_path):
    done = run("config", "--data", "images", "--size", "32", "-o", "mine.json", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["outputs"] == ["mine.json"], done.stderr
    for words in ("images: 12 images with captions; shorter sides 24 to 24 pixels", "8x8 -> 32x32 on cpu in fp32"):
        assert words in done.stderr
    assert "12 of 12 images that were looked at are smaller than 32x32" in done.stderr
    assert "the first sheet after 50 seconds, the end after 10 minutes" in done.stderr
    assert "next: imagen train --config mine.json --unet all" in done.stderr
    values = read_config(tmp_path / "mine.json")
    assert values["steps"] == [1000, 333] and values["sample_texts"] == [f"colour {index}" for index in range(8)]
    trained = run("train", "--config", "mine.json", "--unet", "all", "--steps", "2", "-o", "out", "--sample-every", "0")
    assert trained.exit_code == 0, trained.stderr
    assert read_checkpoint(tmp_path / "out" / "imagen.pt")["steps"].tolist() == [2, 2]


def test_a_folder_without_captions_and_one_stage(run, folder, quick, tmp_path):
    for path in folder.glob("*.txt"):
        path.unlink()
    done = run("config", "--data", "images", "--size", "16", "-o", "-")
    values = json.loads(done.stdout)
    assert values["imagen"]["condition_on_text"] is False and values["imagen"]["image_sizes"] == [16]
    assert len(values["imagen"]["unets"]) == 1 and values["sample_texts"] == []
    assert parse(TrainingConfig, values).imagen.create().unconditional
    assert "without captions" in done.stderr


def test_memory_bounds_the_images_at_once(run, folder, quick, monkeypatch):
    least = this_machine(None)._replace(memory=1)
    whole = json.loads(run("config", "--data", "images", "--size", "32", "-o", "-").stdout)
    assert "max_batch_size" not in whole
    config = parse(TrainingConfig, whole)
    cascade = build_on_meta(config.imagen._make)
    need = max(estimate_training(cascade, number, Plan(batch_size=2, averages=1, enough=0)).total for number in (1, 2))
    monkeypatch.setattr("imagen_pytorch.profiling.advice.this_machine", lambda *_, **__: least._replace(memory=need))
    made = json.loads(run("config", "--data", "images", "--size", "32", "-o", "-").stdout)
    assert made == {**whole, "max_batch_size": 2}
    monkeypatch.setattr("imagen_pytorch.profiling.advice.this_machine", lambda *_, **__: least)
    refused = run("config", "--data", "images", "--size", "32", "-o", "-")
    assert refused.exit_code == 5 and "training U-Net 1 needs" in refused.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "32"], "--size is for --data"),
        (["--data", "images", "--preset", "emoji"], "--data and --preset contradict each other"),
        (["--data", "images", "--size", "50"], "it is a multiple of 16"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_in_what_a_configuration_is_made_for(run, folder, quick, tmp_path, options, sentence):
    done = run("config", *options)
    assert done.exit_code in (1, 2, 3) and sentence in done.stderr and not (tmp_path / "imagen_config.json").exists()


def test_stages_grow_by_four_from_what_the_machine_can_train():
    assert [_recipe.stage_sizes(size, 32) for size in (16, 32, 64, 128, 256, 1024)] == [
        [16], [32], [16, 64], [32, 128], [16, 64, 256], [16, 64, 256, 1024]
    ]  # fmt: skip
    assert [_recipe.duration(value) for value in (40, 600, 3 * 3600, 5 * 86400)] == [
        "40 seconds", "10 minutes", "3.0 hours", "5.0 days"
    ]  # fmt: skip


def test_a_step_of_every_stage_is_measured():
    unet = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
    values = {"imagen": {"unets": [unet, unet], "image_sizes": [8, 16], "condition_on_text": False}}
    found = _recipe._seconds(parse(TrainingConfig, {**values, "dataset": {"batch_size": 2}}))
    assert len(found) == 2 and min(found) > 0

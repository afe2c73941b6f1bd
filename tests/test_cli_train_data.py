"""The data of ``imagen train``: the same folder in another spelling, other folders, folders without captions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from train_toys import SMALL, enter, imagen, refused, steps, succeed, write_config

from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli._sources import change_of_data, kind_of_source, same_source

FREE = {**SMALL, "text_encoder_name": None}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL, dataset={"batch_size": 4, "caption_extension": ".caption", "random_flip": False})
    for path in (tmp_path / "pictures").glob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    return tmp_path


def without_captions(name="pictures"):
    for path in Path(name).glob("*.[tc]*"):
        path.unlink()


# -- names ------------------------------------------------------------------------------------------------------------


def spellings(folder):
    (folder / "link").symlink_to("pictures")
    (folder / "home").mkdir()
    return ["pictures", "pictures/", "./pictures", "home/../pictures//", "link", str(folder / "pictures"),
            f"file://{folder}/pictures/", "~/../pictures"]  # fmt: skip


def test_a_folder_is_the_same_in_every_spelling(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    names = spellings(folder)
    assert all(same_source(one, other) for one in names for other in names)
    assert not any(same_source(name, "home") for name in names)
    assert same_source("s3://bucket/a", "s3://bucket/a/") and not same_source("s3://bucket/a", "s3://bucket/b")
    assert not same_source("emoji64", "moving-digits") and not same_source("owner/name", "owner/other")


def test_kinds_of_sources(folder):
    assert [kind_of_source(name) for name in ("emoji64", "pictures", "gone", "./gone/x", "s3://b/a", "owner/name")] == [
        "emoji64", "folder", "folder", "folder", "folder", "hub"
    ]  # fmt: skip


@pytest.mark.parametrize("index", [1, 4, 6, 7])
def test_arguments_of_the_data_stay_whatever_the_spelling(folder, monkeypatch, index):
    monkeypatch.setenv("HOME", str(folder / "home"))
    done = succeed("train", "--steps", 1, "--data", spellings(folder)[index])
    assert "4 images\n" in done.stderr and "left out" not in done.stderr


def test_another_folder_keeps_what_folders_take_and_the_rest_is_named(folder):
    os.rename("pictures", "photos")
    done = succeed("train", "--steps", 1, "--data", "photos")
    assert "photos: 4 images\n" in done.stderr and "left out" not in done.stderr
    write_config(model=SMALL, dataset_name="emoji64", dataset={"batch_size": 4, "split": "train", "groups": ["x"]})
    for path in Path("photos").glob("*.caption"):
        path.rename(path.with_suffix(".txt"))
    done = succeed("train", "--steps", 1, "--data", "photos")
    assert "--data photos is other data than the configuration's: dataset.split, dataset.groups left out" in done.stderr


def test_a_run_in_the_folder_of_its_data_does_not_read_what_it_wrote(folder):
    write_config(
        "config.json", model=SMALL, dataset_name=".", dataset={"batch_size": 2, "caption_extension": ".caption"}
    )
    os.chdir("pictures")
    arguments = ("--config", "../config.json", "--steps", 1, "--sample-every", 1, "--text", "a red square")
    for _ in range(2):
        assert ".: 4 images\n" in succeed("train", *arguments).stderr
    assert Path("sample-000002.png").is_file() and Path("loss.png").is_file() and steps() == [2]


# -- captions ---------------------------------------------------------------------------------------------------------


def test_images_without_captions_train_a_model_without_text(folder):
    """Of a ready-made configuration, or of one that does not ask for captions: the checkpoint says so, and goes on."""
    without_captions()
    write_config(model=FREE, dataset=None)
    done = succeed("train", "--steps", 1, "--sample-every", 1, "--batch-size", 2)
    assert "no image of pictures has a caption: this model is trained without text" in done.stderr
    assert "pictures: 4 images without captions" in done.stderr and Path("sample-000001.png").is_file()
    params = read_checkpoint("imagen.pt")["imagen_params"]
    assert params["condition_on_text"] is False and done.stderr.endswith("sample --model imagen.pt\n")
    assert "going on from imagen.pt after 1 steps" in succeed("train", "--steps", 1, "--batch-size", 2).stderr
    assert succeed("sample", "--seed", 1).stdout == "sample.png\n"


def test_captions_that_are_not_read_are_named_before_a_model_without_text_is_trained(folder):
    write_config(model=FREE)
    for path in Path("pictures").glob("*.caption"):
        path.rename(path.with_suffix(".captions"))
    done = imagen("train", "--steps", 1)
    assert done.exit_code == 2 and "have no captions" in done.stderr.splitlines()[-1], done.stderr
    assert ".captions" in done.stderr.splitlines()[-1] and not Path("imagen.pt").exists()


def test_the_ready_made_configuration_trains_images_without_captions(folder):
    without_captions()
    os.remove("imagen_config.json")
    done = succeed("train", "--data", "pictures", "--steps", 1, "--batch-size", 2, "--sample-every", 0)
    assert "this model is trained without text" in done.stderr and steps() == [1, 0]


@pytest.mark.parametrize(
    "asked", [{"text_encoder_name": "builtin:words"}, {**FREE, "condition_on_text": True, "text_embed_dim": 4}]
)
def test_a_configuration_that_asks_for_captions_is_refused_with_the_cure(folder, asked):
    without_captions()
    write_config(model={**SMALL, **asked})
    refused(imagen("train", "--steps", 1), 2, "have no captions", '"condition_on_text": false in "imagen"')
    values = json.loads(Path("imagen_config.json").read_text())
    values["imagen"]["condition_on_text"] = False  # the cure
    Path("imagen_config.json").write_text(json.dumps({**values, "sample_texts": ["a red square"]}))
    done = succeed("train", "--steps", 1, "--sample-every", 1)
    assert "sample_texts is left out" in done.stderr and Path("sample-000001.png").is_file()
    refused(imagen("train", "--steps", 1, "--text", "a red square", "-q"), 2, "--text", "condition_on_text")


# -- what a checkpoint remembers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record", [None, 5, [], {}, {"name": 3}, {"name": "x\x1b[2J" + "y" * 10**6, "count": "z" * 10}]
)
def test_a_record_from_elsewhere_is_only_looked_at(record):
    lines = change_of_data(record, {"name": "pictures", "count": 4, "digest": "d"})
    assert len(lines) <= 1 and all("\x1b" not in line and len(line) < 400 for line in lines)


@pytest.mark.parametrize("value", ["x", 5, [], [["shuffle", True]]])
@pytest.mark.parametrize("key", ["dataset", "trainer"])
def test_a_part_of_the_configuration_that_is_no_object_is_named(key, value, folder):
    write_config(**{key: value})
    refused(imagen("train", "--steps", 1), 2, f"imagen_config.json: {key}: it is an object with entries, got {value!r}")

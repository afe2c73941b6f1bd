"""Models that are installed with the package: they open, draw, are small and described; commands take their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

import imagen_pytorch
from imagen_pytorch import pretrained
from imagen_pytorch.cli import main
from imagen_pytorch.cli._models import newest_below
from imagen_pytorch.data import open_source

MEGABYTES = 25
NAMES = pretrained.pretrained_names()


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_name_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r'no pretrained model is called "moving-digit", known: .*moving-digits; did'):
        pretrained.pretrained_path("moving-digit")
    assert imagen_pytorch.load_demo is pretrained.load_demo and NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_small_and_described(name):
    path = pretrained.pretrained_path(name)
    assert path.stat().st_size <= MEGABYTES * 10**6
    with safe_open(path, "pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a dict
    assert torch.float16 in kinds and not kinds & {torch.float32, torch.float64}
    card = (path.parent / "model_card.md").read_text(encoding="utf-8")
    for heading in ("## Training", "## Figures", "## What it can draw", "## What it cannot draw", "## Licences"):
        assert heading in card
    figures = json.loads((path.parent / "eval.json").read_text(encoding="utf-8"))
    assert figures["date"] in card and figures["machine"] in card
    assert (path.parent / "config.json").is_file() and list(path.parent.glob("metrics*.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_draws_what_its_prompts_ask_for(name):
    model = pretrained.load_demo(name)
    assert not model.training and pretrained.pretrained_name(pretrained.pretrained_path(name)) == name
    prompts = pretrained.pretrained_prompts(name)
    frames = {"video_frames": model.video_frames} if model.is_video else {}
    drawn = model.sample(texts=prompts[:1], seed=[0], steps=2, use_tqdm=False, **frames)
    assert torch.isfinite(drawn).all() and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert float(drawn.std()) > 0.01


def test_without_a_name_it_is_the_model_of_images_and_its_prompts_are_new_to_it():
    """Prompts that were learned would say nothing about the model."""
    model = imagen_pytorch.load_demo()
    assert not model.is_video and [stage.size for stage in model.stages] == [(16, 16), (64, 64)]
    prompts = pretrained.pretrained_prompts(pretrained.DEFAULT)
    for wording in ("plain", "bare"):
        learned = open_source("emoji64", image_size=8, split="train", wording=wording).captions
        assert len(prompts) == 25 and not set(prompts) & set(learned)


def test_in_a_fresh_clone_it_is_the_newest_model():
    """The checkpoints that tests open must not be taken for a user's: folders with "_" are not searched."""
    assert newest_below(str(Path(__file__).parent)) is None


def test_commands_take_the_name_and_say_it(empty):
    done = run("sample", "--model", "moving-digits", "the digit 3 moves left", "--seed", 1, "--steps", 2)
    assert done.exit_code == 0 and done.stdout.split() == ["the_digit_3_moves_left.gif"], done.stderr
    assert done.stderr.startswith('pretrained model "moving-digits" on cpu: ')
    done = run("export", "moving-digits", "--output", "copy.safetensors")
    assert done.exit_code == 0 and Path("copy.safetensors").is_file(), done.stderr


def test_a_file_of_the_user_comes_first_even_a_damaged_one(empty):
    Path("moving-digits").write_bytes(b"not a model")
    done = run("sample", "x", "--model", "moving-digits")
    assert done.exit_code == 4 and not done.stdout and "pretrained model" not in done.stderr, done.stderr


def test_a_wrong_name_is_answered_with_those_that_exist(empty):
    done = run("sample", "x", "--model", "moving-digit")
    assert done.exit_code == 2 and f"({', '.join(NAMES)})" in done.stderr

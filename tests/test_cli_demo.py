"""The demo at toy size: every file that it promises, figures that add up, steps that scale."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal

import pytest
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.cli._demo import evenly_spaced, scaled
from imagen_pytorch.cli._demo_images import upsampler_sentence
from imagen_pytorch.cli._presets import preset_path
from imagen_pytorch.data import open_source
from imagen_pytorch.trainer import ImagenTrainer

TINY_UNET = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": True, "attn_heads": 2}
TINY_UNET |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}


def tiny_config(folder, **changes):
    """A configuration file for eight pictures at 8 x 8 and 16 x 16."""
    data = {"split": "train", "styles": ["flat"], "groups": ["animals-nature"], "limit": 8}
    unseen = open_source("emoji64", split="pair", styles=["flat"], groups=["animals-nature"], image_size=8).captions[0]
    values = {
        "type": "elucidated",
        "imagen": {
            "image_sizes": [8, 16],
            "text_encoder_name": "builtin:words",
            "num_sample_steps": 2,
            "unets": [TINY_UNET, TINY_UNET],
        },
        "trainer": {"lr": 1e-3, "cosine_decay_max_steps": [4, 2]},
        "dataset_name": "emoji64",
        "dataset": {"batch_size": 4, **data},
        "steps": [4, 2],
        "sample_at_every": 0,
        "sample_texts": [open_source("emoji64", image_size=8, **data).captions[3], unseen, "a green idea"],
        **changes,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(values))
    return path


def demo(*arguments):
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


def test_everything_that_is_promised_is_written(tmp_path):
    folder = tmp_path / "run"
    done = demo("--config", tiny_config(tmp_path), "--output", folder, "--judge", 5, "--device", "cpu")
    assert done.exit_code == 0, done.output
    for name in ("stage1-before", "stage2-before", "stage1-after", "stage2-after", "real", "loss"):
        assert Image.open(folder / f"{name}.png").width > 300, name
        assert f"{folder / name}.png" in done.output
    assert len(list((folder / "samples").glob("*.png"))) == 3
    assert (folder / "imagen.pt").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == [4, 2] and metrics["training_pictures"] == 8
    assert list(metrics["caption_retrieval"]) == ["16x16", "8x8"]
    for kind, size in itertools.product(("trained", "held_out"), ("16x16", "8x8")):
        figures = metrics["caption_retrieval"][size][kind]
        assert figures["pictures"] == 5
        assert (figures["extractor"], figures["encoder"]) == ("emoji64-probe", "builtin:words")
        for name in ("generated", "chance", "ceiling"):
            assert 0 <= figures[name]["R@1"] <= figures[name]["R@5"] <= figures[name]["R@10"] <= 1
            assert f"{100 * figures[name]['R@1']:.1f} %" in done.output
        assert set(figures["intervals"]) == {"generated", "ceiling"}
        if size == "16x16":
            assert list(figures["references"]) == ["real", "enlarged", "noise 0.02", "noise 0.04"]
            assert "real, shrunk" in done.output and "real, noise 0.04" in done.output
    upsampler = metrics["caption_retrieval"]["16x16"]["upsampler"]
    assert upsampler["from"] == "8x8" and upsampler["network"]["rmse"] > upsampler["bicubic"]["rmse"] > 0
    assert "given real images of 8x8, the last stage does not beat bicubic enlargement to 16x16" in done.output
    assert done.stdout.strip() == str(folder / "stage2-after.png")
    assert json.loads((folder / "config.json").read_text())["steps"] == [4, 2]


def test_other_data_are_judged_over_an_extractor_that_took_no_part_in_training(tmp_path, monkeypatch):
    from imagen_pytorch.evaluation import features

    for extractor in (features.EfficientNetLite0, features.EfficientNetLite2):  # they take seconds to load
        monkeypatch.setattr(extractor, "available", classmethod(lambda cls: False))
    images, captions = tmp_path / "images", []
    images.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (16, 16), colour).save(images / f"{number}.png")
        captions.append(f"the colour {colour}")
        (images / f"{number}.txt").write_text(captions[-1])
    config = tiny_config(tmp_path, dataset_name=str(images), dataset={"batch_size": 4}, sample_texts=captions[:2])
    done = demo("--config", config, "--output", tmp_path / "run", "--judge", 4, "--device", "cpu")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["caption_retrieval"]
    assert report["16x16"]["trained"]["extractor"] == "emoji64-probe" and "held_out" not in report["16x16"]
    assert report["16x16"]["trained"]["ceiling"]["R@1"] > report["16x16"]["trained"]["chance"]["R@1"]


def test_the_sentence_about_the_last_stage_is_strict():
    bicubic = {"rmse": 0.09, "R@1": 0.4}
    for network, beats in (((0.05, 0.4), True), ((0.09, 0.6), False), ((0.05, 0.3), False)):
        row = {"rmse": network[0], "R@1": network[1]}
        sentence = upsampler_sentence("64x64", {"from": "16x16", "network": row, "bicubic": bicubic})
        assert ("last stage beats bicubic enlargement to 64x64: RMSE 0.050 against 0.090" in sentence) == beats
        assert ("does not beat" in sentence) != beats and "against 40.0 %" in sentence


def test_the_model_of_a_demo_can_be_sampled_and_an_old_run_is_kept(tmp_path):
    config, folder = tiny_config(tmp_path), tmp_path / "run"
    for _ in range(2):
        done = demo("--config", config, "--output", folder, "--judge", 0, "--device", "cpu", "--quiet")
        assert done.exit_code == 0, done.output
    assert done.output.strip() == str(folder / "stage2-after.png")
    assert (tmp_path / "run-1" / "stage2-after.png").is_file()
    first, second = (Image.open(tmp_path / run / "stage2-after.png").tobytes() for run in ("run", "run-1"))
    assert first == second  # the same seed
    out = tmp_path / "cat.png"
    arguments = ["sample", "--model", str(folder / "imagen.pt"), "a cat", "-o", str(out), "--device", "cpu"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert Image.open(out).size == (16, 16)


def interrupted_after(monkeypatch, steps):
    """Ctrl-C after a number of training steps of all U-Nets together, once."""
    step = ImagenTrainer.train_step

    def train_step(self, **arguments):
        loss = step(self, **arguments)
        if int(self.steps.sum()) == steps:
            monkeypatch.setattr(ImagenTrainer, "train_step", step)
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(ImagenTrainer, "train_step", train_step)


@pytest.mark.parametrize("steps", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_an_interrupted_demo_goes_on(tmp_path, monkeypatch, steps):
    config = tiny_config(tmp_path)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert demo("--config", config, "--output", whole, "--judge", 0, "--device", "cpu").exit_code == 0
    interrupted_after(monkeypatch, steps)
    first = demo("--config", config, "--output", parted, "--judge", 0, "--device", "cpu")
    assert first.exit_code == 130 and first.output.endswith("the same command goes on\n")
    before = (parted / "stage2-before.png").read_bytes()
    second = demo("--config", config, "--output", parted, "--judge", 0, "--device", "cpu")
    assert second.exit_code == 0, second.output
    assert not (tmp_path / "parted-1").exists() and (parted / "stage2-before.png").read_bytes() == before
    for name in ("stage1-after", "stage2-after"):
        assert (parted / f"{name}.png").read_bytes() == (whole / f"{name}.png").read_bytes()


def test_another_demo_does_not_go_on_with_this_one(tmp_path, monkeypatch):
    interrupted_after(monkeypatch, 2)
    folder = tmp_path / "run"
    assert demo("--config", tiny_config(tmp_path), "--output", folder, "--judge", 0).exit_code == 130
    assert demo("--config", tiny_config(tmp_path), "--output", folder, "--judge", 0, "--seed", 1).exit_code == 0
    assert (tmp_path / "run-1" / "imagen.pt").is_file() and (folder / "stage2-after.png").is_file()


def test_the_last_lines_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = demo("--config", tiny_config(tmp_path), "--output", "here", "--judge", 0, "--device", "cpu")
    lines = [line.removeprefix("next").strip() for line in done.output.splitlines() if " imagen " in f" {line} "]
    sample, again, train = map(shlex.split, lines)
    assert sample[:2] == ["imagen", "sample"] and again[:2] == ["imagen", "demo"] and train[:2] == ["imagen", "train"]
    assert CliRunner().invoke(main, [*sample[1:], "--device", "cpu", "-o", "fox.png"]).exit_code == 0
    assert CliRunner().invoke(main, [*again[1:], "--judge", "0", "--device", "cpu"]).exit_code == 0
    assert (tmp_path / "here-1").is_dir()  # the finished one


def test_steps_scale_all_that_is_counted_in_steps():
    values = {
        "steps": [2000, 500],
        "sample_at_every": 400,
        "save_at_every": 0,
        "trainer": {"lr": 1.0, "warmup_steps": 50, "cosine_decay_max_steps": [2000, None], "cooldown_steps": 300},
    }
    longer = scaled(values, 4000)
    assert longer["steps"] == [4000, 1000] and longer["sample_at_every"] == 800 and longer["save_at_every"] == 0
    assert longer["trainer"] == {
        "lr": 1.0, "warmup_steps": 50, "cosine_decay_max_steps": [4000, None], "cooldown_steps": 600,
    }  # fmt: skip
    assert scaled(values, None) is values and values["steps"] == [2000, 500]
    assert scaled({"steps": 10}, 1) == {"steps": 1, "trainer": {}}


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"sample_texts": []}, [], "needs sample_texts"),
        ({"steps": None}, ["--steps", "5"], 'needs "steps"'),
        ({"stepps": 3}, [], 'unknown key "stepps"; did you mean "steps"'),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, arguments, message):
    done = demo("--config", tiny_config(tmp_path, **changes), "--output", tmp_path / "run", *arguments)
    assert done.exit_code in (1, 2) and message in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_indices_are_spread_evenly():
    assert (
        evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
        and evenly_spaced(3, 5) == [0, 1, 2]
        and evenly_spaced(0, 5) == []
        and evenly_spaced(5, 0) == []
    )


def test_the_ready_made_prompts_are_known():
    """Each prompt of configs/emoji.json is a caption of its training data or of the part held out of it."""
    config = json.loads(preset_path("emoji").read_text())
    data = {name: config["dataset"][name] for name in ("styles", "groups") if name in config["dataset"]}
    trained, held_out = (
        set(open_source("emoji64", split=split, image_size=8, **data).captions) for split in ("train", "pair")
    )
    prompts = set(config["sample_texts"])
    assert prompts <= trained | held_out and prompts & trained and prompts & held_out
    assert len(prompts) >= 12

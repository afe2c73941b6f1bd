"""``imagen train`` again: what was stated wins, training longer learns more, and what differs is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from train_toys import SMALL, UNET, enter, imagen, metrics, refused, steps, succeed, write_config

from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.checkpoints import write_checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL)
    return tmp_path


def decaying(end):
    write_config(model=SMALL, trainer={"lr": 1e-3, "cosine_decay_max_steps": end})


def rates():
    return [row["lr"] for row in metrics()]


def cosine(step, end):
    """The rate of a step, counted from 1."""
    import math

    return pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / end)), rel=1e-6)


EACH = ("--log-every", 1)


# -- how long, and how fast -------------------------------------------------------------------------------------------


def test_the_rate_falls_until_the_last_step_and_training_longer_raises_it(folder):
    succeed("train", "--steps", 4, *EACH)
    assert rates() == [cosine(step, 4) for step in (1, 2, 3, 4)]
    done = succeed("train", "--steps", 4, *EACH)
    assert rates()[4:] == [cosine(step, 8) for step in (5, 6, 7, 8)]
    assert "U-Net 1: the learning rate falls until step 8, where this run ends, from 0.0005 now" in done.stderr
    assert "(it ended at step 4)" in done.stderr


def test_a_stated_decay_that_ends_too_early_is_extended(folder):
    decaying(2)
    done = succeed("train", "--steps", 4, *EACH)
    assert rates() == [cosine(step, 4) for step in (1, 2, 3, 4)] and min(rates()) > 0
    assert "until step 4" in done.stderr and "trainer.cosine_decay_max_steps is 2" in done.stderr


def test_a_stated_decay_that_ends_later_stays(folder):
    decaying(8)
    assert "learning rate falls" not in succeed("train", "--steps", 2, *EACH).stderr
    assert "learning rate falls" not in succeed("train", "--max-steps", 4, *EACH).stderr
    assert rates() == [cosine(step, 8) for step in (1, 2, 3, 4)]


def test_a_decay_of_null_is_a_constant_rate_and_every_unet_has_its_own(folder):
    write_config(trainer={"lr": 1e-3, "cosine_decay_max_steps": [None, 1]})
    succeed("train", "--unet", "all", "--steps", 2, *EACH)
    assert rates() == [1e-3, 1e-3, cosine(1, 2), cosine(2, 2)]


def test_a_constant_rate_that_begins_to_fall_is_said(folder):
    decaying(None)
    succeed("train", "--steps", 2, *EACH)
    write_config(model=SMALL)
    done = succeed("train", "--steps", 2, *EACH)
    assert "falls until step 4, where this run ends, from 0.0005 now (it was constant)" in done.stderr
    assert rates() == [1e-3, 1e-3, cosine(3, 4), cosine(4, 4)]


def test_a_cool_down_ends_where_the_run_ends_and_a_longer_run_moves_it(folder):
    write_config(model=SMALL, trainer={"lr": 1e-3, "cooldown_steps": 2})
    succeed("train", "--max-steps", 4, *EACH)
    falling = pytest.approx(1e-3 * (1 - 0.5**0.5))
    assert rates() == [1e-3, 1e-3, 1e-3, falling]
    done = succeed("train", "--max-steps", 8, *EACH)
    assert rates()[4:] == [1e-3, 1e-3, 1e-3, falling]
    words = "the learning rate is constant until step 6 and falls until step 8, where this run ends, from 0.001 now"
    assert f"U-Net 1: {words} (it ended at step 4)" in done.stderr


def test_a_cool_down_without_an_end_is_said(folder):
    write_config(model=SMALL, trainer={"lr": 1e-3, "cooldown_steps": 2, "cosine_decay_max_steps": None})
    done = succeed("train", "--max-steps", 3, *EACH)
    assert rates() == [1e-3] * 3 and "stays constant: trainer.cosine_decay_max_steps is null" in done.stderr


def test_an_interrupted_run_goes_on_to_its_own_end(folder, monkeypatch):
    """Neither the command nor the configuration says how long: 1000 steps, also in two runs."""
    import signal

    from imagen_pytorch import ImagenTrainer

    step = ImagenTrainer.train_step

    def interrupted(self, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, **options)

    monkeypatch.setattr(ImagenTrainer, "train_step", interrupted)
    for taken in (1, 2):
        assert imagen("train", *EACH).exit_code == 143 and steps() == [taken]
    assert rates() == [cosine(1, 1000), cosine(2, 1000)]


def test_the_rate_of_the_command_wins(folder):
    succeed("train", "--max-steps", 2, *EACH)
    decaying(None)
    succeed("train", "--steps", 1, "--lr", "1e-5", *EACH)
    assert rates()[-1] == pytest.approx(1e-5)
    write_config()
    succeed("train", "--output", "two", "--unet", "all", "--steps", 1, "--lr", "1e-3,2e-4", *EACH)
    assert [row["lr"] for row in metrics("two/metrics.jsonl")] == [1e-3, 2e-4]


@pytest.mark.parametrize(("rate", "words"), [("0", "above 0"), ("-1", "below"), ("nan", "nan"), ("x", "'x'")])
def test_rates_that_learn_nothing_are_refused(folder, rate, words):
    refused(imagen("train", "--steps", 1, "--lr", rate), 2, "--lr", words)


# -- what it goes on from ---------------------------------------------------------------------------------------------


def test_the_one_before_is_taken_if_the_newest_is_gone(folder):
    succeed("train", "--steps", 3, "--save-every", 1)
    os.remove("imagen.pt")
    done = succeed("train", "--max-steps", 4)
    assert "going on from imagen.previous.pt after 2 steps" in done.stderr
    assert "warning: no checkpoint at" in done.stderr and "imagen.previous.pt is taken instead" in done.stderr
    assert steps() == [4] and steps("imagen.previous.pt") == [2]


def test_a_damaged_one_before_is_never_replaced_by_a_fresh_start(folder):
    succeed("train", "--steps", 2, "--save-every", 1)
    os.remove("imagen.pt")
    Path("imagen.previous.pt").write_bytes(b"PK nonsense")
    refused(imagen("train", "--steps", 1, "--quiet"), 4, "imagen.previous.pt", "move it away to start afresh")
    assert Path("imagen.previous.pt").read_bytes() == b"PK nonsense" and not Path("imagen.pt").exists()


def test_the_one_before_is_taken_if_the_newest_holds_weights_that_are_not_finite(folder):
    succeed("train", "--steps", 3, "--save-every", 1)
    contents = read_checkpoint("imagen.pt")
    next(iter(contents["model"].values())).fill_(float("nan"))
    write_checkpoint(contents, "imagen.pt")
    done = succeed("train", "--max-steps", 4)
    assert "NaN, infinite or too large" in done.stderr and "imagen.previous.pt is taken instead" in done.stderr
    assert steps() == [4]


def test_a_checkpoint_of_another_meaning_is_taken_if_that_is_asked_for(folder):
    succeed("train", "--steps", 1)
    write_config(model={**SMALL, "sigma_data": 0.7})
    done = imagen("train", "--steps", 1, "--quiet")
    refused(done, 4, "sigma_data: 0.7 (the checkpoint has 0.5)", "--allow-mismatch goes on with what fits")
    done = succeed("train", "--steps", 1, "--allow-mismatch")
    assert "\nsigma_data: 0.7 (the checkpoint has 0.5)\n" in done.stderr and done.stdout == "imagen.pt\n"


def test_every_difference_is_a_line_of_talk(folder):
    """Also what is taken from the checkpoint; nothing of it is on standard output."""
    succeed("train", "--steps", 1)
    done = succeed("train", "--steps", 1, "--lr", "5e-4")
    assert "lr" in done.stderr and "0.0005 (the checkpoint has 0.001)" in done.stderr
    assert done.stdout == "imagen.pt\n"


def test_a_checkpoint_of_another_model_is_taken_if_that_is_asked_for(folder):
    succeed("train", "--steps", 1)
    write_config(model={"unets": [{**UNET, "dim_mults": [1, 2, 2]}], "image_sizes": [8]})
    refused(imagen("train", "--steps", 1, "--quiet"), 4, "imagen.pt", "another model")
    succeed("train", "--steps", 1, "--allow-mismatch")
    assert steps() == [2]


# -- the data that it goes on with ------------------------------------------------------------------------------------


def test_other_data_are_said(folder):
    succeed("train", "--steps", 1)
    shutil.copytree("pictures", "same")
    for done in (succeed("train", "--steps", 1), succeed("train", "--steps", 1, "--data", "same")):
        assert "other" not in done.stderr
    os.remove("same/red.png")
    done = succeed("train", "--steps", 1, "--data", "same")
    assert "other data than at the last save" not in done.stderr
    assert "same holds 3 items, other ones than the 4 at the last save" in done.stderr
    done = succeed("train", "--steps", 1, "--data", "pictures")
    assert "other data than at the last save: now pictures (4 items), before same (3); -o with" in done.stderr
    record = read_checkpoint("imagen.pt")["data_source"]
    assert (record["name"], record["count"]) == ("pictures", 4)


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_on_the_command_line_is_where_the_user_is(folder):
    done = succeed("train", "--steps", 1, "--checkpoint", "mine.pt", "--output", "out")
    assert done.stdout == "mine.pt\n" and not Path("out/mine.pt").exists()
    assert "going on from mine.pt" in succeed("train", "--steps", 1, "--checkpoint", "mine.pt", "-o", "other").stderr
    write_config(model=SMALL, checkpoint_path="own.pt")
    assert succeed("train", "--steps", 1, "--output", "out").stdout == "out/own.pt\n"


def test_a_checkpoint_where_earlier_versions_kept_it_is_named(folder):
    succeed("train", "--steps", 1, "--output", "out")
    refused(
        imagen("train", "--steps", 1, "--checkpoint", "imagen.pt", "--output", "out", "-q"),
        2,
        "--checkpoint out/imagen.pt",
    )
    assert not Path("imagen.pt").exists()


def test_a_tilde_is_the_home_of_the_user(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    write_config(model=SMALL, checkpoint_path="~/runs/a.pt")
    succeed("train", "--steps", 1, "--output=~/out")
    succeed("train", "--steps", 1, "--checkpoint=~/b.pt", "--config=~/../imagen_config.json", "--output=~/out")
    assert steps("home/runs/a.pt") == [1] and steps("home/b.pt") == [1] and Path("home/out/metrics.jsonl").is_file()
    assert not Path("~").exists() and not Path("home/out/~").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_path": "x\0y.pt"}, "checkpoint_path"),
        ({"checkpoint_path": ""}, "checkpoint_path"),
        ({"checkpoint_path": "~nobody9/x.pt"}, "this user does not exist"),
        ({"dataset_name": "x\0y"}, "dataset_name"),
        ({"dataset_name": " "}, "dataset_name"),
    ],
)
def test_names_that_lead_nowhere_are_refused(folder, changes, words):
    write_config(model=SMALL, **changes)
    refused(imagen("train", "--steps", 1, "-q"), 2, words)
    assert sorted(os.listdir()) == ["imagen_config.json", "pictures"]


def test_an_empty_caption_is_refused_before_anything_is_read(folder):
    refused(imagen("train", "--steps", 1, "--text", " ", "--data", "nowhere", "-q"), 2, "--text")


def test_a_store_that_ends_with_the_process_is_refused(folder):
    refused(imagen("train", "--steps", 1, "--checkpoint", "memory://run/a.pt", "-q"), 2, "memory://run/a.pt", "is gone")
    write_config(model=SMALL, checkpoint_path="memory://run/a.pt")
    refused(imagen("train", "--steps", 1, "-q"), 2, "memory://run/a.pt")


@pytest.mark.parametrize("device", ["meta", "xpu", "xla", "hpu", "vulkan", "ipu", "mps"])
def test_devices_that_are_not_there_are_refused(folder, device):
    refused(imagen("train", "--steps", 1, "--device", device, "-q"), 2, device)


# -- what is done once ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_once_and_a_model_built_once_without_memory(folder, monkeypatch):
    succeed("train", "--steps", 1)
    from imagen_pytorch.checkpoints.format_pt import read_pt

    done = []
    noting = lambda *given: done.append("read") or read_pt(*given)  # noqa: E731
    monkeypatch.setattr("imagen_pytorch.checkpoints.files.read_pt", noting)
    # the check of memory has done it
    monkeypatch.setattr("imagen_pytorch.configs.build_on_meta", lambda *_: done.append("built"))
    succeed("train", "--steps", 1)
    assert done == ["read"] and steps()[0] == 2
    done.clear()
    succeed("train", "--steps", 1, "--force")  # without that check
    assert sorted(done) == ["built", "read"]

"""Verdicts on a training from its log: synthetic curves for each of them, and none where there is too little to see."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.training.diagnosis import LEAST, LEVELS, Finding, curves, diagnose, losses_by_level


def rows(loss, count: int = 60, *, noise: float = 0.04, valid=None, unet: int = 1, seed: int = 0) -> list[dict]:
    """A log whose losses are functions of the fraction of the training, with noise like that of a real run."""
    random_numbers = random.Random(seed)
    made = []
    for number in range(1, count + 1):
        at, row = number / count, {"unet": unet, "step": 50 * number, "from_step": 0}
        value = loss(at) * (1 + random_numbers.gauss(0, noise))
        made.append({**row, "loss": value if math.isfinite(value) else None})
        if valid is not None and number % 3 == 0:
            level = valid(at)
            by_level = dict(zip(LEVELS, (level * 0.5, level * 0.8, level * 1.2, level * 1.5 * (1 + at)), strict=True))
            made.append({**row, "valid_loss": level * (1 + random_numbers.gauss(0, noise / 8)), **by_level})
    return made


def falls(at: float) -> float:
    return 0.03 + 0.4 * math.exp(-18 * at)


def keeps_falling(at: float) -> float:
    return 0.5 - 0.4 * at


def turns(at: float) -> float:
    return falls(at) + max(0, at - 0.4) * 0.05


CASES = {
    "fine": rows(falls, valid=lambda at: falls(at) * 1.1),
    "underfitting": rows(keeps_falling, valid=keeps_falling),
    "overfitting": rows(falls, valid=turns),
    "diverged": rows(lambda at: falls(at) if at < 0.7 else 0.03 + 3 * (at - 0.69)),
    "rate too high": rows(lambda at: 0.06 if at > 0.8 else falls(at) + 0.01),
}


@pytest.mark.parametrize("verdict", CASES)
@pytest.mark.parametrize("unet", [1, 2])
def test_every_verdict_has_its_curve(verdict, unet):
    log = [{**row, "unet": unet} for row in CASES[verdict]]
    (found,) = diagnose(log)
    assert (found.unet, found.verdict) == (unet, verdict), found
    assert any(char.isdigit() for char in found.text) and "\n" not in found.text and len(found.text) < 320


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_change_the_verdict(seed):
    assert diagnose(rows(falls, noise=0.1, valid=falls, seed=seed))[0].verdict == "fine"
    assert diagnose(rows(keeps_falling, noise=0.05, seed=seed))[0].verdict == "underfitting"
    assert diagnose(rows(falls, valid=turns, seed=seed))[0].verdict == "overfitting"


@pytest.mark.parametrize("count", [12, 30, 60, 400])
def test_restless_single_steps_are_no_verdict(count):
    """Losses of single steps scatter by a third of themselves."""
    for seed in range(60):
        found = diagnose(rows(falls, count, noise=0.33, seed=seed))[0]
        assert found.verdict in ("fine", "underfitting"), (seed, found)


@pytest.mark.parametrize("verdict", CASES)
@pytest.mark.parametrize("scale", [1e-3, 1, 250])
def test_units_of_the_loss_do_not_matter(verdict, scale):
    keys = ("loss", "valid_loss", *LEVELS)
    log = [{name: value * scale if name in keys else value for name, value in row.items()} for row in CASES[verdict]]
    assert diagnose(log)[0].verdict == verdict


def test_spikes_mean_a_rate_that_is_too_high():
    log = rows(falls)
    for row in log[15::8]:
        row["loss"] *= 3
    (found,) = diagnose(log)
    assert found.verdict == "rate too high" and "spikes" in found.text and "half of it" in found.text


def test_losses_that_are_not_finite_mean_divergence():
    log = rows(falls, 40)
    log += [{"unet": 1, "step": 2000 + 50 * i, "loss": None} for i in range(1, 30)]
    (found,) = diagnose(log)
    assert found.verdict == "diverged" and "29 logged losses were not finite" in found.text


def test_overfitting_names_the_step_and_the_noise_levels():
    (found,) = diagnose(CASES["overfitting"])
    assert "stop near step" in found.text and "most at high noise" in found.text


def test_without_validation_nothing_is_said_about_overfitting():
    (found,) = diagnose(rows(falls))
    assert found.verdict == "fine" and "--valid shows whether it overfits" in found.text
    assert "no sign of overfitting" in diagnose(CASES["fine"])[0].text


def test_too_few_points_have_no_verdict():
    assert diagnose([]) == []
    assert diagnose(rows(falls, LEAST - 1)) == []
    assert len(diagnose(rows(falls, LEAST))) == 1
    assert diagnose([{"unet": 1, "step": step, "valid_loss": 1.0} for step in range(50)]) == []


def test_each_unet_is_judged_by_itself():
    log = CASES["fine"] + rows(keeps_falling, unet=2) + rows(falls, 3, unet=3)
    assert [(found.unet, found.verdict) for found in diagnose(log)] == [(1, "fine"), (2, "underfitting")]


def test_damaged_rows_are_passed_over():
    odd = [{}, {"unet": 1}, {"unet": "1", "step": 3, "loss": 1.0}, {"unet": 1, "step": None, "loss": 2.0}]
    odd += [{"unet": 1, "step": 10**30, "loss": 1.0}, {"unet": 1, "step": 5, "loss": "high"}]
    assert diagnose([*odd, *CASES["fine"], *odd[:4]])[0].verdict == "fine"


def test_what_a_later_run_replaced_does_not_count():
    """A run that went on from step 1000 after the first one had diverged beyond it."""
    first = [row for row in CASES["diverged"] if row["step"] > 1000]
    before = [row for row in CASES["fine"] if row["step"] <= 1000]
    after = [{**row, "from_step": 1000} for row in CASES["fine"] if row["step"] > 1000]
    assert diagnose(before + first + after)[0].verdict == "fine"
    assert curves(before + first + after, ["loss"]) == curves(CASES["fine"], ["loss"])


def test_losses_by_level_are_the_means_of_quarters_of_the_times():
    times = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.2, 0.8, 0.6, 0.4])
    found = losses_by_level(times, times * 10)
    assert list(found) == list(LEVELS) and list(found.values()) == pytest.approx([1.5, 3.5, 5.5, 8.5])
    assert losses_by_level(times[:7], times[:7]) == {}


def test_a_training_says_how_it_went_and_logs_losses_by_level(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(64):
        Image.new("RGB", (4, 4), (4 * number, 99, 9)).save(f"images/{number}.png")
    unet = {"dim": 8, "dim_mults": [1], "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
    model = {"image_sizes": [4], "condition_on_text": False, "timesteps": 1, "unets": [unet]}
    values = {"imagen": model, "dataset_name": "images", "dataset": {"batch_size": 4}, "checkpoint_path": "imagen.pt"}
    values["trainer"] = {"split_valid_fraction": 0.25}
    Path("imagen_config.json").write_text(json.dumps(values))
    arguments = ["train", "--steps", "14", "--log-every", "1", "--valid", "2", "--sample-every", "0", "--seed", "0"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    log = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    valid = [row for row in log if "valid_loss" in row]
    assert len(valid) == 7 and all(set(LEVELS) <= set(row) for row in valid)
    for row in valid:
        assert sum(row[name] for name in LEVELS) / 4 == pytest.approx(row["valid_loss"], rel=1e-5)
    (found,) = diagnose(log)
    assert isinstance(found, Finding) and f"U-Net 1: {found.text}" in done.stderr.splitlines()
    short = CliRunner().invoke(main, [*arguments[:2], "2", *arguments[3:], "-o", "short"])
    said = [line for line in short.stderr.splitlines() if line.startswith("U-Net 1: ")]
    assert short.exit_code == 0 and all("parameters, 2 steps" in line or "learning rate falls" in line for line in said)

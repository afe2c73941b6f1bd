"""The folder of a training tells how it was made, and a run can be gone on with, begun anew, and kept in parts."""

from __future__ import annotations

import json
import os
import shlex
import signal
from datetime import datetime
from pathlib import Path

import click
import pytest
from train_toys import SMALL, enter, imagen, metrics, refused, steps, succeed, write_config

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli import _runs, main
from imagen_pytorch.cli._presets import preset_names, preset_path
from imagen_pytorch.cli._program import command_line
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.signatures import parse, read_config

RECORD = ("command.txt", "config.resolved.json", "environment.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL)
    return tmp_path


def equal(one: str, other: str) -> bool:
    first, second = (read_checkpoint(path)["model"] for path in (one, other))
    return all(item.equal(second[name]) for name, item in first.items())


def written() -> list[str]:
    """The commands in ``command.txt`` that can be pasted."""
    return [line for line in Path("command.txt").read_text().splitlines() if not line.startswith("#")]


def test_the_record_of_a_run_repeats_it(folder):
    succeed("train", "--steps", 3, "--seed", 5, "--lr", "3e-3", "--batch-size", 2, "--set", "imagen.sigma_data=0.4")
    values = read_config(Path("config.resolved.json"))
    assert (values["trainer"]["seed"], values["trainer"]["lr"], values["dataset"]["batch_size"]) == (5, 3e-3, 2)
    assert values["imagen"]["sigma_data"] == 0.4 and values["checkpoint_path"] == "imagen.pt"
    around = json.loads(Path("environment.json").read_text())
    assert around["device"] == "cpu" and around["precision"] == "fp32" and "torch" in around["versions"]
    succeed("train", "--config", "config.resolved.json", "--steps", 3, "-o", "again")
    assert equal("imagen.pt", "again/imagen.pt")
    command = "train --steps 3 --seed 5 --lr 3e-3 --batch-size 2 --set imagen.sigma_data=0.4"
    assert written() == [f"cd {shlex.quote(os.getcwd())} && imagen {command}"]
    succeed("train", "--resume", "--steps", 1)
    assert len(written()) == 2  # appended, where the run goes on
    for name in ("imagen.pt", "imagen.previous.pt"):
        os.remove(name)
    succeed("train", "--steps", 1)
    assert len(written()) == 1 and Path("command-1.txt").is_file() and Path("config.resolved-1.json").is_file()


@pytest.mark.parametrize("name", preset_names())
def test_a_resolved_configuration_is_the_same_configuration(name, tmp_path):
    config = parse(TrainingConfig, read_config(preset_path(name)))
    values = _runs.resolved(config, str(tmp_path / "imagen.pt"), tmp_path)
    again = parse(TrainingConfig, json.loads(json.dumps(values)))
    assert again == config.model_copy(update={"checkpoint_path": "imagen.pt"})
    stated = [
        (each.model_fields_set, each.imagen.model_fields_set, each.trainer.model_fields_set) for each in (again, config)
    ]
    assert stated[0] == (stated[1][0] | {"checkpoint_path"}, *stated[1][1:])


def test_a_resolved_configuration_keeps_placeholders_and_places(tmp_path):
    unets = [{"is_null": True}, {"dim": 8}]
    config = parse(TrainingConfig, {"imagen": {"unets": unets, "image_sizes": [8, 16]}})
    assert _runs.resolved(config, "s3://a/b.pt", tmp_path)["imagen"]["unets"] == unets
    places = {"s3://a/b.pt": "s3://a/b.pt", str(tmp_path / "in" / "x.pt"): "in/x.pt", "/else/x.pt": "/else/x.pt"}
    for given, place in places.items():
        assert _runs.resolved(config, given, tmp_path)["checkpoint_path"] == place


def test_files_of_others_under_these_names_are_set_aside(folder):
    for name in RECORD:
        Path(name).write_text("mine")
    Path("report.html").write_text("mine")
    succeed("train", "--steps", 1)
    for name in (*RECORD, "report.html"):
        stem, ending = os.path.splitext(name)
        assert Path(f"{stem}-1{ending}").read_text() == "mine" != Path(name).read_text()
    succeed("train", "--steps", 1)
    assert not list(folder.glob("*-2.*"))


def test_a_record_that_cannot_be_written_is_a_warning(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_runs, "replace_own", full)
    done = succeed("train", "--steps", 1)
    assert "warning: no record of the run: No space left" in done.stderr and steps() == [1]


def test_each_line_of_the_log_has_its_time_epoch_and_rate(folder):
    succeed("train", "--steps", 4, "--batch-size", 2, "--log-every", 1)
    rows = metrics()
    assert [row["epoch"] for row in rows] == [0.5, 1, 1.5, 2] and all(row["lr"] > 0 for row in rows)
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(times) and times[0].tzinfo is not None


def test_the_start_says_device_precision_size_and_epochs(folder):
    said = succeed("train", "--steps", 4, "--batch-size", 2, "--log-every", 1).stderr
    assert "device cpu, precision fp32\n" in said
    assert " parameters, 4 steps, 2 to an epoch, each with 2 img\n" in said and " in all, 0:00 left\n" in said


# -- going on and beginning anew --------------------------------------------------------------------------------------


def test_a_line_to_paste_goes_on_to_the_end(folder, monkeypatch):
    step = ImagenTrainer.train_step

    def interrupted(self, **arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ImagenTrainer, "train_step", interrupted)
        done = imagen("train", "--text", "a red; square", "--steps=3", "-o", "out", "--fresh", "--seed", 5)
    line = done.stderr.splitlines()[-1].removeprefix("interrupted and saved; to go on: ")
    assert line == "imagen train --text 'a red; square' --seed 5 --output out --max-steps 3"
    succeed(*shlex.split(line)[1:])
    assert steps("out/imagen.pt") == [3]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--epochs 2 -q", "-q --max-steps 9"),
        ("--epoches=2 --unet 2 -oelse", "--unet 2 --max-steps 9"),
        ("--resume runs/a --max_steps 4", "--resume --max-steps 9"),
        ("--resume -q", "-q --resume --max-steps 9"),
    ],
)
def test_the_line_to_paste_states_the_goal_in_place_of_a_length(given, line, monkeypatch):
    seen = []
    monkeypatch.setattr("imagen_pytorch.cli._training.run", lambda _: seen.append(command_line(Path("."), 9)))
    succeed("train", *given.split())
    assert seen == [f"imagen train {line}"]


def test_resume_finds_the_run_and_its_configuration(folder):
    write_config("other.json", model={**SMALL, "sigma_data": 0.7})
    succeed("train", "--config", "other.json", "--steps", 1, "-o", "runs/a")
    os.remove("other.json")
    for words in (["--resume", "runs/a"], ["--resume", "runs/a/imagen.pt"], ["--resume_from_checkpoint", "latest"]):
        done = succeed("train", *words, "--steps", 1)
        assert done.stdout == "runs/a/imagen.pt\n" and "configuration runs/a/config.resolved.json" in done.stderr
    assert steps("runs/a/imagen.pt") == [4]
    refused(imagen("train", "--resume", "nothing"), 2, "no checkpoint in nothing")
    refused(imagen("train", "--resume", "--fresh"), 2, "--fresh starts a new model")


def test_fresh_never_touches_a_run(folder, monkeypatch):
    for path in ("out/imagen.pt", "out-1/imagen.pt"):
        assert succeed("train", "--fresh", "-o", "out", "--steps", 1).stdout == f"{path}\n"
    first, second = (succeed("train", "--fresh", "--data", "pictures", "--steps", 1).stdout for _ in range(2))
    assert first.startswith("runs/20") and first.endswith("-pictures/imagen.pt\n") and first != second
    refused(imagen("train", "--fresh", "--checkpoint", "out/imagen.pt", "-q"), 2, "out/imagen.pt exists already")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(imagen("train", "--fresh"), 2, "several processes", "-o")


# -- checkpoints that are kept ----------------------------------------------------------------------------------------


def kept() -> list[str]:
    return sorted(path.name for path in Path().glob("imagen-*.pt"))


def test_the_newest_checkpoints_are_kept_by_their_steps(folder):
    Path("imagen-000001.pt").write_bytes(b"mine")
    succeed("train", "--steps", 5, "--save-every", 1, "--keep", 2)
    assert kept() == ["imagen-000001-1.pt", "imagen-000004.pt", "imagen-000005.pt"]
    assert Path("imagen-000001-1.pt").read_bytes() == b"mine"
    assert [steps(name) for name in ("imagen-000004.pt", "imagen-000005.pt", "imagen.previous.pt")] == [[4], [5], [4]]
    done = succeed("train", "--resume", "imagen-000004.pt", "--max-steps", 5, "--keep", 2)
    assert "going on from imagen-000004.pt after 4 steps" in done.stderr and done.stdout == "imagen.pt\n"
    assert kept() == ["imagen-000001-1.pt", "imagen-000004.pt", "imagen-000005.pt"] and steps() == [5]
    refused(imagen("train", "--keep", 2, "--checkpoint", "memory://a/b.pt", "-q"), 2, "memory://")


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(folder, monkeypatch):
    for index in range(40):  # enough to set one apart
        os.link("pictures/red.png", f"pictures/red{index}.png")
        os.link("pictures/red.txt", f"pictures/red{index}.txt")
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(ImagenTrainer, "valid_step", lambda self, **_: next(losses))
    succeed("train", "--steps", 3, "--valid", 1, "--keep", 1)
    assert steps("imagen.best.pt") == [2]
    succeed("train", "--steps", 1, "--valid", 1, "--keep", 1)
    assert steps("imagen.best.pt") == [2] and steps() == [4]


# -- sheets, trackers, precision --------------------------------------------------------------------------------------


def test_sheets_say_their_step_seed_and_guidance(folder, monkeypatch):
    from imagen_pytorch.cli._outputs import Images

    titles, grid = [], Images.grid
    monkeypatch.setattr(Images, "grid", lambda *given, title: titles.append(title) or grid(*given, title=title))
    succeed("train", "--steps", 2, "--sample-every", 2, "--sample_at_first", "--cond-scale", 2)
    assert titles == ["step 0, seed 0, guidance 2", "step 2, seed 0, guidance 2"]
    assert sorted(path.name for path in folder.glob("sample*")) == ["sample-000000.png", "sample-000002.png"]
    succeed("train", "--steps", 1, "--sample-at-first")
    assert len(titles) == 2  # what goes on does not begin


def test_trackers_get_what_the_log_has(folder, monkeypatch):
    from accelerate import tracking

    seen: dict[str, list] = {"rows": [], "images": [], "ends": []}

    class Kept(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only, tracker = "aim", True, True, None

        def __init__(self, run_name, logging_dir=None, **_):
            super().__init__()
            seen["folder"] = str(logging_dir)

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **_):
            seen["rows"].append((step, values))

        def log_images(self, values, step=None, **_):
            seen["images"].append((step, {name: images.shape for name, images in values.items()}))

        def finish(self):
            seen["ends"].append(True)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Kept)
    for module in (tracking, "accelerate.accelerator"):
        monkeypatch.setattr(module if module is tracking else f"{module}.LOGGER_TYPE_TO_CLASS", *(
            ("get_available_trackers", lambda: [tracking.LoggerType.AIM]) if module is tracking
            else (tracking.LOGGER_TYPE_TO_CLASS,)
        ))  # fmt: skip
    succeed("train", "--steps", 2, "--sample-every", 2, "--report_to", "aim", "-o", "out")
    assert [step for step, _ in seen["rows"]] == [1, 2] and set(seen["rows"][0][1]) == {"unet1/loss", "unet1/lr"}
    assert [step for step, _ in seen["images"]] == [2] and seen["ends"] == [True] and seen["folder"] == "out"
    assert len(metrics("out/metrics.jsonl")) == 1


@pytest.mark.parametrize(("name", "words"), [("wandb", "pip install wandb"), ("wandbb", 'did you mean "wandb"?')])
def test_trackers_that_are_not_there_are_one_sentence(folder, name, words, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    refused(imagen("train", "--steps", 1, "--log-with", name, "-q"), 2, words)


def test_auto_is_the_precision_of_the_device_and_none_is_taken_silently(folder, monkeypatch):
    import torch

    assert "precision fp32\n" in succeed("train", "--steps", 1, "--precision", "auto", "--device", "cpu").stderr
    context = click.Context(main.get_command(None, "train"), info_name="train")
    option = next(each for each in context.command.params if each.name == "precision")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    context.params["device"] = "cuda"
    for fast, name in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda fast=fast, **_: fast)
        assert option.type.convert("auto", option, context) == name
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # as where a device lacks it
    refused(imagen("train", "--steps", 1, "--precision", "fp16", "--device", "cpu", "-q"), 2, "does not exist", "cpu")

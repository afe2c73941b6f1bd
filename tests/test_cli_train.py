"""``imagen train`` and ``imagen sample`` from end to end, on a folder of four coloured pictures."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from train_toys import UNET, enter, imagen, metrics, refused, steps, succeed, write_config

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


# -- training -------------------------------------------------------------------------------------------------------


def test_train_then_go_on_then_sample(folder):
    done = succeed("train", "--steps", 3)
    assert done.stdout == "imagen.pt\n" and "pictures: 4 images" in done.stderr
    assert steps() == [3, 0] and Path("loss.png").is_file()
    said = succeed("train", "--steps", 2).stderr
    assert "going on from imagen.pt after 3 steps of U-Net 1, 0 steps of U-Net 2" in said
    assert steps() == [5, 0]
    assert [(entry["unet"], entry["step"]) for entry in metrics()] == [(1, 3), (1, 5)]

    done = succeed("sample", "a red square", "--seed", 1)
    assert done.stdout == "a_red_square.png\n" and "seed 1" in done.stderr
    assert "U-Net 2 has not been trained yet" in done.stderr
    assert Image.open("a_red_square.png").size == (4, 4)


def test_unet_2_means_the_second(folder):
    succeed("train", "--unet", 2, "--steps", 2)
    assert steps() == [0, 2]


def test_all_unets_in_turn(folder):
    succeed("train", "--unet", "all", "--steps", 2)
    assert steps() == [2, 2]
    assert {entry["unet"] for entry in metrics()} == {1, 2}


@pytest.mark.parametrize("spelling", ["--epochs", "--epoches"])
def test_an_epoch_is_a_pass_over_the_data(folder, spelling):
    succeed("train", "--batch-size", 2, spelling, 2)
    assert steps() == [4, 0]


def test_max_steps_counts_earlier_runs(folder):
    succeed("train", "--max-steps", 2)
    done = succeed("train", "--max-steps", 2)
    assert "has been trained for 2 steps" in done.stderr and steps() == [2, 0]
    succeed("train", "--max-steps", 3)
    assert steps() == [3, 0]


def test_the_configuration_says_how_long(folder):
    write_config(steps=[2, 1])
    succeed("train", "--unet", "all")
    assert steps() == [2, 1]


def test_everything_goes_into_the_output_folder(folder):
    done = succeed("train", "--steps", 1, "--output", "runs/a", "--sample-every", 1, "--text", "a blue square")
    assert done.stdout == "runs/a/imagen.pt\n"
    record = ["command.txt", "config.resolved.json", "environment.json"]
    files = [*record, "imagen.pt", "loss.png", "metrics.jsonl", "report.html", "sample-000001.png"]
    assert [name for name in sorted(os.listdir("runs/a")) if name != ".imagen-outputs"] == files


def test_samples_appear_at_their_period_and_nothing_is_replaced(folder):
    succeed("train", "--steps", 4, "--sample-every", 2, "--text", "a red square", "--text", "a blue square")
    assert sorted(path.name for path in folder.glob("sample*")) == ["sample-000002.png", "sample-000004.png"]
    os.remove("imagen.pt")
    succeed("train", "--steps", 2, "--sample-every", 2)
    assert (folder / "sample-000002-1.png").is_file()
    assert (folder / "metrics-1.jsonl").is_file() and len(metrics()) == 1


def test_samples_of_an_upsampler_enlarge_images_of_the_data_until_the_stage_before_is_trained(folder):
    done = succeed("train", "--unet", 2, "--steps", 2, "--sample-every", 1)
    assert done.stderr.count("samples of U-Net 2 enlarge images of the data") == 1
    assert done.stderr.endswith("next: the same command with --unet 1 trains U-Net 1 of 2\n")
    assert sorted(path.name for path in folder.glob("sample*")) == [
        "sample-000001-unet2.png",
        "sample-000002-unet2.png",
    ]
    done = succeed("train", "--unet", 1, "--steps", 1)
    assert "the same command with --unet" not in done.stderr and "sample --model imagen.pt" in done.stderr
    done = succeed("train", "--unet", 2, "--steps", 1, "--sample-every", 1)
    assert "enlarge images" not in done.stderr and (folder / "sample-000003-unet2.png").is_file()


@pytest.mark.slow
def test_sampling_does_not_change_the_training(folder):
    for name, every in (("a", 0), ("b", 1)):
        succeed("train", "--steps", 3, "--seed", 5, "--sample-every", every, "--output", name)
    first, second = (read_checkpoint(f"{name}/imagen.pt")["model"] for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "at"), [(["--valid"], []), (["--valid", "2"], [2, 4]), (["--valid", "1"], [1, 2, 3, 4])]
)
def test_validation(folder, arguments, at):
    for index in range(40):  # enough to set one apart
        (folder / "pictures" / f"red{index}.png").write_bytes((folder / "pictures" / "red.png").read_bytes())
        (folder / "pictures" / f"red{index}.txt").write_text("a red square")
    succeed("train", "--steps", 4, *arguments)
    assert [entry["step"] for entry in metrics() if "valid_loss" in entry] == at


def test_checkpoints_now_and_then(folder, monkeypatch):
    written = []
    save = ImagenTrainer.save

    def watched(self, path, **options):
        written.append((int(self.steps[0]), options["background"]))
        return save(self, path, **options)

    monkeypatch.setattr(ImagenTrainer, "save", watched)
    succeed("train", "--steps", 5, "--save-every", 2)
    assert written == [(2, True), (4, True), (5, False)]  # the last one is whole before the command ends
    succeed("train", "--steps", 1, "--save-every", 2)
    assert written[3:] == [(6, True)] and steps() == [6, 0] and steps("imagen.previous.pt") == [5, 0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(folder, monkeypatch, number, code):
    step = ImagenTrainer.train_step

    def interrupted(self, **arguments):
        if self.num_steps_taken(1) == 1:
            os.kill(os.getpid(), number)
        return step(self, **arguments)

    monkeypatch.setattr(ImagenTrainer, "train_step", interrupted)
    done = imagen("train", "--steps", 50)
    assert done.exit_code == code and done.stdout == "imagen.pt\n" and "--max-steps 50" in done.stderr
    assert steps() == [2, 0]


def test_the_network_is_compiled_where_that_is_asked_for(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    succeed("train", "--steps", 1)
    assert not compiled
    succeed("train", "--steps", 2, "--compile")
    assert compiled == ["Unet"]


@pytest.mark.slow
def test_micro_batches_give_the_same_weights(folder):
    for name, arguments in (("a", []), ("b", ["--max-batch-size", 1])):
        succeed("train", "--steps", 2, "--seed", 3, "--output", name, *arguments)
    first, second = (read_checkpoint(f"{name}/imagen.pt")["model"] for name in "ab")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_quiet_prints_the_result_alone(folder):
    done = succeed("train", "--steps", 1, "--quiet")
    assert (done.stdout, done.stderr) == ("imagen.pt\n", "")


@pytest.mark.slow
def test_the_default_configuration_made_small(folder):
    """The peer's file with its networks and sizes shrunk: every one of its keys is understood."""
    succeed("config", "--preset", "paper", "--path", "full.json")
    values = json.loads(Path("full.json").read_text())
    values["imagen"] |= {"image_sizes": [4, 8, 8], "random_crop_sizes": None, "timesteps": 2}
    values["imagen"] |= {"text_encoder_name": "builtin:words"}
    for unet in values["imagen"]["unets"]:
        unet |= {"dim": 8, "num_resnet_blocks": 1, "attn_heads": 2}
    values |= {"dataset_name": "pictures", "dataset": {"batch_size": 2, "shuffle": True}}
    values |= {"sample_at_every": 1, "validate_at_every": 0}
    Path("full.json").write_text(json.dumps(values))
    succeed("train", "--config", "full.json", "--epoches", 1, "--unet", 1)
    assert steps() == [2, 0, 0] and Path("sample-000001.png").is_file()


def test_an_unconditional_model(folder):
    """It takes captioned pictures too, without their captions."""
    write_config(model={"condition_on_text": False})
    succeed("train", "--steps", 1, "--sample-every", 1)
    assert Path("sample-000001.png").is_file()
    done = succeed("sample", "-n", 2)
    assert done.stdout.split() == ["sample.png", "sample-1.png"]
    refused = imagen("sample", "a red square")
    assert refused.exit_code == 2 and "without TEXT" in refused.stderr


def test_without_a_configuration_the_embedded_pictures_are_used(folder, monkeypatch):
    os.remove("imagen_config.json")
    done = succeed("train", "--steps", 1, "--batch-size", 2, "--sample-every", 0)
    assert "emoji.json" in done.stderr and "emoji64: " in done.stderr
    assert len(steps()) == 2


def test_own_pictures_without_a_configuration(folder):
    """Arguments and captions of the embedded data do not follow to another folder."""
    os.remove("imagen_config.json")
    short = ("--steps", 1, "--batch-size", 2, "--sample-every", 1, "--cond-scale", 1)
    done = succeed("train", "--data", "pictures", *short)
    assert "pictures: 4 images" in done.stderr and Path("sample-000001.png").is_file()


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unet", "3"], ["--unet 3", "2 U-Nets"]),
        (["--unet", "0"], ["numbered from 1"]),
        (["--unet", "two"], ["'two'"]),
        (["--steps", "1", "--epochs", "1"], ["--epochs and --steps"]),
        (["--steps", "many"], ["--steps"]),
        (["--config", "none.json"], ["none.json", "imagen config"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--device", "tpu9"], ["tpu9"]),
        (["--device", "cuda:63"], ["cuda:63", "not available"]),
        (["--precision", "fp8"], ["fp8"]),
        (["--checkpoint", "pictures/red.png/x.pt"], ["red.png"]),
    ],
)
def test_mistakes_on_the_command_line(folder, arguments, words):
    done = imagen("train", *(["--steps", "1"] if "--steps" not in arguments else []), *arguments)
    assert done.exit_code in (2, 4)
    refused(done, done.exit_code, *words)


MISTAKES = {
    "unknown key": ({"datasets": {}}, ['unknown key "datasets"', 'did you mean "dataset"', "imagen_config.json"]),
    "argument of the data": ({"dataset": {"batch_size": 2, "splitt": "train"}}, ["splitt"]),
    "argument of the loader": ({"dataset": {"batch_size": 0}}, ["batch_size"]),
    "option of the trainer": ({"trainer": {"lrr": 1}}, ['"lrr"']),
    "encoder": ({"model": {"text_encoder_name": "builtin:wrods"}}, ["builtin:wrods"]),
    "sizes": ({"model": {"image_sizes": [8, 4]}}, ["image_sizes"]),
    "crop": ({"model": {"random_crop_sizes": [None, 16]}}, ["16"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_configuration(folder, name):
    changes, words = MISTAKES[name]
    write_config(**changes)
    refused(imagen("train", "--steps", 1), 2, *words)


def test_captions_that_are_missing(folder):
    for path in (folder / "pictures").glob("*.txt"):
        path.unlink()
    refused(imagen("train", "--steps", 1), 2, "captions", "condition_on_text")


def test_a_folder_without_pictures(folder):
    (folder / "empty").mkdir()
    done = imagen("train", "--steps", 1, "--data", "empty")
    assert done.exit_code in (2, 3)
    refused(done, done.exit_code, "empty")


def test_a_checkpoint_of_another_model_is_left_alone(folder):
    succeed("train", "--steps", 1)
    before = Path("imagen.pt").read_bytes()
    write_config(model={"unets": [{**UNET, "dim": 16}, UNET]})
    refused(imagen("train", "--steps", 1, "--quiet"), 4, "imagen.pt", "another model", "--checkpoint")
    assert Path("imagen.pt").read_bytes() == before


def test_a_damaged_checkpoint(folder):
    Path("imagen.pt").write_bytes(b"PK nonsense")
    refused(imagen("train", "--steps", 1, "--quiet"), 4, "imagen.pt")
    refused(imagen("sample", "x"), 4, "imagen.pt")


def test_out_of_memory_says_what_to_try(folder, monkeypatch):
    def greedy(self, **_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr(ImagenTrainer, "train_step", greedy)
    refused(imagen("train", "--steps", 1, "--quiet"), 5, "out of memory", "--max-batch-size 2")

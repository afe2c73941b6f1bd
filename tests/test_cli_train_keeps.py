"""Nothing learned is lost: what fails beside the training is a warning, and what ends it saves first."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from train_toys import SMALL, enter, imagen, metrics, refused, steps, succeed, write_config

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint, write_checkpoint
from imagen_pytorch.checkpoints import store
from imagen_pytorch.cli import _metrics, _samples
from imagen_pytorch.cli._outputs import Images
from imagen_pytorch.cli._saving import SavedRun
from imagen_pytorch.data import SkippedReport
from imagen_pytorch.evaluation import plots
from imagen_pytorch.training.unet_trainer import UnetTrainer
from imagen_pytorch.training.workers import WorkersLost

#: what a training does beside its steps: where it is done, and what the warning names
DUTIES = {
    "drawing samples": (ImagenTrainer, "sample", "no samples of U-Net 1: "),
    "making a sheet": (Images, "grid", "no samples of U-Net 1: "),
    "encoding a sheet": (Images, "encode", "no samples of U-Net 1: "),
    "writing a sheet": (_samples, "write_new", "no samples of U-Net 1: "),
    "validating": (ImagenTrainer, "valid_step", "no validation: "),
    "listing what is skipped": (SkippedReport, "update", "no list of what was left out: "),
    "drawing the curve": (plots, "loss_curve", "no loss.png: "),
}
FAILURES = {
    "value": (ValueError("an odd number"), "an odd number"),
    "library": (RuntimeError("expected scalar type Half"), "expected scalar type Half"),
    "cuda": (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    "memory": (MemoryError(), "out of memory"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "network": (ConnectionResetError(errno.ECONNRESET, "reset"), "Connection reset by peer"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    for copy in range(40):  # enough to set one apart for validation
        for ending in ("png", "txt"):
            os.link(f"pictures/red.{ending}", f"pictures/red{copy}.{ending}")
    write_config(model=SMALL, save_at_every=0)
    return tmp_path


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("library", "cuda", "network")]


@pytest.mark.parametrize("kind", ["value", "memory", "disk", *SLOW])
def test_what_fails_beside_the_training_is_named_once_and_the_training_goes_on(folder, monkeypatch, kind):
    """At each step another duty fails; what of it succeeds at other steps is there."""
    failure, words = FAILURES[kind]
    turn = {"now": 0}

    def broken(number, whole):
        def duty(*arguments, **options):
            if turn["now"] == number:
                raise failure
            return whole(*arguments, **options)

        return duty

    for number, (place, name, _) in enumerate(DUTIES.values(), start=1):
        monkeypatch.setattr(place, name, broken(number, getattr(place, name)))
    step = ImagenTrainer.train_step

    def counted(self, **options):
        turn["now"] = self.num_steps_taken(1) + 1
        return step(self, **options)

    monkeypatch.setattr(ImagenTrainer, "train_step", counted)
    last = len(DUTIES) + 1
    periods = ("--valid", 1, "--sample-every", 1, "--log-every", 1)
    done = succeed("train", "--steps", last, *periods, "--text", "a red square")
    assert steps() == [last]
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in warned] == [
        name.removesuffix(": ") for name in dict.fromkeys(name for *_, name in DUTIES.values())
    ]
    assert all(words in line and line.endswith("; the training goes on") for line in warned), warned
    assert len(list(folder.glob("sample-*.png"))) == last - 4
    assert [row["step"] for row in metrics() if "valid_loss" in row] == [at for at in range(1, last + 1) if at != 5]


def test_a_log_that_cannot_be_written_is_a_warning(folder, monkeypatch):
    def full(line, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(_metrics, "append_lines", full)
    done = succeed("train", "--steps", 3, "--log-every", 1)
    assert steps() == [3] and done.stderr.count("cannot write metrics.jsonl: metrics.jsonl: No space left") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_the_main_process_reads_a_checkpoint_once(tmp_path, monkeypatch, count):
    path, reads, taken = str(tmp_path / "a.pt"), [], []
    write_checkpoint({"steps": torch.tensor([3])}, path)
    monkeypatch.setattr(store, "read_checkpoint", lambda *place: reads.append(place) or read_checkpoint(*place))
    saved = SavedRun(path, quiet=True)
    processes = SimpleNamespace(on_main=lambda work: work(), count=count)
    take_over = lambda contents, found, strict: taken.append((found, contents["steps"].tolist(), strict))  # noqa: E731
    saved.trainer = SimpleNamespace(processes=processes, steps=[3], take_over=take_over)
    saved.load(strict=True)
    assert len(reads) == 1 and taken == [(path, [3], True)]


ENDS = {
    "a worker": (
        WorkersLost("a process that reads was killed: set a smaller num_workers"),
        1,
        "num_workers",
    ),
    "memory": (MemoryError(), 5, "--max-batch-size"),
    "a caption": (ValueError("text cannot be empty"), 2, "text cannot be empty"),
    "a disk": (OSError(errno.EIO, "Input/output error", "x.png"), 1, "x.png: Input/output error"),
    "a library": (RuntimeError("index out of range"), 1, "index out of range"),
}


@pytest.mark.parametrize(
    "kind", ["a worker", "memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*ENDS][2:])]
)
def test_what_ends_a_training_saves_first(folder, monkeypatch, kind):
    failure, code, words = ENDS[kind]
    step = ImagenTrainer.train_step

    def fails(self, **options):
        if self.num_steps_taken(1) == 2:
            raise failure
        return step(self, **options)

    monkeypatch.setattr(ImagenTrainer, "train_step", fails)
    done = imagen("train", "--steps", 9)
    lines = done.stderr.splitlines()
    assert done.exit_code == code and words in lines[-1] and lines[-1].startswith("imagen: "), done.stderr
    assert lines[-2] == "saved to imagen.pt after 2 steps, before the run ends" and steps() == [2]


def test_what_ends_a_training_at_its_first_step_has_nothing_to_save(folder, monkeypatch):
    succeed("train", "--steps", 2)

    def fails(self, **options):
        raise ValueError("text cannot be empty")

    monkeypatch.setattr(ImagenTrainer, "train_step", fails)
    refused(imagen("train", "--steps", 9, "--quiet"), 2, "text cannot be empty")
    assert steps() == [2]


def test_a_step_that_was_taken_half_is_not_saved(folder, monkeypatch):
    """Weights that are partly of the next step are worth less than the checkpoint before them."""
    succeed("train", "--steps", 1)
    advance = UnetTrainer._advance

    def fails(self):
        if fails.steps == 2:
            raise MemoryError
        fails.steps += 1
        advance(self)

    fails.steps = 0
    monkeypatch.setattr(UnetTrainer, "_advance", fails)
    assert imagen("train", "--steps", 9).exit_code == 5
    assert steps() == [1]


def test_ctrl_c_twice_ends_a_sample_at_once(folder, monkeypatch):
    def interrupted(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImagenTrainer, "sample", interrupted)
    done = imagen("train", "--steps", 3, "--sample-every", 1, "--save-every", 1)
    assert done.exit_code == 130 and steps() == [1]


def test_saving_comes_before_what_may_fail(folder, monkeypatch):
    """A sample that takes the whole process with it costs nothing that was to be saved."""
    seen, sample = [], ImagenTrainer.sample

    def watched(self, **options):
        self.wait_for_saves()
        seen.append(steps())
        return sample(self, **options)

    monkeypatch.setattr(ImagenTrainer, "sample", watched)
    succeed("train", "--steps", 2, "--sample-every", 1, "--save-every", 1)
    assert seen == [[1], [2]]

"""Numbers that go wrong, mistakes in the middle of a training, and saving beside it: nothing is ever half done."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import differing, everything
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointLocked, CheckpointNotWritten, read_checkpoint
from imagen_pytorch.checkpoints import background
from imagen_pytorch.training import checkpointing
from imagen_pytorch.training.unet_trainer import TrainingDiverged

COUNTERS = {"skipped1"}


def new(sizes=(8,), model=None, **options):
    torch.manual_seed(3)
    imagen = small_imagen(sizes, **(model or {}))
    often = {"ema_update_after_step": 0, "ema_update_every": 1, "warmup_steps": 4}
    return ImagenTrainer(imagen, **{"lr": 1e-2, "verbose": False, "seed": 5, **often, **options})


def step(made, **changes):
    made(**{"images": pictures(), "texts": CAPTIONS, **changes})
    return made.update()


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def spoilt(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


# -- numbers that go wrong --------------------------------------------------------------------------------------------

EMBEDS = torch.ones(4, 3, 16)
BAD = {
    "pictures": lambda value: {"images": spoilt(pictures(), value)},
    "embeddings": lambda value: {"texts": None, "text_embeds": spoilt(EMBEDS, value)},
    "conditioning pictures": lambda value: {"cond_images": spoilt(pictures(), value)},
    "noise": lambda value: {"noise": spoilt(torch.randn(4, 3, 8, 8), value)},
}


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("name", BAD)
def test_a_number_that_is_none_skips_the_update_and_is_said_once(name, precision):
    made = new(model={"unet": {"cond_images_channels": 3}}, precision=precision, max_grad_norm=1.0)
    whole = {"cond_images": pictures()}
    assert step(made, **whole)
    before = everything(made)
    values = torch.nan, torch.inf, -torch.inf
    with pytest.warns(UserWarning, match="loss of U-Net 1 is not finite: the update was skipped") as said:
        assert not any(step(made, **whole | BAD[name](value)) for value in values)
    assert len(said) == 1 and made.skipped_steps == [len(values)]
    assert set(differing(before, everything(made))) == COUNTERS
    assert step(made, **whole) and made.unet_trainers[0].skipped_in_a_row == 0
    assert all(bool(item.isfinite().all()) for item in everything(made).values())


@pytest.mark.parametrize("pieces", [None, 1])
def test_a_gradient_that_is_not_finite_leaves_moments_and_averages(pieces):
    made = new()
    step(made)
    before = everything(made)
    made(pictures(), texts=CAPTIONS, max_batch_size=pieces)
    list(made.imagen.parameters())[-1].grad.view(-1)[-1] = -torch.inf
    with pytest.warns(UserWarning, match="the gradient of U-Net 1 is not finite"):
        assert not made.update()
    assert set(differing(before, everything(made))) == COUNTERS
    with pytest.raises(ValueError, match="nothing to update from"):
        made.update()


def with_scale(made, scale):
    made.scaler0.load_state_dict({**made.scaler0.state_dict(), "scale": scale})
    return made


@pytest.mark.filterwarnings("error", "ignore:this processor has no instructions")
@pytest.mark.parametrize("spelling", [{"fp16": True}, {"precision": "fp16"}])
def test_a_loss_scale_that_is_too_large_is_no_failure(spelling):
    """Not even where none may be skipped: it is halved until gradients fit."""
    made = with_scale(new(max_skipped_steps=0, **spelling), 2.0**30)
    before = everything(made)
    assert not step(made) and set(differing(before, everything(made))) == COUNTERS
    taken = [step(made) for _ in range(20)]
    assert any(taken) and made.scaler0.get_scale() < 2**30
    assert made.skipped_steps == [1 + taken.count(False)] and made.steps.tolist() == [taken.count(True)]


def test_bad_data_are_said_after_an_overflow_and_leave_the_scale():
    """A scale that every bad picture halved would bring all gradients down to zero."""
    made = with_scale(new(fp16=True), 2.0**30)
    assert not step(made)
    scale = made.scaler0.get_scale()
    with pytest.warns(UserWarning, match="the loss of U-Net 1 is not finite"):
        assert not step(made, images=spoilt(pictures(), torch.nan))
    assert made.scaler0.get_scale() == scale == 2.0**29


@pytest.mark.filterwarnings("ignore:the gradient of U-Net")
def test_gradients_that_no_scale_helps_end_the_training():
    made = with_scale(new(fp16=True, max_skipped_steps=2), 4.0)
    made.imagen.unets[0].final_conv.bias.register_hook(lambda gradient: gradient * torch.inf)
    taken = [step(made) for _ in range(4)]  # at 4 and 2 it may be the scale
    assert taken == [False] * 4
    with pytest.raises(TrainingDiverged, match="3 updates in a row without a finite loss and gradient"):
        step(made)


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "numbered 1 to 2, got 0": {"unet_number": 0},
    "numbered 1 to 2, got 3": {"unet_number": 3},
    "numbered 1 to 2, got -1": {"unet_number": -1},
    "name the U-Net": {"unet_number": None},
    "conditioned on text": {"texts": None},
    "as many texts, got 3": {"texts": CAPTIONS[:3]},
    "list of captions": {"texts": "one caption"},
    "has 3 channels, the images have 1": {"images": pictures(4, 16, channels=1)},
    "images must be": {"images": pictures(4, 16)[:, 0]},
    "the images are smaller": {"images": pictures(4, 4)},
    "divide by 255": {"images": pictures(4, 16) * 255},
    "floating point": {"images": torch.ones(4, 3, 16, 16, dtype=torch.long)},
    "other proportions": {"images": pictures(4, 24)[..., :18]},
    "text_embeds must be": {"texts": None, "text_embeds": torch.ones(4, 3, 5)},
    "noise must be like": {"noise": torch.ones(4, 3, 5, 5)},
    "image model: it takes no fps": {"fps": 4.0},
    "max_batch_size must be at least 1, got 0": {"max_batch_size": 0},
    "unexpected keyword": {"txts": CAPTIONS},
}


def test_a_mistake_is_a_sentence_and_changes_nothing():
    made = new((8, 16))
    made(pictures(size=16), texts=CAPTIONS, unet_number=2)
    made.update()
    made(pictures(size=16), texts=CAPTIONS, unet_number=2)  # waits while mistakes are made
    before = everything(made)
    waiting = [item.grad.clone() for item in made.imagen.unets[1].parameters()]
    for message, changes in MISTAKES.items():
        with pytest.raises((ValueError, TypeError), match=message):
            made(**{"images": pictures(size=16), "texts": CAPTIONS, "unet_number": 2, **changes})
    with pytest.raises(ValueError, match="U-Net 1 has nothing to update from"):
        made.update(1)
    with pytest.raises(ValueError, match="numbered 1 to 2, got 0"):
        made.update(0)
    assert not differing(before, everything(made))
    now = [item.grad for item in made.imagen.unets[1].parameters()]
    assert all(torch.equal(one, other) for one, other in zip(waiting, now, strict=True))
    assert made.update(2) and made.steps.tolist() == [0, 2]


def test_a_wrong_number_takes_no_batch():
    made = new()
    made.add_train_dataset(list(zip(pictures(8), CAPTIONS * 2, strict=True)), batch_size=2)
    for number in (0, 2):
        with pytest.raises(ValueError, match="numbered 1 to 1"):
            made.train_step(number)
    assert made.train_dl_iter.position == 0


def test_an_error_between_two_pieces_leaves_no_half_of_a_batch(monkeypatch):
    """As when memory runs out: what is tried next begins afresh."""
    made, twin = new(), new()
    loss, calls = made.imagen.loss, []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(*arguments)

    monkeypatch.setattr(made.imagen, "loss", once)
    with pytest.raises(torch.OutOfMemoryError):
        made(pictures(seed=7), texts=CAPTIONS, max_batch_size=2)
    with pytest.raises(ValueError, match="nothing to update from"):
        made.update()
    twin(pictures(seed=7), texts=CAPTIONS)
    twin.unet_trainers[0].optimizer.zero_grad()
    assert step(made) and step(twin)
    assert not differing(everything(made), everything(twin))


@pytest.mark.parametrize("averaged", [False, True])
def test_validation_changes_nothing(averaged):
    """Weights, averages, moments, counters, waiting gradients, random states; and a bad picture spoils no update."""
    made, twin = (new(model={"unet": {"dropout": 0.3}}) for _ in range(2))
    spoilt_pair = [(spoilt(pictures(1)[0], torch.nan), "a"), (pictures(1)[0], "b")]
    for each in (made, twin):
        each.add_valid_dataset(spoilt_pair, batch_size=1)
        each(pictures(), texts=CAPTIONS)
    before, states = everything(made), random_states()
    losses = [made.valid_step(use_ema_unets=averaged) for _ in range(3)]
    assert np.isnan(losses[0]) and np.isfinite(losses[1]) and np.isnan(losses[2])
    assert states == random_states()
    made.eval()
    assert np.isnan(made(spoilt(pictures(), torch.nan), texts=CAPTIONS))
    made.train()
    assert not differing(before, everything(made))
    for each in (made, twin):
        assert each.update() and step(each)
    assert not differing(everything(made), everything(twin))


# -- saving beside the training ---------------------------------------------------------------------------------------


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_what_is_written_in_the_background_is_one_step(tmp_path, monkeypatch):
    """Though training goes on meanwhile: the file of a synchronous save, tensor for tensor."""
    made, go = new(fp16=True), threading.Event()
    made.add_train_dataset(list(zip(pictures(8), CAPTIONS * 2, strict=True)), batch_size=2, shuffle=True)
    made.train_step()
    made(pictures(), texts=CAPTIONS)  # with a gradient that waits
    made.save(tmp_path / "now.pt")
    write = checkpointing.write_checkpoint
    monkeypatch.setattr(checkpointing, "write_checkpoint", lambda *arguments: go.wait() and write(*arguments))
    made.save(tmp_path / "later.pt", background=True)
    made.update()
    for _ in range(3):
        made.train_step()
    go.set()
    made.wait_for_saves()
    now, later = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("now", "later"))
    assert same(now, later) and made.steps.tolist() != now["steps"].tolist()


def unwritable(monkeypatch, times):
    """The first so many writes find the disk full."""
    write, calls = checkpointing.write_checkpoint, []

    def full(contents, path, *rest):
        calls.append(path)
        if len(calls) <= times:
            raise CheckpointNotWritten(f"could not write {path}: No space left on device")
        return write(contents, path, *rest)

    monkeypatch.setattr(checkpointing, "write_checkpoint", full)
    monkeypatch.setattr("imagen_pytorch.checkpoints.store.write_checkpoint", full)


@pytest.mark.parametrize("later", [False, True])
def test_a_full_disk_ends_the_training_or_is_survived(tmp_path, monkeypatch, later):
    options = {"checkpoint_every": 2, "save_in_background": later}
    unwritable(monkeypatch, 2)
    made = new(checkpoint_path=tmp_path / "a", **options)
    step(made)
    with pytest.raises(CheckpointNotWritten, match="No space left"):
        step(made)
        background.settle()
        step(made)
    made = new(checkpoint_path=tmp_path / "b", on_save_error="warn", **options)
    with pytest.warns(UserWarning, match="checkpoint.2.pt: No space left on device; training goes on"):
        for _ in range(2):
            step(made)
        background.settle()
        step(made)
    step(made)
    made.wait_for_saves()
    assert made.steps.tolist() == [4] and sorted(os.listdir(tmp_path / "b")) == [".lock", "checkpoint.4.pt"]


def test_an_earlier_failure_does_not_cost_the_last_save(tmp_path, monkeypatch):
    made = new(on_save_error="warn")
    unwritable(monkeypatch, 1)
    made.save(tmp_path / "first.pt", background=True)
    with pytest.warns(UserWarning, match="first.pt: No space left"):
        made.save(tmp_path / "last.pt")
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_becomes_of_a_save_that_fails_is_one_of_two():
    with pytest.raises(ValueError, match='on_save_error must be "stop" or "warn", got \'ignore\''):
        new(on_save_error="ignore")


def test_a_folder_has_one_trainer_at_a_time(tmp_path):
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 1}
    first = new(**options)
    step(first)
    second = new(**options)
    assert second.steps.tolist() == [1]
    step(second)  # the newest trainer has the folder
    for refused in (lambda: step(first), first.save_to_checkpoint_folder):
        with pytest.raises(CheckpointLocked, match=f"a newer trainer of this process saves into {tmp_path}"):
            refused()
    step(second)
    second.wait_for_saves()
    assert second.all_checkpoints_sorted[0].endswith("checkpoint.3.pt")


def test_a_trainer_may_be_made_anew_in_its_place(tmp_path):
    """As notebooks do, again and again."""
    for steps in range(1, 4):
        made = new(checkpoint_path=tmp_path, checkpoint_every=1)
        step(made)
        assert made.steps.tolist() == [steps]


# -- another interpreter ----------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_promises_training import with_data
made = with_data(seed=99)
made.load(sys.argv[2] + "/a.safetensors")
for _ in range(3):
    made.train_step(max_batch_size=3)
made.save(sys.argv[2] + "/b.pt")
"""


def with_data(**options):
    made = new(model={"unet": {"dropout": 0.2}}, cosine_decay_max_steps=9, **options)
    made.add_train_dataset(list(zip(pictures(10), (CAPTIONS * 3)[:10], strict=True)), batch_size=4, shuffle=True)
    return made


def test_another_interpreter_goes_on_bit_for_bit(tmp_path):
    """With other hashes of names, from a file of safetensors, in mid-epoch."""
    made = with_data()
    for _ in range(2):
        made.train_step(max_batch_size=3)
    made.save(tmp_path / "a.safetensors")
    for _ in range(3):
        made.train_step(max_batch_size=3)
    made.save(tmp_path / "whole.pt")
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, here, tmp_path], capture_output=True, text=True, env=environment, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert same(*(read_checkpoint(tmp_path / f"{name}.pt") for name in ("whole", "b")))


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_training_that_diverges_ends_with_the_reason(tmp_path, monkeypatch):
    from click.testing import CliRunner
    from PIL import Image

    from imagen_pytorch.cli import main

    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    Image.new("RGB", (8, 8), (200, 40, 40)).save("in/a.png")
    unet = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
    model = {"unets": [unet], "image_sizes": [8], "condition_on_text": False}
    settings = {"imagen": model, "trainer": {"lr": 1e37, "max_skipped_steps": 2}, "dataset_name": "in"}
    Path("a.json").write_text(json.dumps({**settings, "sample_at_every": 0}))
    with warnings.catch_warnings():
        done = CliRunner().invoke(main, ["train", "--config", "a.json", "--steps", "50", "--quiet"])
    assert done.exit_code == 1 and done.stdout == "" and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("imagen: U-Net 1: 3 updates in a row without a finite loss") and "lower lr" in last
    assert not Path("imagen.pt").exists()

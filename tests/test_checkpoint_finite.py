"""Weights that are no numbers are never written over good ones, and never gone on from."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from launching import run
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointError, CheckpointNotWritten, read_checkpoint, write_checkpoint
from imagen_pytorch.checkpoints import verify_checkpoint
from imagen_pytorch.io.files import locate
from imagen_pytorch.training.unet_trainer import TrainingDiverged


def trainer(**options):
    return ImagenTrainer(small_imagen(), **{"lr": 1e-3, "verbose": False, "seed": 1, **options})


def step(made, count=1):
    for _ in range(count):
        made(pictures(), texts=CAPTIONS)
        made.update()


def weight(made):
    return made.imagen.unets[0].final_conv.weight.data


def average(made):
    return made.ema_unets[0].ema_model.final_conv.weight.data


def moment(made):
    return made.optim0.state[made.imagen.unets[0].final_conv.weight]["exp_avg_sq"]


RUINED = {"weight": (weight, "model/unets.0.final_conv"), "average": (average, "ema/0.ema_model.final_conv"),
          "moment": (moment, "optim0/state")}  # fmt: skip


@pytest.mark.parametrize("part", RUINED)
def test_nothing_is_replaced_by_what_is_ruined(tmp_path, part):
    made = trainer()
    step(made)
    made.save(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    tensor, name = RUINED[part]
    for value in (math.nan, math.inf):
        tensor(made).view(-1)[0] = value
        with pytest.raises(CheckpointNotWritten, match=f"a.pt is not written, .* untouched: the weights .*{name}"):
            made.save(tmp_path / "a.pt", keep_previous=True)
    assert (tmp_path / "a.pt").read_bytes() == before and not (tmp_path / "a.previous.pt").exists()


def test_large_but_finite_moments_and_usual_weights_are_saved(tmp_path):
    made = trainer()
    step(made)
    moment(made).fill_(1e30)
    weight(made).fill_(1e6)
    made.save(tmp_path / "a.pt")
    verify_checkpoint(str(tmp_path / "a.pt"), locate(tmp_path)[0])


@pytest.mark.parametrize("background", [False, True])
def test_a_step_that_ruins_the_weights_leaves_the_checkpoint_before_it(tmp_path, background):
    """Loss and gradient are finite, the rate is not sensible: the folder keeps the last good state."""
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 1, "save_in_background": background}
    made = trainer(**options)
    step(made, 2)
    made.wait_for_saves()
    made.optim0.param_groups[0]["lr"] = 1e30
    with pytest.raises(CheckpointNotWritten, match="lower lr or set max_grad_norm"):
        step(made)
    del made
    again = trainer(**options)
    assert again.steps.tolist() == [2] and again.get_lr(1) == 1e-3
    step(again)
    assert again.steps.tolist() == [3]


def ruin(path):
    contents = read_checkpoint(path)
    contents["model"]["unets.0.final_conv.bias"][0] = math.nan
    write_checkpoint(contents, path)


def test_a_folder_goes_on_from_the_newest_that_is_finite(tmp_path):
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 1}
    made = trainer(**options)
    step(made, 3)
    made.wait_for_saves()
    del made
    ruin(tmp_path / "checkpoint.3.pt")
    with pytest.warns(UserWarning, match=r"checkpoint.3.pt: it holds weights that are NaN, infinite or too large, in"):
        again = trainer(**options)
    assert again.steps.tolist() == [2]


def test_a_file_that_is_not_finite_is_no_whole_one_and_is_not_loaded(tmp_path):
    made = trainer()
    step(made)
    made.save(tmp_path / "a.pt")
    ruin(tmp_path / "a.pt")
    before = weight(made).clone()
    with pytest.raises(CheckpointError, match="a.pt: it holds weights that are NaN, infinite or too large"):
        verify_checkpoint(str(tmp_path / "a.pt"), locate(tmp_path)[0])
    with pytest.raises(CheckpointError, match=r"a.pt holds weights that cannot be used, nothing was loaded: NaN"):
        made.load(tmp_path / "a.pt")
    assert torch.equal(weight(made), before)


def test_what_a_user_adds_may_be_anything(tmp_path):
    made = trainer()
    made.save(tmp_path / "a.pt", note=torch.tensor([math.nan]))
    verify_checkpoint(str(tmp_path / "a.pt"), locate(tmp_path)[0])


# -- what is said while training --------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_named_and_end_the_training_at_once():
    made = trainer()
    step(made)
    weight(made).fill_(math.nan)
    made(pictures(), texts=CAPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing claims that the weights are untouched
        with pytest.raises(TrainingDiverged, match=r"loss is not finite because weights .*final_conv.weight.*lower lr"):
            made.update()


@pytest.mark.filterwarnings("ignore:the loss of U-Net")
def test_weights_that_are_too_large_are_named_in_the_end():
    made = trainer(max_skipped_steps=1)
    step(made)
    for item in made.imagen.parameters():
        item.data.fill_(1e30)
    made(pictures(), texts=CAPTIONS)
    made.update()
    made(pictures(), texts=CAPTIONS)
    with pytest.raises(TrainingDiverged, match="2 updates in a row .*weights are too large .*earlier checkpoint"):
        made.update()


@pytest.mark.slow
def test_shards_on_two_processes_follow_the_same_rules(tmp_path):
    run(2, "ruined_shards.py", tmp_path / "shards")

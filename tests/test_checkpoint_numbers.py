"""Numbers that a checkpoint cannot mean are refused before anything is changed, and an error puts everything back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_resume import differing, everything
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointError, read_checkpoint
from imagen_pytorch.training import state
from imagen_pytorch.training.data import TrainingData
from imagen_pytorch.training.rng import TrainingRandomness
from imagen_pytorch.training.unet_trainer import UnetTrainer


def trainer(**options):
    torch.manual_seed(3)
    return ImagenTrainer(small_imagen(), **{"lr": 1e-3, "verbose": False, "seed": 1, "warmup_steps": 4, **options})


def step(made):
    made(pictures(), texts=CAPTIONS)
    made.update()


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    made = trainer(amsgrad=True, precision="fp16")
    for _ in range(2):
        step(made)
    path = tmp_path_factory.mktemp("numbers") / "a.pt"
    made.save(path)
    return read_checkpoint(path)


NOT_RATES = [math.nan, math.inf, -1.0, 10**400, "1", None, True]
NOT_STEPS = [math.nan, math.inf, -1, 2**53, 10**400, "x", None, True, torch.tensor(math.nan), torch.tensor(-1.0)]
NOT_COUNTS = [[10**30], [2**63 - 1], [-1], [0.5], [True], torch.tensor([2**62]), torch.tensor([True])]
GROUP, MOMENTS = ("optim0", "param_groups", 0), ("optim0", "state", 0)
PLACES = {
    "lr": ((*GROUP, "lr"), NOT_RATES),
    "initial_lr": ((*GROUP, "initial_lr"), NOT_RATES),
    "eps": ((*GROUP, "eps"), NOT_RATES),
    "weight_decay": ((*GROUP, "weight_decay"), NOT_RATES),
    "betas": ((*GROUP, "betas"), [(5, 0.9), (0.9, 1.0), (math.nan, 0.9), (0.9,), (True, 0.9)]),
    "step": ((*MOMENTS, "step"), NOT_STEPS),
    "steps": (("steps",), NOT_COUNTS),
    "skipped_steps": (("state", "skipped_steps"), NOT_COUNTS),
    "warmup_steps": (("state", "settings", "warmup_steps"), [[0], [-1], [1.5], ["x"], [2**60], 5]),
    "max_grad_norm": (("state", "settings", "max_grad_norm"), [0, -1, math.nan, math.inf, "x"]),
    "averages": (("state", "settings", "averages"), [{"beta": math.nan}, {"beta": 7}, {"step": 1}, 5]),
    "update_every": (("state", "settings", "averages", "update_every"), [0, 1.5, -1, True, "x"]),
    "inv_gamma": (("state", "settings", "averages", "inv_gamma"), [0, -1.0, math.inf]),
    "scale": (("scaler0", "scale"), [0.0, -1.0, math.nan, math.inf, "x"]),
    "growth_factor": (("scaler0", "growth_factor"), [0.5, math.nan]),
    "last_epoch": (("scheduler0", "last_epoch"), [-1, 2**53, math.nan]),
    "base_lrs": (("scheduler0", "base_lrs"), [[math.nan], [-1.0], [1.0, 2.0]]),
}


def changed(contents, place, value):
    """The same contents with another value in one place; tensors are shared."""
    result = copy.copy(contents)
    inner = result
    for name in place[:-1]:
        inner[name] = copy.copy(inner[name])
        inner = inner[name]
    inner[place[-1]] = value
    return result


def tensor_values(tensor):
    """What no weight and no moment is."""
    for value in (math.nan, math.inf):
        ruined = tensor.clone()
        ruined.view(-1)[0] = value
        yield ruined
    yield from (tensor.to(torch.int8), tensor > 0, tensor.to(torch.complex64), tensor.double().fill_(1e300))
    yield from (torch.full_like(tensor, 1e25), torch.full_like(tensor.double(), 1e25))  # their squares are infinite


def loaded(monkeypatch, made, contents, **options):
    monkeypatch.setattr("imagen_pytorch.training.checkpointing.read_checkpoint", lambda *_: contents)
    return made.load("a.pt", **options)


@pytest.fixture(scope="module")
def made():
    result = trainer(amsgrad=True, precision="fp16")
    step(result)
    return result


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("strict", [True, False])
def test_impossible_numbers_are_refused_and_change_nothing(monkeypatch, made, contents, name, strict):
    place, values = PLACES[name]
    before = everything(made)
    for value in values:
        with pytest.raises(CheckpointError, match=rf"a.pt is not a checkpoint .*nothing was loaded.*{place[0]}"):
            loaded(monkeypatch, made, changed(contents, place, value), strict=strict)
    assert not differing(before, everything(made))


@pytest.mark.parametrize("place", [("model", "unets.0.final_conv.weight"), ("ema", "0.ema_model.final_conv.weight")])
def test_weights_are_finite_numbers(monkeypatch, made, contents, place):
    before = everything(made)
    for value in tensor_values(contents[place[0]][place[1]]):
        for options in ({}, {"strict": False}, {"only_model": True}):
            with pytest.raises(CheckpointError, match="weights that cannot be used, nothing was loaded.*final_conv"):
                loaded(monkeypatch, made, changed(contents, place, value), **options)
    assert not differing(before, everything(made))


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_moments_are_finite_and_second_ones_are_not_negative(monkeypatch, made, contents, name):
    moment = contents["optim0"]["state"][0][name]
    values = [*list(tensor_values(moment))[:5], *([moment - 1] if name != "exp_avg" else [])]
    for value in values:
        with pytest.raises(CheckpointError, match="nothing was loaded.*optim0"):
            loaded(monkeypatch, made, changed(contents, (*MOMENTS, name), value))


def test_how_it_computes_is_not_taken_from_the_file(monkeypatch, contents):
    other = trainer()
    for name, value in (("maximize", True), ("foreach", "x"), ("fused", 5), ("capturable", None)):
        loaded(monkeypatch, other, changed(contents, (*GROUP, name), value))
    assert other.optim0.param_groups[0]["maximize"] is False
    step(other)


#: where a load fails: nothing is loaded yet; weights and averages are; optimizers, too; random state, too
FAILS = {
    "weights": (state, "fill"),
    "moments": (UnetTrainer, "load_state_dict"),
    "random state": (TrainingRandomness, "load_state_dict"),
    "data": (TrainingData, "load_state_dict"),
}


@pytest.mark.parametrize("where", FAILS)
def test_an_error_while_loading_puts_everything_back(monkeypatch, contents, where):
    """Weights, averages, moments, rate, counts, scale, random state, place in the data, gradients that wait."""
    made, twin = trainer(precision="fp16"), trainer(precision="fp16")
    for each in (made, twin):
        each.add_train_dataset(list(zip(pictures(), CAPTIONS, strict=True)), batch_size=2, shuffle=True)
        each.train_step()
        each(pictures(seed=5), texts=CAPTIONS)

    def fails(*_, **__):
        raise OSError("the disk is gone")

    kept = made.optim0, made.scaler0, made.train_dl_iter
    with monkeypatch.context() as patch:
        patch.setattr(*FAILS[where], fails)
        with pytest.raises(OSError, match="the disk is gone"):
            loaded(patch, made, contents, strict=False)
    assert kept == (made.optim0, made.scaler0, made.train_dl_iter) and made.steps.tolist() == [1]
    assert made.unet_trainers[0].pending and made.scaler0.state_dict() == twin.scaler0.state_dict()
    for each in (made, twin):
        each.update()
    assert made.train_step() == twin.train_step()
    assert not differing(everything(made), everything(twin))

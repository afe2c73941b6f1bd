"""The learning rate of every U-Net, how it falls, and how that is changed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint, write_checkpoint
from imagen_pytorch.training.optim import rate_factor


def trainer(sizes=(8,), **options):
    return ImagenTrainer(small_imagen(sizes), **{"lr": 1e-3, "verbose": False, "seed": 1, **options})


def step(made, count=1, number=1):
    for _ in range(count):
        made(pictures(size=16), texts=CAPTIONS, unet_number=number)
        made.update(number)


def cosine(step, end):
    return 0.5 * (1 + math.cos(math.pi * min(1, step / end)))


# -- the end of a decay is changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after", "warmup"), [(None, 5, None), (4, None, 6), (20, 5, None), (4, 40, 6)])
def test_the_rate_is_that_of_the_new_decay_at_once_and_later(before, after, warmup):
    made = trainer(cosine_decay_max_steps=before, warmup_steps=warmup)
    step(made, 3)
    made.set_decay(1, after)
    assert made.decay_steps(1) == after
    for taken in (3, 4):
        rise = min(1, (taken + 1) / warmup) if warmup else 1
        assert made.get_lr(1) == pytest.approx(1e-3 * rise * (cosine(taken, after) if after else 1), abs=1e-12)
        step(made)


def test_only_the_named_unet_gets_another_decay():
    made = trainer((8, 16), cosine_decay_max_steps=(10, 20))
    step(made, 2, number=2)
    made.set_decay(2, 4)
    assert (made.decay_steps(1), made.decay_steps(2)) == (10, 4)
    assert made.get_lr(1) == 1e-3 and made.get_lr(2) == pytest.approx(1e-3 * cosine(2, 4))


def test_what_is_no_number_of_updates_changes_nothing():
    made = trainer(cosine_decay_max_steps=8)
    step(made, 2)
    rate = made.get_lr(1)
    for wrong in (0, -1, 1.5, True, "x", float("nan")):
        with pytest.raises((ValueError, TypeError), match="cosine_decay_max_steps must be"):
            made.set_decay(1, wrong)
    with pytest.raises(ValueError, match="numbered 1 to 1, got 2"):
        made.set_decay(2, 5)
    assert made.get_lr(1) == rate and made.decay_steps(1) == 8


def test_a_rate_that_was_set_by_hand_is_the_one_that_decays():
    made = trainer()
    made.optim0.param_groups[0]["lr"] = 1e-2
    made.set_decay(1, 2)
    step(made)
    assert made.get_lr(1) == pytest.approx(5e-3)


# -- constant, with a cool-down at the end ----------------------------------------------------------------------------


def cooled(step, end, length):
    begin = max(0, end - length)
    return 1 - math.sqrt(min(1, max(0, step - begin) / (end - begin)))


@pytest.mark.parametrize(("end", "length", "warmup"), [(8, 3, None), (8, 3, 4), (4, 9, None), (5, 5, 2), (6, 1, None)])
def test_the_rate_is_constant_until_the_cool_down_and_ends_at_zero(end, length, warmup):
    made = trainer(cosine_decay_max_steps=end, cooldown_steps=length, warmup_steps=warmup)
    assert (made.decay_steps(1), made.cooldown_steps(1)) == (end, length)
    rates = []
    for _ in range(end + 2):
        rates.append(made.get_lr(1) / 1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rate is 0 at the end
            step(made)
    rise = [min(1, (taken + 1) / warmup) if warmup else 1 for taken in range(end + 2)]
    assert rates == pytest.approx([rise[taken] * cooled(taken, end, length) for taken in range(end + 2)], abs=1e-12)
    assert rates[end:] == [0, 0] and all(
        rate == pytest.approx(rise[taken]) for taken, rate in enumerate(rates[: max(0, end - length) + 1])
    )


@given(end=st.integers(1, 200), length=st.integers(1, 300), warmup=st.none() | st.integers(1, 50))
def test_the_cool_down_never_rises_and_a_longer_run_begins_like_a_shorter_one(end, length, warmup):
    rates = [rate_factor(taken, None, end, length) for taken in range(end + 2)]
    assert rates[0] == 1 and rates[end] == 0 and rates == sorted(rates, reverse=True)
    for taken in range(max(0, end - length) + 1):
        assert rate_factor(taken, warmup, end, length) == rate_factor(taken, warmup, end + 17, length)


def test_a_cool_down_waits_for_an_end():
    made = trainer(cooldown_steps=2)
    step(made, 3)
    assert made.get_lr(1) == 1e-3 and made.decay_steps(1) is None
    made.set_decay(1, 5)
    assert [round(made.get_lr(1) / 1e-3, 6), made.cooldown_steps(1)] == [1, 2]
    step(made)
    assert made.get_lr(1) == pytest.approx(1e-3 * (1 - math.sqrt(0.5)))


def test_every_unet_has_its_cool_down():
    made = trainer((8, 16), cosine_decay_max_steps=4, cooldown_steps=(1, None))
    assert [made.cooldown_steps(number) for number in (1, 2)] == [1, None]
    step(made, number=1)
    step(made, number=2)
    assert made.get_lr(1) == 1e-3 and made.get_lr(2) == pytest.approx(1e-3 * cosine(1, 4))


def test_a_cool_down_goes_on_from_a_checkpoint_and_to_a_new_end(tmp_path):
    made = trainer(cosine_decay_max_steps=4, cooldown_steps=2)
    step(made, 3)
    made.save(tmp_path / "a.pt")
    other = ImagenTrainer(small_imagen(), verbose=False)
    other.load(tmp_path / "a.pt")
    assert other.cooldown_steps(1) == 2 and other.get_lr(1) == made.get_lr(1) == pytest.approx(1e-3 * cooled(3, 4, 2))
    other.set_decay(1, 10)
    assert other.get_lr(1) == 1e-3
    contents = read_checkpoint(tmp_path / "a.pt")
    del contents["state"]["settings"]["cooldown_steps"]  # as versions without it wrote it
    write_checkpoint(contents, tmp_path / "b.pt")
    older = ImagenTrainer(small_imagen(), verbose=False)
    older.load(tmp_path / "b.pt")
    assert older.cooldown_steps(1) is None and older.get_lr(1) == pytest.approx(1e-3 * cosine(3, 4))


# -- going on: what is stated wins, the rest comes from the checkpoint ------------------------------------------------

#: a setting, its value in the run that is saved, and the one that is stated when it goes on
STATED = {
    "lr": (1e-3, 1e-5),
    "eps": (1e-8, 1e-6),
    "beta1": (0.9, 0.8),
    "beta2": (0.99, 0.95),
    "weight_decay": (0.1, 0.2),
    "amsgrad": (False, True),
    "group_wd_params": (True, False),
    "warmup_steps": (4, 10),
    "cosine_decay_max_steps": (20, 8),
    "cooldown_steps": (None, 3),
    "max_grad_norm": (1.0, 0.5),
    "ema_beta": (0.9, 0.5),
    "ema_update_every": (2, 3),
}
USUAL = {"warmup_steps": 4, "cosine_decay_max_steps": 20, "weight_decay": 0.1, "max_grad_norm": 1.0, "ema_beta": 0.9,
         "ema_update_every": 2}  # fmt: skip


def setting(made, name):
    """What a trainer trains with."""
    group = made.optim0.param_groups[0]
    if name in ("beta1", "beta2"):
        return group["betas"][int(name[-1]) - 1]
    if name == "lr":
        return group.get("initial_lr", group["lr"])
    if name == "group_wd_params":
        return len(made.optim0.param_groups) == 2
    if name in ("warmup_steps", "cosine_decay_max_steps", "cooldown_steps"):
        return made.scheduler0.lr_lambdas[0].keywords[name]
    if name.startswith("ema_"):
        return getattr(made.ema_unets[0], name.removeprefix("ema_"))
    return made.max_grad_norm if name == "max_grad_norm" else group[name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = trainer(**USUAL)
    step(made, 3)
    path = tmp_path_factory.mktemp("saved") / "a.pt"
    made.save(path)
    return path, made


@pytest.mark.parametrize("name", STATED)
def test_what_is_stated_wins_over_the_checkpoint_and_is_said(saved, name, capsys):
    path, made = saved
    before, now = STATED[name]
    assert setting(made, name) == before
    other = trainer(**{"verbose": True, name: now} | ({} if name == "lr" else {"lr": 1e-3}))
    other.load(path)
    of = "" if name in ("max_grad_norm", "ema_beta", "ema_update_every") else " of U-Net 1"
    line = f"{name}{of}: {now} (the checkpoint has {before})"
    assert other.resume_notes == [line] and line in capsys.readouterr().out
    for each in STATED:
        assert setting(other, each) == (now if each == name else STATED[each][0]), each
    step(other)
    assert other.steps.tolist() == [4] and all(bool(item.isfinite().all()) for item in other.imagen.parameters())


def test_what_nobody_states_comes_from_the_checkpoint(saved):
    path, made = saved
    other = ImagenTrainer(small_imagen(), verbose=False)
    other.load(path)
    assert {name: setting(other, name) for name in STATED} == {name: setting(made, name) for name in STATED}
    assert other.get_lr(1) == made.get_lr(1) and other.decay_steps(1) == 20 and other.resume_notes == []


def test_a_default_that_is_passed_is_stated(tmp_path):
    made = trainer(lr=1e-3)
    step(made)
    made.save(tmp_path / "a.pt")
    other = trainer(lr=1e-4)
    other.load(tmp_path / "a.pt")
    assert other.get_lr(1) == 1e-4 and other.resume_notes == ["lr of U-Net 1: 0.0001 (the checkpoint has 0.001)"]


def test_a_lower_rate_and_a_warm_up_hold_from_the_first_update_on(tmp_path):
    made = trainer(lr=1e-3)
    step(made, 2)
    made.save(tmp_path / "a.pt")
    other = trainer(lr=1e-5, warmup_steps=10)
    other.load(tmp_path / "a.pt")
    for taken in (2, 3):
        assert other.get_lr(1) == pytest.approx(1e-5 * (taken + 1) / 10)
        step(other)


def test_a_folder_of_checkpoints_follows_the_same_rule(tmp_path):
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 1}
    step(trainer(lr=1e-3, **options))
    other = trainer(lr=1e-5, **options)
    assert other.steps.tolist() == [1] and other.get_lr(1) == 1e-5 and len(other.resume_notes) == 1


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.1), (0.1, 0.0)])
def test_moments_follow_their_parameters_into_other_groups(tmp_path, before, after):
    made = trainer(weight_decay=before)
    step(made, 2)
    made.save(tmp_path / "a.pt")
    other = trainer(weight_decay=after)
    other.load(tmp_path / "a.pt")
    pairs = zip(made.imagen.parameters(), other.imagen.parameters(), strict=True)
    assert all(
        (made.optim0.state[mine]["exp_avg"] == other.optim0.state[theirs]["exp_avg"]).all() for mine, theirs in pairs
    )
    assert other.optim0.param_groups[0]["weight_decay"] == after
    assert isinstance(other.optim0, torch.optim.AdamW) == bool(after)


def test_an_older_checkpoint_without_recorded_settings_goes_on_at_its_rate(tmp_path):
    made = trainer(cosine_decay_max_steps=8)
    step(made, 4)
    made.save(tmp_path / "a.pt")
    contents = read_checkpoint(tmp_path / "a.pt")
    del contents["state"]["settings"]
    write_checkpoint(contents, tmp_path / "b.pt")
    unstated, stated = ImagenTrainer(small_imagen(), verbose=False), trainer(cosine_decay_max_steps=16)
    for other in (unstated, stated):
        other.load(tmp_path / "b.pt")
    assert unstated.get_lr(1) == pytest.approx(5e-4) and stated.get_lr(1) == pytest.approx(1e-3 * cosine(4, 16))


def test_how_it_computes_is_of_the_trainer(tmp_path):
    made = trainer(maximize=True, foreach=True)
    step(made)
    made.save(tmp_path / "a.pt")
    other = trainer()
    other.load(tmp_path / "a.pt")
    assert (other.optim0.param_groups[0]["maximize"], other.optim0.param_groups[0]["foreach"]) == (False, None)

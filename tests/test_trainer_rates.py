"""The learning rate of every U-Net, how it falls, and how that is changed."""

from __future__ import annotations

import math

import pytest
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer


def trainer(sizes=(8,), **options):
    return ImagenTrainer(small_imagen(sizes), **{"lr": 1e-3, "verbose": False, "seed": 1, **options})


def step(made, count=1, number=1):
    for _ in range(count):
        made(pictures(size=16), texts=CAPTIONS, unet_number=number)
        made.update(number)


def cosine(step, end):
    return 0.5 * (1 + math.cos(math.pi * min(1, step / end)))


# -- the end of a decay is changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, 4, 20])
@pytest.mark.parametrize("after", [None, 5, 40])
@pytest.mark.parametrize("warmup", [None, 6])
def test_the_rate_is_that_of_the_new_decay_at_once_and_later(before, after, warmup):
    made = trainer(cosine_decay_max_steps=before, warmup_steps=warmup)
    step(made, 3)
    made.set_decay(1, after)
    assert made.decay_steps(1) == after
    for taken in range(3, 6):
        rise = min(1, (taken + 1) / warmup) if warmup else 1
        assert made.get_lr(1) == pytest.approx(1e-3 * rise * (cosine(taken, after) if after else 1), abs=1e-12)
        step(made)


def test_only_the_named_unet_gets_another_decay():
    made = trainer((8, 16), cosine_decay_max_steps=(10, 20))
    step(made, 2, number=2)
    made.set_decay(2, 4)
    assert (made.decay_steps(1), made.decay_steps(2)) == (10, 4)
    assert made.get_lr(1) == 1e-3 and made.get_lr(2) == pytest.approx(1e-3 * cosine(2, 4))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "x", float("nan")])
def test_what_is_no_number_of_updates_changes_nothing(wrong):
    made = trainer(cosine_decay_max_steps=8)
    step(made, 2)
    rate = made.get_lr(1)
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

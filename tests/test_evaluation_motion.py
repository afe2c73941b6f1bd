"""Clips whose motion is known are judged as what they are."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.data.moving_digits import DIRECTIONS, MovingDigits
from imagen_pytorch.evaluation.motion import (
    caption_direction,
    follows,
    motion_figures,
    movement,
    tolerance_between,
)

ROOT_HALF = 0.5**0.5


def square(down: float, right: float, frames: int = 8, size: int = 40) -> torch.Tensor:
    """A bright square of 8 x 8 that moves by whole pixels per frame, over a dim ground."""
    clip = torch.full((3, frames, size, size), 0.1)
    for index in range(frames):
        top, left = round(16 + down * index), round(16 + right * index)
        clip[:, index, top : top + 8, left : left + 8] = 0.9
    return clip


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("the digit 3 moves left", (0, -1)),
        ("the red digit 3 moves down and right", (ROOT_HALF, ROOT_HALF)),
        ("a square moves to the right", (0, 1)),
        ("the digit 3 moves up and the digit 7 moves left", (-ROOT_HALF, -ROOT_HALF)),
        ("the digit 3 moves left and the digit 7 moves left", (0, -1)),
    ],
)
def test_directions_of_captions(caption, wanted):
    assert caption_direction(caption).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("caption", ["", "a digit on the left", "the digit 3 moves up and the digit 4 moves down"])
def test_captions_without_a_direction(caption):
    assert caption_direction(caption) is None


@pytest.mark.parametrize(("down", "right"), [(0, 2), (-2, 0), (1, -2), (0, 0)])
def test_movement_is_measured_in_sides_of_the_frame(down, right):
    moved = movement(square(down, right)) * 40
    assert moved.tolist() == pytest.approx([4 * down, 4 * right], abs=1e-4)


def test_what_happens_after_the_first_half_does_not_count():
    there = square(0, 3, frames=5)
    back = torch.cat([there, there.flip(1)[:, 1:4]], 1)
    assert float(movement(back)[1]) == pytest.approx(4 * 3 / 40)


def test_a_picture_does_not_move():
    assert movement(square(0, 1, frames=1)).tolist() == [0, 0]


def test_following_needs_a_movement_in_the_right_direction():
    right = torch.tensor([0.0, 1.0])
    assert follows(torch.tensor([0.1, 0.2]), right) and follows(torch.tensor([0.1, 0.2]), right, 30)
    assert not follows(torch.tensor([0.1, 0.2]), right, 22.5)
    assert not follows(torch.tensor([0.0, -0.2]), right) and not follows(torch.tensor([0.0, 0.001]), right)


def test_tolerance_is_half_way_to_the_next_direction():
    ways = {name: torch.tensor(way, dtype=torch.float32) for name, way in DIRECTIONS.items()}
    assert tolerance_between(list(ways.values())) == pytest.approx(22.5)
    assert tolerance_between([ways[name] for name in ("left", "right", "up", "down", "up")]) == 45
    assert tolerance_between([ways["left"]]) == 45


@pytest.mark.parametrize(("options", "chance"), [({}, 1 / 4), ({"directions": tuple(DIRECTIONS)}, 1 / 8)])
def test_real_clips_follow_their_captions_and_mixed_up_ones_do_not(options, chance):
    data = MovingDigits(length=96, split="test", **options)
    items = [data[index] for index in range(96)]
    real, captions = torch.stack([item["images"] for item in items]), [item["texts"] for item in items]
    figures = motion_figures(real.roll(1, 0), real, captions)
    assert figures["clips"] == 96 and figures["chance"] == pytest.approx(chance) and figures["real"] > 0.98
    assert abs(figures["generated"] - chance) < 0.12
    assert set(figures["by_direction"]) == set(options.get("directions", ("left", "right", "up", "down")))


def test_captions_without_a_direction_are_left_out():
    clips = torch.stack([square(0, 2), square(0, -2), square(0, 2)])
    captions = ["it moves right", "it moves right", "nobody knows"]
    figures = motion_figures(clips, clips, captions)
    assert figures["clips"] == 2 and figures["generated"] == figures["real"] == 0.5
    assert motion_figures(clips[:1], clips[:1], ["nobody knows"]) == {}
    with pytest.raises(ValueError, match="3 captions need as many clips, got 2 and 2"):
        motion_figures(clips[:2], clips[:2], captions)

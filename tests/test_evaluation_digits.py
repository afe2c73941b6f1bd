"""Clips whose digits are known are recognised as what they show, and others are not."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.data.moving_digits import COLOURS, MovingDigits
from imagen_pytorch.evaluation.digits import NO_DIGIT, caption_digit, digit_crops, digit_figures, train_digit_reader

SIZE = 16


@pytest.fixture(scope="module")
def reader():
    return train_digit_reader((SIZE, SIZE))


def clips(count: int, **options) -> tuple[torch.Tensor, list[str]]:
    data = MovingDigits(image_size=SIZE, length=count, split="test", **options)
    return torch.stack([item["images"] for item in (data[index] for index in range(count))]), list(data.captions)


@pytest.fixture(scope="module")
def real():
    return clips(300, channels=1)


@pytest.mark.parametrize(
    ("caption", "digit"),
    [
        ("the digit 3 moves left", 3),
        ("the red digit 0 moves up and right", 0),
        ("the digit 3 moves up and the digit 7 moves left", None),
        ("the digit 7 moves up and the digit 7 moves left", 7),
        ("a digit that moves left", None),
        ("the digit 30 moves", None),
        ("", None),
    ],
)
def test_digits_of_captions(caption, digit):
    assert caption_digit(caption) == digit


def test_real_clips_in_handwriting_that_was_not_learned_are_recognised(reader, real):
    made, captions = real
    wanted = torch.tensor([caption_digit(text) for text in captions])
    assert float((reader.read(made) == wanted[:, None]).float().mean()) >= 0.95
    figures = digit_figures(reader, made, made, captions)
    assert figures["clips"] == 300 and set(figures["by_digit"]) == set("0123456789")
    for name in ("most_frames", "every_frame"):
        assert figures[name]["generated"] == figures[name]["real"]
        assert figures[name]["real"]["low"] < figures[name]["real"]["value"] and figures[name]["real"]["value"] > 0.93


def test_clips_of_other_captions_are_at_chance(reader, real):
    made, captions = real
    # every caption gets a clip of another digit
    order = sorted(range(300), key=lambda index: caption_digit(captions[index]))
    other = torch.empty(300, dtype=torch.long)
    other[order] = torch.tensor(order).roll(60)
    wrong = digit_figures(reader, made[other], made, captions)
    assert wrong["most_frames"]["generated"]["value"] < 0.04 and wrong["most_frames"]["real"]["value"] > 0.93
    mixed = digit_figures(reader, made.roll(1, 0), made, captions)
    assert abs(mixed["most_frames"]["generated"]["value"] - 0.1) < 0.05 and 0.1 <= mixed["chance"] < 0.17


def test_a_clip_that_changes_its_digit_half_way_is_right_in_no_majority(reader, real):
    made, captions = real
    known = reader.read(made)
    steady = (known == torch.tensor([caption_digit(text) for text in captions])[:, None]).all(1)
    first = next(index for index in range(300) if steady[index])
    other = next(index for index in range(300) if steady[index] and known[index, 0] != known[first, 0])
    for cut, mostly in ((4, False), (5, True), (8, True)):
        changed = torch.cat([made[first, :, :cut], made[other, :, cut:]], 1)[None]
        figures = digit_figures(reader, changed, made[[first]], [captions[first]])
        assert figures["most_frames"]["generated"]["value"] == mostly
        assert figures["every_frame"]["generated"]["value"] == (cut == 8)
        assert figures["every_frame"]["real"]["value"] == 1 and figures["chance"] == 1


def test_black_clips_show_no_digit(reader, real):
    _, captions = real
    black = torch.full((300, 3, 8, SIZE, SIZE), 0.1)
    assert bool((reader.read(black) == NO_DIGIT).all())
    figures = digit_figures(reader, black, black, captions)
    for name in ("most_frames", "every_frame"):
        for kind in ("generated", "real"):
            assert figures[name][kind]["value"] == 0 and figures[name][kind]["high"] > 0


def test_the_place_of_a_digit_and_its_colour_make_no_difference(reader):
    made, captions = clips(100, channels=4, colours=True)
    wanted = torch.tensor([caption_digit(text) for text in captions])
    assert len({text.split()[1] for text in captions}) == len(COLOURS)
    assert float((reader.read(made) == wanted[:, None]).float().mean()) > 0.9
    moved = torch.zeros(1, 1, 2, 24, 24)
    moved[0, 0, 0, 3:8, 4:7] = moved[0, 0, 1, 13:18, 11:14] = 1
    first, second = digit_crops(moved)
    assert torch.allclose(first, second, atol=1e-6) and first.shape == (1, 14, 14)
    assert float(first.sum()) == pytest.approx(15, rel=0.05)


def test_captions_without_one_digit_are_left_out(reader, real):
    made, captions = real
    other = [captions[0], "nobody knows", "the digit 3 moves up and the digit 4 moves down"]
    assert digit_figures(reader, made[:3], made[:3], other)["clips"] == 1
    assert digit_figures(reader, made[:1], made[:1], ["nobody knows"]) == {}
    with pytest.raises(ValueError, match="3 captions need as many clips, got 2 and 2"):
        digit_figures(reader, made[:2], made[:2], captions[:3])

"""moving-digits: what the captions say is what moves, the same for ever, and never beyond the borders."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cascade_toys import unchecked
from torch.utils.data import DataLoader

from imagen_pytorch.data import MovingDigits, centre_track, moving_digits, open_source
from imagen_pytorch.data.moving_digits import COLOURS, DIRECTIONS, LEAST_SIDE
from imagen_pytorch.data.sprites import FOLDER, Sprites, handwriting, render
from imagen_pytorch.images import resize

EVERY = tuple(DIRECTIONS)
FULL = dict(num_digits=(1, 3), distractors=(0, 3), directions=EVERY, colours=True, frame_stride=(1, 2, 4))


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked in tests of items, channels, sizes and points, and nowhere else: it takes most of the
    time."""
    checked = ("test_an_item", "test_every_number_of_channels", "test_one_scene", "test_the_middle", "test_haze")
    with nullcontext() if request.node.name.startswith(checked) else unchecked():
        yield


def same(one, other):
    return torch.equal(one["images"], other["images"]) and all(one[key] == other[key] for key in ("texts", "fps"))


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_item_as_the_trainer_takes_it():
    data = MovingDigits()
    item = data[3]
    assert set(item) == {"images", "texts", "fps"} and len(data) == len(data.captions) == 10_000
    assert item["images"].shape == (3, 8, 32, 32) and item["images"].dtype == torch.float32
    assert item["images"].min() == 0 and 0.9 < item["images"].max() <= 1
    assert item["texts"] == data.captions[3] and item["fps"] == 8.0 and isinstance(item["fps"], float)
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["images"].shape == (4, 3, 8, 32, 32) and batch["texts"] == data.captions[:4]
    assert batch["fps"].tolist() == [8.0] * 4


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels(channels):
    item, grey = (MovingDigits(channels=count, image_size=(20, 36), distractors=1)[0] for count in (channels, 1))
    assert item["images"].shape == (channels, 8, 20, 36)
    colours = item["images"][:-1] if channels in (2, 4) else item["images"]
    assert all(torch.equal(colour, grey["images"][0]) for colour in colours)
    assert channels in (1, 3) or (item["images"][-1] == 1).all()


def test_by_name_and_by_its_python_name():
    data = open_source("moving-digits", num_frames=4, image_size=(16, 24), length=5, text_label="text")
    assert isinstance(data, MovingDigits) and moving_digits is MovingDigits
    assert len(data) == 5 and data[0]["images"].shape == (3, 4, 16, 24)
    with pytest.raises(TypeError, match='moving-digits takes no argument "colors"; .* did you mean "colours"'):
        open_source("moving-digits", colors=True)


def test_indices_from_the_end_and_out_of_range():
    data = MovingDigits(length=6)
    assert same(data[-1], data[5]) and torch.equal(data.tracks(-1), data.tracks(5))
    for call in (data.__getitem__, data.tracks, data.actors):
        for index in (6, -7):
            with pytest.raises(IndexError, match=f"there are 6 clips, got index {index}"):
                call(index)
    with pytest.raises(IndexError):
        data.captions[6]
    assert len([item["fps"] for item in data]) == 6  # iteration ends


# -- the same for ever ------------------------------------------------------------------------------------------------


def test_a_clip_depends_on_seed_and_number_alone():
    torch.manual_seed(1)
    first = [MovingDigits(**FULL)[index] for index in range(6)]
    torch.manual_seed(2)
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    retry = MovingDigits(**FULL, length=50)
    assert all(same(first[index], retry[index]) for index in reversed(range(6)))
    assert not any(same(item, other) for item, other in zip(first, MovingDigits(**FULL, seed=1), strict=False))
    assert len({item["images"].numpy().tobytes() for item in first}) == 6


def test_the_same_in_worker_processes_and_after_pickling():
    data = MovingDigits(**FULL, length=12)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(same(ours, theirs) for ours, theirs in zip(data, loader, strict=True))
    assert same(pickle.loads(pickle.dumps(data))[3], data[3])
    assert list(pickle.loads(pickle.dumps(data.captions))) == list(data.captions)


def test_nothing_ever_changes():
    """A few clips written down, so that no change of them is an accident."""
    data = MovingDigits(**FULL)
    # reference: this program with numpy 2.4 and Python 3.11
    assert [data.captions[index] for index in (0, 1, 2)] == GOLDEN_CAPTIONS
    assert torch.allclose(data.tracks(1)[0, [0, 1, 7]], torch.tensor(GOLDEN_TRACK), atol=1e-3)


GOLDEN_CAPTIONS = [
    "the yellow digit 8 moves down and the orange digit 3 moves down and right",
    "the cyan digit 7 moves up and left and the pink digit 5 moves right",
    "the green digit 4 moves up and left, the white digit 1 moves up and right and the green digit 6 moves left",
]
GOLDEN_TRACK = [[15.4479, 22.8044], [13.5537, 20.9102], [9.0132, 9.5450]]


def test_one_scene_at_two_sizes():
    """A cascade shrinks its pictures: a clip is the same at every size."""
    large, small = (MovingDigits(image_size=size, num_digits=2, distractors=1) for size in (64, 32))
    assert large.captions[:50] == small.captions[:50]
    for index in range(10):
        assert torch.allclose((large.tracks(index) + 0.5) / 2 - 0.5, small.tracks(index), atol=1e-3)
        shrunk = resize(large[index]["images"][None], 32)[0]
        assert (shrunk - small[index]["images"]).abs().mean() < 0.02


# -- splits -----------------------------------------------------------------------------------------------------------


def test_splits_share_no_handwriting():
    train, test = (handwriting(split) for split in ("train", "test"))
    for digit in range(10):
        assert not {x.tobytes() for x in train[digit]} & {x.tobytes() for x in test[digit]}
        assert 3.9 < len(train[digit]) / len(test[digit]) < 4.2
    assert sum(map(len, train + test)) == 1797


def test_splits_share_no_clips():
    train, test = (MovingDigits(**FULL, split=split, length=60) for split in ("train", "test"))
    pairs = zip(train.captions, test.captions, strict=True)
    assert sum(ours == theirs for ours, theirs in pairs) < 6
    assert not any(torch.equal(train.tracks(index)[0], test.tracks(index)[0]) for index in range(60))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_clip_shows_the_digit_in_a_hand_of_its_split(split):
    """The frame is nearer to a sample of that class and split than to any of another class."""
    data = MovingDigits(split=split, image_size=48, channels=1)
    samples = [(digit, sample) for digit, found in enumerate(handwriting(split)) for sample in found]
    textures = np.stack([sample for _, sample in samples])
    sprites = Sprites.at_rest(textures, np.ones((len(textures), 1), np.float32), 0.4 * 48 / 8, (48, 48))
    for index in range(2):
        frame, place = data[index]["images"][0, 0].numpy(), data.tracks(index)[0, 0].numpy()
        errors = []
        for number in range(len(textures)):
            one = Sprites(*(part[number : number + 1] for part in sprites[:-1]), sprites.cell)
            shown = render(
                one._replace(start=np.maximum(np.minimum(place, one.high), one.low)), np.zeros(1, np.float32), (48, 48)
            )
            errors.append(np.abs(shown[0, 0] - frame).mean())
        best = int(np.argmin(errors))
        assert errors[best] < 1e-3 and samples[best][0] == data.actors(index)[0].digit


# -- motion -----------------------------------------------------------------------------------------------------------


TRACKED = [{}, dict(image_size=(48, 64)), dict(directions=EVERY, colours=True), dict(fps=24.0),
           dict(num_frames=16, frame_stride=3), dict(image_size=16, speed=0.3)]  # fmt: skip


@pytest.mark.parametrize("options", TRACKED)
def test_the_track_is_where_the_light_is(options):
    data = MovingDigits(**options)
    for index in range(40):
        (track,) = data.tracks(index)
        assert (centre_track(data[index]["images"]) - track).abs().max() < 0.25


@pytest.mark.parametrize("size", [LEAST_SIDE, 16, 32, (64, 40)])
def test_bounces_keep_all_light_inside(size):
    """Nothing is cut off: as much light in every frame, though the digit runs into every border."""
    data = MovingDigits(image_size=size, num_frames=24, directions=EVERY, speed=(1, 2))
    for index in range(30):
        light = data[index]["images"].sum((0, 2, 3))
        assert (light / light.mean() - 1).abs().max() < (0.2 if size == LEAST_SIDE else 0.06)


def test_straight_at_constant_speed_until_a_bounce_reflects():
    data = MovingDigits(num_frames=40, directions=EVERY, speed=(0.5, 1), fps=32.0)
    bounced = 0
    for index in range(60):
        (track,) = data.tracks(index)
        steps = track.diff(dim=0)
        lengths = steps.abs()
        # on each axis: steps of one length, but for those in which it bounces, which are shorter
        usual = lengths.median(0).values
        turning = (lengths - usual).abs() > 1e-3
        assert (lengths <= usual + 1e-3).all() and turning.sum(0).max() <= 4
        for axis in (0, 1):
            signs = steps[:, axis][~turning[:, axis]].sign()
            turns = (signs.diff() != 0).sum()
            bounced += int(turns)
            assert usual[axis] < 1e-3 or turns <= 4
    assert bounced > 30


def test_speeds_are_those_asked_for():
    data = MovingDigits(speed=(0.2, 0.4), image_size=(32, 48), fps=10.0, directions=EVERY)
    speeds = [(data.tracks(index)[0].diff(dim=0)[0].norm() * 10 / 48).item() for index in range(200)]
    assert 0.2 - 1e-3 < min(speeds) < 0.22 and 0.38 < max(speeds) < 0.4 + 1e-3
    still = MovingDigits(speed=0)
    assert still.tracks(0).diff(dim=1).abs().max() == 0


@pytest.mark.parametrize("options", [{}, dict(num_digits=3, distractors=2), dict(num_frames=5, frame_stride=(1, 2, 4)),
                                     dict(image_size=(24, 64), speed=(1, 4)), dict(num_frames=2)])  # fmt: skip
def test_captions_say_where_everything_goes_in_the_first_half(options):
    data = MovingDigits(**{"directions": EVERY, **options})
    half = data.num_frames // 2
    for index in range(60):
        words = []
        for actor, track in zip(data.actors(index), data.tracks(index), strict=True):
            steps = track[: half + 1].diff(dim=0)
            down, right = DIRECTIONS[actor.direction]
            assert (steps.sign() == torch.tensor([down, right])).all() or (steps[:, [not down, not right]] == 0).any()
            assert (steps * torch.tensor([down, right])).sum(1).min() > 0.2
            assert steps[:, 0].abs().max() < 1e-4 or down
            assert steps[:, 1].abs().max() < 1e-4 or right
            assert (steps - steps[0]).abs().max() < 1e-3
            words.append(f"the digit {actor.digit} moves {actor.direction}")
        assert data.captions[index] == re.sub(r", (?!.*, )", " and ", ", ".join(words))


def test_the_motion_can_be_seen_in_the_pictures():
    data = MovingDigits()
    for index in range(60):
        track = centre_track(data[index]["images"])
        moved = track[4] - track[0]
        direction = data.captions[index].split(" moves ")[1]
        axis = int(moved.abs().argmax())
        assert ("up" if moved[0] < 0 else "down", "left" if moved[1] < 0 else "right")[axis] == direction
        assert moved.abs().max() > 4


def test_several_digits_start_apart():
    data = MovingDigits(num_digits=2, image_size=64)
    gaps = [(tracks[0, 0] - tracks[1, 0]).norm().item() for tracks in map(data.tracks, range(100))]
    assert sum(gap > 16 for gap in gaps) > 90


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_are_steps_of_the_same_motion(stride):
    """As fast as before in pixels per second, with frames further apart in time."""
    data = MovingDigits(frame_stride=stride, speed=(0.1, 0.2), fps=12.0)
    for index in range(20):
        item, (track,) = data[index], data.tracks(index)
        assert item["fps"] == 12.0 / stride
        assert 0.1 - 1e-3 < track.diff(dim=0)[0].norm() * item["fps"] / 32 < 0.2 + 1e-3


def test_one_of_several_strides_is_drawn_by_the_clip():
    data = MovingDigits(frame_stride=(1, 2, 4), length=300)
    counts = Counter(item["fps"] for item in data)
    assert set(counts) == {8.0, 4.0, 2.0} and min(counts.values()) > 60  # 100 each; five standard deviations


# -- choices ----------------------------------------------------------------------------------------------------------


def test_everything_is_drawn_equally_often():
    data = MovingDigits(num_digits=(1, 2), directions=EVERY, colours=True)
    casts = [data.actors(index) for index in range(1200)]
    actors = [actor for cast in casts for actor in cast]
    for kind, names in (("digit", range(10)), ("direction", EVERY), ("colour", COLOURS)):
        counts = Counter(getattr(actor, kind) for actor in actors)
        expected = len(actors) / len(names)
        assert set(counts) == set(names)
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 30  # chi-square, 0.1 % at 9: 27.9
    assert abs(sum(len(cast) == 2 for cast in casts) - 600) < 87  # five standard deviations


def test_digits_of_a_clip_differ_if_there_are_enough():
    assert all(len({actor.digit for actor in MovingDigits(num_digits=4).actors(index)}) == 4 for index in range(50))
    pair = MovingDigits(num_digits=4, digits="17")
    assert all(Counter(actor.digit for actor in pair.actors(index)) == {1: 2, 7: 2} for index in range(20))


@pytest.mark.parametrize("digits", ["370", (3, 7, 0), "3, 7, 0", ["3", "7", "0"], "3700"])
def test_some_digits_only(digits):
    data = MovingDigits(digits=digits, length=60)
    assert {actor.digit for index in range(60) for actor in data.actors(index)} == {0, 3, 7}
    assert data.captions[:60] == MovingDigits(digits="370").captions[:60]


def test_lists_and_numbers_as_a_configuration_has_them():
    plain = MovingDigits(
        speed=[0.3, 0.3], num_digits=[2, 2], directions="left, up and left", frame_stride=[2], digits=4
    )
    assert same(plain[1], MovingDigits(speed=0.3, num_digits=2, directions=("left", "up and left"), frame_stride=2,
                                       digits=(4,))[1])  # fmt: skip
    assert {actor.direction for index in range(20) for actor in plain.actors(index)} == {"left", "up and left"}


def test_captions_name_the_colour_that_is_seen():
    data = MovingDigits(colours=True)
    seen = set()
    for index in range(60):
        ((_, _, colour),), item = data.actors(index), data[index]
        seen.add(colour)
        assert item["texts"].startswith(f"the {colour} digit ")
        light = item["images"].sum((1, 2, 3))
        assert torch.allclose(light / light.max(), torch.tensor(COLOURS[colour]) / max(COLOURS[colour]), atol=1e-3)
    assert seen == set(COLOURS)
    assert {actor.colour for index in range(30) for actor in MovingDigits(colours="red, blue").actors(index)} == {
        "red", "blue"}  # fmt: skip


@pytest.mark.parametrize("colours", [False, True])
def test_distractors_are_darker_move_and_are_in_no_caption(colours):
    data = MovingDigits(num_digits=1, distractors=2, colours=colours, image_size=48, speed=(0.5, 0.7))
    for index in range(12):
        item, (track,) = data[index], data.tracks(index)
        assert item["texts"].count("digit") == 1
        # what lies further from the digit's middle than its corners is a distractor
        y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
        away = ((y - track[:, 0, None, None]).abs() > 13) | ((x - track[:, 1, None, None]).abs() > 13)
        others = item["images"].amax(0) * away
        assert 0.2 < others.max() < 0.55
        moving = centre_track(others[None])
        assert (moving[1:] - moving[:-1]).norm(dim=1).max() > 0.5
    assert all(MovingDigits(distractors=0)[index]["images"].amax((0, 2, 3)).min() > 0.7 for index in range(5))


def test_digits_are_in_front():
    """With a distractor behind it, a digit is as bright as without."""
    data = MovingDigits(distractors=4, image_size=64)
    assert all(data[index]["images"].amax((0, 2, 3)).min() > 0.85 for index in range(20))


# -- measuring --------------------------------------------------------------------------------------------------------


def test_the_middle_of_a_point_of_a_pair_and_of_nothing():
    video = torch.zeros(3, 4, 5, 9)
    video[:, 0, 1, 7] = 0.5
    video[:, 1, 0, 0] = video[:, 1, 4, 2] = 1
    video[:, 2, 1, 1], video[:, 2, 1, 4] = 0.25, 0.75
    expected = torch.tensor([[1.0, 7], [2, 1], [1, 3.25], [2, 4]])
    assert torch.allclose(centre_track(video), expected)
    assert torch.allclose(centre_track(torch.cat([video, torch.ones(1, 4, 5, 9)])), expected)
    assert centre_track(video, threshold=0.3)[2].tolist() == [1, 4]
    assert torch.isfinite(centre_track(torch.zeros(1, 2, 4, 4))).all()


def test_haze_can_be_taken_off():
    clip = MovingDigits()[0]["images"]
    hazy = clip * 0.9 + 0.1
    assert (centre_track(hazy, threshold=0.2) - centre_track(clip)).abs().max() < 0.5
    assert (centre_track(hazy) - centre_track(clip)).abs().max() > 0.5


# -- files and mistakes -----------------------------------------------------------------------------------------------


def test_the_licence_comes_along():
    notice = (FOLDER / "LICENSE-digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in notice and "Alpaydin" in notice and "Kaynak" in notice
    assert (FOLDER / "digits8x8.npz").stat().st_size < 50_000
    with zipfile.ZipFile(FOLDER / "digits8x8.npz") as file:
        assert sorted(file.namelist()) == ["images.npy", "target.npy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tset"}, "no split 'tset'; known: train, test; did you mean \"test\""),
        ({"channels": 5}, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"image_size": 4}, "image_size must be at least 8 for digits to be readable, got 4"),
        ({"image_size": 0}, "image size"),
        ({"num_frames": 0}, "num_frames is a positive whole number, got 0"),
        ({"length": -3}, "length is a positive whole number, got -3"),
        ({"fps": 0}, "fps is a positive number, got 0"),
        ({"frame_stride": 0}, "frame_stride .* is a positive whole number, got 0"),
        ({"frame_stride": (1, -2)}, "frame_stride .* got -2"),
        ({"frame_stride": ()}, "frame_stride .* got None"),
        ({"num_digits": 0}, r"num_digits is a whole number of at least 1, or \(least, most\), got 0"),
        ({"num_digits": (3, 2)}, r"num_digits .* got \(3, 2\)"),
        ({"num_digits": (1, 2, 3)}, r"num_digits .* got \(1, 2, 3\)"),
        ({"distractors": -1}, "distractors is a whole number of at least 0"),
        ({"speed": (-1, 1)}, "speed is a number of at least 0"),
        ({"speed": (1.0,)}, r"speed is a number of at least 0, .* got \(1.0,\)"),
        ({"directions": "north"}, "no direction 'north'; known: left, right, up, down, up and left"),
        ({"directions": ()}, "no direction is chosen; known: left"),
        ({"digits": "12x"}, "no digit 'x'; known: 0, 1"),
        ({"digits": (10,)}, "no digit '10'"),
        ({"digits": ""}, "digits is empty; choose some of 0123456789"),
        ({"colours": "rde"}, "no colour 'rde'; known: white, red, .*did you mean \"red\""),
        ({"colours": True, "channels": 1}, "colours need channels=3 or 4 to be seen, got 1"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        MovingDigits(**options)


@pytest.mark.parametrize("name", ["num_frames", "num_digits", "distractors"])
def test_numbers_that_no_memory_holds_are_refused_before_it_is_taken(name):
    with pytest.raises(ValueError, match=f"^{name}: .*1,000,000,000"):
        open_source("moving-digits", image_size=16, **{name: 10**9})

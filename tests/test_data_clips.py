"""A folder of clips: which frames of which files, in which order, at which rate, and what happens to the rest."""

from __future__ import annotations

import struct
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cascade_toys import unchecked
from clip_toys import MAKERS, animate, film, grey, needs, numbers, only, series
from PIL import Image

from imagen_pytorch.data import DataError, VideoDataset
from imagen_pytorch.data.animations import durations


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked in tests of strides, channels and sizes, and nowhere else: it takes most of the time."""
    checked = ("test_strides", "test_every_number_of_channels", "test_all_frames_are_resized")
    with nullcontext() if request.node.name.startswith(checked) else unchecked():
        yield


@pytest.fixture(scope="module", params=[*MAKERS, "frames"])
def clip(request, tmp_path_factory):
    """A folder with a clip of 12 frames in 1.2 seconds, of every kind."""
    folder = tmp_path_factory.mktemp("clip")
    if not needs.get(request.param, lambda: True)():
        pytest.skip(f"this Pillow writes no {request.param}")
    if request.param == "frames":
        series(folder / "a")
    else:
        MAKERS[request.param](folder)
    return folder


# -- count, order, rate -----------------------------------------------------------------------------------------------


def test_count_and_order_of_frames_are_exact(clip):
    item = only(clip, 12, fps=10)
    assert item["images"].shape == (3, 12, 8, 8) and item["images"].dtype == torch.float32
    assert numbers(item["images"]) == list(range(12))
    assert set(item) == {"images", "fps"} and item["fps"] == 10.0 and isinstance(item["fps"], float)


def test_without_a_rate_the_clips_own_frames_and_rate(clip):
    item = only(clip, 12)
    assert numbers(item["images"]) == list(range(12))
    # numbered pictures have no times
    assert item["fps"] == pytest.approx(25.0 if (clip / "a").is_dir() else 10.0)


def test_stretches_within_a_clip(clip):
    """Frames from the middle, which formats reach in different ways."""
    data = VideoDataset(clip, 8, 2, fps=10)
    drawn = [tuple(numbers(data[0]["images"])) for _ in range(40)]
    assert set(drawn) <= {(first, first + 1) for first in range(11)} and len(set(drawn)) >= 9


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides(clip, stride):
    item = only(clip, 4, fps=10, frame_stride=stride)
    assert numbers(item["images"]) == [0, stride, 2 * stride, 3 * stride] and item["fps"] == 10 / stride


RESAMPLED = {5: [0, 2, 4, 6, 8, 10], 20: [number // 2 for number in range(24)], 2.5: [0, 4, 8],
             10 / 3: [0, 3, 6, 9]}  # fmt: skip


@pytest.mark.parametrize("fps", RESAMPLED)
def test_resampling_in_time_is_exact(clip, fps):
    if (clip / "a").is_dir():
        pytest.skip("numbered pictures have no times")
    expected = RESAMPLED[fps]
    item = only(clip, len(expected), fps=fps)
    assert numbers(item["images"]) == expected and item["fps"] == fps
    with pytest.raises(DataError, match=f"{len(expected)} frames at .* per second, {len(expected) + 1} are needed"):
        VideoDataset(clip, 8, len(expected) + 1, fps=fps)


def test_strides_count_resampled_frames(clip):
    if (clip / "a").is_dir():
        pytest.skip("numbered pictures have no times")
    item = only(clip, 3, fps=5, frame_stride=2)
    assert numbers(item["images"]) == [0, 4, 8] and item["fps"] == 2.5


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_durations_of_single_frames_are_honoured(tmp_path, ending):
    """A frame that is shown for long is taken several times, one that is short perhaps never."""
    if not needs.get(ending, lambda: True)():
        pytest.skip(f"this Pillow writes no {ending}")
    path = animate(tmp_path / f"a.{ending}", duration=[100, 300, 100, 50, 50, 200], count=6)
    assert durations(path) == [100, 300, 100, 50, 50, 200]
    assert numbers(only(tmp_path, 8, fps=10)["images"]) == [0, 1, 1, 1, 2, 3, 5, 5]
    own = only(tmp_path, 6)
    assert numbers(own["images"]) == list(range(6)) and own["fps"] == 10.0  # the median


def test_true_timestamps_of_a_video_with_an_uneven_rate(tmp_path):
    film(tmp_path / "a.mkv", count=6, rate=10, times=[0, 1, 4, 5, 6, 9])
    assert numbers(only(tmp_path, 10, fps=10)["images"]) == [0, 1, 1, 1, 2, 3, 4, 4, 4, 5]


def test_milliseconds_that_are_rounded_lose_no_frame(tmp_path):
    """WebM rounds 1/30 s to 33 or 34 ms; still each frame is taken once."""
    film(tmp_path / "a.webm", count=30, rate=30, codec="libvpx-vp9")
    assert numbers(only(tmp_path, 30, fps=30)["images"]) == list(range(30))
    assert numbers(only(tmp_path, 15, fps=15)["images"]) == list(range(0, 30, 2))


def test_a_duration_of_nothing_is_a_tenth_of_a_second(tmp_path):
    animate(tmp_path / "a.gif", duration=0)
    assert only(tmp_path, 12)["fps"] == 10.0


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx", "libsvtav1"])
def test_far_into_a_long_video(tmp_path, codec):
    """Behind later key frames, with frames that are stored before those that they are shown after."""
    options = {"g": "25", "keyint_min": "25"}
    if codec == "libx264":
        options |= {"x264-params": "open-gop=1:bframes=3", "g": "25"}
    kinds = {"libvpx": "webm"}
    levels = [grey(number // 4, (64, 48)) for number in range(124)]
    film(tmp_path / f"a.{kinds.get(codec, 'mp4')}", codec=codec, rate=25, pictures=levels, codec_options=options)
    data = VideoDataset(tmp_path, 8, 2, frame_stride=4)
    for _ in range(12):
        first, second = numbers(data[0]["images"])
        assert second == first + 1
    torch.manual_seed(2)
    late = [numbers(data[0]["images"])[0] for _ in range(12)]
    assert max(late) > 20


def test_videos_of_avi_have_their_frames_in_the_order_of_display(tmp_path):
    film(tmp_path / "a.avi", codec="libx264", count=24)
    assert numbers(only(tmp_path, 24)["images"]) == list(range(24))


# -- numbered frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.png", "frame_{:04d}.webp", "v2 take 3 - {}.jpg", "{}a.bmp", "shot1.{}.PNG"])
def test_frames_are_sorted_by_the_last_number(tmp_path, name):
    series(tmp_path / "deep" / "clip.v1", name=name)
    data = VideoDataset(tmp_path, 8, 12, fps=4)
    assert data.name(0) == "deep/clip.v1" and data.paths == [tmp_path / "deep" / "clip.v1"]
    assert numbers(data[0]["images"]) == list(range(12)) and data[0]["fps"] == 4.0


def test_of_two_frames_with_one_number_nobody_knows_the_order(tmp_path):
    series(tmp_path / "a")
    series(tmp_path / "b", name="left{}.png")
    grey(1).save(tmp_path / "b" / "right1.png")
    with pytest.warns(UserWarning, match="1 of the clips"):
        data = VideoDataset(tmp_path, 8, 4)
    assert [tuple(item) for item in data.skipped] == [("b", "left1.png and right1.png have the same number")]


def test_what_is_a_folder_of_frames_and_what_is_not(tmp_path):
    series(tmp_path / "frames")
    grey(0).save(tmp_path / "frames" / "cover.jpg")  # no number
    series(tmp_path / "one", count=1, name="{}.jpg")
    for number in range(4):
        animate(tmp_path / "clips" / f"{number}.webp")  # numbered, but animated
        grey(number).save(tmp_path / f"{number}.jpg")  # in no folder of its own
    series(tmp_path / ".hidden")
    data = VideoDataset(tmp_path, 8, 4)
    assert [data.name(index) for index in range(len(data))] == [*(f"clips/{i}.webp" for i in range(4)), "frames"]
    assert data.skipped == []


def test_frames_of_different_sizes_are_no_clip(tmp_path):
    series(tmp_path / "a")
    series(tmp_path / "b", count=6)
    grey(3, (30, 30)).save(tmp_path / "b" / "frame_0003.png")
    data = VideoDataset(tmp_path, 8, 6)
    with pytest.warns(UserWarning, match="b cannot be read .* differ in size: 32x24 and 30x30"):
        data[1]
    assert [item.name for item in data.skipped] == ["b"]


# -- which clips ------------------------------------------------------------------------------------------------------


def test_order_by_path_whatever_the_kind(tmp_path):
    animate(tmp_path / "b" / "10.gif")
    animate(tmp_path / "B.WEBP")
    animate(tmp_path / "a.png")
    series(tmp_path / "b" / "2")
    film(tmp_path / "c.MP4")
    data = VideoDataset(tmp_path, 8, 4)
    assert [data.name(index) for index in range(5)] == ["B.WEBP", "a.png", "b/10.gif", "b/2", "c.MP4"]
    assert len(data) == 5 and data[-1]["images"].shape == data[4]["images"].shape
    with pytest.raises(IndexError, match="there are 5 clips, got index 5"):
        data[5]


@pytest.mark.parametrize(
    ("exts", "names"), [("gif", ["a.gif"]), ((".WEBP", "jpg"), ["b.webp", "e"]), ("png", ["c.png", "d"])]
)
def test_only_the_wanted_endings(tmp_path, exts, names):
    for name in ("a.gif", "b.webp", "c.png"):
        animate(tmp_path / name)
    series(tmp_path / "d")
    series(tmp_path / "e", name="{}.jpg")
    assert [path.name for path in VideoDataset(tmp_path, 8, 4, exts=exts).paths] == names


def test_short_clips_are_left_out_and_say_how_short_they_are(tmp_path):
    animate(tmp_path / "long.gif", count=7)
    animate(tmp_path / "short.gif", count=6)
    grey(0).save(tmp_path / "still.png")
    series(tmp_path / "two", count=2)
    with pytest.warns(UserWarning, match=r"3 of the clips in .* are left out: short.gif \(6 frames, 7 are needed\)"):
        data = VideoDataset(tmp_path, 8, 4, frame_stride=2)
    assert len(data) == 1 and {item.name: item.reason for item in data.skipped} == {
        "short.gif": "6 frames, 7 are needed",
        "still.png": "1 frame, 7 are needed",
        "two": "2 frames, 7 are needed",
    }


def test_of_several_strides_one_that_fits_is_drawn(tmp_path):
    animate(tmp_path / "a.gif", count=12)
    animate(tmp_path / "b.gif", count=8)
    data = VideoDataset(tmp_path, 8, 4, fps=10, frame_stride=(1, 2, 3))
    drawn = [[], []]
    for index in (0, 1) * 40:
        item = data[index]
        stride = numbers(item["images"])[1] - numbers(item["images"])[0]
        assert item["fps"] == 10 / stride
        drawn[index].append(stride)
    assert set(drawn[0]) == {1, 2, 3} and set(drawn[1]) == {1, 2} and min(map(drawn[0].count, (1, 2, 3))) >= 4


def test_starts_are_drawn_equally_often_and_by_seed(tmp_path):
    animate(tmp_path / "a.gif", count=6)
    data = VideoDataset(tmp_path, 8, 4)
    drawn = [numbers(data[0]["images"])[0] for _ in range(90)]
    assert sum((drawn.count(first) - 30) ** 2 / 30 for first in range(3)) < 13.8  # chi-square, 2 degrees, 0.1 %
    torch.manual_seed(0)
    assert drawn[:30] == [numbers(data[0]["images"])[0] for _ in range(30)]
    first = VideoDataset(tmp_path, 8, 4, random_start=False)
    assert all(numbers(first[0]["images"])[0] == 0 for _ in range(8))


# -- pictures ---------------------------------------------------------------------------------------------------------


def ramps(count=4):
    """Brighter to the right, in a picture of 60 x 20; every frame a little less so."""
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (20, 1, 3))
    return [Image.fromarray((ramp * (1 - number / 10)).astype(np.uint8)) for number in range(count)]


def test_all_frames_are_resized_cut_and_mirrored_alike(tmp_path):
    animate(tmp_path / "a.webp", pictures=ramps())
    data = VideoDataset(tmp_path, (10, 6), 4)
    seen = set()
    for _ in range(32):
        slopes = (data[0]["images"][0, :, 5].diff(dim=1)).sign()
        assert slopes.unique().numel() == 1
        seen.add(int(slopes[0, 0]))
    assert seen == {-1, 1}
    (plain,) = VideoDataset(tmp_path, 20, 4, random_flip=False)
    assert torch.allclose(plain["images"][0, 0, 0] * 255, torch.arange(80.0, 160, 4))
    assert torch.allclose(plain["images"][0, :, 0, 0] * 255, torch.tensor([80.0, 72, 64, 56]), atol=1)


def test_captions_switch_mirroring_off(tmp_path):
    animate(tmp_path / "a.webp", pictures=ramps()).with_suffix(".txt").write_text("brighter to the right")

    def share(**options):
        data = VideoDataset(tmp_path, 8, 2, **options)
        return sum(int(data[0]["images"][0, 0, 0].diff().mean() < 0) for _ in range(40)) / 40

    assert share() == 0 and 0.15 < share(random_flip=True) < 0.85 and 0.15 < share(captions=False) < 0.85


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels(tmp_path, channels):
    pictures = [Image.new("RGBA", (16, 16), (255, 0, 0, alpha)) for alpha in (255, 0)]
    animate(tmp_path / "a.webp", pictures=pictures)
    images = only(tmp_path, 2, channels=channels)["images"][:, :, 4, 4]
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    assert torch.equal(images, only(tmp_path, 2, convert_image_to_type=mode)["images"][:, :, 4, 4])
    opaque, clear = images.T
    red = torch.tensor([76 / 255] if channels < 3 else [1.0, 0, 0])
    assert torch.allclose(opaque[: len(red)], red, atol=0.01)
    assert clear[-1] == (0 if channels in (2, 4) else 1)  # transparent, or white where there is no alpha


def test_a_film_that_was_taken_with_a_turned_camera(tmp_path):
    """The first stored row is red; a quarter turn clockwise puts it at the right."""
    picture = Image.new("RGB", (64, 48))
    picture.paste((255, 0, 0), (0, 0, 64, 16))
    path = film(tmp_path / "a.mp4", pictures=[picture] * 3)
    content = bytearray(path.read_bytes())
    matrix = content.find(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30), content.find(b"tkhd"))
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 2**30)
    path.write_bytes(content)
    data = VideoDataset(tmp_path, (16, 12), 3, random_flip=False)
    red = data[0]["images"][0].mean(0)
    assert red[:, -2].min() > 0.8 and red[:, :6].max() < 0.2


def test_an_animation_with_a_picture_for_viewers_that_know_none(tmp_path):
    """The stand-in of an animated PNG is no frame."""
    stand_in, frames = Image.new("RGB", (32, 24), "white"), [grey(number) for number in range(5)]
    stand_in.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=100)
    assert numbers(only(tmp_path, 5)["images"]) == list(range(5))
    with pytest.raises(DataError, match="5 frames, 6 are needed"):
        VideoDataset(tmp_path, 8, 6)

"""A folder of clips: which frames of which files, in which order, at which rate, and what happens to the rest."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imagen_pytorch.data import DataError, Dataset, VideoDataset, open_source
from imagen_pytorch.data.animations import durations
from imagen_pytorch.data.clips import CLIP_EXTENSIONS

#: Grey level of each frame, so that a frame tells its number.
STEP = 8


def grey(number, size=(32, 24)):
    return Image.new("RGB", size, (number * STEP,) * 3)


def numbers(images):
    """The numbers of the frames of an item, from their grey levels."""
    levels = images.mean((0, 2, 3)) * 255 / STEP
    assert (levels - levels.round()).abs().max() < 0.3
    return levels.round().int().tolist()


LOSSLESS = {"webp": dict(lossless=True), "avif": dict(quality=100)}


def animate(path, count=12, duration=100, pictures=None, **options):
    """An animation; of ``duration`` milliseconds each, or a list of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = pictures or [grey(number) for number in range(count)]
    form = {"apng": "png"}.get(path.suffix[1:], path.suffix[1:])
    options = {**LOSSLESS.get(form, {}), **options}
    first.save(path, form, save_all=True, append_images=others, duration=duration, **options)
    return path


def film(path, count=12, rate=10, codec="libx264", pictures=None, options=None, **fields):
    """A video file."""
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV knows no {codec}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = pictures or [grey(number, (64, 48)) for number in range(count)]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=fields.pop("codec_options", {}))
        stream.width, stream.height = pictures[0].size
        if codec != "libsvtav1":  # it wants to be asked in its own words
            stream.bit_rate = 4_000_000
        stream.pix_fmt = fields.pop("pix_fmt", "yuv420p")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            if "times" in fields:
                frame.pts, frame.time_base = fields["times"][number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def series(folder, count=12, name="frame_{:04d}.png", size=(32, 24)):
    """A folder of numbered frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        grey(number, size).save(folder / name.format(number))
    return folder


def only(folder, num_frames, **options):
    """The item of a folder that holds one clip."""
    data = VideoDataset(folder, 8, num_frames, **{"random_start": False, "random_flip": False, **options})
    assert len(data) == 1 and data.skipped == []
    return data[0]


FILM_CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}

MAKERS = {
    **{ending: lambda folder, ending=ending, **options: animate(folder / f"a.{ending}", **options)
       for ending in ("gif", "webp", "png", "apng", "avif")},
    **{ending: lambda folder, ending=ending, duration=100, **options: film(
        folder / f"a.{ending}", codec=FILM_CODECS[ending], rate=1000 // duration, **options)
       for ending in FILM_CODECS},
}  # fmt: skip
needs = {"avif": lambda: Image.init() or ".avif" in Image.registered_extensions()}


@pytest.fixture(params=[*MAKERS, "frames"])
def clip(request, tmp_path):
    """A folder with a clip of 12 frames in 1.2 seconds, of every kind."""
    if not needs.get(request.param, lambda: True)():
        pytest.skip(f"this Pillow writes no {request.param}")
    if request.param == "frames":
        series(tmp_path / "a")
    else:
        MAKERS[request.param](tmp_path)
    return tmp_path


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
    drawn = [tuple(numbers(data[0]["images"])) for _ in range(60)]
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
    assert drawn == [numbers(data[0]["images"])[0] for _ in range(90)]
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


# -- captions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """An animation, a video file and a folder of frames."""
    animate(tmp_path / "a.gif")
    film(tmp_path / "b.mp4")
    series(tmp_path / "c.v1")
    return tmp_path


def test_captions_in_text_files_beside_the_clips(three):
    for name in ("a", "b", "c.v1"):
        (three / f"{name}.txt").write_text(f"clip {name}\n")
    data = VideoDataset(three, 8, 4)
    assert data.captions == ["clip a", "clip b", "clip c.v1"] == [item["texts"] for item in data]
    assert data.skipped == [] and set(data[0]) == {"images", "texts", "fps"}
    assert VideoDataset(three, 8, 4, captions=False).captions == []


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_in_a_table(three, name):
    rows = [("a.gif", "one"), ("./b.mp4", "two"), ("c.v1/", "three")]
    lines = [json.dumps({"file_name": file, "prompt": text}) for file, text in rows]
    if name.endswith("csv"):
        lines = ["file_name,prompt", *(f"{file},{text}" for file, text in rows)]
    (three / name).write_text("\n".join(lines))
    assert VideoDataset(three, 8, 4, text_label="prompt").captions == ["one", "two", "three"]
    with pytest.raises(DataError, match='no column "text", but: file_name, prompt'):
        VideoDataset(three, 8, 4)


def test_without_a_caption_where_others_have_one(three):
    (three / "b.txt").write_text("first\nsecond\n")
    with pytest.warns(UserWarning, match="2 of the clips"):
        data = VideoDataset(three, 8, 4)
    assert [tuple(item) for item in data.skipped] == [("a.gif", "no caption"), ("c.v1", "no caption")]
    assert {data[0]["texts"] for _ in range(40)} == {"first", "second"}


def test_clips_that_the_table_names_but_that_are_not_there(three):
    names = ("a.gif", "gone.gif", "gone.mp4", "gone", "empty")
    (three / "empty").mkdir()
    (three / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name, "text": name}) for name in names))
    with pytest.warns(UserWarning, match="6 of the clips"):
        data = VideoDataset(three, 8, 4)
    assert len(data) == 1 and {item.name: item.reason for item in data.skipped} == {
        "b.mp4": "no caption",
        "c.v1": "no caption",
        "empty": "no numbered pictures in it",
        "gone": "missing",
        "gone.gif": "missing",
        "gone.mp4": "missing",
    }


# -- what cannot be used ----------------------------------------------------------------------------------------------


def noise(count=12, size=(32, 24)):
    dice = np.random.default_rng(0)
    return [Image.fromarray(dice.integers(0, 255, (*size[::-1], 3), np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif", "mp4", "webm", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.9])
def test_truncated_files_are_left_out_and_listed(tmp_path, ending, share):
    if not needs.get(ending, lambda: True)():
        pytest.skip(f"this Pillow writes no {ending}")
    animate(tmp_path / "good.gif")
    options = dict(options={"movflags": "faststart"}) if ending == "mp4" else {}
    path = MAKERS[ending](tmp_path, pictures=noise(size=(64, 48)), **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.warns(UserWarning, match=rf"a\.{ending}"):
        data = VideoDataset(tmp_path, 8, 12)
        items = list(data)
    assert [item.name for item in data.skipped] == [f"a.{ending}"] and data.skipped[0].reason
    assert all(numbers(item["images"]) == list(range(12)) for item in items)


def spoilt(path):
    """An animation whose pixels are damaged, though its table of contents is not."""
    animate(path, pictures=noise())
    content = bytearray(path.read_bytes())
    pixels = content.find(b"fdAT", len(content) // 2) + 100
    content[pixels : pixels + 100] = bytes(100)
    path.write_bytes(content)


def test_damage_that_only_decoding_reveals(tmp_path):
    for name in ("a", "c"):
        animate(tmp_path / f"{name}.gif").with_suffix(".txt").write_text(name)
    spoilt(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("b")
    data = VideoDataset(tmp_path, 8, 12)
    assert len(data) == 3 and data.skipped == []
    with pytest.warns(UserWarning, match="b.png cannot be read and is left out"):
        assert data[1]["texts"] == "c"  # its neighbour stands in
    assert [item.name for item in data.skipped] == ["b.png"]
    assert data[1]["texts"] == "c"  # no second attempt, no second warning


def test_what_is_drawn_does_not_depend_on_when_damage_was_found(tmp_path):
    """A resumed run meets damage again that an uninterrupted one knows of."""
    for name in ("a", "c"):
        animate(tmp_path / f"{name}.gif", count=40)
    spoilt(tmp_path / "b.png")
    data = VideoDataset(tmp_path, 8, 10)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="b.png"):
        met = [numbers(data[index]["images"]) for index in (0, 1, 2)]
    torch.manual_seed(0)
    assert [numbers(data[index]["images"]) for index in (0, 1, 2)] == met


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_give_the_same_and_tell_what_they_cannot_read(tmp_path, start):
    for index, name in enumerate(("a", "b", "d", "e")):
        animate(tmp_path / f"{name}.gif", count=12 + index).with_suffix(".txt").write_text(name)
    film(tmp_path / "f.mp4").with_suffix(".txt").write_text("f")
    spoilt(tmp_path / "c.png")
    (tmp_path / "c.txt").write_text("c")
    data = VideoDataset(tmp_path, 8, 12, random_start=False)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=start)
    batches = list(loader)
    assert [batch["texts"] for batch in batches] == [["a", "b"], ["d", "d"], ["e", "f"]]
    assert all(batch["images"].shape == (2, 3, 12, 8, 8) and batch["fps"].shape == (2,) for batch in batches)
    assert [item.name for item in data.skipped] == ["c.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here = [data[index] for index in range(6)]
    there = [image for batch in batches for image in batch["images"]]
    assert all(torch.equal(item["images"], image) for item, image in zip(here, there, strict=True))


def test_a_data_set_can_be_sent_to_another_process(three):
    data = VideoDataset(three, 8, 4, random_start=False, random_flip=False)
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(ours["images"], theirs["images"]) for ours, theirs in zip(data, copy, strict=True))


def test_without_pyav_a_sentence_says_what_to_install(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.warns(UserWarning, match="1 of the clips"):
        data = VideoDataset(three, 8, 4)
    assert [tuple(item) for item in data.skipped] == [
        ("b.mp4", 'reading it needs PyAV: pip install "imagen-pytorch[video]"')
    ]
    assert len(data) == 2
    broken = three / "c.v1" / "in"
    broken.mkdir()
    (broken / "a.gif").write_bytes(b"x")
    film_only = broken / "b.mp4"
    film_only.write_bytes((three / "b.mp4").read_bytes())
    with pytest.raises(DataError, match=r'holds no usable clip; .*b.mp4: .* pip install "imagen-pytorch\[video\]"'):
        VideoDataset(broken, 8, 4)


def test_sound_alone_is_no_clip(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="holds no usable clip; the first is a.mp4: no video in it"):
        VideoDataset(tmp_path, 8, 4)


def nothing(folder):
    (folder / "notes.md").write_text("no clips here")


def pictures_only(folder):
    for number in range(4):
        grey(number).save(folder / f"{number}.jpg")


def no_gif(folder):
    (folder / "a.gif").write_bytes(b"not an animation")


def too_short(folder):
    animate(folder / "a.gif", count=3)


REFUSED = {
    "nothing": (nothing, r"holds no clips; looked for gif, .*mp4.* in it and its subfolders"),
    "pictures": (
        pictures_only,
        "holds no clips; .* It holds pictures .0.jpg.*; numbered frames .* a subfolder of their",
    ),
    "no animation": (no_gif, "holds no usable clip; the first is a.gif: no picture"),
    "too short": (too_short, "holds no usable clip; the first is a.gif: 3 frames, 4 are needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_usable_clips_is_refused_by_a_sentence(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        VideoDataset(tmp_path, 8, 4)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_frames": 0}, "num_frames is a positive whole number, got 0"),
        ({"fps": 0}, "fps is a positive number, got 0"),
        ({"fps": -2.0}, "fps is a positive number, got -2.0"),
        ({"frame_stride": 0}, "frame_stride .* is a positive whole number, got 0"),
        ({"frame_stride": (2, 0)}, "frame_stride .* got 0"),
        ({"image_size": 0}, "picture size"),
        ({"channels": 5}, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"convert_image_to_type": "L", "channels": 3}, "channels=3 and .*'L' contradict"),
    ],
)
def test_impossible_options(tmp_path, options, words):
    animate(tmp_path / "a.gif")
    with pytest.raises(ValueError, match=words):
        VideoDataset(tmp_path, **{"image_size": 8, "num_frames": 4, **options})
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        VideoDataset(tmp_path / "nowhere", 8, 4)


# -- tables of contents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
@pytest.mark.parametrize("kind", ["grey", "noise", "transparent", "palette"])
def test_a_table_of_contents_says_what_pillow_says(tmp_path, ending, kind):
    pictures = {
        "grey": [grey(number) for number in range(7)],
        "noise": noise(7, (70, 50)),
        "transparent": [Image.new("RGBA", (20, 20), (9, 9, 9, 40 * number)) for number in range(7)],
        "palette": [picture.quantize(17 + number) for number, picture in enumerate(noise(7))],
    }[kind]
    path = animate(tmp_path / f"a.{ending}", pictures=pictures, duration=[20, 30, 40, 50, 1000, 70, 70000])
    with Image.open(path) as picture:
        told = []
        for number in range(picture.n_frames):
            picture.seek(number)
            picture.load()
            told.append(picture.info["duration"])
    assert durations(path) == told


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "JPEG"])
def test_a_still_picture_has_one_frame(tmp_path, form):
    buffer = io.BytesIO()
    grey(3).save(buffer, form)
    path = tmp_path / "a"
    path.write_bytes(buffer.getvalue())
    assert durations(path) == [100]


# -- by name ----------------------------------------------------------------------------------------------------------


def test_a_number_of_frames_makes_a_folder_one_of_clips(tmp_path):
    animate(tmp_path / "a.gif")
    clips = open_source(str(tmp_path), num_frames=4, image_size=8, fps=10, text_label="text", image_label="image")
    assert isinstance(clips, VideoDataset) and clips[0]["images"].shape == (3, 4, 8, 8)
    pictures = open_source(str(tmp_path), image_size=8)
    assert isinstance(pictures, Dataset) and pictures[0].shape == (3, 8, 8)
    with pytest.raises(TypeError, match='no argument "frame_strid"; it takes: .*did you mean "frame_stride"'):
        open_source(str(tmp_path), num_frames=4, image_size=8, frame_strid=2)


@pytest.mark.parametrize("name", ["a.mp4", "in/a.apng"])
def test_clips_opened_as_pictures_say_what_is_missing(tmp_path, name):
    (film if name.endswith("mp4") else animate)(tmp_path / name)
    with pytest.raises(
        DataError, match=rf"holds no pictures; .*\. It holds clips \({name}\): num_frames makes it a video"
    ):
        open_source(str(tmp_path), image_size=8)


def test_every_ending_is_known():
    assert {"gif", "webp", "png", "apng", "avif", "mp4", "webm", "mov", "mkv", "avi", "jpg"} <= set(CLIP_EXTENSIONS)

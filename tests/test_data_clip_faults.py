"""A folder of clips: their captions, what cannot be used, and what is said about it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from clip_toys import MAKERS, animate, film, grey, needs, numbers, series
from PIL import Image
from torch.utils.data import DataLoader

from imagen_pytorch.data import DataError, Dataset, VideoDataset, open_source
from imagen_pytorch.data.animations import durations
from imagen_pytorch.data.clips import CLIP_EXTENSIONS

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
        "empty": "no numbered images in it",
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
    assert [tuple(item) for item in data.skipped] == [("b.mp4", "reading it needs PyAV: pip install av")]
    assert len(data) == 2
    broken = three / "c.v1" / "in"
    broken.mkdir()
    (broken / "a.gif").write_bytes(b"x")
    film_only = broken / "b.mp4"
    film_only.write_bytes((three / "b.mp4").read_bytes())
    with pytest.raises(DataError, match="holds no usable clip; .*b.mp4: .* pip install av"):
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
        "holds no clips; .* It holds images .0.jpg.*; numbered frames .* a subfolder of their",
    ),
    "no animation": (no_gif, "holds no usable clip; the first is a.gif: not an image"),
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
        ({"image_size": 0}, "image size"),
        ({"channels": 5}, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"convert_image_to_type": "L", "channels": 3}, "channels=3 and .*'L' contradict"),
    ],
)
def test_impossible_options(tmp_path, options, words):
    animate(tmp_path / "a.gif")
    with pytest.raises(ValueError, match=words):
        VideoDataset(tmp_path, **{"image_size": 8, "num_frames": 4, **options})
    with pytest.raises(DataError, match="the folder .*nowhere does not exist"):
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
        DataError, match=rf"holds no images; .*\. It holds clips \({name}\): num_frames makes it a video"
    ):
        open_source(str(tmp_path), image_size=8)


def test_every_ending_is_known():
    assert {"gif", "webp", "png", "apng", "avif", "mp4", "webm", "mov", "mkv", "avi", "jpg"} <= set(CLIP_EXTENSIONS)


@pytest.mark.parametrize("seconds", [65535, 60])
def test_a_header_that_claims_centuries_takes_no_memory(seconds, tmp_path):
    """Durations cost some bytes each: at 24 frames a second these would be more frames than fit in memory."""
    animate(tmp_path / "a.gif")
    frame = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, seconds, 1, 0, 0)
    parts = [struct.pack(">I4s", len(frame), b"fcTL") + frame + b"crc_"] * 4000
    header = struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 8, 8, 8, 2, 0, 0, 0, 0)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + b"\0\0\0\0IENDcrc_")
    with pytest.warns(UserWarning, match="b.png .too long: .* seconds at 24 per second, 4,194,304 frames are the most"):
        data = VideoDataset(tmp_path, 8, 2, fps=24)
    assert [path.name for path in data.paths] == ["a.gif"]


def test_a_rate_that_makes_too_many_frames_is_refused(tmp_path):
    animate(tmp_path / "a.gif")
    with pytest.raises(DataError, match=r"a\.gif: too long: .* seconds at 1e\+12 per second, 4,194,304 frames are the"):
        VideoDataset(tmp_path, 8, 2, fps=1e12)
    for rate in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps is a positive number, got"):
            VideoDataset(tmp_path, 8, 2, fps=rate)

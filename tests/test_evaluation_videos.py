"""Videos in files: every frame is there, for its time, with its colours; moving sheets keep their layout."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pytorch.evaluation import videos
from imagen_pytorch.evaluation.plots import captioned_grid
from imagen_pytorch.evaluation.videos import (
    FORMATS,
    as_frames,
    captioned_video_grid,
    encoded_video,
    save_video,
    ticks,
)

ANIMATIONS, FILMS = (".gif", ".webp", ".png", ".avif"), (".mp4", ".webm")
FRAMES = 9


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def clips(channels: int = 3, size: int = 16) -> dict[str, torch.Tensor]:
    """Videos of nine frames: some stand still for a while, or always."""
    first, second = noise(2, channels, 1, size, size)
    moving = torch.zeros(channels, FRAMES, size, size)
    for index in range(FRAMES):
        moving[0, index, 4:8, index : index + 4] = 1
    return {
        "noise": noise(channels, FRAMES, size, size),
        "still": first.expand(-1, FRAMES, -1, -1),
        "stutters": torch.cat([first, first, first, second, first, first, second, second, first], 1),
        "moving": moving,
    }


def read_back(data: bytes) -> tuple[list[Image.Image], list[float]]:
    """Frames in RGBA and their durations in milliseconds."""
    picture = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for index in range(picture.n_frames):
        picture.seek(index)
        picture.load()
        durations.append(picture.info["duration"])
        frames.append(picture.convert("RGBA"))
    return frames, durations


@pytest.mark.parametrize("fps", [8, 24, 7.3, 30000 / 1001])
@pytest.mark.parametrize("unit", [100, 1000])
def test_ticks_add_up_and_are_even(fps, unit):
    for count in (1, 7, 240):
        durations = ticks(count, fps, unit)
        assert len(durations) == count and abs(sum(durations) - count * unit / fps) <= 0.5
        assert max(durations) - min(durations) <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", clips())
@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_animations_have_every_frame_for_its_time(suffix, name, channels):
    """Also equal neighbours, which Pillow and libwebp would merge."""
    try:
        videos.check_video(suffix, 8)
    except ImportError as missing:
        pytest.skip(str(missing))
    clip = clips(channels)[name]
    frames, durations = read_back(encoded_video(clip, suffix, 8))
    assert len(frames) == FRAMES
    assert durations == (ticks(FRAMES, 8, 1000) if suffix != ".gif" else [10 * item for item in ticks(FRAMES, 8, 100)])
    if suffix in (".webp", ".png"):
        wanted = [frame.convert("RGBA") for frame in as_frames(clip)]
        far = max(abs(np.asarray(a).astype(int) - np.asarray(b)).max() for a, b in zip(wanted, frames, strict=True))
        visible = channels != 4 or suffix == ".png"  # WebP forgets the colours of what is transparent
        assert far <= 1 or not visible


@pytest.mark.parametrize("count", [1, 2, 255, 256, 3000])
def test_gif_is_exact_up_to_255_colours_and_near_beyond(count):
    colours = (noise(count, 3) * 255).round()
    paper = torch.full((3, 2, 60, 60), 250 / 255)  # a colour that is everywhere stays as it is
    paper[:, :, :30] = colours[torch.arange(3600).reshape(2, 30, 60) % count].permute(3, 0, 1, 2) / 255
    frames, _ = read_back(encoded_video(paper, ".gif"))
    wanted = (paper * 255).round().permute(1, 2, 3, 0).numpy()
    far = np.abs(np.stack([np.asarray(frame)[..., :3] for frame in frames]) - wanted)
    assert far[:, 30:].max() == 0
    assert far.max() == 0 if count < 255 else far.mean() < 9


def test_gif_does_not_flicker():
    """What stands still beside something colourful that moves is the same in every frame."""
    clip = noise(3, 8, 32, 32)
    clip[:, :, :, 16:] = noise(3, 1, 32, 16)
    frames, _ = read_back(encoded_video(clip, ".gif"))
    still = {frame.crop((16, 0, 32, 32)).tobytes() for frame in frames}
    assert len(still) == 1


@pytest.mark.parametrize(
    ("height", "width", "fps", "stored"),
    [(16, 16, 8, (256, 256)), (17, 40, 7.3, (272, 640)), (301, 258, 24000 / 1001, (302, 258))],
)
@pytest.mark.parametrize("suffix", FILMS)
def test_films_have_every_frame_at_an_even_size(suffix, height, width, fps, stored):
    av = pytest.importorskip("av")
    clip = torch.zeros(3, 5, height, width)
    for index in range(5):
        clip[:, index, : height // 2] = torch.tensor([0.9, 0.2, index / 5])[:, None, None]
    with av.open(io.BytesIO(encoded_video(clip, suffix, fps))) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "vp9" and float(stream.average_rate) == pytest.approx(fps, rel=1e-4)
        assert file.duration / 1e6 == pytest.approx(5 / fps, abs=2e-3)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(frames) == 5 and frames[0].shape == (*stored, 3)
    factor = stored[0] // height
    wanted = (clip * 255).permute(1, 2, 3, 0).numpy().repeat(factor, 1).repeat(factor, 2)
    assert np.abs(np.stack(frames)[:, : wanted.shape[1], : wanted.shape[2]] - wanted).mean() < 2
    assert np.abs(frames[0][-1].astype(int) - frames[0][-2]).max() < 4  # what was added is like what it lies beside


def test_films_without_pyav_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install av; \.gif and \.webp"):
        encoded_video(clips()["moving"], ".mp4")


def test_transparency_is_laid_over_white_where_there_is_none(tmp_path):
    clip = torch.zeros(4, 2, 8, 8)
    path = save_video(clip, tmp_path / "x.GIF", 4)
    frames, _ = read_back(path.read_bytes())
    assert {frame.getpixel((3, 3)) for frame in frames} == {(255, 255, 255, 255)}


def test_frames_may_be_pillow_images_of_any_mode():
    frames = [Image.new("P", (8, 8)), Image.new("RGB", (8, 8), "red"), Image.new("LA", (8, 8))]
    for suffix in FORMATS.keys() - {".avif"}:
        assert encoded_video(frames, suffix)


@pytest.mark.parametrize(
    ("video", "suffix", "fps", "message"),
    [
        (torch.rand(3, 2, 8, 8), ".jpg", 8, r'"\.jpg" is not a format of videos; there are \.gif, \.webp'),
        (torch.rand(3, 2, 8, 8), ".gif", 60, r"up to 50 frames a second, got 60; \.webp"),
        (torch.rand(3, 2, 8, 8), ".webp", 0, "got 0"),
        (torch.rand(3, 8, 8), ".gif", 8, r"shape \(c, f, h, w\), got \(3, 8, 8\)"),
        (torch.rand(3, 0, 8, 8), ".gif", 8, "got 0 frames"),
        ([], ".gif", 8, "got 0 frames"),
        ([Image.new("L", (2, 2)), Image.new("L", (2, 3))], ".gif", 8, "2 frames of 2 sizes"),
    ],
)
def test_mistakes(video, suffix, fps, message):
    with pytest.raises(ValueError, match=message):
        encoded_video(video, suffix, fps)


def test_a_moving_sheet_is_a_sheet_per_frame_of_one_layout():
    batch = noise(3, 3, 4, 8, 8)
    captions = ["one", "two words", "three " * 12]
    sheets = captioned_video_grid(batch, captions, columns=2, title="A title", notes=["", "held out", ""])
    assert len(sheets) == 4 and len({sheet.size for sheet in sheets}) == 1
    for index in (0, 3):
        alone = captioned_grid(batch[:, :, index], captions, 2, title="A title", notes=["", "held out", ""])
        assert sheets[index].tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.rand(2, 3, 8, 8), r"shape \(b, c, f, h, w\), got \(2, 3, 8, 8\)"),
        ([], "0 images"),
        ([[Image.new("L", (2, 2))], [Image.new("L", (2, 2))] * 2], r"equally long, got \[1, 2\] frames"),
    ],
)
def test_mistakes_of_sheets(batch, message):
    with pytest.raises(ValueError, match=message):
        captioned_video_grid(batch, ["a", "b"])

"""Clips of every kind whose frames tell their numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from PIL import Image

from imagen_pytorch.data import VideoDataset

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

"""Videos as files: GIF, animated WebP, PNG and AVIF with Pillow alone, MP4 and WebM (VP9 in both) with PyAV.

Every file shows each frame for its time. Equal neighbours stay separate, even where Pillow would merge them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..image_metadata import save_options
from ..images import to_pil
from .plots import captioned_grid, opaque

if TYPE_CHECKING:
    from PIL import Image

#: Pixels of the shorter side, about: smaller videos are enlarged for MP4 and WebM. The factor is whole and even, so
#: that every pixel covers whole blocks of the coarser grid of colours (4:2:0).
SHORTER_SIDE = 256
#: Colours of a GIF. The last entry of the palette means "as in the frame before".
COLOURS, AS_BEFORE = 255, 255
#: Number of the most frequent colours, which stay unchanged.
KEPT = 31
#: Number of pixels from which the palette of a GIF is chosen if there are too many colours.
PALETTE_PIXELS = 2_000_000


def ticks(count: int, fps: float, per_second: int) -> list[int]:
    """Return how long each of ``count`` frames is shown, in whole ticks. Their sum is off by at most half a tick."""
    ends = [round(number * per_second / fps) for number in range(count + 1)]
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def _repeats(frames: Sequence[Any]) -> list[bool]:
    """Mark frames that are equal to the one before, so that an encoder does not merge the two."""
    marked = [False]
    for before, after in zip(frames, frames[1:], strict=False):
        marked.append(not marked[-1] and before.tobytes() == after.tobytes())
    return marked


# -- Pillow -----------------------------------------------------------------------------------------------------------


def _saved(frames: Sequence[Image.Image], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, save_all=True, append_images=list(frames[1:]), **options)
    return buffer.getvalue()


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return for each colour ``(n, 3)`` the index of the nearest entry of the palette."""
    wide = palette.astype(np.float32)
    found = np.empty(len(colours), np.uint8)
    for first in range(0, len(colours), 1 << 16):
        some = colours[first : first + (1 << 16)].astype(np.float32)
        found[first : first + len(some)] = ((wide**2).sum(1) - 2 * some @ wide.T).argmin(1)
    return found


def _indexed(frames: Sequence[Image.Image]) -> tuple[list[np.ndarray], np.ndarray]:
    """Convert frames to indices of a palette ``(n, 3)``, the same for all frames so that nothing flickers.

    If there are too many colours, the most frequent ones stay as they are (background and letters, for example), and
    the others become the nearest of those that Pillow chooses. Dithering is off, because its dots would flicker.
    """
    from PIL import Image

    pixels = np.stack([np.asarray(frame) for frame in frames])
    packed = (pixels.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(-1, dtype=np.uint32)
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.uint8)
    if len(colours) <= COLOURS:
        return list(places.reshape(packed.shape).astype(np.uint8)), colours
    some = pixels.reshape(-1, 3)[:: math.ceil(packed.size / PALETTE_PIXELS)]
    chosen = np.array(Image.fromarray(some[None]).quantize(COLOURS - KEPT).getpalette(), np.uint8).reshape(-1, 3)
    palette = np.concatenate([colours[counts.argsort()[::-1][:KEPT]], chosen[: COLOURS - KEPT]])
    return list(_nearest(colours, palette)[places.reshape(packed.shape)]), palette


def _gif(frames: Sequence[Image.Image], fps: float, **metadata: Any) -> bytes:
    from PIL import Image

    indices, palette = _indexed(opaque(frames))
    colours = palette.tobytes() + palette[0].tobytes() * (256 - len(palette))
    for pixels, repeat in zip(indices, _repeats(indices), strict=True):
        if repeat:  # a pixel that repeats the one before it: different for Pillow, the same when shown
            pixels[0, 0] = AS_BEFORE
    images = [Image.fromarray(pixels) for pixels in indices]
    for image in images:
        image.putpalette(colours)
    durations = [10 * hundredths for hundredths in ticks(len(frames), fps, 100)]
    options = {"duration": durations, "loop": 0, "optimize": False, "disposal": 1, "transparency": AS_BEFORE}
    return _saved(images, "GIF", palette=colours, **options, **metadata)


def _png(frames: Sequence[Image.Image], fps: float, **metadata: Any) -> bytes:
    # Pillow merges equal neighbours only if they have the same disposal: 2 restores the frame before, the same one
    disposal = [2 if repeat else 0 for repeat in _repeats(frames)]
    return _saved(frames, "PNG", duration=ticks(len(frames), fps, 1000), loop=0, disposal=disposal, **metadata)


def _webp(frames: Sequence[Image.Image], fps: float, **metadata: Any) -> bytes:
    from PIL import Image

    images = [np.array(frame) for frame in frames]
    for pixels, repeat in zip(images, _repeats(images), strict=True):
        if repeat:  # the encoder always merges equal neighbours: one level of one pixel is changed
            pixels[(0, 0, -1) if pixels.ndim == 3 else (0, 0)] ^= 1
    images = [Image.fromarray(pixels) for pixels in images]
    return _saved(images, "WEBP", duration=ticks(len(frames), fps, 1000), loop=0, lossless=True, **metadata)


def _avif(frames: Sequence[Image.Image], fps: float, **metadata: Any) -> bytes:
    durations = ticks(len(frames), fps, 1000)
    return _saved(frames, "AVIF", duration=durations, quality=90, subsampling="4:4:4", speed=6, **metadata)


# -- PyAV -------------------------------------------------------------------------------------------------------------


def _for_players(frame: Image.Image) -> np.ndarray:
    """Return pixels of a size that players accept: small videos are enlarged, odd sides repeat the last row or
    column."""
    shorter = min(frame.size)
    factor = 2 * math.ceil(SHORTER_SIDE / shorter / 2) if shorter < SHORTER_SIDE else 1
    pixels = np.asarray(frame).repeat(factor, 0).repeat(factor, 1)
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("MP4 and WebM need PyAV: pip install av; .gif and .webp need nothing more") from error
    return av


def _vp9(container: str) -> Callable[..., bytes]:
    def write(frames: Sequence[Image.Image], fps: float, metadata: Mapping[str, str] | None = None) -> bytes:
        av = _pyav()
        rate = Fraction(fps).limit_denominator(1001)
        buffer, images = io.BytesIO(), [_for_players(frame) for frame in opaque(frames)]
        options = {"movflags": "use_metadata_tags"} if metadata and container == "mp4" else {}
        with av.open(buffer, "w", format=container, options=options) as file:
            file.metadata.update(metadata or {})
            stream = file.add_stream("libvpx-vp9", rate=rate)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "15", "b": "0"}
            context = stream.codec_context
            context.thread_count = 1  # the same bytes on every machine
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709
            for index, pixels in enumerate(images):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                frame.pts, frame.time_base = index, 1 / rate
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return buffer.getvalue()

    return write


# -- all of them ------------------------------------------------------------------------------------------------------


class _Format(NamedTuple):
    """A file format: its writer, its highest frame rate, and the name of the format in Pillow."""

    write: Callable[..., bytes]
    fastest: float
    pillow: str | None


#: The formats by suffix. A frame of a GIF lasts at least two hundredths of a second: viewers show shorter ones slowly.
FORMATS = {
    ".gif": _Format(_gif, 50, "GIF"),
    ".webp": _Format(_webp, 500, "WEBP"),
    ".png": _Format(_png, 500, "PNG"),
    ".apng": _Format(_png, 500, "PNG"),
    ".avif": _Format(_avif, 500, "AVIF"),
    ".mp4": _Format(_vp9("mp4"), 500, None),
    ".webm": _Format(_vp9("webm"), 500, None),
}


def as_frames(video: Float[Tensor, "c f h w"] | Sequence[Image.Image]) -> list[Image.Image]:
    """Return the frames of a video as Pillow images of one size and mode.

    Raises:
        ValueError: no frames, frames of different sizes, or a tensor of another rank.
    """
    if isinstance(video, Tensor):
        if video.ndim != 4:
            raise ValueError(f"a video has the shape (c, f, h, w), got {tuple(video.shape)}")
        frames = to_pil(video.transpose(0, 1)) if video.shape[1] else []
    else:
        frames = list(video)
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ValueError(f"a video needs frames of one size, got {len(frames)} frames of {len(sizes)} sizes")
    plain = all(frame.mode in ("L", "LA", "RGB", "RGBA") for frame in frames)
    if plain and len({frame.mode for frame in frames}) == 1:
        return frames
    return [frame.convert("RGBA") for frame in frames]


def check_video(suffix: str, fps: float) -> None:
    """Check that a video can be written.

    Raises:
        ValueError: an unknown suffix, or a frame rate that the format does not support.
        ImportError: the writer of this format is not installed.
    """
    from PIL import Image

    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise ValueError(f'"{suffix}" is not a format of videos; there are {", ".join(FORMATS)}')
    if not 0 < fps <= kind.fastest:
        other = "; .webp, .mp4 and .webm show more" if kind.pillow == "GIF" else ""
        raise ValueError(f"{suffix} shows up to {kind.fastest:g} frames a second, got {fps:g}{other}")
    if kind.pillow is None:
        _pyav()
        return
    Image.init()
    if kind.pillow not in Image.SAVE_ALL:
        raise ImportError(f"the Pillow that is installed writes no {kind.pillow}; a newer one does, or use .gif")


def encoded_video(
    frames: Float[Tensor, "c f h w"] | Sequence[Image.Image],
    suffix: str = ".gif",
    fps: float = 8.0,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Return a video as the contents of a file with this suffix. It plays in a loop if the format supports loops.

    GIF keeps 255 colours, exactly if there are no more. ``.webp`` and ``.png`` keep every pixel (but in WebP a frame
    that repeats the one before differs by one level of one pixel, or the two would be merged). ``.mp4`` and ``.webm``
    hold VP9, which is free of royalties. Videos less than 256 pixels wide or high are enlarged by a whole factor, and
    an odd side grows by one pixel.

    Args:
        frames: ``(c, f, h, w)`` in [0, 1], or Pillow images of one size. GIF, MP4 and WebM compose transparency over
            white.
        suffix: one of `FORMATS`.
        fps: frames a second. Durations are whole hundredths of a second in a GIF, thousandths in WebP, PNG and AVIF.
            They differ by one where needed, so that the total is right.
        texts: metadata, as `save_options` writes them.

    Raises:
        ValueError: no frames, frames of several sizes, an unknown suffix, or a rate that the format cannot show.
        ImportError: ``.mp4`` and ``.webm`` without PyAV.
    """
    check_video(suffix, fps)
    kind = FORMATS[suffix.lower()]
    return kind.write(as_frames(frames), fps, **save_options(kind.pillow, texts))


def save_video(frames: Float[Tensor, "c f h w"] | Sequence[Image.Image], path: str | Path, fps: float = 8.0) -> Path:
    """Write a video to a file, in the format of its suffix. Arguments and errors as for `encoded_video`.

    Returns:
        the path of the file.
    """
    path = Path(path)
    path.write_bytes(encoded_video(frames, path.suffix, fps))
    return path


def captioned_video_grid(
    videos: Float[Tensor, "b c f h w"] | Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
    title: str = "",
    notes: Sequence[str] | None = None,
) -> list[Image.Image]:
    """Arrange videos in rows, synchronised, each with its complete caption below it: one sheet per frame.

    Every sheet has the same layout. Arguments as for `captioned_grid`.

    Raises:
        ValueError: as there, or videos of different lengths.
    """
    if isinstance(videos, Tensor):
        if videos.ndim != 5:
            raise ValueError(f"a grid needs videos of shape (b, c, f, h, w), got {tuple(videos.shape)}")
        videos = [as_frames(video) for video in videos]
    lengths = {len(video) for video in videos}
    if len(lengths) > 1:
        raise ValueError(f"the videos of a grid are equally long, got {sorted(lengths)} frames")
    moments = list(zip(*videos, strict=True)) or [()]
    return [
        captioned_grid(moment, captions, columns=columns, scale=scale, title=title, notes=notes) for moment in moments
    ]

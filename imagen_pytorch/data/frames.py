"""The frames of animations, video files and folders of numbered images: their times, and the choice of frames.

Opening a clip reads the times of its frames, and decodes none if the format permits.
"""

from __future__ import annotations

import errno
import io
import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..images import Size
from .animations import durations
from .decoding import as_oserror, check_file, check_pixels, decode, opened, reason_of
from .places import Place
from .trouble import is_trouble

if TYPE_CHECKING:
    from PIL import Image

#: Endings of clips that Pillow reads, of those that need PyAV, and of the frames in a folder.
ANIMATIONS = ("gif", "webp", "png", "apng", "avif")
VIDEO_FILES = ("mp4", "webm", "mov", "mkv", "avi")
STILLS = ("jpg", "jpeg", "png", "webp", "bmp", "tiff", "tif", "avif")

#: Default frames per second of numbered images, as in ffmpeg.
USUAL_RATE = 25.0

#: Containers that store decoding timestamps: their frames are counted instead.
COUNTED = ("avi",)

#: Seconds by which a video may end before the time in its header. One that ends earlier is truncated.
MISSING_END = 0.25

#: Largest number of frames of a clip at the requested rate: two days at 24 per second. A header may claim centuries.
MAX_FRAMES = 2**22

#: The reason for which a video file is left out without PyAV.
NEEDS_AV = "reading it needs PyAV: pip install av"


def check_positive(name: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Check that a value is a positive finite number.

    Raises:
        ValueError: names the value.
    """
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf:
        kind = "a positive whole number" if kinds is int else "a positive number"
        raise ValueError(f"{name} is {kind}, got {value!r}")


def strides_of(frame_stride: int | Sequence[int]) -> tuple[int, ...]:
    """Return one stride or several as a tuple.

    Raises:
        ValueError: none, or one that is not a positive integer.
    """
    strides = (frame_stride,) if isinstance(frame_stride, int) else tuple(frame_stride)
    for stride in strides or (None,):
        check_positive("frame_stride (each, if there are several)", stride, int)
    return strides


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip whose frames can be read.

    Args:
        source: the path of the file or folder, or the bytes of a fetched file.
        starts: start time of each frame in seconds, ascending from 0.
        length: seconds from the start of the first frame to the end of the last.
        rate: its usual frames per second.
    """

    source: Path | bytes
    starts: np.ndarray
    length: float
    rate: float

    @abstractmethod
    def frames(self, numbers: Sequence[int], size: Size) -> Iterator[Image.Image]:
        """Yield some frames by their ascending numbers. Each is valid until the next one is requested.

        Args:
            numbers: of frames, from 0, each once.
            size: (height, width) that is needed; large JPEGs are read at a fraction of their size.

        Raises:
            OSError: they cannot be read.
        """

    def at(self, fps: float | None) -> tuple[np.ndarray, float]:
        """Return the numbers of the frames at ``fps`` frames per second, and the rate. None keeps all frames.

        Each is the frame nearest in time. A frame that is shown for long lasts until half a step before the next one,
        so that still scenes keep their length.

        Raises:
            OSError: there would be more than `MAX_FRAMES`.
        """
        if fps is None:
            return np.arange(len(self.starts)), self.rate
        # a small tolerance, so that ties do not depend on rounding
        hair = 1e-6
        if self.length * fps > MAX_FRAMES:
            most = f"{MAX_FRAMES:,} frames are the most"
            raise OSError(f"too long: {self.length:g} seconds at {fps:g} per second, {most}")
        times = np.arange(max(1, int(np.ceil(self.length * fps - hair)))) / fps
        begins = self.starts[1:] - np.minimum(np.diff(self.starts), 1 / fps) / 2
        return np.searchsorted(begins, times - hair, side="right"), float(fps)


class Animation(Clip):
    """An animated image, read with Pillow."""

    @classmethod
    def open(cls, source: Path | bytes) -> Animation:
        """Open an animation with its true durations.

        Raises:
            OSError: it is damaged, or not an animation.
        """
        with as_oserror():
            seconds = np.array(durations(source), np.float64) / 1000
        starts = np.concatenate([[0.0], np.cumsum(seconds)])
        return cls(source, starts[:-1], float(starts[-1]), float(1 / np.median(seconds)))

    def frames(self, numbers: Sequence[int], size: Size) -> Iterator[Image.Image]:
        """Yield some frames."""
        with opened(self.source) as image:
            first = int(bool(image.info.get("default_image")))  # shown instead of the animation and not part of it
            for number in numbers:
                image.seek(first + number)
                check_pixels(image.size)  # a frame may be larger than the header states
                image.load()
                yield image


def check_av() -> None:
    """Check that video files can be read.

    Raises:
        OSError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise OSError(NEEDS_AV) from None


@contextmanager
def _container(source: Path | bytes) -> Iterator[Any]:
    """Open a video file, and convert errors inside the context to ``OSError``."""
    check_av()
    import av

    try:
        if isinstance(source, Path):
            check_file(source)
        with as_oserror(), av.open(str(source) if isinstance(source, Path) else io.BytesIO(source)) as container:
            yield container
    except av.FFmpegError as error:
        # FFmpeg reports a truncated file as an input/output error, too
        if is_trouble(error) and error.errno != errno.EIO:
            raise OSError(error.errno, error.strerror) from error
        raise OSError(error.strerror or str(error)) from error


@dataclass(frozen=True, eq=False)
class VideoFile(Clip):
    """A video file, read with PyAV.

    Args:
        stamps: timestamps of the frames, in the file's own unit; empty if they are unusable.
    """

    stamps: np.ndarray

    @classmethod
    def open(cls, source: Path | bytes) -> VideoFile:
        """Open a video with its true timestamps. Only packets are read, nothing is decoded.

        Raises:
            OSError: PyAV is missing, or the file is damaged or holds no video.
        """
        with _container(source) as container:
            return cls._scan(source, container)

    @classmethod
    def _scan(cls, source: Path | bytes, container: Any) -> VideoFile:
        if not container.streams.video:
            raise OSError("no video in it")
        stream = container.streams.video[0]
        check_pixels((stream.width, stream.height))
        stamps, end = [], 0.0
        for packet in container.demux():
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise OSError("truncated")
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index and not packet.is_discard:
                stamps.append(stamp)
        began = min(0, container.start_time or 0)
        if container.duration and end < (began + container.duration) / 1e6 - MISSING_END:
            raise OSError(f"truncated: it ends after {end:.2f} of {container.duration / 1e6:.2f} seconds")
        if not stamps:
            raise OSError("no frame in it")
        rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
        if container.format.name in COUNTED or None in stamps:
            return cls(source, np.arange(len(stamps)) / rate, len(stamps) / rate, rate, np.empty(0, np.int64))
        ordered = np.unique(np.array(stamps, np.int64))
        starts = (ordered - ordered[0]) * float(stream.time_base)
        return cls(source, starts, float(starts[-1]) + 1 / rate, rate, ordered)

    def frames(self, numbers: Sequence[int], size: Size) -> Iterator[Image.Image]:
        """Yield some frames, turned upright."""
        from av.video.reformatter import VideoReformatter

        # one of its own: the one that PyAV shares among frames waits forever for its threads in a forked process
        convert = VideoReformatter()
        wanted = [int(self.stamps[number]) for number in numbers] if len(self.stamps) else list(map(int, numbers))
        for frame in self._decoded(wanted):
            check_pixels((frame.width, frame.height))  # a frame may be larger than the header states
            image = convert.reformat(frame, format="rgb24").to_image()
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image

    def _decoded(self, wanted: list[int]) -> Iterator[Any]:
        """Yield the frames with these timestamps, or with these numbers if there are no timestamps."""
        position = 0
        for seek in (True, False):
            with _container(self.source) as container:
                stream = container.streams.video[0]
                if seek and len(self.stamps):
                    # a second earlier: the index holds decoding times, which are ahead of presentation times
                    container.seek(wanted[0] - int(1 / stream.time_base), stream=stream)
                for number, frame in enumerate(container.decode(stream)):
                    mark = frame.pts if len(self.stamps) else number
                    if mark is not None and mark > wanted[position]:
                        break  # decoding began too late, or a frame is missing
                    if mark == wanted[position]:
                        yield frame
                        position += 1
                        if position == len(wanted):
                            return
            if position or not len(self.stamps):
                break
        raise OSError(f"frame {position + 1} of {len(wanted)} cannot be decoded")


@dataclass(frozen=True, eq=False)
class ImageSequence(Clip):
    """A folder of numbered images.

    Args:
        place: the parent folder.
        paths: of the files in that place, by number.
    """

    place: Place
    paths: tuple[Path, ...]

    @classmethod
    def open(cls, place: Place, folder: Path, names: Iterable[str], rate: float | None) -> ImageSequence:
        """Open a folder as a clip. Numbered images have no times, so they are assumed to be at the given rate.

        Raises:
            OSError: two of them have the same number, so that their order is unknown.
        """
        names = sorted(names, key=lambda name: (number_of(name), name))
        for before, after in zip(names, names[1:], strict=False):
            if number_of(before) == number_of(after):
                raise OSError(f"{before} and {after} have the same number")
        rate, paths = float(rate or USUAL_RATE), tuple(folder / name for name in names)
        return cls(folder, np.arange(len(names)) / rate, len(names) / rate, rate, place, paths)

    def frames(self, numbers: Sequence[int], size: Size) -> Iterator[Image.Image]:
        """Yield some frames."""
        for number in numbers:
            path = self.paths[number]
            try:
                yield decode(self.place.source(path), size)
            except OSError as error:
                if is_trouble(error):
                    raise
                raise OSError(f"{path.name}: {reason_of(error)}") from error


def number_of(name: str) -> int | None:
    """Return the last number in a file's name without its ending, or None if there is none."""
    numbers = re.findall(r"[0-9]+", Path(name).stem)
    return int(numbers[-1]) if numbers else None

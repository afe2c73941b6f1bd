"""A folder of clips - animations, video files, subfolders of numbered images - with captions or without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..images import Size
from .base import Skipped, random_caption
from .decoding import opened, printable
from .folder import FolderDataset, channels_or_mode
from .frames import (
    ANIMATIONS,
    NEEDS_AV,
    STILLS,
    VIDEO_FILES,
    Animation,
    Clip,
    ImageSequence,
    VideoFile,
    check_av,
    check_positive,
    number_of,
    strides_of,
)
from .places import place_of
from .trouble import retry

#: Endings of clips and of the frames in a subfolder, in any case of letters.
CLIP_EXTENSIONS = tuple(dict.fromkeys((*ANIMATIONS, *VIDEO_FILES, *STILLS)))


class VideoDataset(FolderDataset):
    """The clips in a folder and its subfolders, sorted by path.

    A clip is an animation (.gif .webp .png .apng .avif), a video file (.mp4 .webm .mov .mkv .avi; they need PyAV, the
    extra ``video``), or a subfolder with at least two images that have a number in their name, which are sorted by
    the last one. Captions are found as those of `Dataset`: in ``metadata.jsonl`` or ``metadata.csv``, or in text files
    next to the clips (``clip.mp4`` and ``clip.txt``; of a subfolder ``clip``, too). If any clip has a caption, those
    without are left out. Clips that cannot be read or are too short are left out too.

    An item is a dict of ``images`` (c, f, h, w) in [0, 1], ``fps`` (frames per second of these frames) and, with
    captions, ``texts``; of several captions one is drawn. All frames of a clip are resized to cover the size and
    cropped at the centre in the same way. All draws use torch's own generator.
    Args:
        folder: folder of the clips: a path, or a URL as in `Dataset`.
        image_size: side in pixels, or (height, width).
        num_frames: number of frames of an item.
        fps: frames per second to which clips are resampled, by taking the frame nearest in time; numbered images have
            no times and are assumed to be at this rate. None: the clip's own frames (numbered images: 25 per second).
        frame_stride: distance of the frames that are taken, or several distances of which one is drawn per item, among
            those that the clip is long enough for. The rate of an item is divided by it.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; default: 3.
        convert_image_to_type: "L", "LA", "RGB" or "RGBA"; the same as ``channels`` 1 to 4.
        random_flip: flip clips horizontally with probability 1/2; default: only without captions.
        text_label: the table's column of captions.
        caption_extension: of the text files next to the clips.
        captions: false ignores all captions.
        random_start: draw the segment of a longer clip; otherwise take the first.
        exts: endings of clips and of numbered images.
        fs, fs_kwargs: as in `Dataset`.

    Attributes:
        paths: of the clips.
        captions: the first caption of each clip; empty without captions.
        skipped: items that were left out, with reasons.

    Raises:
        DataError: the folder does not exist, has no usable clip, or has a table that cannot be read.
        ValueError: an impossible size, rate, stride, mode or number of frames or channels.
    """

    kind = "clip"

    def __init__(
        self,
        folder: str | Path,
        image_size: int | Size,
        num_frames: int,
        *,
        fps: float | None = None,
        frame_stride: int | Sequence[int] = 1,
        channels: int | None = None,
        convert_image_to_type: str | None = None,
        random_flip: bool | None = None,
        text_label: str = "text",
        caption_extension: str = ".txt",
        captions: bool = True,
        random_start: bool = True,
        exts: str | Sequence[str] = CLIP_EXTENSIONS,
        fs: Any = None,
        fs_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive("num_frames", num_frames, int)
        if fps is not None:
            check_positive("fps", fps, (int, float))
        self.num_frames, self.fps, self.strides = num_frames, fps, strides_of(frame_stride)
        self.random_start = random_start
        self._clips: dict[Path, Clip] = {}
        self._series: dict[Path, list[str]] = {}
        super().__init__(
            place_of(folder, fs, fs_kwargs),
            image_size,
            exts,
            channels_or_mode(channels, convert_image_to_type),
            random_flip=random_flip,
            text_label=text_label if captions else None,
            caption_extension=caption_extension,
        )

    def _span(self, stride: int) -> int:
        """Return the number of frames that an item spans."""
        return (self.num_frames - 1) * stride + 1

    def _find(self, endings: Sequence[str]) -> list[Path]:
        files = self.place.listed(endings)
        numbered: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in files:
            if _has_ending(path, STILLS) and path.parent != Path() and number_of(path.name) is not None:
                numbered[path.parent].append(path)
        found = set(files)
        for parent, paths in numbered.items():
            # a few files show the kind: opening every frame of every folder would take long
            if len(paths) > 1 and not any(self._is_animated(paths[i]) for i in (0, len(paths) // 2, -1)):
                self._series[parent] = [path.name for path in paths]
                found -= set(paths)
        clips = [path for path in found if _has_ending(path, (*ANIMATIONS, *VIDEO_FILES))]
        return sorted((*clips, *self._series), key=Path.as_posix)

    def _is_animated(self, path: Path) -> bool:
        """Return true if a numbered image is a clip itself. Nothing is fetched from other machines to find out."""
        if not self.place.is_local or not _has_ending(path, ANIMATIONS):
            return False

        def is_animated() -> bool:
            with opened(self.place.source(path)) as image:
                return getattr(image, "n_frames", 1) > 1

        try:
            return retry(is_animated, printable(path))
        except OSError:  # it is reported again when the frame is read
            return False

    def _open(self, path: Path) -> Clip:
        """Open a clip and check that it is long enough.

        Raises:
            OSError: it is too short or damaged.
        """
        if path in self._series:
            clip: Clip = ImageSequence.open(self.place, path, self._series[path], self.fps)
        elif self.place.is_local and (self.folder / path).is_dir():  # type: ignore[operator]
            raise OSError("no numbered images in it")
        else:
            clip = (VideoFile if _has_ending(path, VIDEO_FILES) else Animation).open(self.place.source(path))
        numbers, rate = clip.at(self.fps)
        count, needed = len(numbers), self._span(min(self.strides))
        if count < needed:
            every = f" at {rate:g} per second" if self.fps is not None else ""
            raise OSError(f"{count} frame{'s' if count > 1 else ''}{every}, {needed} are needed")
        return clip

    def _check(self, path: Path) -> None:
        if _has_ending(path, VIDEO_FILES):
            check_av()
        if not self.looks_into and path not in self._series:
            self.place.check(path)  # other damage is found when the file is fetched
        else:
            self._clips[path] = self._open(path)

    def _caption_place(self, path: Path) -> Path:
        # the name of a folder has no ending, even if it contains a dot
        return path.with_name(f"{path.name}.frames") if path in self._series else path

    def _hint(self) -> str:
        images = self.place.listed(STILLS)
        if not images:
            return ""
        return f". It holds images ({printable(images[0])}); numbered frames belong into a subfolder of their own"

    def _foremost(self, skipped: list[Skipped]) -> Skipped:
        return next((item for item in skipped if item.reason == NEEDS_AV), skipped[0])

    def read(self, index: int) -> tuple[Clip, tuple[str, ...]]:
        """Return a clip whose frames can be read, and its captions.

        Raises:
            OSError: it cannot be fetched or used.
        """
        path = self._relative[index]
        return self._clips.get(path) or self._open(path), self._captions.get(path, ())

    def _load(self, index: int) -> dict[str, Any]:
        clip, captions = self.read(index)
        numbers, rate = clip.at(self.fps)
        strides = [stride for stride in self.strides if self._span(stride) <= len(numbers)]
        stride = strides[_drawn(len(strides))]
        first = _drawn(len(numbers) - self._span(stride) + 1) if self.random_start else 0
        taken = numbers[first : first + self._span(stride) : stride]
        # a frame that is taken several times is decoded once
        distinct, places = np.unique(taken, return_inverse=True)
        images, size = [], None
        for image in clip.frames(distinct.tolist(), self.size):
            size = size or image.size
            if image.size != size:
                raise OSError(f"its frames differ in size: {_pixels(size)} and {_pixels(image.size)}")
            images.append(self._fitted(image))
        images = torch.stack([images[place] for place in places.tolist()], 1)
        item = {"images": self._mirrored(images), "fps": rate / stride}
        return {**item, "texts": random_caption(captions)} if captions else item


def _drawn(count: int) -> int:
    """Return a number below ``count``, drawn if there is a choice."""
    return int(torch.randint(count, ())) if count > 1 else 0


def _pixels(size: Size) -> str:
    return "x".join(map(str, size))


def _has_ending(path: Path, endings: Sequence[str]) -> bool:
    return path.suffix.lower().lstrip(".") in endings

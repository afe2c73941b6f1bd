"""Results of a model as files: images, or videos as animations, films or single frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._files import (
    check_image_name,
    counts_frames,
    encoded,
    image_suffixes,
    prefix_number,
    without_number,
    write_new,
    write_series,
)
from ._options import FRAMES

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade

#: what a file of a video may be called, for messages
_KINDS = ".gif, .webp, .png, .avif, .mp4, .webm, or frame-%04d.png for single frames"


class Images:
    """Images, one to a file.

    Args:
        channels: of the model.
    """

    #: suffix of files that the user does not name
    suffix = ".png"
    noun = "image"

    def __init__(self, channels: int = 3) -> None:
        from ..images import MODES

        self.mode = MODES.get(channels, "RGB")  # a model of other channels makes no images that can be written

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Cascade.sample`."""
        return {"return_pil_images": True}

    def length(self, stage: int) -> str:
        """The length of the results of a stage (counted from 0), in words; empty for images."""
        del stage
        return ""

    def check(self, path: Path) -> None:
        """Refuse a file name that does not fit the results.

        Raises:
            click.UsageError: naming suffixes that fit.
        """
        check_image_name(path, self.mode)

    def encode(self, item: Any, suffix: str, stage: int, texts: Mapping[str, str] | None = None) -> bytes:
        """The result of a stage (counted from 0) as the contents of a file; with the texts in it."""
        del stage  # images of all stages are alike
        return encoded(item, suffix, texts)

    def write(self, item: Any, path: Path, stage: int, texts: Mapping[str, str] | None = None) -> list[Path]:
        """Write the results of a stage (counted from 0) to new files, with the texts in them.

        Returns:
            where they are.
        """
        return [write_new(self.encode(item, path.suffix, stage, texts), path)]

    def of_stage(self, written: Sequence[Path], path: Path, number: int) -> Path:
        """The file name for the result of an earlier U-Net, from that of the last one."""
        del path
        return written[0].with_name(f"{written[0].stem}-unet{number}{written[0].suffix}")

    def grid_name(self, path: Path, word: str = "grid") -> Path:
        """The file name for a sheet with all of them, with a word at its end."""
        return path.with_name(f"{path.stem}-{word}{path.suffix}")

    def grid(self, items: Any, captions: Sequence[str], columns: int | None = None, **texts: Any) -> Any:
        """All items of one stage with their captions on one sheet, as an item; ``texts`` as for `captioned_grid`."""
        from ..evaluation.plots import captioned_grid

        return captioned_grid(items, captions, columns, **texts)

    def table(self, rows: Sequence[Sequence[Any]], labels: Sequence[str], columns: Sequence[str], title: str) -> Any:
        """Arrange the items of one stage in a sheet with a label for each row and column, as an item."""
        from ..evaluation.sheets import labelled_grid

        return labelled_grid(rows, labels, columns, title=title)


class Videos(Images):
    """Videos, each in a file or in one file per frame.

    Args:
        imagen: the model.
        frames: how many at the full rate; None: as many as the model's configuration says.
        fps: frames a second; None: as many as the model's configuration says.
        seconds: the length in place of ``frames``.
        window: frames that are made at once, each part given the frames before it; None: all.

    Raises:
        click.UsageError: the number of frames is not stated anywhere, or they do not fit the model.
    """

    noun = "clip"

    def __init__(
        self,
        imagen: Cascade,
        frames: int | None = None,
        fps: float | None = None,
        seconds: float | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(imagen.channels)
        self.fps = float(imagen.fps if fps is None else fps)
        self.factors = tuple(imagen.temporal_downsample_factor)
        if seconds is not None:
            frames = self.factors[0] * FRAMES.convert(math.ceil(seconds * self.fps / self.factors[0]), None, None)
        self.frames = imagen.video_frames if frames is None else frames
        self.suffix = ".gif" if self.fps <= 50 else ".webp"
        if self.frames is None:
            raise click.UsageError("the model does not say how many frames its videos have: give --frames N")
        if self.frames % self.factors[0]:
            raise click.UsageError(
                f"the number of frames must be a multiple of {self.factors[0]}, for the first U-Net makes one frame in "
                f"{self.factors[0]} (temporal_downsample_factor); got {self.frames}"
            )
        self.window = None if window is None or window >= self.frames else window
        self.repaints = not imagen.given_frames_prob

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Cascade.sample`, or of `Cascade.sample_long` if the video is made in parts."""
        if self.window is None:
            return {"video_frames": self.frames, "fps": self.fps}
        return {"total_frames": self.frames, "window": self.window, "inpaint": self.repaints, "fps": self.fps}

    def length(self, stage: int) -> str:
        """The length of the results of a stage (counted from 0), in words."""
        return f", {self.frames // self.factors[stage]} frames at {self.rate(stage):g} a second"

    def rate(self, stage: int) -> float:
        """Frames a second of the results of a stage (counted from 0, or from -1 backwards)."""
        return self.fps / self.factors[stage]

    def check(self, path: Path) -> None:
        """Refuse a file name that does not fit videos, and a rate that does not fit the file.

        Raises:
            click.UsageError: naming suffixes that fit.
        """
        from ..evaluation.videos import check_video

        check_video_name(path)
        if counts_frames(path):
            check_image_name(path, self.mode)
        else:
            check_video(path.suffix, self.fps)

    def encode(self, item: Any, suffix: str, stage: int, texts: Mapping[str, str] | None = None) -> bytes:
        """The result of a stage (counted from 0) as the contents of a file, with the texts in it."""
        from ..evaluation.videos import encoded_video

        return encoded_video(item, suffix, self.rate(stage), texts)

    def write(self, item: Any, path: Path, stage: int, texts: Mapping[str, str] | None = None) -> list[Path]:
        """Write the result of a stage (counted from 0) to new files with the texts in them: one, or one per frame.

        Returns:
            where they are.
        """
        from ..evaluation.videos import as_frames

        if not counts_frames(path):
            return super().write(item, path, stage, texts)
        return write_series([encoded(frame, path.suffix, texts) for frame in as_frames(item)], path)

    def of_stage(self, written: Sequence[Path], path: Path, number: int) -> Path:
        """The file name for the result of an earlier U-Net, from that of the last one."""
        if counts_frames(path):
            return prefix_number(path, f"unet{number}")
        return super().of_stage(written, path, number)

    def grid_name(self, path: Path, word: str = "grid") -> Path:
        """The name for a sheet with all of them; that of single frames is a GIF."""
        return super().grid_name(without_number(path).with_suffix(self.suffix) if counts_frames(path) else path, word)

    def grid(self, items: Any, captions: Sequence[str], columns: int | None = None, **texts: Any) -> Any:
        """All items of one stage with their captions on one moving sheet; ``texts`` as for `captioned_video_grid`."""
        import torch

        from ..evaluation.videos import captioned_video_grid

        return captioned_video_grid(torch.stack(list(items)), captions, columns=columns, **texts)

    def table(self, rows: Sequence[Sequence[Any]], labels: Sequence[str], columns: Sequence[str], title: str) -> Any:
        """Arrange the items of one stage in a moving sheet, each with the labels of its row and column below it."""
        captions = [", ".join(filter(None, (column, row))) for row in labels for column in columns]
        return self.grid([item for row in rows for item in row], captions, len(columns), title=title)


def check_video_name(path: Path) -> None:
    """Refuse a file name that is neither one of a video nor one of single frames.

    Raises:
        click.UsageError: naming suffixes that fit.
    """
    from ..evaluation.videos import FORMATS

    known = image_suffixes() if counts_frames(path) else FORMATS
    if path.suffix.lower() not in known:
        raise click.UsageError(f'"{path.suffix}" of {path} is not a video format; use {_KINDS}')


def check_name(path: Path) -> None:
    """Refuse a file name that fits neither images nor videos.

    Raises:
        click.UsageError: naming suffixes that fit.
    """
    from ..evaluation.videos import FORMATS

    if path.suffix.lower() not in {*image_suffixes(), *FORMATS}:
        raise click.UsageError(
            f'"{path.suffix}" of {path} is neither an image nor a video format; use .png, .webp or .jpg for images, '
            f"and for videos {_KINDS}; the name of a folder with a dot in it ends with /"
        )


def outputs_of(imagen: Cascade, **length: Any) -> Images:
    """The kind of results that a model makes: images or videos.

    Args:
        imagen: the model.
        length: arguments of `Videos`; None where none is stated.

    Raises:
        click.UsageError: a length for a model that makes images, or none for one that makes videos.
    """
    if imagen.is_video:
        return Videos(imagen, **length)
    if given := [f"--{name}" for name, value in length.items() if value is not None]:
        raise click.UsageError(f"this model makes images: it takes no {' and no '.join(given)}")
    return Images(imagen.channels)

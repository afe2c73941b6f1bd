"""Real images that generated ones are compared with, and images that lie in a folder."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..wording import printable
from ._data import caption_of, images_of, noun_of
from ._errors import DATA, CommandFailed, format_error
from ._files import listed_outputs
from ._sources import data_record, kept_arguments, kind_of_source, same_source

if TYPE_CHECKING:
    from torch import Tensor

#: the data where neither an option nor the model names any
USUAL_DATA = "emoji64"
#: subfolders of a folder that count as classes, at most
MAX_CLASSES = 100
#: endings of names of sheets and earlier stages, which `imagen sample` writes beside its images
_SHEETS = re.compile(r"-(grid|sweep|unet\d+)(-\d+)?$")
#: the text in a PNG file that holds its caption
_CAPTION = "Description"
#: arguments of a data source that an evaluation chooses itself
_OWN = ("image_size", "limit", "channels", "convert_image_to_type", "cache_folder", "cache_memory_share")


class Source(NamedTuple):
    """Data by their name and the arguments of their source."""

    name: str
    arguments: dict[str, Any]


def recorded_source(path: str) -> Source | None:
    """Return the data that a checkpoint was trained on, as far as it states them.

    Raises:
        CheckpointError: it cannot be read.
    """
    from ..checkpoints import describe_checkpoint

    record = describe_checkpoint(path).contents.get("data_source")
    if not isinstance(record, Mapping) or not isinstance(record.get("name"), str):
        return None
    arguments = record.get("arguments")
    known = arguments if isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments) else {}
    return Source(record["name"], known)


def chosen_source(data: str | None, recorded: Source | None) -> Source:
    """Return the data to compare with: the given ones, those of the model, or the embedded ones."""
    if data is not None and (recorded is None or not same_source(data, recorded.name)):
        return Source(data, {})
    return recorded or Source(USUAL_DATA, {})


class RealData:
    """An open data set of images.

    Args:
        source: which data.
        split: part of the data, or None for the one that the source's arguments name.
        size: (height, width) of the images.
        channels: 1 or 3.

    Attributes:
        dataset: the data set.
        captions: one per image, or empty.
        record: name, number of items, digest and split, as JSON holds them.

    Raises:
        click.UsageError: the data have no splits, or are clips.
        CommandFailed: nothing in them can be read.
    """

    def __init__(self, source: Source, split: str | None, size: tuple[int, int], channels: int) -> None:
        from ..data import open_source

        takes = kept_arguments(source.name, ())
        arguments = {name: value for name, value in source.arguments.items() if name in takes and name not in _OWN}
        if split is not None:
            if "split" not in takes:
                raise click.UsageError(f"--split {split}: {source.name} has no splits")
            arguments["split"] = split
        fixed: dict[str, Any] = {"image_size": size}
        fixed |= {"channels": channels} if "channels" in takes and channels != 3 else {}
        fixed |= {"random_flip": False} if "random_flip" in takes else {}
        self.source = source
        self.dataset: Any = open_source(source.name, **{**arguments, **fixed})
        self.split = arguments.get("split", "train" if "split" in takes else None)
        try:
            first = self.dataset[0]
        except (OSError, IndexError) as error:
            raise CommandFailed(f"cannot read the first item of {source.name}: {format_error(error)}", DATA) from error
        if noun_of(first) == "clip":
            raise click.UsageError(f"{source.name} holds clips; imagen eval and compare judge images")
        self.captions: list[str] = [] if caption_of(first) is None else self._captions()

    def __len__(self) -> int:
        return len(self.dataset)

    def _captions(self) -> list[str]:
        known = getattr(self.dataset, "captions", None)
        return list(known) if known else [caption_of(self.dataset[index]) or "" for index in range(len(self))]

    @functools.cached_property
    def labels(self) -> list[str]:
        """The class of each image: the style of an emoji, the subfolder of a file; empty without classes."""
        if self.embedded == "emoji64":
            return [key.style for key in self.dataset.keys]
        name = getattr(self.dataset, "name", None)
        names = [name(index) for index in range(len(self))] if callable(name) else []
        found = [str(each).partition("/")[0] for each in names if "/" in str(each)]
        return found if len(found) == len(self) and 2 <= len(set(found)) <= MAX_CLASSES else []

    @property
    def record(self) -> dict[str, Any]:
        """Name, number of items, digest of their names, and split."""
        split = {} if self.split is None else {"split": self.split}
        return {**data_record(self.source.name, self.dataset), **split}

    @property
    def embedded(self) -> str | None:
        """The name of the data set if it is an embedded one."""
        kind = kind_of_source(self.source.name)
        return kind if kind == self.source.name else None

    def image(self, index: int) -> Tensor:
        """Return one image ``(c, h, w)`` in [0, 1]."""
        return images_of(self.dataset[index])

    def evenly_spaced(self, wanted: int) -> list[int]:
        """Return at most ``wanted`` indices, evenly spread over the data."""
        count = min(wanted, len(self))
        return [place * len(self) // count for place in range(count)]


class FolderImages(NamedTuple):
    """Images of a folder: ``(n, c, h, w)`` in [0, 1], their captions or none, and their names."""

    images: Tensor
    captions: list[str]
    names: list[str]


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder and those below it, without the sheets that `imagen sample` writes."""
    from ..data.folder import EXTENSIONS

    endings = {f".{ending}" for ending in EXTENSIONS}
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in endings and path.is_file())
    inside = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    outputs: dict[Path, set[str]] = {}
    return [
        path
        for path in inside
        if not (_SHEETS.search(path.stem) and path.name in outputs.setdefault(path.parent, listed_outputs(path.parent)))
    ]


def folder_images(folder: Path, limit: int, size: tuple[int, int] | None) -> FolderImages:
    """Read the images of a folder, evenly spread if there are more than ``limit``.

    Captions are those that data have (a table, text files beside the images), else the ones that `imagen sample` writes
    into its PNG files; if some images have none, all count as having none.

    Args:
        folder: where they are.
        limit: most images that are read.
        size: (height, width) to which all of them are brought; None leaves them as they are.

    Raises:
        CommandFailed: an image cannot be read, there are fewer than two, or they have different sizes.
    """
    import torch

    from ..data.decoding import decode, opened, pixels

    files = image_files(folder)
    if len(files) < 2:
        raise CommandFailed(f"the folder {folder} holds {len(files)} images; an evaluation needs at least 2", DATA)
    count = min(limit, len(files))
    chosen = [files[place * len(files) // count] for place in range(count)]
    sizes: dict[tuple[int, int], Path] = {}
    images, texts = [], []
    for path in chosen:
        try:
            with opened(path) as image:
                sizes.setdefault(image.size, path)
                texts.append(str(getattr(image, "text", {}).get(_CAPTION, "")).strip())
                shape = size or (image.height, image.width)
            images.append(pixels(decode(path, shape), 3))
        except OSError as error:
            raise CommandFailed(f"cannot read {printable(path)}: {error}", DATA) from error
        if len(sizes) > 1 and size is None:
            each = " and ".join(f"{width}x{height} ({path.name})" for (width, height), path in sizes.items())
            raise CommandFailed(
                f"the images of {folder} have different sizes: {each}; --image-size N resizes them", DATA
            )
    if size is not None:
        from ..data.base import fit

        images = [fit(image, size) for image in images]
    beside = _captions_beside(folder, chosen)
    captions = beside or texts
    named = [printable(path.relative_to(folder).as_posix()) for path in chosen]
    return FolderImages(torch.stack(images), captions if all(captions) else [], named)


def _captions_beside(folder: Path, files: list[Path]) -> list[str]:
    """The first caption of each image from a table or from text files; empty where one has none."""
    from ..data.captions import find_captions
    from ..data.places import place_of

    relative = [path.relative_to(folder) for path in files]
    found = find_captions(place_of(folder), {path: path for path in relative}, "text", ".txt").texts
    captions = [next(iter(found.get(path, ())), "") for path in relative]
    return captions if all(captions) else []

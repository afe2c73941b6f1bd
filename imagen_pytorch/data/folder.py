"""A folder of images, with captions or without."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images import Size
from .base import DataError, ImageDataset, Skipped, channels_of, split_names
from .cache import SHARE
from .captions import Captions, find_captions
from .decoding import UNREAD, decode, is_read, opened, printable, unread_reason
from .frames import VIDEO_FILES
from .near_misses import near_misses
from .places import Place, place_of
from .trouble import damage_of

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

#: Endings of images, in any case of letters.
EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "tiff", "tif", "webp", "bmp", "gif", "avif")

#: Number of local files up to which each is looked into on opening; a third of a millisecond for each.
MAX_LOOKED_INTO = 10_000

#: The reason for which a missing file is left out.
MISSING = "missing"


def channels_or_mode(count: int | None, mode: str | None) -> int:
    """Return the number of channels that one of two options requests.

    Raises:
        ValueError: they contradict each other, or images cannot have it.
    """
    if count is not None and mode is not None and count != channels_of(mode):
        raise ValueError(f"channels={count} and convert_image_to_type={mode!r} contradict each other; give one of them")
    return channels_of(mode) if count is None else count


class FolderDataset(ImageDataset):
    """The images or clips in a folder and its subfolders, sorted by path, with captions or without, as in `Dataset`.

    Args:
        place: the folder.
        image_size: side in pixels, or (height, width).
        exts: endings.
        channels: of the items.
        random_flip: flip items horizontally with probability 1/2; default: only without captions.
        text_label: the table's column of captions; None ignores all captions.
        caption_extension: of text files next to the images.
        cache_memory_share, cache_folder: as in `ImageDataset`.
    """

    #: Files that look like captions and are not read, each with a remedy; empty if there are captions.
    near_misses: tuple[str, ...] = ()

    #: True if opening looked into every file. Otherwise damage is found when a file is read.
    looks_into = False

    any_process = True

    def __init__(
        self,
        place: Place,
        image_size: int | Size,
        exts: str | Sequence[str],
        channels: int,
        *,
        random_flip: bool | None,
        text_label: str | None,
        caption_extension: str,
        cache_memory_share: float = 0.0,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.place = place
        endings = split_names(exts)
        if not any(ending.strip(".") for ending in endings):
            raise ValueError(f"exts: at least one ending of {self.kind}s, such as png; got {exts!r}")
        if not caption_extension.strip(". ") or {"/", "\\", "\0"} & set(caption_extension):
            raise ValueError(f"caption_extension: the ending of text files, such as .txt; got {caption_extension!r}")
        found = self._find(endings)
        unread = self._find_unread(endings, found)
        if not found and unread:
            first, reason = next(iter(unread.items()))
            raise DataError(f"{place} holds no {self.kind} that can be read; the first is {printable(first)}: {reason}")
        if not found:
            looked = f"looked for {', '.join(endings)} in it and its subfolders"
            raise DataError(f"{place} holds no {self.kind}s; {looked}{self._hint()}")
        captions = Captions()
        if text_label is not None:
            images = {path: self._caption_place(path) for path in found}
            captions = find_captions(place, images, text_label, caption_extension)
            if not captions.texts and not captions.damaged:
                self._tell_near_misses(found, captions, text_label)
        self._captions = captions.texts
        reasons = self._find_damage({*found, *captions.texts} - captions.aliases, captions)
        missing = [path for path, reason in reasons.items() if reason == MISSING and path in captions.texts]
        folders = {path: f"folder: {reason}" for path, reason in place.unreadable.items()}
        # missing files that a table names come first: they explain why others have no caption
        order = sorted(reasons, key=lambda path: path not in missing) if missing else reasons
        skipped = [Skipped(printable(name), reason) for name, reason in captions.refused.items()]
        for path, reason in {**folders, **{path: reasons[path] for path in order}, **unread}.items():
            if reason:
                skipped.append(Skipped(printable(path.as_posix()), reason))
        self._relative = [path for path, reason in reasons.items() if not reason]
        if not self._relative:
            first = self._foremost(skipped)
            which = f"{len(missing)} files that the table names are missing; " if missing else ""
            raise DataError(f"{place} holds no usable {self.kind}; {which}the first is {first.name}: {first.reason}")
        flip = not self._captions if random_flip is None else random_flip
        super().__init__(len(self._relative), image_size, channels, flip, cache_memory_share, cache_folder)
        self.leave_out(skipped, str(place))
        self.outputs = place.outputs
        if self.outputs:
            logger.info("%d files that our commands wrote into %s are no data and are passed over", self.outputs, place)
        place.forget()

    def _tell_near_misses(self, found: list[Path], captions: Captions, column: str) -> None:
        self.near_misses = near_misses(self.place.files(), map(Path.as_posix, found), captions, column)
        if self.near_misses:
            text = f"no captions were found for the {self.kind}s in {self.place}: {'; '.join(self.near_misses)}"
            warnings.warn(text, stacklevel=5)

    def _find_damage(self, every: set[Path], captions: Captions) -> dict[Path, str | None]:
        """Return the reason why each image cannot be used, or None, sorted by path."""
        captioned = bool(captions.texts or captions.damaged)
        self.looks_into = self.place.is_local and len(every) <= MAX_LOOKED_INTO
        reasons = {}
        for path in sorted(every, key=Path.as_posix):
            silent = captions.damaged.get(path, "no caption") if captioned and not captions.texts.get(path) else None
            reasons[path] = damage_of(partial(self._check, path), printable(path.as_posix())) or silent
        return reasons

    @abstractmethod
    def _find(self, endings: Sequence[str]) -> list[Path]:
        """Return the sorted relative paths of the items."""

    def _find_unread(self, endings: Sequence[str], found: list[Path]) -> dict[Path, str]:
        """Return images in formats that are not read, with a remedy."""
        return {}

    @abstractmethod
    def _check(self, path: Path) -> None:
        """Check that an item can be used, as far as possible without reading all of it.

        Raises:
            OSError: it cannot.
        """

    def outage(self) -> str | None:
        """Return the reason why nothing can be read at present, or None if the folder answers."""
        return self.place.outage()

    def _caption_place(self, path: Path) -> Path:
        """Return the path whose ending is replaced by that of the captions."""
        return path

    def _hint(self) -> str:
        """Return a hint about a folder without items."""
        return ""

    def _foremost(self, skipped: list[Skipped]) -> Skipped:
        """Return the item to name if all of them are left out."""
        return skipped[0]

    def captions_at(self, index: int) -> tuple[str, ...]:
        """Return the captions of one item; none if the data have none."""
        return self._captions.get(self._relative[index], ())

    def _versions(self) -> list[object] | None:
        found = [self.place.version(path) for path in self._relative]
        return None if None in found else [self.place.identity, *map(Path.as_posix, self._relative), *found]

    @property
    def folder(self) -> Path | str:
        """Path or URL of the folder."""
        return self.place.at(Path())

    @property
    def paths(self) -> list[Path] | list[str]:
        """Paths or URLs of the files."""
        return [self.place.at(path) for path in self._relative]  # type: ignore[return-value]

    @property
    def captions(self) -> list[str]:
        """First caption of each item; empty without captions."""
        return [self._captions[path][0] for path in self._relative] if self._captions else []

    def name(self, index: int) -> str:
        """Return the path of an item in the folder."""
        return printable(self._relative[index].as_posix())


class Dataset(FolderDataset):
    """The images in a folder and its subfolders, sorted by path.

    Captions come from ``metadata.jsonl`` or ``metadata.csv`` in the folder (columns ``file_name``, relative to the
    table, and ``text``; columns are separated by commas, semicolons, tabs or bars). Without these they come from such
    tables in subfolders, for the images below them, and from text files next to the images (``cat.png`` and
    ``cat.txt``; each line is one caption). Names in a table may use backslashes and may lack their ending. Those
    outside of the folder of the table are refused, and a file has one item however often and however it is named. If
    any image has a caption, those without are left out. Unreadable images are left out too, also formats such as HEIC
    that need a further package. Without captions an item is a tensor ``(c, h, w)`` in [0, 1]. With captions it is that
    tensor and a caption. Images are turned upright, converted to one mode, resized to cover the size, and cropped at
    the centre.


    Args:
        folder: folder of the images: a path, or the URL of a folder that fsspec can open, such as
            ``gs://bucket/images``. Of more than 10,000 images, and over a network, only names and sizes are read on
            opening, and damage is found when an image is read.
        image_size: side in pixels, or (height, width).
        exts: endings of images, in any case of letters, with or without a dot.
        convert_image_to_type: "L", "LA", "RGB" or "RGBA"; the same as ``channels`` 1 to 4.
        channels: of the items; default: 3.
        random_flip: flip images horizontally with probability 1/2, drawn with torch's own generator; default: only
            without captions, because a caption may mention left or right.
        text_label: the table's column of captions.
        caption_extension: of the text files next to the images.
        captions: false ignores all captions.
        fs: a ready file system that contains the folder; worker processes create a copy of it.
        fs_kwargs: arguments for creating the file system of the URL.
        cache_memory_share: fraction of the available memory for images that have been read; 0 reads them each time.
        cache_folder: keep them in files there instead, which later runs use too; see `ImageCache`.

    Attributes:
        paths: of the images, or their URLs.
        captions: the first caption of each image; empty without captions.
        near_misses: without captions, files that look like captions and are not read, with a remedy.
        skipped: items that were left out, with reasons.
        outputs: number of files that were ignored because our commands wrote them there: they are named in
            ``.imagen-outputs`` next to them.

    Raises:
        DataError: the folder does not exist, has no readable image, or has a table that cannot be read.
        ImportError: the folder's file system needs a package that is not installed.
        ValueError: an impossible size, mode or number of channels, or a mode and a number that differ.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int | Size,
        exts: str | Sequence[str] = EXTENSIONS,
        convert_image_to_type: str | None = None,
        *,
        channels: int | None = None,
        random_flip: bool | None = None,
        text_label: str = "text",
        caption_extension: str = ".txt",
        captions: bool = True,
        fs: Any = None,
        fs_kwargs: Mapping[str, Any] | None = None,
        cache_memory_share: float = SHARE,
        cache_folder: str | Path | None = None,
    ) -> None:
        place, channels = place_of(folder, fs, fs_kwargs), channels_or_mode(channels, convert_image_to_type)
        options = {"random_flip": random_flip, "caption_extension": caption_extension}
        options |= {"cache_memory_share": cache_memory_share, "cache_folder": cache_folder}
        super().__init__(place, image_size, exts, channels, text_label=text_label if captions else None, **options)

    def _find(self, endings: Sequence[str]) -> list[Path]:
        if endings == EXTENSIONS:
            endings = (*endings, *filter(is_read, UNREAD))
        return self.place.listed(endings)

    def _find_unread(self, endings: Sequence[str], found: list[Path]) -> dict[Path, str]:
        if endings != EXTENSIONS:  # they were not requested
            return {}
        converted = {path.with_suffix("") for path in found}
        unread = self.place.listed([ending for ending in UNREAD if not is_read(ending)])
        return {path: unread_reason(path.suffix[1:]) for path in unread if path.with_suffix("") not in converted}

    def _check(self, path: Path) -> None:
        if not self.looks_into:
            self.place.check(path)
            return
        with opened(self.place.source(path)):
            pass

    def _hint(self) -> str:
        clips = self.place.listed((*VIDEO_FILES, "apng"))
        if not clips:
            return ""
        return (
            f". It holds clips ({printable(clips[0])}): num_frames makes it a video data set (VideoDataset in Python)"
        )

    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """Return an image and its captions.

        Raises:
            OSError: it cannot be read.
        """
        return decode(self.place.source(self._relative[index]), self.size), self.captions_at(index)

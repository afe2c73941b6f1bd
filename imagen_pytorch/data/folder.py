"""A folder of pictures, with captions or without."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images import Size
from .base import DataError, PictureDataset, Skipped, channels_of, words_of
from .cache import SHARE
from .captions import Captions, find_captions
from .decoding import UNREAD, decode, is_read, opened, printable, unread_reason
from .frames import FILMS
from .near_misses import near_misses
from .places import Place, place_of
from .trouble import damage_of

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

#: Endings of the pictures that are looked for, in any case of letters.
EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "tiff", "tif", "webp", "bmp", "gif", "avif")


#: The reason for which a file that is not there is left out.
MISSING = "missing"


def channels_or_mode(count: int | None, mode: str | None) -> int:
    """The number of channels that one of two options asks for.

    Raises:
        ValueError: they contradict each other, or pictures cannot have it.
    """
    if count is not None and mode is not None and count != channels_of(mode):
        raise ValueError(f"channels={count} and convert_image_to_type={mode!r} contradict each other; give one of them")
    return channels_of(mode) if count is None else count


class FolderDataset(PictureDataset):
    """What is in a folder and its subfolders, sorted by path, with captions or without; as `Dataset` describes it.

    Args:
        place: the folder.
        image_size: side in pixels, or (height, width).
        exts: endings.
        channels: of the items.
        random_flip: mirror every other one; default: only without captions.
        text_label: the table's column of captions; None ignores all captions.
        caption_extension: of text files beside the pictures.
        cache_memory_share, cache_folder: as in `PictureDataset`.
    """

    #: What looks like captions and is not read, each with what to do; empty if there are captions.
    near_misses: tuple[str, ...] = ()

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
        endings = words_of(exts)
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
            pictures = {path: self._caption_place(path) for path in found}
            captions = find_captions(place, pictures, text_label, caption_extension)
            if not captions.texts and not captions.damaged:
                self._tell_near_misses(found, captions, text_label)
        self._captions = captions.texts
        reasons = self._find_damage({*found, *captions.texts} - captions.aliases, captions)
        missing = [path for path, reason in reasons.items() if reason == MISSING and path in captions.texts]
        folders = {path: f"folder: {reason}" for path, reason in place.unreadable.items()}
        # files that a table names and that are not there come first: they tell why others have no caption
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
        """Why a picture cannot be used, None if it can; sorted by path."""
        captioned = bool(captions.texts or captions.damaged)
        reasons = {}
        for path in sorted(every, key=Path.as_posix):
            silent = captions.damaged.get(path, "no caption") if captioned and not captions.texts.get(path) else None
            reasons[path] = damage_of(partial(self._check, path), printable(path.as_posix())) or silent
        return reasons

    @abstractmethod
    def _find(self, endings: Sequence[str]) -> list[Path]:
        """What the folder holds, sorted; relative paths."""

    def _find_unread(self, endings: Sequence[str], found: list[Path]) -> dict[Path, str]:
        """Images of kinds that are not read, with what to do."""
        return {}

    @abstractmethod
    def _check(self, path: Path) -> None:
        """See that something can be used, as far as can be told without reading all of it.

        Raises:
            OSError: it cannot.
        """

    def silence(self) -> str | None:
        """Why nothing can be read at present; None if the folder answers."""
        return self.place.silence()

    def _caption_place(self, path: Path) -> Path:
        """The path whose ending gives way to that of the captions."""
        return path

    def _hint(self) -> str:
        """What to say about a folder that holds nothing."""
        return ""

    def _foremost(self, skipped: list[Skipped]) -> Skipped:
        """Which one to name if all of them are left out."""
        return skipped[0]

    def captions_at(self, index: int) -> tuple[str, ...]:
        """The captions of one; none if the data have none."""
        return self._captions.get(self._relative[index], ())

    def _versions(self) -> list[object] | None:
        found = [self.place.version(path) for path in self._relative]
        return None if None in found else [self.place.identity, *map(Path.as_posix, self._relative), *found]

    @property
    def folder(self) -> Path | str:
        """Its path, or its URL."""
        return self.place.at(Path())

    @property
    def paths(self) -> list[Path] | list[str]:
        """The files, or their URLs."""
        return [self.place.at(path) for path in self._relative]  # type: ignore[return-value]

    @property
    def captions(self) -> list[str]:
        """The first caption of each; empty without captions."""
        return [self._captions[path][0] for path in self._relative] if self._captions else []

    def name(self, index: int) -> str:
        """Its path in the folder."""
        return printable(self._relative[index].as_posix())


class Dataset(FolderDataset):
    """The pictures in a folder and its subfolders, sorted by path.

    Captions come from ``metadata.jsonl`` or ``metadata.csv`` in the folder (columns ``file_name``, relative to the
    table, and ``text``; columns are separated by commas, semicolons, tabs or bars), or else from such tables in
    subfolders, for the images below them, and from text files beside the pictures (``cat.png`` and ``cat.txt``;
    each line is one caption). Names in a table may use backslashes and may lack their ending; those that leave the
    folder of the table are refused, and a file has one item however often and however it is named. If any picture
    has a caption, those without are left out, and so is whatever cannot be read, also images of kinds such as HEIC
    that need a further package. Without captions an item is a tensor ``(c, h, w)`` in [0, 1]; with captions it is
    that tensor and a caption. Pictures are turned upright, converted to one mode, resized to cover the size, and
    cut out of the middle.

    Args:
        folder: where the pictures are: a path, or the URL of a folder that fsspec can open, such as
            ``gs://bucket/pictures``. Over a network only names and sizes are looked at on opening; pictures are fetched
            when they are read, and damage is found then.
        image_size: side in pixels, or (height, width).
        exts: endings of pictures, in any case of letters, with or without a dot.
        convert_image_to_type: "L", "LA", "RGB" or "RGBA"; the same as ``channels`` 1 to 4.
        channels: of the items; default: 3.
        random_flip: mirror every other picture, drawn with torch's own generator; default: only without captions, for a
            caption may say left or right.
        text_label: the table's column of captions.
        caption_extension: of the text files beside the pictures.
        captions: false ignores all captions.
        fs: a ready file system that the folder is one of; worker processes make one like it.
        fs_kwargs: arguments for making the file system that the URL names.
        cache_memory_share: share of the available memory for images that have been read; 0 reads them anew each time.
        cache_folder: keep them in files there instead, which later runs use too; see `ImageCache`.

    Attributes:
        paths: of the pictures, or their URLs.
        captions: the first caption of each picture; empty without captions.
        near_misses: if there are none, what looks like captions and is not read, with what to do.
        skipped: what was left out, with reasons.
        outputs: how many files were passed over because our commands wrote them there: they are named in
            ``.imagen-outputs`` beside them.

    Raises:
        DataError: no such folder, no readable picture in it, a table that cannot be read.
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
        if endings != EXTENSIONS:  # nobody asked for them
            return {}
        converted = {path.with_suffix("") for path in found}
        unread = self.place.listed([ending for ending in UNREAD if not is_read(ending)])
        return {path: unread_reason(path.suffix[1:]) for path in unread if path.with_suffix("") not in converted}

    def _check(self, path: Path) -> None:
        if not self.place.near:
            self.place.check(path)
            return
        with opened(self.place.source(path)):
            pass

    def _hint(self) -> str:
        clips = self.place.listed((*FILMS, "apng"))
        if not clips:
            return ""
        return (
            f". It holds clips ({printable(clips[0])}): num_frames makes it a video data set (VideoDataset in Python)"
        )

    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """A picture and its captions.

        Raises:
            OSError: it cannot be read.
        """
        return decode(self.place.source(self._relative[index]), self.size), self.captions_at(index)

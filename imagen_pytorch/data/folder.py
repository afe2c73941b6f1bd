"""A folder of pictures, with captions or without."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..images import Size
from .base import DataError, PictureDataset, Skipped, channels_of, decode, words_of
from .captions import find_table, read_beside, read_table
from .frames import FILMS

if TYPE_CHECKING:
    from PIL import Image

#: Endings of the pictures that are looked for, in any case of letters.
EXTENSIONS = ("jpg", "jpeg", "png", "tiff", "tif", "webp", "bmp", "gif", "avif")


def listed(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Paths relative to the folder, hidden ones left out, in an order that is the same on every system."""
    endings = {f".{ending.lower().lstrip('.')}" for ending in extensions}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in endings)
    shown = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted((path for path in shown if (folder / path).is_file()), key=Path.as_posix)


def _damage(path: Path) -> str | None:
    """Why a picture's header cannot be read; None if it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path):
            return None
    except UnidentifiedImageError:
        return "no picture"
    except FileNotFoundError:
        return "missing"
    # damaged headers raise whatever the format's reader stumbles over
    except Exception as error:
        return str(error) or type(error).__name__


def _channels(count: int | None, mode: str | None) -> int:
    if count is not None and mode is not None and count != channels_of(mode):
        raise ValueError(f"channels={count} and convert_image_to_type={mode!r} contradict each other; give one of them")
    return channels_of(mode) if count is None else count


class FolderDataset(PictureDataset):
    """What is in a folder and its subfolders, sorted by path, with captions or without; as `Dataset` describes it."""

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
    ) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {folder}")
        endings = words_of(exts)
        found = self._find(endings)
        if not found:
            looked = f"looked for {', '.join(endings)} in it and its subfolders"
            raise DataError(f"{folder} holds no {self.kind}s; {looked}{self._hint()}")
        self._captions: dict[Path, tuple[str, ...]] = {}
        unreadable = self._find_captions(found, text_label, caption_extension) if captions else {}
        reasons = self._find_damage({*found, *self._captions}, unreadable)
        skipped = [Skipped(path.as_posix(), reason) for path, reason in reasons.items() if reason]
        self._relative = [path for path, reason in reasons.items() if not reason]
        if not self._relative:
            first = self._foremost(skipped)
            raise DataError(f"{folder} holds no usable {self.kind}; the first is {first.name}: {first.reason}")
        flip = not self._captions if random_flip is None else random_flip
        super().__init__(len(self._relative), image_size, _channels(channels, convert_image_to_type), flip)
        self.leave_out(skipped, str(folder))

    def _find_captions(self, pictures: list[Path], column: str, extension: str) -> dict[Path, str]:
        """Fill in the captions; those that cannot be read are returned with the reason."""
        table = find_table(self.folder, pictures)
        if table is not None:
            self._captions = {Path(name): texts for name, texts in read_table(table, column).items()}
            return {}
        unreadable = {}
        for path in pictures:
            try:
                texts = read_beside(self._caption_place(self.folder / path), extension)
            except OSError as error:
                unreadable[path] = f"caption: {error.strerror or error}"
            else:
                self._captions |= {} if texts is None else {path: texts}
        return unreadable

    def _find_damage(self, every: set[Path], unreadable: dict[Path, str]) -> dict[Path, str | None]:
        """Why a picture cannot be used, None if it can; sorted by path."""
        captioned = bool(self._captions or unreadable)
        reasons = {}
        for path in sorted(every, key=Path.as_posix):
            silent = unreadable.get(path, "no caption") if captioned and not self._captions.get(path) else None
            reasons[path] = self._damage(path) or silent
        return reasons

    @abstractmethod
    def _find(self, endings: Sequence[str]) -> list[Path]:
        """What the folder holds, sorted; relative paths."""

    @abstractmethod
    def _damage(self, path: Path) -> str | None:
        """Why something cannot be used, as far as can be told without reading all of it; None if it can."""

    def _caption_place(self, path: Path) -> Path:
        """The path whose ending gives way to that of the captions."""
        return path

    def _hint(self) -> str:
        """What to say about a folder that holds nothing."""
        return ""

    def _foremost(self, skipped: list[Skipped]) -> Skipped:
        """Which one to name if all of them are left out."""
        return skipped[0]

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.folder / path for path in self._relative]

    @property
    def captions(self) -> list[str]:
        """The first caption of each; empty without captions."""
        return [self._captions[path][0] for path in self._relative] if self._captions else []

    def name(self, index: int) -> str:
        """Its path in the folder."""
        return self._relative[index].as_posix()


class Dataset(FolderDataset):
    """The pictures in a folder and its subfolders, sorted by path.

    Captions come from ``metadata.jsonl`` or ``metadata.csv`` in the folder (columns ``file_name``, relative to the
    table, and ``text``), or else from text files beside the pictures (``cat.png`` and ``cat.txt``; each line is one
    caption). If any picture has a caption, those without are left out, and so is whatever cannot be read. Without
    captions an item is a tensor ``(c, h, w)`` in [0, 1]; with captions it is that tensor and a caption. Pictures are
    turned upright, converted to one mode, resized to cover the size, and cut out of the middle.

    Args:
        folder: where the pictures are.
        image_size: side in pixels, or (height, width).
        exts: endings of pictures, in any case of letters, with or without a dot.
        convert_image_to_type: "L", "LA", "RGB" or "RGBA"; the same as ``channels`` 1 to 4.
        channels: of the items; default: 3.
        random_flip: mirror every other picture, drawn with torch's own generator; default: only without captions, for a
            caption may say left or right.
        text_label: the table's column of captions.
        caption_extension: of the text files beside the pictures.
        captions: false ignores all captions.

    Attributes:
        paths: of the pictures.
        captions: the first caption of each picture; empty without captions.
        skipped: what was left out, with reasons.

    Raises:
        DataError: no such folder, no readable picture in it, a table that cannot be read.
        ValueError: an impossible size, mode or number of channels, or a mode and a number that differ.
    """

    def _find(self, endings: Sequence[str]) -> list[Path]:
        return listed(self.folder, endings)

    def _damage(self, path: Path) -> str | None:
        return _damage(self.folder / path)

    def _hint(self) -> str:
        clips = listed(self.folder, (*FILMS, "apng"))
        if not clips:
            return ""
        return (
            f". It holds clips ({clips[0].as_posix()}): num_frames makes it a video data set (VideoDataset in Python)"
        )

    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """A picture and its captions.

        Raises:
            OSError: it cannot be read.
        """
        path = self._relative[index]
        return decode(self.folder / path, self.size), self._captions.get(path, ())

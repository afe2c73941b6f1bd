"""Data sets of the Hugging Face hub, and any other table with a column of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..images import Size
from .base import SOURCES, DataError, ImageDataset
from .cache import SHARE
from .remote import IMAGE_COLUMNS, TEXT_COLUMNS, captions_of, fetch, find_column, outage, to_pil_image

if TYPE_CHECKING:
    from PIL import Image


#: A name of the hub, as opposed to a misspelt folder.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


#: Number of URLs of a table that are requested to find out if any of them answers.
ASKED = 8


class Table(Protocol):
    """Rows by number, each a dict by column: a ``datasets.Dataset``, a list of dicts, and similar objects."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row."""
        ...


class TableDataset(ImageDataset):
    """The images in a column of a table, or at the URLs in a column, with captions if there is a column of them.

    Args:
        rows: a ``datasets.Dataset``, or anything with a length whose items are dicts.
        image_size: side in pixels, or (height, width).
        image_label: column of images; default: the first with a usual name ("image", ...).
        text_label: column of captions, strings or lists of them; default: the first with a usual name ("text", ...).
        url_label: column of http URLs; if given, images are fetched from there.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        random_flip: flip images horizontally with probability 1/2; default: only without captions.
        fetch_timeout: seconds to wait for an image that is fetched.
        cache_memory_share: fraction of the available memory for images that have been read; 0 reads them each time.
        cache_folder: keep those of a ``datasets.Dataset`` in files there instead, which later runs use too; see
            `ImageCache`.

    Raises:
        DataError: no rows, or a missing column; the message lists the existing ones.
        ValueError: a time that is not positive and finite.
    """

    def __init__(
        self,
        rows: Table,
        image_size: int | Size = 64,
        *,
        image_label: str | None = None,
        text_label: str | None = None,
        url_label: str | None = None,
        channels: int = 3,
        random_flip: bool | None = None,
        fetch_timeout: float = 10.0,
        cache_memory_share: float = SHARE,
        cache_folder: str | Path | None = None,
    ) -> None:
        if not len(rows):
            raise DataError("the table has no rows")
        columns = tuple(getattr(rows, "column_names", None) or rows[0])
        self.text_label = find_column(text_label, TEXT_COLUMNS, columns, "text_label")
        self.url_label = find_column(url_label, (), columns, "url_label")
        self.image_label = find_column(image_label, IMAGE_COLUMNS, columns, "image_label")
        if self.url_label is None and self.image_label is None:
            raise DataError(f"set image_label or url_label to the column of the images, one of: {', '.join(columns)}")
        flip = self.text_label is None if random_flip is None else random_flip
        if not 0 < fetch_timeout < float("inf"):
            raise ValueError(f"fetch_timeout must be a finite number of seconds above 0, got {fetch_timeout}")
        self.rows, self.fetch_timeout = rows, fetch_timeout
        # a table of another type may be an open file or a connection
        self.any_process = isinstance(rows, list | tuple) or hasattr(rows, "select_columns")
        self._answered: int | None = None
        self._texts = rows
        if self.text_label is not None and hasattr(rows, "select_columns"):
            # a ``datasets.Dataset`` decodes the images of every row that it returns, unless the column is excluded
            self._texts = rows.select_columns([self.text_label])
        super().__init__(len(rows), image_size, channels, flip, cache_memory_share, cache_folder)

    def name(self, index: int) -> str:
        """Return the name of a row, by its number."""
        return f"row {index}"

    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """Return the image and the captions of a row.

        Raises:
            OSError: the image cannot be read or fetched, or the row has no caption.
        """
        row = self.rows[index]
        captions = self._captions_of(row)
        value = row.get(self.url_label or self.image_label)
        if self.url_label is None:
            return to_pil_image(value, self.size), captions
        content = fetch(value, self.fetch_timeout)
        self._answered = index
        return to_pil_image(content, self.size), captions

    def outage(self) -> str | None:
        """Return the reason why nothing can be fetched at present, or None if a URL answers or the table holds the
        images."""
        if self.url_label is None:
            return None
        known = () if self._answered is None else (self._answered,)
        tried = (*known, *range(0, self.count, -(-self.count // ASKED)))
        return outage((self.rows[index].get(self.url_label) for index in tried), self.fetch_timeout)

    def _captions_of(self, row: dict[str, Any]) -> tuple[str, ...]:
        return () if self.text_label is None else captions_of(row.get(self.text_label))

    def captions_at(self, index: int) -> tuple[str, ...]:
        """Return the captions of a row without decoding its image."""
        if self.text_label is None:
            return ()
        return self._captions_of(self._texts[index])

    def _versions(self) -> list[object] | None:
        mark = getattr(self.rows, "_fingerprint", None)  # of the contents of a ``datasets.Dataset``
        return None if mark is None or self.url_label is not None else [mark, self.image_label]


def hub_dataset(
    name: str,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    image_size: int | Size = 64,
    *,
    image_label: str | None = None,
    text_label: str | None = None,
    url_label: str | None = None,
    channels: int = 3,
    random_flip: bool | None = None,
    fetch_timeout: float = 10.0,
    cache_memory_share: float = SHARE,
    cache_folder: str | Path | None = None,
) -> TableDataset:
    """Open a data set of the hub by its name; needs the datasets library.

    Args:
        name: "owner/name".
        split: part of the data set, in the library's notation ("train[:1000]").
        subset: configuration, of a data set that has several.
        revision: branch, tag or commit.
        image_size, image_label, text_label, url_label, channels, random_flip, fetch_timeout: as in `TableDataset`.
        cache_memory_share, cache_folder: as in `TableDataset`.

    Raises:
        ImportError: the library is not installed, and the name looks like one of the hub ("owner/name").
        FileNotFoundError: the data set does not exist or cannot be fetched.
        DataError: it has no rows, or a column does not exist.
    """
    elsewhere = f'"{name}" is neither a folder nor an embedded data set ({", ".join(SOURCES)})'
    try:
        from datasets import load_dataset
    except ImportError:
        missing = ImportError if HUB_NAME.fullmatch(name) else FileNotFoundError
        raise missing(f"{elsewhere}; to look for it on the hub, pip install datasets") from None
    try:
        rows = load_dataset(name, subset, split=split, revision=revision)
    # RuntimeError: data sets that need code of their own
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{elsewhere}, and the hub has none of that name and split: {reason}") from None
    return TableDataset(
        rows,
        image_size,
        image_label=image_label,
        text_label=text_label,
        url_label=url_label,
        channels=channels,
        random_flip=random_flip,
        fetch_timeout=fetch_timeout,
        cache_memory_share=cache_memory_share,
        cache_folder=cache_folder,
    )

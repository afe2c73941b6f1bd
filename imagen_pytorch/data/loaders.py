"""Batches from items: collation and loaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from ..images import MODES, Size
from ..text import text_encoder
from .base import channels_of, check_known, cycle, fit, item_size, random_caption
from .decoding import pixels, printable, reason_of
from .folder import Dataset
from .remote import IMAGE_COLUMNS, TEXT_COLUMNS, NoAnswer, captions_of, fetch, find_column, to_pil_image
from .skipping import DataError, SharedTexts, Skipped
from .trouble import retry, unavailable

#: Number of counters, one per worker process; more workers share them.
WORKERS = 256

#: Number of rows of a batch from which a failure of all their URLs is not a coincidence.
MANY = 8

#: Number of rows that worker processes can report, and bytes of the name and the reason of one.
NOTES, NOTE_LENGTH = 1024, 256


class Collator:
    """Makes batches of rows of a table, for the ``collate_fn`` of a ``DataLoader``; works in worker processes too.

    Rows whose image or caption cannot be read are left out and counted. Images at URLs are fetched in parallel.


    Args:
        image_size: side in pixels, or (height, width).
        url_label: column of http URLs; if given, images are fetched from there.
        text_label, image_label: columns of captions and of images; default: the first with a usual name. Of several
            captions in a cell one is drawn, with torch's own generator.
        name: of the text encoder, or an encoder; it runs on the CPU. None leaves captions as they are: a trainer
            encodes them on its own device and caches them.
        channels: 1 to 4, or "L", "LA", "RGB", "RGBA"; any other mode is converted.
        timeout: seconds to wait for an image that is fetched.
        threads: number of images that are fetched at the same time.

    Attributes:
        skipped: the rows that were left out, each once, with reasons; a warning names the first. Of those that worker
            processes left out it holds the first thousand.
        num_skipped: number of rows that were left out, those of worker processes included.

    Raises:
        ValueError: an impossible size, mode or number of channels.
    """

    def __init__(
        self,
        image_size: int | Size,
        url_label: str | None = None,
        text_label: str | None = None,
        image_label: str | None = None,
        name: Any = None,
        channels: int | str = 3,
        *,
        timeout: float = 10.0,
        threads: int = 16,
    ) -> None:
        self.size = item_size(image_size)
        self.url_label, self.text_label, self.image_label = url_label, text_label, image_label
        self.name, self.timeout, self.threads = name, timeout, threads
        self.channels = channels if isinstance(channels, int) else channels_of(channels)
        check_known("number of channels", self.channels, MODES)
        self._left_out: dict[Skipped, None] = {}
        self._notes = SharedTexts(NOTES, NOTE_LENGTH)
        # shared with worker processes; each has a counter of its own, so that no count is lost
        self._counts = torch.zeros(WORKERS, dtype=torch.int64).share_memory_()

    @property
    def num_skipped(self) -> int:
        """Number of rows that were left out so far, in all processes together."""
        return int(self._counts.sum())

    @property
    def skipped(self) -> list[Skipped]:
        """Rows that were left out so far, also by worker processes."""
        told = (Skipped(*note.split("\n", 1)) for note in self._notes if "\n" in note)
        return list(dict.fromkeys((*self._left_out, *told)))

    def _leave_out(self, row: str, reason: str) -> None:
        if not self._left_out:
            warnings.warn(f"{row} is left out: {reason}; further ones are only counted, in num_skipped", stacklevel=2)
        worker = get_worker_info()
        self._left_out[Skipped(row, reason)] = None
        if worker is not None:
            self._notes.add(f"{row}\n{reason}")
        self._counts[0 if worker is None else 1 + worker.id % (WORKERS - 1)] += 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor | list[str]] | None:
        """Return a batch: images ``(b, c, h, w)`` in [0, 1] and captions, or their states ``(b, n, d)`` padded with
        zeros.

        Returns:
            None if no row can be read.

        Raises:
            DataError: a missing column; the message lists the existing ones.
        """
        source, texts = self._columns(tuple(dict.fromkeys(key for row in rows for key in row)))
        cells = [(row.get(source), row.get(texts)) for row in rows]
        if self.url_label:
            with ThreadPoolExecutor(min(self.threads, len(cells))) as pool:
                items = list(pool.map(self._read, *zip(*cells, strict=True)))
        else:
            items = [self._read(*cell) for cell in cells]
        lost = [item for item in items if isinstance(item, NoAnswer)]
        if len(lost) == len(items) >= MANY:
            raise unavailable(f"column {self.url_label}", f"no URL of a batch answers ({reason_of(lost[0])})")
        for (value, text), item in zip(cells, items, strict=True):
            if isinstance(item, Exception):
                names = [cell[:80] for cell in (text, value) if isinstance(cell, str)]
                self._leave_out(printable(names[0]) if names else "a row", reason_of(item))
        read = [item for item in items if not isinstance(item, Exception)]
        if not read:
            return None
        images, captions = zip(*read, strict=True)
        return torch.stack(images), self._encoded([random_caption(texts) for texts in captions])

    def _columns(self, known: tuple[str, ...]) -> tuple[str, str]:
        texts = find_column(self.text_label, TEXT_COLUMNS, known, "text_label")
        source = find_column(self.url_label, (), known, "url_label")
        source = source or find_column(self.image_label, IMAGE_COLUMNS, known, "image_label")
        if texts is None or source is None:
            missing = "text_label" if source else "image_label or url_label"
            raise DataError(f"set {missing} to the column that holds them, one of: {', '.join(known)}")
        return source, texts

    def _read(self, value: Any, text: Any) -> tuple[Float[Tensor, "c h w"], tuple[str, ...]] | Exception:
        def read() -> tuple[Float[Tensor, "c h w"], tuple[str, ...]]:
            captions = captions_of(text)
            image = to_pil_image(fetch(value, self.timeout) if self.url_label else value, self.size)
            return fit(pixels(image, self.channels), self.size), captions

        try:
            return retry(read, "a row")
        except (OSError, TypeError) as error:
            return error

    def _encoded(self, captions: list[str]) -> Tensor | list[str]:
        if self.name is None:
            return captions
        encoder = self.name
        if isinstance(encoder, str):
            encoder = text_encoder(encoder)
        return encoder.encode(captions).embeds


def get_images_dataloader(
    folder: str | Path,
    *,
    batch_size: int,
    image_size: int | Size,
    shuffle: bool = True,
    cycle_dl: bool = False,
    pin_memory: bool = True,
    num_workers: int = 0,
    **arguments: Any,
) -> DataLoader | Iterator[Any]:
    """Return batches of the images in a folder.

    Args:
        folder: of images, as in `Dataset`.
        batch_size: images per batch.
        image_size: side in pixels, or (height, width).
        shuffle: another order in every epoch.
        cycle_dl: never end.
        pin_memory: copy faster to a GPU, if there is one.
        num_workers: processes that read images.
        arguments: further ones of `Dataset`.

    Raises:
        DataError: no readable image in the folder.
    """
    loader = DataLoader(
        Dataset(folder, image_size, **arguments),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
    )
    return cycle(loader) if cycle_dl else loader


def collate_mixed(items: Sequence[Any]) -> dict[str, Any]:
    """Combine clips and images to one batch of a video model; a ``collate_fn`` for data sets of both.

    An image fills every frame of a clip that is marked in ``ignore_time``. The network then treats its frames as
    independent images (Ho et al. 2022, arXiv 2204.03458, section 3.2).

    Args:
        items: of any data source of the package: images ``(c, h, w)``, clips ``(c, f, h, w)``, alone, with a caption,
            or as dicts with ``images``, ``texts`` and ``fps``.

    Returns:
        ``images`` (b, c, f, h, w), ``ignore_time`` (b,), ``texts`` if all have one, and ``fps`` (b,) if the clips have.

    Raises:
        DataError: clips of different lengths, or captions of some items only.
    """
    rows = [item if isinstance(item, Mapping) else _as_row(item) for item in items]
    images = [row["images"] for row in rows]
    still = torch.tensor([image.ndim == 3 for image in images])
    lengths = {image.shape[1] for image in images if image.ndim == 4} or {1}
    if len(lengths) > 1:
        raise DataError(f"clips of one batch have the same number of frames, got {sorted(lengths)}; set num_frames")
    count = lengths.pop()
    clips = [image[:, None].expand(-1, count, -1, -1) if image.ndim == 3 else image for image in images]
    batch: dict[str, Any] = {"images": torch.stack(clips), "ignore_time": still}
    captioned = [row for row in rows if row.get("texts") is not None]
    if captioned and len(captioned) < len(rows):
        raise DataError(
            f"{len(rows) - len(captioned)} of {len(rows)} items have no caption; give captions to all or none"
        )
    if captioned:
        batch["texts"] = [row["texts"] for row in rows]
    rates = [row.get("fps") for row in rows if row["images"].ndim == 4]
    if rates and None not in rates:
        # the rate of an image is any number: nothing moves in it
        batch["fps"] = torch.tensor([row.get("fps") or 1.0 for row in rows], dtype=torch.float64)
    return batch


def _as_row(item: Any) -> dict[str, Any]:
    image, caption = item if isinstance(item, tuple | list) else (item, None)
    return {"images": image, "texts": caption}

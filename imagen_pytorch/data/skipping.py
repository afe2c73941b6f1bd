"""Unusable items: shared across worker processes, listed in a file, and an error if there are too many."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..lines import append_lines, lines_of
from ..wording import printable

#: The file that lists what was left out, one JSON object per line.
FILE = "skipped.jsonl"

#: Number of left-out images that a message names.
SHOWN = 3

#: Default limit of the fraction of unusable data.
SHARE = 0.05


class DataError(ValueError):
    """Data that cannot be used, with the reason in the message."""


class DataUnavailable(DataError):
    """Data that cannot be read at present, because of the machine, its storage or its network. Nothing is left out."""


class Skipped(NamedTuple):
    """An image or clip that was left out.

    Attributes:
        name: its path, or its row.
        reason: in a few words.
    """

    name: str
    reason: str


def summarize(skipped: list[Skipped]) -> str:
    """Return the first few with their reasons, and the number of the others."""
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return ", ".join(f"{item.name} ({item.reason})" for item in skipped[:SHOWN]) + more


class SharedTexts:
    """Short texts that worker processes pass to the process that started them, each kept once.

    Two processes that use one slot in the same instant lose one of their texts, because nothing is locked.

    Args:
        places: number of slots.
        length: largest number of bytes of a text; longer ones are cut off.
    """

    def __init__(self, places: int, length: int) -> None:
        self._bytes = torch.zeros(places, length, dtype=torch.uint8).share_memory_()

    def add(self, text: str) -> int | None:
        """Return the slot of a text, which is stored if it is new, or None without room."""
        rows = self._bytes.numpy()
        places, length = rows.shape
        content = text.encode("utf-8", "backslashreplace")[:length].ljust(length, b"\0")
        start = zlib.crc32(content) % places
        for place in (*range(start, places), *range(start)):
            held = rows[place].tobytes()
            if held == content:
                return place
            if not any(held):
                rows[place] = memoryview(content)
                return place
        return None

    def __getitem__(self, place: int) -> str:
        return self._bytes[place].numpy().tobytes().rstrip(b"\0").decode("utf-8", "ignore")

    def __iter__(self) -> Iterator[str]:
        return filter(None, map(self.__getitem__, range(len(self._bytes))))


# -- how much of the data ---------------------------------------------------------------------------------------------


def _sources(data: Any) -> dict[int, tuple[Any, int]]:
    """Return the sources of a data set or loader that skip, each once, and their numbers of items."""
    found: dict[int, tuple[Any, int]] = {}
    collate, inner = getattr(data, "collate_fn", None), getattr(data, "dataset", None)
    if hasattr(data, "skipped") and hasattr(data, "found"):
        found[id(data)] = (data, data.found)
    if hasattr(collate, "skipped"):
        found[id(collate)] = (collate, len(inner) if hasattr(inner, "__len__") else 0)
    for part in (*([] if inner is None else [inner]), *getattr(data, "datasets", ())):
        found |= _sources(part)
    return found


def _refuse(skipped: list[Skipped], count: int, total: int, limit: float, data: Any, listed: str) -> None:
    if not total or count <= limit * total:
        return
    kinds = {getattr(source, "kind", "row") for source, _ in _sources(data).values()}
    kind = kinds.pop() if len(kinds) == 1 else "item"
    first = f"; first: {summarize(skipped)}" if skipped else ""  # those of other processes are known by name only
    raise DataError(
        f"{count} of {total} {kind}s ({100 * count / total:.3g} %) cannot be used, more than max_skipped_share = "
        f"{100 * limit:.3g} %: see {listed}{first}; repair or remove them, or set "
        f"max_skipped_share to at least {math.ceil(1000 * count / total) / 1000:g}"
    )


def check_share(data: Any, limit: float = SHARE) -> None:
    """Check that enough of the data can be used.

    All items that were found count: those left out on opening, damage found by reading so far, and missing captions if
    others have one. Small folders are not an exception: one bad image of ten is a tenth of the data, and its
    owner needs to know before the training.

    Args:
        data: a data set, or a loader of one, of any depth.
        limit: fraction from 0 (nothing may be unusable) to 1 (never refused).

    Raises:
        DataError: more than this fraction cannot be used; the message names the first.
        ValueError: not a fraction.
    """
    _check_limit(limit)
    sources = _sources(data).values()
    skipped = [item for source, _ in sources for item in source.skipped]
    _refuse(skipped, len(skipped), sum(total for _, total in sources), limit, data, "the attribute skipped")


def _check_limit(limit: float) -> None:
    if not 0 <= limit <= 1:
        raise ValueError(f"max_skipped_share is a fraction from 0 to 1, such as 0.05, got {limit}")


class SkippedReport:
    """Lists left-out items in ``skipped.jsonl`` of a folder, each once, and raises an error if there are too many.

    A line is an object of ``name`` and ``reason``. Items that the file lists already - from an earlier run, or from
    another process that shares the folder - are not listed again. Items of other processes count here as well.

    Args:
        data: a data set, or a loader of one.
        folder: of the file, created when there is something to list.
        limit: as in `check_share`.

    Raises:
        ValueError: not a fraction.
    """

    def __init__(self, data: Any, folder: str | Path, limit: float = SHARE) -> None:
        _check_limit(limit)
        self.data, self.path, self.limit = data, Path(folder) / FILE, limit
        self._before = self._listed()
        self._seen = (-1, -1)
        self.count = self.total = 0

    def _listed(self) -> set[str]:
        """Return the names in the file. Lines of another format are ignored."""
        names = set()
        for line in lines_of(self.path):
            try:
                names.add(json.loads(line)["name"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return names

    def _append(self, items: list[Skipped]) -> None:
        # in one piece, so that processes that share the file do not break each other's lines
        lines = [printable(json.dumps(item._asdict(), ensure_ascii=False)) for item in items]
        try:
            append_lines(lines, self.path)
        except OSError as error:
            warnings.warn(f"cannot write {self.path}: {error.strerror or error}", stacklevel=3)

    def update(self) -> int:
        """List new items and return their number.

        Raises:
            DataError: more than the limit cannot be used.
        """
        sources = _sources(self.data).values()
        skipped = list({item.name: item for source, _ in sources for item in source.skipped}.values())
        self.total = sum(total for _, total in sources)
        new: list[Skipped] = []
        if (len(skipped), self._size()) != self._seen:
            listed = self._listed()
            new = [item for item in skipped if item.name not in listed]
            if new:
                self._append(new)
            self._seen = len(skipped), self._size()
            self.count = len({item.name for item in skipped} | (listed - self._before))
        _refuse(skipped, self.count, self.total, self.limit, self.data, str(self.path))
        return len(new)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def line(self) -> str | None:
        """Return a line about the left-out items for the end of a run, or None if there are none."""
        if not self.count:
            return None
        kinds = {getattr(source, "kind", "row") for source, _ in _sources(self.data).values()}
        kind = kinds.pop() if len(kinds) == 1 else "item"
        return f"{self.count} of {self.total} {kind}s {'was' if self.count == 1 else 'were'} left out: {self.path}"

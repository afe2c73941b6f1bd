"""What could not be used: remembered across worker processes, listed in a file, and too much of it refused."""

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

#: How many left-out pictures a message names.
SHOWN = 3

#: The share of the data that may be unusable where nobody says another.
SHARE = 0.05


class DataError(ValueError):
    """Data that cannot be used; the message says what is wrong with them."""


class DataUnavailable(DataError):
    """Data that cannot be read at present, because of the machine, its storage or its network; nothing is left out."""


class Skipped(NamedTuple):
    """A picture or clip that was left out.

    Attributes:
        name: its path, or its row.
        reason: in a few words.
    """

    name: str
    reason: str


def shown(skipped: list[Skipped]) -> str:
    """The first few with their reasons, and how many more there are."""
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return ", ".join(f"{item.name} ({item.reason})" for item in skipped[:SHOWN]) + more


class SharedTexts:
    """Short texts that worker processes leave for the process that started them; each is kept once.

    Two processes that take one place in the same instant lose one of their texts: nothing waits for anything here.

    Args:
        places: how many texts there is room for.
        length: bytes of a text, at most; longer ones are cut off.
    """

    def __init__(self, places: int, length: int) -> None:
        self._bytes = torch.zeros(places, length, dtype=torch.uint8).share_memory_()

    def add(self, text: str) -> int | None:
        """The place of a text, which is written down if it is new; None if there is no room."""
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
    """What skips in a data set or loader, each once: ``PictureDataset`` and ``Collator``, and of how many items."""
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
    first = f"; first: {shown(skipped)}" if skipped else ""  # those of other processes are known by name only
    raise DataError(
        f"{count} of {total} {kind}s ({100 * count / total:.3g} %) cannot be used, more than max_skipped_share = "
        f"{100 * limit:.3g} %: see {listed}{first}; repair them or take them away, or set "
        f"max_skipped_share to at least {math.ceil(1000 * count / total) / 1000:g}"
    )


def check_share(data: Any, limit: float = SHARE) -> None:
    """Refuse data of which too much cannot be used.

    All counts that was found: what was left out at opening, what damage reading revealed so far, and missing captions
    where others have one. There is no exception for small folders: one bad picture of ten is a tenth of the data, and
    its owner wants to know before the training.

    Args:
        data: a data set, or a loader of one, of whatever depth.
        limit: share from 0 (nothing may be unusable) to 1 (never refused).

    Raises:
        DataError: more than this share cannot be used; the message names the first.
        ValueError: no share.
    """
    _check_limit(limit)
    sources = _sources(data).values()
    skipped = [item for source, _ in sources for item in source.skipped]
    _refuse(skipped, len(skipped), sum(total for _, total in sources), limit, data, "the attribute skipped")


def _check_limit(limit: float) -> None:
    if not 0 <= limit <= 1:
        raise ValueError(f"max_skipped_share is a share from 0 to 1, such as 0.05, got {limit}")


class SkippedReport:
    """Lists what is left out in ``skipped.jsonl`` of a folder, each item once, and stops when it is too much.

    A line is an object of ``name`` and ``reason``. What the file lists already - by an earlier run, or by another
    process that shares the folder - is not listed again; what other processes add counts as left out here as well.

    Args:
        data: a data set, or a loader of one.
        folder: where the file is; made when there is something to list.
        limit: as in `check_share`.

    Raises:
        ValueError: no share.
    """

    def __init__(self, data: Any, folder: str | Path, limit: float = SHARE) -> None:
        _check_limit(limit)
        self.data, self.path, self.limit = data, Path(folder) / FILE, limit
        self._before = self._listed()
        self._seen = (-1, -1)
        self.count = self.total = 0

    def _listed(self) -> set[str]:
        """The names in the file; lines that are none of ours are passed over."""
        names = set()
        for line in lines_of(self.path):
            try:
                names.add(json.loads(line)["name"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return names

    def _append(self, items: list[Skipped]) -> None:
        # in one piece, so that processes which share the file do not tear each other's lines
        lines = [printable(json.dumps(item._asdict(), ensure_ascii=False)) for item in items]
        try:
            append_lines(lines, self.path)
        except OSError as error:
            warnings.warn(f"cannot write {self.path}: {error.strerror or error}", stacklevel=3)

    def update(self) -> int:
        """List what is new; returns how many items that were.

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
        """How much was left out, for the end of a run; None if nothing was."""
        if not self.count:
            return None
        kinds = {getattr(source, "kind", "row") for source, _ in _sources(self.data).values()}
        kind = kinds.pop() if len(kinds) == 1 else "item"
        return f"{self.count} of {self.total} {kind}s {'was' if self.count == 1 else 'were'} left out: {self.path}"

"""The manifest of a sharded checkpoint: its files, and where each tensor is in them, as JSON.

It is written last, so a folder without it is not complete. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..io.errors import ODD, CheckpointError, CheckpointMissing, errors_as
from ..io.files import kind_of, retry, sizes_in
from .contents import DTYPES, LARGEST_TENSOR, are_counts
from .paths import MANIFEST

#: bytes of a manifest: about a million parts of tensors
LARGEST = 256 << 20
#: the first two have parts that torch.save wrote, at a place in a file of torch.distributed.checkpoint
_FORMATS = ("sharded checkpoint 1", "sharded checkpoint 2", "sharded checkpoint 3")


class Part(NamedTuple):
    """A box of a tensor, and the file where it is: under the tensor's name, or at bytes ``(start, count)``."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    span: tuple[int, int] | None = None


class Entry(NamedTuple):
    """A tensor, in parts that cover it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


class File(NamedTuple):
    """Size and checksum of a file."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """All files of a sharded checkpoint, and all tensors in them.

    Attributes:
        files: by their names.
        tensors: by their paths.
        folder: of the files, inside that of the checkpoint: each write has one of its own, and the manifest, one small
            file, names it. Empty in the first format, whose files lie next to the manifest.
    """

    files: Mapping[str, File]
    tensors: Mapping[str, Entry]
    folder: str

    def place(self, checkpoint: str) -> str:
        """Return the folder with the files of the checkpoint in a folder."""
        return f"{checkpoint}/{self.folder}" if self.folder else checkpoint

    def to_bytes(self) -> bytes:
        """Return it as JSON, with a checksum of its own."""
        numbers = {name: index for index, name in enumerate(self.files)}
        body = {
            "files": [[name, *file] for name, file in self.files.items()],
            "tensors": {
                name: [
                    str(entry.dtype).removeprefix("torch."),
                    list(entry.shape),
                    [
                        [list(part.start), list(part.shape), numbers[part.file], *(part.span or ())]
                        for part in entry.parts
                    ],
                ]
                for name, entry in self.tensors.items()
            },
            "folder": self.folder,
        }
        return json.dumps({"format": _FORMATS[2], "sha256": _digest(body), **body}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read it and check that it is possible; a CheckpointError if it is damaged, of another format, or contradicts
        itself."""
        with errors_as(CheckpointError, "its manifest cannot be decoded", ODD):
            given = json.loads(data)
            body = {name: given[name] for name in ("files", "tensors", "folder") if name in given}
            if given["format"] not in _FORMATS or given["sha256"] != _digest(body):
                raise CheckpointError("its manifest is damaged or of another version")
            files = {_plain_name(name): File(int(size), str(digest)) for name, size, digest in body["files"]}
            names, folder = list(files), _plain_name(body["folder"]) if "folder" in body else ""
            tensors = {
                str(name): Entry(DTYPES[kind], tuple(shape), tuple(_part(row, names) for row in parts))
                for name, (kind, shape, parts) in body["tensors"].items()
            }
        found = cls(files, tensors, folder)
        found.check()
        return found

    def check(self) -> None:
        """Raise a CheckpointError unless every part lies in its tensor and its file, and no more memory is needed than
        there is data."""
        needed = 0
        for name, entry in self.tensors.items():
            if not all(_inside(part, entry, self.files) for part in entry.parts) or not _covered(entry):
                raise CheckpointError(f"its manifest contradicts itself about {name}")
            needed += math.prod(entry.shape) * entry.dtype.itemsize
        if needed > sum(file.size for file in self.files.values()):
            raise CheckpointError("it claims to unpack to more than its own size")


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _plain_name(name: Any) -> str:
    """The name of something in the folder itself; a ValueError if it leads elsewhere."""
    if not isinstance(name, str) or not name or name in (".", "..", MANIFEST) or set(name) & set("/\\:\0"):
        raise ValueError(f"not a file of a checkpoint: {name!r}")
    return name


def _part(row: Any, names: list[str]) -> Part:
    start, shape, number, *span = row
    if number < 0 or len(span) not in (0, 2):
        raise ValueError
    return Part(tuple(start), tuple(shape), names[number], tuple(span) or None)


def _covered(entry: Entry) -> bool:
    """Return whether the parts are the cells of a grid over the tensor, each once.

    Processes divide tensors along their axes, so other divisions do not occur.
    """
    shape, parts = entry.shape, [part for part in entry.parts if 0 not in part.shape]
    if not are_counts(shape) or math.prod(max(length, 1) for length in shape) > LARGEST_TENSOR:
        return False
    cells = 1
    for axis, length in enumerate(shape):
        cuts = sorted({(part.start[axis], part.shape[axis]) for part in parts})
        ends = [0, *(start + count for start, count in cuts)]
        if parts and (ends[-1] != length or any(start != end for (start, _), end in zip(cuts, ends, strict=False))):
            return False
        cells *= len(cuts)
    if 0 in shape:
        return not parts
    return bool(parts) and len(parts) == cells == len({part.start for part in parts})


def _inside(part: Part, entry: Entry, files: Mapping[str, File]) -> bool:
    at, count = part.span or (0, files[part.file].size)
    if not all(are_counts(values) for values in (entry.shape, part.start, part.shape, [at, count])):
        return False
    if not len(part.start) == len(part.shape) == len(entry.shape):
        return False
    fits = all(first + size <= total for first, size, total in zip(part.start, part.shape, entry.shape, strict=True))
    return fits and math.prod(part.shape) * entry.dtype.itemsize <= count <= files[part.file].size - at


def read_manifest(fs: Any, folder: str) -> Manifest:
    """Return the manifest of a folder whose files are there and of the right size.

    A CheckpointMissing for no folder, or one that was never finished; a CheckpointError if it is damaged, or a file is
    missing or cut off.
    """
    place = f"{folder}/{MANIFEST}"
    if kind_of(fs, place) != "file":
        raise CheckpointMissing(f"no complete sharded checkpoint at {folder}: it has no {MANIFEST}")
    if retry(lambda: fs.size(place)) > LARGEST:
        raise CheckpointError("its manifest is too large")
    manifest = Manifest.from_bytes(retry(lambda: fs.cat_file(place)))
    sizes = sizes_in(fs, manifest.place(folder))
    for name, file in manifest.files.items():
        if sizes.get(name) != file.size:
            found = "is missing" if name not in sizes else f"has {sizes[name]:,} of {file.size:,} bytes"
            raise CheckpointError(f"its file {name} {found}")
    return manifest

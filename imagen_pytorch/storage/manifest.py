"""What a sharded checkpoint says about itself: its files, and where each tensor is in them, as JSON.

It is written last, so a folder without it is not whole; and as nothing but it is needed to find the tensors, the
pickled index that torch writes beside them is never opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .dtypes import DTYPES, LARGEST_TENSOR, are_counts
from .errors import CheckpointError, CheckpointMismatch, CheckpointMissing, CheckpointUnreachable, reason
from .places import is_local
from .reading import MANIFEST
from .remote import attempts, forget_listings, kind_of

#: name of the file with everything that is no tensor of a model
PLAIN = "state.pt"
#: bytes of a manifest: about a million parts of tensors
LARGEST = 256 << 20
#: without and with a folder of its own for the files
_FORMATS = ("sharded checkpoint 1", "sharded checkpoint 2")


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and the bytes of the file where it is saved."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    at: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A tensor, in parts that cover it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class File:
    """What a file has to be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All files of a sharded checkpoint, and all tensors in them.

    Attributes:
        files: by their names.
        tensors: by their paths.
        folder: name of the folder beside the manifest that holds the files; empty where they lie beside it themselves.
            In an object store each write has a folder of its own, and the manifest, one small object, names it.
    """

    files: Mapping[str, File]
    tensors: Mapping[str, Entry]
    folder: str = ""

    def place(self, checkpoint: str) -> str:
        """The folder with the files of the checkpoint in a folder."""
        return f"{checkpoint}/{self.folder}" if self.folder else checkpoint

    def to_bytes(self) -> bytes:
        """As JSON, with a checksum of its own."""
        names = list(self.files)
        numbers = {name: index for index, name in enumerate(names)}
        body = {
            "files": [[name, self.files[name].size, self.files[name].sha256] for name in names],
            "tensors": {
                name: [
                    str(entry.dtype).removeprefix("torch."),
                    list(entry.shape),
                    [[*_lists(part.start, part.shape), numbers[part.file], part.at, part.size] for part in entry.parts],
                ]
                for name, entry in self.tensors.items()
            },
        }
        if self.folder:
            body["folder"] = self.folder
        return json.dumps({"format": _FORMATS["folder" in body], "sha256": _digest(body), **body}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read back and check that it is possible.

        Raises:
            CheckpointError: damaged, of another format, or contradicting itself.
        """
        try:
            given = json.loads(data)
            body = {name: given[name] for name in ("files", "tensors", "folder") if name in given}
            if given["format"] != _FORMATS["folder" in body] or given["sha256"] != _digest(body):
                raise CheckpointError("its manifest is damaged or of another version")
            files = {_plain_name(name): File(int(size), str(digest)) for name, size, digest in body["files"]}
            names, folder = list(files), _plain_name(body["folder"]) if "folder" in body else ""
            tensors = {
                str(name): Entry(DTYPES[kind], tuple(shape), tuple(_part(row, names) for row in parts))
                for name, (kind, shape, parts) in body["tensors"].items()
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError("its manifest cannot be decoded") from error
        found = cls(files, tensors, folder)
        found.check()
        return found

    def check(self) -> None:
        """See that every part lies in its tensor and its file, and that no more memory is needed than there is data.

        Raises:
            CheckpointError: it does not.
        """
        needed = 0
        for name, entry in self.tensors.items():
            if not all(_inside(part, entry, self.files) for part in entry.parts) or not _covered(entry):
                raise CheckpointError(f"its manifest contradicts itself about {name}")
            needed += math.prod(entry.shape) * entry.dtype.itemsize
        if needed > sum(file.size for file in self.files.values()):
            raise CheckpointError("it claims to unpack to more than its own size")


def _lists(*values: tuple[int, ...]) -> list[list[int]]:
    return [list(value) for value in values]


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _plain_name(name: Any) -> str:
    """The name of a file in the folder itself.

    Raises:
        ValueError: it leads elsewhere.
    """
    if not isinstance(name, str) or not name or name in (".", "..", MANIFEST) or set(name) & set("/\\:\0"):
        raise ValueError(f"no file of a checkpoint: {name!r}")
    return name


def _part(row: Any, names: list[str]) -> Part:
    start, shape, number, at, size = row
    if not 0 <= number < len(names):
        raise ValueError(f"no file {number}")
    return Part(tuple(start), tuple(shape), names[number], at, size)


def _covered(entry: Entry) -> bool:
    """Whether the parts are the cells of a grid over the tensor, each once: nothing is left out or lies over another.

    Processes share tensors out along their axes, so other divisions do not occur.
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
    if not all(are_counts(values) for values in (entry.shape, part.start, part.shape, [part.at, part.size])):
        return False
    if not len(part.start) == len(part.shape) == len(entry.shape):
        return False
    boxes = zip(part.start, part.shape, entry.shape, strict=True)
    fits = all(first + count <= total for first, count, total in boxes)
    return fits and math.prod(part.shape) * entry.dtype.itemsize <= part.size <= files[part.file].size - part.at


def sizes_in(fs: Any, folder: str) -> dict[str, int]:
    """The names and sizes of the files in a folder, as the filesystem itself has them now."""
    forget_listings(fs, folder)
    listed = attempts(lambda: fs.ls(folder, detail=True))
    return {str(item["name"]).rsplit("/", 1)[-1]: item["size"] for item in listed if item["type"] == "file"}


def _read(fs: Any, folder: str) -> tuple[Manifest, dict[str, int]]:
    place = f"{folder}/{MANIFEST}"
    if kind_of(fs, place) != "file":
        raise CheckpointMissing(f"there is no whole sharded checkpoint at {folder}: it has no {MANIFEST}")
    if attempts(lambda: fs.size(place)) > LARGEST:
        raise CheckpointError("its manifest is too large")
    manifest = Manifest.from_bytes(attempts(lambda: fs.cat_file(place)))
    return manifest, sizes_in(fs, manifest.place(folder))


def read_manifest(fs: Any, folder: str) -> Manifest:
    """The manifest of a folder, whose files are there and of the right size.

    Raises:
        CheckpointMissing: no folder, or one that was never finished.
        CheckpointUnreachable: no connection or permission.
        CheckpointError: it is damaged, or a file is missing or cut off.
    """
    with reading(fs, folder):
        manifest, sizes = _read(fs, folder)
        for name, file in manifest.files.items():
            if sizes.get(name) != file.size:
                found = "is missing" if name not in sizes else f"has {sizes[name]:,} of {file.size:,} bytes"
                raise CheckpointError(f"its file {name} {found}")
    return manifest


@contextmanager
def reading(fs: Any, folder: str) -> Iterator[None]:
    """Errors in the block as those of a checkpoint, with its name."""
    failures = OSError if is_local(fs) else Exception  # every store has its own
    try:
        yield
    except (CheckpointMissing, CheckpointMismatch):
        raise
    except CheckpointError as error:
        raise type(error)(f"cannot read the checkpoint {folder}: {error}") from error
    except failures as error:
        raise CheckpointUnreachable(f"cannot read the checkpoint {folder}: {reason(error)}") from error


def sha256_of(path: str) -> str:
    """The checksum of a local file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()

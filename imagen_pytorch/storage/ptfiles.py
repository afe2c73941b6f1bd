"""Files in the format of torch.save: written by it, read without it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .archives import Archive, Entry, check, read_archive, read_entry, read_note, seal
from .background import rest
from .contents import FREE_DESCRIPTION
from .dtypes import memory_of
from .errors import CheckpointError
from .pickles import MAX_PICKLE, Builder, StorageNote, read_pickle


class _Output:
    """An open file for torch.save, which loses the reasons of errors: the first one is kept, the rest is not written.

    Whole records are written at once, so other threads run meanwhile.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: Exception | None = None

    def write(self, data: Any) -> int:
        """Write everything, or remember why not."""
        rest()
        if self.error is None:
            try:
                return self.file.write(data)
            except (OSError, ValueError) as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Hand on what was written."""
        if self.error is None:
            try:
                self.file.flush()
            except (OSError, ValueError) as error:
                self.error = error


class _Pickling:
    """The part of the module `pickle` that torch.save uses: it rests between tensors."""

    class Pickler(pickle.Pickler):
        """Python's own, which asks `reducer_override` about every tensor."""

        def reducer_override(self, _value: object) -> Any:
            """Leave everything as it is."""
            rest()
            return NotImplemented


@contextmanager
def _with_checksums() -> Iterator[None]:
    """Let torch.save compute the CRCs of entries even where it was told not to; versions before 2.6 always do."""
    get = getattr(torch.serialization, "get_crc32_options", lambda: True)
    if get():
        yield
        return
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(False)


def write_pt(contents: Mapping[str, Any], file: BinaryIO) -> None:
    """Write plain contents into an empty file, read them back and seal them with a checksum.

    Raises:
        OSError: no room, or another error of the disk.
        CheckpointError: what can be read back is not what was written.
    """
    output = _Output(file)
    try:
        with _with_checksums():
            torch.save(contents, output, pickle_module=_Pickling)
    except RuntimeError:
        if output.error is None:
            raise
    if output.error is not None:
        raise output.error
    to_disk(file)
    description_in(read_archive(file).entries)
    seal(file)
    to_disk(file)


def to_disk(file: BinaryIO) -> None:
    """Have everything that was written to an open file on the disk before anything else happens."""
    file.flush()
    os.fsync(file.fileno())


def _only(entries: Mapping[str, Entry], ending: str) -> Entry:
    found = [entry for name, entry in entries.items() if name.count("/") == 1 and name.endswith(ending)]
    if len(found) != 1:
        raise CheckpointError("it is a zip file, but not one of torch.save")
    return found[0]


def description_in(entries: Mapping[str, Entry]) -> Entry:
    """The entry that describes the contents, which is not much larger than the data that it describes.

    Raises:
        CheckpointError: there is none, or it is too large.
    """
    found = _only(entries, "/data.pkl")
    most = min(MAX_PICKLE, FREE_DESCRIPTION + sum(entry.size for entry in entries.values()) - found.size)
    if found.size > most:
        raise CheckpointError(f"its description takes {found.size:,} bytes, too many for what it holds")
    return found


def _entries_of(archive: Archive, root: str, storages: Mapping[str, list[StorageNote]]) -> dict[str, Entry]:
    """The entries with the bytes of all storages by their keys, each as long as it must be."""
    found = {}
    for key, notes in storages.items():
        entry = archive.entries.get(f"{root}data/{key}")
        if entry is None:
            raise CheckpointError(f"the bytes of its tensor storage {key[:100]} are missing")
        if any(entry.size // note.dtype.itemsize != note.numel for note in notes):
            raise CheckpointError(f"the entry {entry.name} is not as long as its tensors need")
        found[key] = entry
    return found


def read_pt(file: BinaryIO) -> Any:
    """The contents of a file of torch.save, every tensor on the CPU. Nothing in it is executed.

    Memory is taken for tensors that the file really holds, and only when all that it says about them fits together.

    Raises:
        CheckpointError: it is damaged, claims more than it holds, or holds anything but tensors and plain containers.
    """
    archive = read_archive(file)
    read_note(archive)
    description = description_in(archive.entries)
    root = description.name.removesuffix("data.pkl")
    order = archive.entries.get(f"{root}byteorder")
    if order is not None and (order.size != len("little") or read_entry(file, order) != b"little"):
        raise CheckpointError("its numbers are in the byte order of another kind of machine")
    described = read_pickle(read_entry(file, description))
    entries = _entries_of(archive, root, described.storages)
    memory = {key: torch.empty(entry.size, dtype=torch.uint8) for key, entry in entries.items()}
    check(file, archive, {entry.name: memory_of(memory[key]) for key, entry in entries.items()})
    try:
        return Builder(memory).build(described.tree)
    except RuntimeError as error:  # torch has the last word
        raise CheckpointError(f"its contents cannot be decoded ({error})") from error


def check_whole(path: str | Path) -> None:
    """See that a local file of torch.save is complete and unchanged.

    Reads the file once in small pieces; nothing is unpacked.

    Raises:
        CheckpointError: cut off, changed, compressed, or another kind of file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        check(file, read_archive(file))

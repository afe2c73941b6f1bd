"""Files of torch.save: written by it, and loaded by it after their zip archive and their pickle have been checked.

The entries of the archive are stored as they are, each with a CRC. Files of this package end with a note in the place
of the zip comment: how many bytes come before it, and the SHA-256 of those that no CRC covers, the CRCs among them.

Before torch.load, the instructions of the pickle are followed with `pickletools`: names, keys and sizes that a
checkpoint cannot have are refused, so that nothing is executed and memory is taken only for what the file really holds.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..io.atomic import sync
from ..io.errors import ODD, CheckpointError, reason
from .contents import FREE_DESCRIPTION, check_plain, map_tensors
from .pickle_scan import NAMES, UNSAFE, scan_pickle, undecodable

#: bytes that are read and hashed at a time: enough to let other threads run meanwhile
PIECE = 1 << 20
#: the first files had a SHA-256 of everything, which took most of the time of loading them
_NOTE = re.compile(
    rb'\{"format": "imagen-pytorch", "bytes": (0|[1-9]\d{0,18}), "(sha256|sha256 around entries)": "([0-9a-f]{64})"\}'
)


def damaged(detail: str = "") -> CheckpointError:
    """Return the error of a file that is not what it should be."""
    return CheckpointError(f"it is cut off, damaged or another kind of file{f' ({detail})' if detail else ''}")


def pieces(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of a part of a file, some at a time; a CheckpointError if the file ends before."""
    file.seek(start)
    while start < stop:
        data = file.read(min(PIECE, stop - start))
        if not data:
            raise damaged("it ends too early")
        start += len(data)
        yield data


def read_at(file: BinaryIO, start: int, count: int) -> bytes:
    """Return a part of a file; a CheckpointError if the file ends before."""
    return b"".join(pieces(file, start, start + count))


# -- the archive ------------------------------------------------------------------------------------------------------


class _Bounded:
    """An open file for `zipfile`: refuses a directory that is larger than what it lists, and keeps a reading error."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.error = file, size, None
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > FREE_DESCRIPTION + self.size - count:
            raise zipfile.BadZipFile
        try:
            return self.file.read(count)
        except Exception as error:
            self.error = error
            raise


class Archive:
    """The entries of a file of torch.save: stored as they are, each once and none over another.

    Raises:
        CheckpointError: it is another kind of file, cut off, compressed, or claims more than there is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.total = file, file.seek(0, os.SEEK_END)
        bounded = _Bounded(file, self.total)
        try:
            self.zip = zipfile.ZipFile(bounded)  # type: ignore[arg-type]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise bounded.error or damaged() from error
        self.end = self.total - len(self.zip.comment)
        self.entries = sorted(self.zip.infolist(), key=lambda entry: entry.header_offset)
        self.sizes = {entry.filename: entry.file_size for entry in self.entries}
        if any(entry.compress_type or entry.file_size != entry.compress_size for entry in self.entries):
            raise CheckpointError("its entries are compressed, which no checkpoint of this package is")
        if any(entry.flag_bits & ~0x808 for entry in self.entries) or not self.entries:
            raise damaged()
        if sum(self.sizes.values()) > self.total:
            raise CheckpointError("it claims to unpack to more than its own size")
        starts = [*(entry.header_offset for entry in self.entries), self.zip.start_dir]
        ends = [0, *(e.header_offset + 30 + len(e.orig_filename) + e.file_size for e in self.entries)]
        if len(self.sizes) < len(self.entries) or any(end > start for end, start in zip(ends, starts, strict=True)):
            raise damaged("its entries are doubled or lie over each other")
        last = read_at(file, self.end - 22, 22)
        if starts[0] or last[:4] != b"PK\x05\x06" or last[20:] != struct.pack("<H", len(self.zip.comment)):
            raise damaged()

    def entry(self, name: str) -> bytes:
        """Return the bytes of a small entry; a CheckpointError if their CRC is wrong."""
        try:
            return self.zip.read(name)
        except (zipfile.BadZipFile, EOFError, ValueError, struct.error) as error:
            raise CheckpointError(f"the checksum of its entry {name} is wrong") from error

    def description(self) -> tuple[str, bytes]:
        """Return the folder of all entries, and the pickle that describes the contents.

        Raises:
            CheckpointError: there is none, it is too large, or the numbers are in another byte order.
        """
        found = [name for name in self.sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise CheckpointError("it is a zip file, but not one of torch.save")
        root, size = found[0].removesuffix("data.pkl"), self.sizes[found[0]]
        if size > FREE_DESCRIPTION + sum(self.sizes.values()) - size:
            raise CheckpointError(f"its description takes {size:,} bytes, too many for what it holds")
        if f"{root}byteorder" in self.sizes and self.entry(f"{root}byteorder") != b"little":
            raise CheckpointError("its numbers are in the byte order of another kind of machine")
        return root, self.entry(found[0])

    def verify(self) -> str:
        """Read everything once and compare it with the CRCs and the note; a CheckpointError if something is not what
        was written.

        Return the SHA-256 of what lies around the entries, or of everything in the first files.
        """
        note = _NOTE.fullmatch(self.zip.comment)
        if self.zip.comment and (note is None or int(note[1]) != self.end):
            raise CheckpointError("the note with its length and checksum is damaged")
        digest, place = hashlib.sha256(), 0
        for entry in self.entries:
            start = (
                entry.header_offset + 30 + sum(struct.unpack("<2H", read_at(self.file, entry.header_offset + 26, 4)))
            )
            for piece in pieces(self.file, place, start):
                digest.update(piece)
            crc, place = 0, start + entry.file_size
            for piece in pieces(self.file, start, place):
                crc = zlib.crc32(piece, crc)
                if note is not None and note[2] == b"sha256":
                    digest.update(piece)
            if crc != entry.CRC:
                raise CheckpointError(f"the checksum of its entry {entry.filename} is wrong")
        for piece in pieces(self.file, place, self.end):
            digest.update(piece)
        if note is not None and note[3].decode() != digest.hexdigest():
            raise CheckpointError("its checksum is wrong")
        return digest.hexdigest()


class _Output:
    """An open file for torch.save, which loses the reason of an error: the first is kept, the rest is not written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except (OSError, ValueError) as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass  # comes after the last write


def write_pt(contents: Mapping[str, Any], file: BinaryIO) -> None:
    """Write plain contents into an empty file, read them back and seal them with a checksum. An OSError of the disk, or
    a CheckpointError if what can be read back is not what was written."""
    output, crcs = _Output(file), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(contents, output)
    except RuntimeError:
        if output.error is None:
            raise
    finally:
        torch.serialization.set_crc32_options(crcs)
    if output.error is not None:
        raise output.error
    sync(file)
    archive = Archive(file)
    archive.description()

    def noted(sha256: str) -> bytes:
        return b'{"format": "imagen-pytorch", "bytes": %d, "sha256 around entries": "%s"}' % (size, sha256.encode())

    size = archive.end
    file.seek(size - 2)
    file.write(struct.pack("<H", len(noted("0" * 64))))  # covered by the checksum, so it comes first
    file.seek(0)
    sha256 = archive.verify()
    file.seek(size)
    file.write(noted(sha256))
    sync(file)


# -- loading ----------------------------------------------------------------------------------------------------------


class _Known(pickle.Unpickler):
    """Python's unpickler, limited to the names of a scanned pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in NAMES:
            raise CheckpointError(UNSAFE)
        return super().find_class(module, name)


class _KnownPickle:
    """In the place of the module `pickle`, where torch.load(weights_only=True) does not know a plain value."""

    Unpickler = _Known


def path_of(file: BinaryIO) -> str:
    """Return a path to an open file, which stays that file where the system has such names."""
    path = f"/proc/self/fd/{file.fileno()}"
    return path if os.path.exists(path) else str(file.name)


def _load(archive: Archive, verify: bool, **options: Any) -> Any:
    """Scan, verify and load a file; its contents are plain."""
    root, data = archive.description()
    start = f"{root}data/"
    sizes = {name.removeprefix(start): size for name, size in archive.sizes.items() if name.startswith(start)}
    weights_only = scan_pickle(data, sizes)
    if verify:
        archive.verify()
    archive.file.seek(0)
    source = path_of(archive.file) if options.get("mmap") else archive.file
    options |= {"weights_only": weights_only} | ({} if weights_only else {"pickle_module": _KnownPickle})
    try:
        contents = torch.load(source, **options)
    except ODD as error:  # torch has the last word
        if isinstance(error, CheckpointError) or (isinstance(error, RuntimeError) and "alloc" in str(error)):
            raise
        raise undecodable(reason(error)) from error
    check_plain(contents, 8 * len(data) + 1000)
    return contents


def read_pt(file: BinaryIO, mapped: bool = False) -> Any:
    """Return the contents of a file of torch.save, every tensor on the CPU. Nothing in it is executed.

    ``mapped`` maps the tensors from the file instead of reading them; for as long as the file stays unchanged.

    Raises:
        CheckpointError: it is damaged, claims more than it holds, or holds anything but tensors and plain containers.
    """
    return _load(Archive(file), True, map_location="cpu", mmap=mapped)


def describe_pt(file: BinaryIO, values: Collection[str], small: int, local: bool) -> Any:
    """Return the contents of a file of torch.save with tensors on the device "meta"; reads its description only, and
    the ``values`` that are named and take at most ``small`` bytes. A ``local`` file is mapped."""
    archive = Archive(file)
    found = _load(archive, False, map_location="cpu" if local else "meta", mmap=local)
    described = map_tensors(
        found, lambda item: torch.empty_strided(item.size(), item.stride(), dtype=item.dtype, device="meta")
    )
    for name in values if isinstance(found, dict) else ():
        tensor = found.get(name)
        if not isinstance(tensor, Tensor) or not 0 < (count := tensor.untyped_storage().nbytes()) <= small:
            continue
        if not local:
            at = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
            if at is None:  # the first versions of torch do not tell
                continue
            storage = torch.frombuffer(bytearray(read_at(file, at, count)), dtype=torch.uint8).untyped_storage()
            place = tensor.storage_offset(), tensor.size(), tensor.stride()
            tensor = torch.empty(0, dtype=tensor.dtype).set_(storage, *place)
        described[name] = tensor.clone()
    return described

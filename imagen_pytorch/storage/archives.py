"""The zip around files of torch.save: where its entries are, whether they are whole, and a checksum over the rest.

torch.save writes entries uncompressed, one after another, and their CRCs behind them. Files of this package carry a
note at their end, in the place of the zip's comment: how many bytes come before it, and the SHA-256 of those that no
CRC covers, the CRCs among them. Other files have their entries' CRCs only.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from .background import rest
from .errors import CheckpointError

#: bytes that are read, written and hashed at a time: few enough to keep, enough to let other threads run meanwhile
PIECE = 1 << 24
#: bytes of a directory of entries; a hundred thousand tensors take 10 million
_MAX_DIRECTORY = 1 << 26
_UNKNOWN = "it is cut off, damaged or another kind of file"
#: the first files had a SHA-256 of everything, which took most of the time of loading them
_NOTE = re.compile(
    rb'\{"format": "imagen-pytorch", "bytes": (0|[1-9]\d{0,18}), "(sha256|sha256 around entries)": "([0-9a-f]{64})"\}'
)

_END = struct.Struct("<4s4H2LH")  # signature, disk, disk, entries, entries, directory's size and place, comment
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
#: flags that do not change how an entry is stored: sizes behind the data, names in UTF-8
_FLAGS = 0x8 | 0x800


class Entry(NamedTuple):
    """Where the bytes of an entry are and what their CRC is."""

    name: str
    header: int
    start: int
    size: int
    crc: int


class Archive(NamedTuple):
    """The entries of a zip by name in the order of their places; where the comment begins, and the comment."""

    entries: dict[str, Entry]
    end: int
    comment: bytes


def _damaged(detail: str = "") -> CheckpointError:
    return CheckpointError(f"{_UNKNOWN}{f' ({detail})' if detail else ''}")


def read_at(file: BinaryIO, place: int, count: int) -> bytes:
    """So many bytes from a place in a file.

    Raises:
        CheckpointError: it ends before.
    """
    file.seek(place)
    data = file.read(count)
    if len(data) != count:
        raise _damaged("it ends too early")
    return data


class _End(NamedTuple):
    """What the end of a zip says: number of entries, their directory, and the comment."""

    count: int
    place: int
    size: int
    comment: bytes


def _find_end(file: BinaryIO, total: int) -> _End:
    tail = read_at(file, max(0, total - _END.size - 0xFFFF), min(total, _END.size + 0xFFFF))
    at = len(tail)
    while True:
        at = tail.rfind(b"PK\x05\x06", 0, at)
        if at < 0:
            raise _damaged()
        if at + _END.size <= len(tail):
            *_, count, size, place, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                break
    start, closing = total - len(tail) + at, tail[at + _END.size :]
    if start >= _LOCATOR.size + _END64.size:
        signature, _, where, _ = _LOCATOR.unpack(read_at(file, start - _LOCATOR.size, _LOCATOR.size))
        if signature == b"PK\x06\x07":
            if where != start - _LOCATOR.size - _END64.size:
                raise _damaged()
            found, *_, count, size, place = _END64.unpack(read_at(file, where, _END64.size))
            if found != b"PK\x06\x06":
                raise _damaged()
            start = where
    if place + size != start or size > _MAX_DIRECTORY or count * _ENTRY.size > size:
        raise _damaged()
    return _End(count, place, size, closing)


def _long_fields(extra: bytes, short: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes and place of an entry, where the ones that need more than 4 bytes stand in an extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(numbers) if value == 0xFFFFFFFF else value for value in short)
        at += 4 + length
    return short


def _directory(data: bytes, count: int) -> Iterator[tuple[str, int, int, int]]:
    """Name, size, CRC and place of each entry."""
    at = 0
    for _ in range(count):
        found = _ENTRY.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc, packed, size, name, extra, comment, *_, place = found
        start = at + _ENTRY.size
        if signature != b"PK\x01\x02" or flags & ~_FLAGS:
            raise _damaged()
        fields = data[start + name : start + name + extra]
        size, packed, place = _long_fields(fields, (size, packed, place))
        if method != 0 or size != packed:
            raise CheckpointError("its entries are compressed, which no checkpoint of this package is")
        yield data[start : start + name].decode("utf-8"), size, crc, place
        at = start + name + extra + comment
    if at != len(data):
        raise _damaged()


def read_archive(file: BinaryIO) -> Archive:
    """Where everything is in a zip file. Nothing is unpacked, and no byte may belong to two entries.

    Raises:
        CheckpointError: it is another kind of file, cut off, compressed, or claims more than there is.
    """
    total = file.seek(0, os.SEEK_END)
    if total < _END.size:
        raise _damaged()
    end = _find_end(file, total)
    entries: dict[str, Entry] = {}
    try:
        listed = list(_directory(read_at(file, end.place, end.size), end.count))
    except (struct.error, UnicodeDecodeError, StopIteration, RuntimeError) as error:
        raise _damaged() from error
    if sum(size for _, size, _, _ in listed) > total:
        raise CheckpointError("it claims to unpack to more than its own size")
    free = 0
    for name, size, crc, place in sorted(listed, key=lambda item: item[3]):
        entry = _place_entry(file, name, size, crc, place)
        if place < free or entry.start + size > end.place or name in entries:
            raise _damaged("its entries are doubled or lie over each other")
        entries[name], free = entry, entry.start + size
    return Archive(entries, total - len(end.comment), end.comment)


def _place_entry(file: BinaryIO, name: str, size: int, crc: int, place: int) -> Entry:
    header = _LOCAL.unpack(read_at(file, place, _LOCAL.size))
    spelled, extra = header[-2:]
    if header[0] != b"PK\x03\x04" or read_at(file, place + _LOCAL.size, spelled) != name.encode("utf-8"):
        raise _damaged()
    return Entry(name, place, place + _LOCAL.size + spelled + extra, size, crc)


def read_entry(file: BinaryIO, entry: Entry) -> bytes:
    """The bytes of a small entry.

    Raises:
        CheckpointError: their CRC is wrong.
    """
    data = read_at(file, entry.start, entry.size)
    if zlib.crc32(data) != entry.crc:
        raise CheckpointError(f"the checksum of its entry {entry.name} is wrong")
    return data


# -- one pass over everything -----------------------------------------------------------------------------------------


def pieces(file: BinaryIO, count: int, target: memoryview | None = None) -> Iterator[memoryview]:
    """The next bytes of a file, some at a time; into ``target`` if one is given.

    Raises:
        CheckpointError: the file ends before.
    """
    scratch = memoryview(bytearray(min(count, PIECE))) if target is None else target
    done = 0
    while done < count:
        step = min(PIECE, count - done)
        piece = scratch[:step] if target is None else scratch[done : done + step]
        got = file.readinto(piece)
        if not got:
            raise _damaged("it ends too early")
        yield piece[:got]
        done += got
        rest()


def _scan(
    file: BinaryIO, archive: Archive, targets: Mapping[str, memoryview] | None = None, everything: bool = False
) -> str:
    """Read the file from its start to the comment, check every entry, and fill the memory given for some of them.

    Returns:
        the SHA-256 of what lies around the entries, or of everything.

    Raises:
        CheckpointError: an entry is not what it was.
    """
    digest, place = hashlib.sha256(), 0
    file.seek(0)
    for entry in archive.entries.values():
        for piece in pieces(file, entry.start - place):
            digest.update(piece)
        crc = 0
        for piece in pieces(file, entry.size, (targets or {}).get(entry.name)):
            crc = zlib.crc32(piece, crc)
            if everything:
                digest.update(piece)
        if crc != entry.crc:
            raise CheckpointError(f"the checksum of its entry {entry.name} is wrong")
        place = entry.start + entry.size
    for piece in pieces(file, archive.end - place):
        digest.update(piece)
    return digest.hexdigest()


# -- the note at the end ----------------------------------------------------------------------------------------------


def _note(size: int, sha256: str) -> bytes:
    return f'{{"format": "imagen-pytorch", "bytes": {size}, "sha256 around entries": "{sha256}"}}'.encode()


class Note(NamedTuple):
    """The checksum that a file says it has, and whether it is one of everything."""

    sha256: str
    everything: bool


def read_note(archive: Archive) -> Note | None:
    """The closing note of a file; None for files without one, such as those of other tools.

    Raises:
        CheckpointError: the note is damaged or of another file.
    """
    if not archive.comment:
        return None
    found = _NOTE.fullmatch(archive.comment)
    if not found or int(found[1]) != archive.end:
        raise CheckpointError("the note with its length and checksum is damaged")
    return Note(found[3].decode(), found[2] == b"sha256")


def check(file: BinaryIO, archive: Archive, targets: Mapping[str, memoryview] | None = None) -> None:
    """Read a whole file, see that it is what was written, and fill the memory given for some entries.

    Raises:
        CheckpointError: it is not.
    """
    note = read_note(archive)
    found = _scan(file, archive, targets, note is not None and note.everything)
    if note is not None and note.sha256 != found:
        raise CheckpointError("its checksum is wrong")


def seal(file: BinaryIO) -> None:
    """Check a zip that was just written against the CRCs in it, and close it with a note.

    Raises:
        CheckpointError: what is in the file is not what was written.
    """
    size = file.seek(0, os.SEEK_END)
    length = len(_note(size, "0" * 64))
    file.seek(size - 2)
    file.write(struct.pack("<H", length))
    file.seek(size)
    file.write(b" " * length)
    sha256 = _scan(file, read_archive(file))
    file.seek(size)
    file.write(_note(size, sha256))

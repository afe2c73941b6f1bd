"""Which files this process has written or found unusable, told by what the filesystem says about them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from .places import is_local

#: as many as identify a file: device, number, size, time of the last change
Signature = tuple[int, int, int, int]

_OWN: dict[str, Signature] = {}
#: what was found and why it is of no use, by place
_UNUSABLE: dict[tuple[str, str], tuple[Signature | None, str]] = {}


def signature_of(path: str) -> Signature | None:
    """What tells whether a file or folder is still the same one; None if there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def remember(path: str) -> None:
    """Take note of a file or folder that this process has just written whole."""
    found = signature_of(path)
    if found is not None:
        _OWN[path] = found


def is_own(path: str) -> bool:
    """Whether what is at a path is what this process wrote there last."""
    found = signature_of(path)
    return found is not None and _OWN.get(path) == found


def _place(fs: Any, path: str) -> tuple[str, str]:
    return ("file", os.path.realpath(path)) if is_local(fs) else (str(fs.protocol), path.rstrip("/"))


def _signature(fs: Any, path: str) -> Signature | None:
    if is_local(fs):
        return signature_of(os.path.realpath(path))
    with suppress(Exception):  # every store has errors of its own
        return 0, 0, int(fs.size(path) or 0), 0
    return None


def note_unusable(fs: Any, path: str, reason: str) -> None:
    """Take note of a checkpoint from which this process could not go on: it must not replace the one before it."""
    _UNUSABLE[_place(fs, path)] = _signature(fs, path), reason


def note_replaced(fs: Any, path: str) -> None:
    """Take note that something new is at a path, which in a store may be told from what was there by nothing else."""
    _UNUSABLE.pop(_place(fs, path), None)


def why_unusable(fs: Any, path: str) -> str | None:
    """Why this process could not go on from what is at a path; None if it did not try, or if it is another file now."""
    found = _UNUSABLE.get(_place(fs, path))
    return found[1] if found is not None and found[0] == _signature(fs, path) else None

"""Which local files this process has written, told by what the filesystem says about them."""

from __future__ import annotations

import os

#: as many as identify a file: device, number, size, time of the last change
Signature = tuple[int, int, int, int]

_OWN: dict[str, Signature] = {}


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

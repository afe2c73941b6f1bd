"""Temporary files that their writers hold locked, so that those of killed writers are told apart and removed."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .locks import try_lock

_NAME = re.compile(r"^\.imagen-(?P<host>.+)-\d+-[0-9a-f]{12}\.tmp$")
#: seconds after which a file that no lock can vouch for counts as left behind
DAY = 24 * 60 * 60


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:64] or "host"


def temporary_name(folder: str) -> str:
    """A new name in a folder that `remove_stale` knows."""
    return os.path.join(folder, f".imagen-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")


def _create(folder: str) -> tuple[str, int]:
    while True:
        path = temporary_name(folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        # between making and locking it, another process may have taken it for left behind
        if try_lock(handle) is not False and os.path.exists(path):
            return path, handle
        os.close(handle)


def _remove_if_stale(path: str, host: str) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        old = time.time() - os.fstat(handle).st_mtime > DAY
        free = try_lock(handle)
        # locks of some network drives are known to one machine only
        if free is not False and (old or (free and host == _host())):
            os.remove(path)
    finally:
        os.close(handle)


def remove_stale(folder: str) -> None:
    """Remove the temporary files of killed writers from a folder; those of living ones stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [(entry.path, _NAME.match(entry.name)) for entry in entries if entry.is_file(follow_symlinks=False)]
        for path, match in found:
            if match:
                with suppress(OSError):
                    _remove_if_stale(path, match["host"])


@contextmanager
def temporary_file(folder: str) -> Iterator[BinaryIO]:
    """A new locked file in a folder, open for reading and writing; at the end it is gone unless it was renamed."""
    remove_stale(folder)
    path, handle = _create(folder)
    file = open(path, "w+b", opener=lambda *_: handle)  # noqa: SIM115 - closed below, where an error changes nothing
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.remove(path)

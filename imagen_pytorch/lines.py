"""Files of lines that runs add to: written to the file of that name itself, never through a link or into a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path


def next_free(path: Path) -> Path:
    """The path itself or, if it exists, the first of its name with -1, -2 and so on after its stem that does not.

    A link counts as a file that exists, also one that leads nowhere. The end of a long row is found by halving; a gap
    in the row may be passed over.
    """

    def name(number: int) -> Path:
        return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path

    taken, free = -1, 0
    while os.path.lexists(name(free)):
        taken, free = free, max(2 * free, 1)
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if os.path.lexists(name(middle)) else (taken, middle)
    return name(free)


def set_aside(path: Path) -> Path | None:
    """Rename a file, folder or link to the next free name; returns that name, None if there is nothing to rename."""
    if not os.path.lexists(path):
        return None
    free = next_free(path)
    os.rename(path, free)
    return free


def append_lines(lines: Sequence[str], path: Path) -> None:
    """Add lines to a file, in one piece; what else has its name, a link or a pipe, is renamed and not written through.

    A last line that a crash has torn stays by itself. Names that are no UTF-8 keep their bytes.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        set_aside(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags, 0o666), "ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        text = "".join(f"{line}\n" for line in lines)
        file.write(b"\n" * torn + text.encode("utf-8", "surrogateescape"))


def lines_of(path: Path) -> list[str]:
    """The lines of a file, bytes that are no UTF-8 replaced; none if it cannot be read, or is a pipe or a device."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        pass
    return []

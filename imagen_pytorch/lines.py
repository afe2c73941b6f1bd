"""Files of lines that runs append to, written to the named file itself and never through a link or into a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path


def next_free(path: Path) -> Path:
    """Return the path itself or, if it exists, the first free name with -1, -2 and so on after its stem.

    A link counts as a file that exists, also one that leads nowhere. The end of a long series is found by bisection. A
    gap in the series may be passed over.
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


def backup(path: Path) -> Path | None:
    """Rename a file, folder or link to the next free name and return that name, or None if there is nothing to
    rename."""
    if not os.path.lexists(path):
        return None
    free = next_free(path)
    os.rename(path, free)
    return free


def append_lines(lines: Sequence[str], path: Path) -> None:
    """Append lines to a file, in one piece. A link or a pipe of that name is renamed and not written through.

    A last line that a crash has cut off stays by itself. Names that are not UTF-8 keep their bytes.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        backup(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags, 0o666), "ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        text = "".join(f"{line}\n" for line in lines)
        file.write(b"\n" * torn + text.encode("utf-8", "surrogateescape"))


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file, with invalid UTF-8 replaced. Empty if it is not a readable file."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        pass
    return []

"""Text from files, captions and names, made safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress

#: categories of characters that are escaped: control, lone surrogates, line and paragraph separators
ESCAPED = ("Cc", "Cs", "Zl", "Zp")
#: classes of characters that change the direction of a line, and with it what a reader sees
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
#: largest number of characters of a value that is shown
MAX_LENGTH = 200


def _is_plain(char: str) -> bool:
    return unicodedata.category(char) not in ESCAPED and unicodedata.bidirectional(char) not in _TURNING


def printable(text: object) -> str:
    r"""Escape a text for messages and terminals: invalid UTF-8 and control characters become ``\xff``, ``\n``."""
    text = str(text)
    with suppress(UnicodeEncodeError):  # surrogates that do not come from a file name are escaped below
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode() for char in text)


def excerpt(value: object, most: int = MAX_LENGTH) -> str:
    """Return a value from a file as it is shown: printable, and cut after ``most`` characters."""
    text = str(value)
    return printable(text) if len(text) <= most else f"{printable(text[:most])} ..."


def first_of(names: Sequence[str]) -> str:
    """Return the first of several names and the number of the others: "a", "a and 2 more"."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]

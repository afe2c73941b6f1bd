"""Names of files from captions, and files that never replace others."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL import Image

#: characters that some file system refuses, and control characters
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST = 255
#: room for "-unet1", "-12" and the suffix
_ROOM = 24


def slug(caption: str) -> str:
    """A caption as a file name without its suffix: safe on every file system, at most 255 bytes with the suffix."""
    name = caption.replace("-", "_").replace(",", "").replace(" ", "_").replace("|", "--")
    name = _UNSAFE.sub("_", name).strip("-_./\\")
    name = name.encode("utf-8")[: _LONGEST - _ROOM].decode("utf-8", errors="ignore").rstrip("-_. ")
    return name or "sample"


def numbered(path: Path) -> list[Path]:
    """The path itself, then with -1, -2 and so on behind its stem, up to the first that does not exist."""
    found = [path]
    while found[-1].exists():
        found.append(path.with_name(f"{path.stem}-{len(found)}{path.suffix}"))
    return found


def write_new(contents: bytes, path: Path) -> Path:
    """Write a file that does not exist yet, under this name or the next free one; its folder is made.

    Returns:
        where it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        free = numbered(path)[-1]
        try:
            with open(free, "xb") as file:
                file.write(contents)
        except FileExistsError:  # another process was faster
            continue
        return free


def set_aside(path: Path) -> None:
    """Rename a file to the next free name, if there is one."""
    if path.exists():
        os.rename(path, numbered(path)[-1])


def check_picture_name(path: Path) -> None:
    """Refuse a file name whose suffix is no kind of picture that can be written.

    Raises:
        click.UsageError: naming some that can.
    """
    from PIL import Image

    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in known:
        raise click.UsageError(f'"{path.suffix}" of {path} is no kind of picture; use .png, .webp or .jpg')


def encoded(picture: Image.Image, suffix: str = ".png") -> bytes:
    """A picture as the contents of a file with this suffix."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions()[suffix.lower()]
    if kind == "JPEG" and picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()

"""Names of files from captions, and files that never replace others."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Sequence
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
#: where the number of a frame stands in a file name: %d, %4d or %04d
_NUMBER = re.compile(r"%0?\d*d")


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


def check_place(path: Path) -> None:
    """Make the folder of a file and see that files can be made in it, before the work for them begins.

    Raises:
        click.UsageError: they cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = os.strerror(error.errno)
        raise click.UsageError(f"cannot write to the folder {path.parent}: {reason}; choose another one") from error


def set_aside(path: Path) -> None:
    """Rename a file to the next free name, if there is one."""
    if path.exists():
        os.rename(path, numbered(path)[-1])


def counts_frames(path: Path) -> bool:
    """Whether a file name has a place for the number of a frame, and so stands for one file per frame."""
    return len(_NUMBER.findall(path.name)) == 1


def _numbered_frame(path: Path, number: int) -> Path:
    return path.with_name(_NUMBER.sub(lambda found: found[0] % number, path.name))


def put_before_number(path: Path, word: str) -> Path:
    """The name of another series of frames: with a word before their numbers."""
    start = _NUMBER.search(path.name).start()
    return path.with_name(f"{path.name[:start]}{word}-{path.name[start:]}")


def without_number(path: Path) -> Path:
    """The name of something that belongs to a series of frames as a whole."""
    stem = _NUMBER.sub("", path.stem).strip("-_. ")
    return path.with_name(f"{stem or 'sample'}{path.suffix}")


def write_series(frames: Sequence[bytes], path: Path) -> list[Path]:
    """Write one new file per frame, numbered from 1; if one of them exists, all get another number before their own.

    Returns:
        where they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt, free = 0, path
    while True:
        names = [_numbered_frame(free, number) for number in range(1, len(frames) + 1)]
        if not any(name.exists() for name in names):
            for name, contents in zip(names, frames, strict=True):
                name.write_bytes(contents)
            return names
        attempt += 1
        free = put_before_number(path, str(attempt))


def picture_suffixes() -> set[str]:
    """The suffixes of all kinds of pictures that can be written."""
    from PIL import Image

    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}


def check_picture_name(path: Path) -> None:
    """Refuse a file name whose suffix is no kind of picture that can be written.

    Raises:
        click.UsageError: naming some that can.
    """
    if path.suffix.lower() not in picture_suffixes():
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

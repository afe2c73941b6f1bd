"""Names of files from captions, and files that never replace others."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..image_metadata import save_options
from ..io.atomic import replacing
from ..lines import append_lines, backup, next_free
from ..wording import printable

if TYPE_CHECKING:
    from PIL import Image

#: characters that some file system refuses
_UNSAFE = re.compile(r'[/\\:*?"<>|]')
#: categories of characters that steer a terminal, turn a line around or end it, or that no encoding has
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
#: stems that name devices on Windows, with any suffix
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(?=\.|$)", re.IGNORECASE)
_MAX_NAME_BYTES = 255
#: room for "-unet1", "-12" and the suffix
_ROOM = 24
#: where the number of a frame stands in a file name: %d, %4d or %04d
_NUMBER = re.compile(r"%0?\d*d")
#: how often a name is chosen anew because another process took it first
_ATTEMPTS = 1000
#: the list of what these commands have written into a folder: data sets pass over what is named in it
OUTPUTS = ".imagen-outputs"
#: where the context of a call with --json keeps its results
COLLECTED = "imagen.collected"


# -- names ------------------------------------------------------------------------------------------------------------


def slug(caption: str) -> str:
    """Turn a caption into a file name without suffix: safe on every file system, at most 255 bytes with the suffix."""
    caption = caption[:_MAX_NAME_BYTES]
    name = caption.replace("-", "_").replace(",", "").replace(" ", "_").replace("|", "--")
    name = "".join("_" if unicodedata.category(char) in _INVISIBLE else char for char in name)
    name = _UNSAFE.sub("_", name).strip("-_./\\~")
    name = name.encode("utf-8")[: _MAX_NAME_BYTES - _ROOM].decode("utf-8", errors="ignore").rstrip("-_. ")
    return _DEVICES.sub(r"\1_", name, count=1) if _DEVICES.match(name) else name or "sample"


def tell(path: str | Path) -> None:
    """Print the path of a result: unchanged for programs, with control characters escaped on a terminal. With --json it
    becomes an entry of the object that the command prints at its end."""
    if found := collected():
        found["outputs"].append(os.fspath(path))
    elif sys.stdout is not None:  # closed before the start
        click.echo(printable(path) if sys.stdout.isatty() else os.fsencode(path))


def show(text: str) -> None:
    """Print a result that is text; with --json it becomes an entry of the object, too."""
    if found := collected():
        found["text"] = "\n".join(filter(None, [found.get("text"), text]))
    else:
        click.echo(text)


def collected() -> dict[str, Any] | None:
    """Return the object in which a command with --json collects its results; None without --json."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(COLLECTED)


# -- writing ----------------------------------------------------------------------------------------------------------


def _create(contents: bytes, path: Path) -> None:
    """Write a file that does not exist yet; one that cannot be finished is removed.

    Raises:
        FileExistsError: something has this name, if only a link that leads nowhere.
        OSError: it cannot be written.
    """
    with open(path, "xb") as file:
        try:
            file.write(contents)
            file.flush()
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def write_new(contents: bytes, path: Path, listed: bool = True) -> Path:
    """Write a file that does not exist yet, under this name or the next free one; its folder is made.

    Args:
        contents: of the file.
        path: its name.
        listed: add it to the list of outputs, as images have to be, so that data sets pass over them.

    Returns:
        where it is.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        free = next_free(path)
        try:
            _create(contents, free)
        except FileExistsError:  # another process was faster
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        break
    if listed:
        remember([free])
    return free


def replace_file(contents: bytes, path: Path) -> None:
    """Write a file in place of the one of this name, which is whole until then; a link gives way and is not followed.

    Raises:
        OSError: it cannot be written, or a folder has this name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            file.write(contents)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def overwrite(contents: bytes, path: Path) -> None:
    """Write an image, sheet, video or curve in place of the one of this name, as `replace_file` does.

    Raises:
        OSError: it cannot be written, or a folder has this name.
    """
    replace_file(contents, path)
    if path.name not in listed_outputs(path.parent):
        remember([path])


def set_aside(path: Path) -> None:
    """Rename what has this name, unless these commands wrote it."""
    if path.name not in listed_outputs(path.parent):
        backup(path)


def replace_own(contents: bytes, path: Path) -> None:
    """Write a file in place of the one that these commands wrote under this name; another one is set aside.

    Raises:
        OSError: it cannot be written.
    """
    set_aside(path)
    overwrite(contents, path)


def remember(paths: Sequence[Path]) -> None:
    """Add names of one folder to the list of outputs in it, if that can be written."""
    with suppress(OSError, UnicodeError):
        append_lines([path.name for path in paths if "\n" not in path.name], paths[0].parent / OUTPUTS)


def listed_outputs(folder: Path) -> set[str]:
    """The names of what these commands have written into a folder."""
    listed = folder / OUTPUTS
    with suppress(OSError, UnicodeError):
        if stat.S_ISREG(os.lstat(listed).st_mode):
            return set(listed.read_bytes().decode("utf-8", "surrogateescape").split("\n"))
    return set()


def backup_output(path: Path) -> None:
    """Rename a file that these commands write, if there is one; it stays in the list of outputs under its new name."""
    is_listed = path.name in listed_outputs(path.parent)
    renamed = backup(path)
    if renamed is not None and is_listed:
        remember([renamed])


def check_place(path: Path) -> None:
    """Make the folder of a file and check that files can be made in it, before the work for them begins.

    Raises:
        click.UsageError: they cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "it is a file, or below one" if is_file else os.strerror(error.errno)
        raise click.UsageError(f"cannot write to the folder {path.parent}: {reason}; choose another one") from error


# -- series of frames -------------------------------------------------------------------------------------------------


def counts_frames(path: Path) -> bool:
    """Return whether a file name has a place for the number of a frame, and so stands for one file per frame."""
    return len(_NUMBER.findall(path.name)) == 1


def _numbered_frame(path: Path, number: int) -> Path:
    return path.with_name(_NUMBER.sub(lambda found: found[0] % number, path.name))


def prefix_number(path: Path, word: str) -> Path:
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

    Raises:
        OSError: one of them cannot be written; those before it are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt, taken, free = 0, 0, path
    while True:
        names = [_numbered_frame(free, number) for number in range(1, len(frames) + 1)]
        if not any(map(os.path.lexists, names)):
            try:
                _create_all(frames, names)
            except FileExistsError:  # another process was faster
                taken += 1
                if taken == _ATTEMPTS:
                    raise
            else:
                break
        attempt += 1
        free = prefix_number(path, str(attempt))
    remember(names)
    return names


def _create_all(frames: Sequence[bytes], names: Sequence[Path]) -> None:
    """Write all files, or none of them."""
    made: list[Path] = []
    try:
        for name, contents in zip(names, frames, strict=True):
            _create(contents, name)
            made.append(name)
    except BaseException:
        for name in made:
            with suppress(OSError):
                name.unlink()
        raise


# -- kinds of images ------------------------------------------------------------------------------------------------


def image_suffixes() -> set[str]:
    """The suffixes of all image formats that can be written."""
    from PIL import Image

    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}


def check_image_name(path: Path, mode: str = "RGB") -> None:
    """Refuse a file name whose suffix is not an image format, or one that cannot hold images of this mode.

    Raises:
        click.UsageError: naming some that can.
    """
    from PIL import Image

    if path.suffix.lower() not in image_suffixes():
        raise click.UsageError(f'"{path.suffix}" of {path} is not an image format; use .png, .webp or .jpg')
    try:
        encoded(Image.new(mode, (8, 8)), path.suffix)
    except (OSError, ValueError, KeyError) as error:  # formats of one bit, and those that need another program
        raise click.UsageError(
            f'"{path.suffix}" of {path} cannot hold images of the mode {mode} ({error}); use .png, .webp or .jpg'
        ) from error


def encoded(image: Image.Image, suffix: str = ".png", texts: Mapping[str, str] | None = None) -> bytes:
    """An image as the contents of a file with this suffix, with the texts in it as `save_options` says."""
    from PIL import Image

    Image.init()
    kind = Image.registered_extensions()[suffix.lower()]
    if kind == "JPEG" and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **save_options(kind, texts))
    return buffer.getvalue()

"""Encoded pictures as a viewer shows them: which are refused, and what becomes of unusual kinds."""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..images import Size, from_pil
from ..wording import printable
from .skipping import DataError

if TYPE_CHECKING:
    from PIL import Image

#: Pixels of a picture or frame, at most; one whose header claims more is refused before anything is unpacked.
MOST_PIXELS = 2**27

#: Pixels from which on a picture much larger than needed is reduced by a whole factor before it becomes floats.
MANY_PIXELS = 2**24

#: Formats that Pillow knows but that are no pictures, that would start another program, or whose header does not tell
#: how large the image is that will be unpacked (BLP, ICNS, ICO).
REFUSED = ("BLP", "BUFR", "EPS", "FITS", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PCD", "SPIDER", "WMF")

#: Limits of a TIFF tile, which is unpacked as a whole: pixels, and multiples of the image's pixels.
TILE_PIXELS, TILE_SHARE = 2**22, 4

#: Packages that teach Pillow further formats once they are imported; what to call then, if anything.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}

#: Endings of images that are not read without such a package, with the name to install it by, if there is one.
UNREAD = {
    **dict.fromkeys(("heic", "heif", "hif"), "pillow-heif"),
    "jxl": "pillow-jxl-plugin",
    **dict.fromkeys(("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"), None),
}

#: Numbers of TIFF tags.
BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 258, 262, 322, 323

#: Characters of a reason, at most.
LONGEST_REASON = 120


# -- words ------------------------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Why something cannot be read, in a few words on one line and without its path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "no picture"
    if isinstance(error, FileNotFoundError):
        return "missing"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    text = printable(" ".join(text.split()))
    if "truncated" in text.lower() and text.startswith(("image file", "Truncated", "OSError", "SyntaxError")):
        return "truncated"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


@contextmanager
def as_damage() -> Iterator[None]:
    """What damage raises depends on the format and on where it is: every exception becomes an ``OSError``.

    Lack of memory becomes one with its own number, which is no damage, and a `DataError` passes unchanged.
    """
    try:
        yield
    except (OSError, DataError):
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


# -- what is refused --------------------------------------------------------------------------------------------------


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse a picture that would take too much memory.

    Args:
        size: (width, height) or (height, width).

    Raises:
        OSError: it has none or too many pixels.
    """
    if min(size) < 1:
        raise OSError("no pixels in it")
    if math.prod(size) > MOST_PIXELS:
        raise OSError(f"too large: {size[0]} x {size[1]} pixels, {MOST_PIXELS // 10**6} million are the most")


def check_header(picture: Image.Image) -> None:
    """Refuse an image of which only the header has been read, and that would take too much memory.

    Raises:
        OSError: it has none or too many pixels, or what would be unpacked for it has.
    """
    check_pixels(picture.size)
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2", {})
        tile = tuple(side if isinstance(side, int) else 0 for side in map(tags.get, (TILE_WIDTH, TILE_HEIGHT)))
        if math.prod(tile) > min(MOST_PIXELS, max(TILE_PIXELS, TILE_SHARE * math.prod(picture.size))):
            raise OSError(
                f"too large: a tile of {tile[0]} x {tile[1]} for {picture.size[0]} x {picture.size[1]} pixels"
            )


def check_file(path: str | Path) -> None:
    """Refuse what is no file with something in it; reading a pipe or a device might never end.

    Raises:
        OSError: it is missing, empty, a folder, or no file at all.
    """
    with as_damage():
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("a folder" if stat.S_ISDIR(found.st_mode) else "no file")
    if not found.st_size:
        raise OSError("empty file")


@functools.cache
def _load_plugins() -> None:
    """Teach Pillow the formats of the packages that are installed."""
    for module, register in PLUGINS.items():
        if importlib.util.find_spec(module) is not None:
            with suppress(Exception):  # a package that does not fit this Pillow: its formats stay unread
                plugin = importlib.import_module(module)
                if register is not None:
                    getattr(plugin, register)()


def _formats() -> list[str]:
    """The formats that are read."""
    from PIL import Image

    Image.init()
    _load_plugins()
    return [name for name in Image.ID if name not in REFUSED]


def is_read(ending: str) -> bool:
    """Whether files with this ending are images that can be read."""
    from PIL import Image

    formats = _formats()
    return Image.registered_extensions().get(f".{ending.lower()}") in formats


def unread_reason(ending: str) -> str:
    """Why images with an ending of `UNREAD` are left out, and what to do."""
    package = UNREAD[ending.lower()]
    install = f", or pip install {package}" if package else ""
    return f"{ending.upper()} is not read: convert it to JPEG or PNG{install}"


@contextmanager
def opened(source: Any) -> Iterator[Image.Image]:
    """A picture of which only the header has been read.

    Args:
        source: a path, the bytes of a file, or an open binary file.

    Raises:
        OSError: no picture, one that is too large, or damage, also what shows only while the picture is used.
    """
    from PIL import Image

    with as_damage():
        if isinstance(source, str | Path):
            check_file(source)
        if isinstance(source, bytes):
            if not source:
                raise OSError("empty file")
            source = io.BytesIO(source)
        with Image.open(source, formats=_formats()) as picture:
            check_header(picture)
            yield picture


# -- as a viewer shows them -------------------------------------------------------------------------------------------


def decode(source: Any, size: Size) -> Image.Image:
    """A picture, read completely and turned upright; of an animation the first frame.

    Args:
        source: a path, the bytes of a file, an open binary file, or a Pillow image that is perhaps not read yet.
        size: (height, width) that is needed; a JPEG much larger than that is read at a fraction of its size.

    Raises:
        OSError: it cannot be read, for whatever reason.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with as_damage():
            check_header(source)
            source.load()
            return _shown(source, size)
    with opened(source) as picture:
        needed = 2 * max(size) / min(picture.size)
        picture.draft(picture.mode, tuple(math.ceil(side * needed) for side in picture.size))
        if picture.info.get("default_image"):
            picture.seek(1)  # what stands before it is for viewers that know no animations
        picture.load()
        return _shown(picture, size)


def pixels(picture: Image.Image, channels: int) -> Float[Tensor, "c h w"]:
    """A picture as floats in [0, 1], transparency over white unless alpha is asked for.

    Raises:
        OSError: a kind of picture that cannot be converted.
    """
    with as_damage():
        return from_pil(picture, channels)


def _shown(picture: Image.Image, size: Size) -> Image.Image:
    tags = getattr(picture, "tag_v2", {})
    return _reduced(_middle(_eight_bits(_upright(picture), tags), size), size)


def _upright(picture: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    # a damaged note about the camera says nothing about the pixels; what it raises depends on the format
    except Exception:
        return picture


def _eight_bits(picture: Image.Image, tags: Any) -> Image.Image:
    """Whole numbers of more than 8 bits, and fractions, as grey levels that keep the picture."""
    from PIL import Image

    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    numbers = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0, neginf=0)
    most = float(numbers.max())
    if picture.mode == "F":
        white = 1.0 if most <= 1 else 255.0 if most <= 255 else most
    elif tags.get(BITS) == (12,):
        white = 4095.0
    else:
        white = max(most, 65535.0)
    levels = (numbers / white).clip(0, 1)
    if tags.get(PHOTOMETRIC) == 0:  # of more than 8 bits, Pillow leaves those as they are in which 0 means white
        levels = 1 - levels
    grey = Image.fromarray((levels * 255).round().astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8)))
    return grey


def _middle(picture: Image.Image, size: Size) -> Image.Image:
    """Of a very long or very high picture the part that will be seen: resized as a whole it might take gigabytes."""
    sides, wanted = picture.size, size[::-1]
    scale = max(need / side for need, side in zip(wanted, sides, strict=True))
    box = [0, 0, *sides]
    for axis, (need, side) in enumerate(zip(wanted, sides, strict=True)):
        if side * scale > 4 * need:
            margin = (side - math.ceil(need / scale)) // 2 - 2
            box[axis], box[axis + 2] = margin, side - margin
    return picture if box == [0, 0, *sides] else picture.crop(tuple(box))


def _reduced(picture: Image.Image, size: Size) -> Image.Image:
    """A huge picture at a fraction of its size, though at least twice as large as needed, as JPEGs are read anyway."""
    factor = min(side // (2 * need) for side, need in zip(picture.size, size[::-1], strict=True))
    if factor < 2 or math.prod(picture.size) <= MANY_PIXELS:
        return picture
    if picture.mode in ("1", "P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    return picture.reduce(factor)

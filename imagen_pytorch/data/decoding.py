"""Decoding of images as a viewer shows them: formats that are refused, and conversion of unusual modes."""

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

#: Largest number of pixels of an image or frame. Larger ones are refused by their header before decoding.
MAX_PIXELS = 2**27

#: Number of pixels from which an image much larger than needed is reduced by an integer factor before it becomes
#: floats.
MANY_PIXELS = 2**24

#: Formats of Pillow that are not images, that would start another program, or whose header does not give the size of
#: the image to be decoded (BLP, ICNS, ICO).
REFUSED = ("BLP", "BUFR", "EPS", "FITS", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PCD", "SPIDER", "WMF")

#: Limits of a TIFF tile, which is decoded as a whole: pixels, and multiples of the image's pixels.
TILE_PIXELS, TILE_SHARE = 2**22, 4

#: Packages that add formats to Pillow once they are imported, and the function to call then, if any.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}

#: Endings of images that are not read without such a package, with its name, if there is one.
UNREAD = {
    **dict.fromkeys(("heic", "heif", "hif"), "pillow-heif"),
    "jxl": "pillow-jxl-plugin",
    **dict.fromkeys(("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"), None),
}

#: Numbers of TIFF tags.
BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 258, 262, 322, 323

#: Largest number of characters of a reason.
MAX_REASON_LENGTH = 120


# -- words ------------------------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Return a short reason why something cannot be read, on one line and without its path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "missing"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    text = printable(" ".join(text.split()))
    if "truncated" in text.lower() and text.startswith(("image file", "Truncated", "OSError", "SyntaxError")):
        return "truncated"
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]} ..."


@contextmanager
def as_oserror() -> Iterator[None]:
    """Convert every exception of damaged data to an ``OSError``, since its type depends on the format and on the
    damage.

    Lack of memory becomes one with its own number, which does not count as damage. A `DataError` passes unchanged.
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
    """Check that an image does not take too much memory.

    Args:
        size: (width, height) or (height, width).

    Raises:
        OSError: it has none or too many pixels.
    """
    if min(size) < 1:
        raise OSError("no pixels in it")
    if math.prod(size) > MAX_PIXELS:
        raise OSError(f"too large: {size[0]} x {size[1]} pixels, {MAX_PIXELS // 10**6} million are the most")


def check_header(image: Image.Image) -> None:
    """Check from the header of an image that it does not take too much memory.

    Raises:
        OSError: it has none or too many pixels, or its tiles have.
    """
    check_pixels(image.size)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        tile = tuple(side if isinstance(side, int) else 0 for side in map(tags.get, (TILE_WIDTH, TILE_HEIGHT)))
        if math.prod(tile) > min(MAX_PIXELS, max(TILE_PIXELS, TILE_SHARE * math.prod(image.size))):
            raise OSError(f"too large: a tile of {tile[0]} x {tile[1]} for {image.size[0]} x {image.size[1]} pixels")


def check_file(path: str | Path) -> None:
    """Check that a path is a file that is not empty. Reading a pipe or a device might never end.

    Raises:
        OSError: it is missing, empty, a folder, or not a file.
    """
    with as_oserror():
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("a folder" if stat.S_ISDIR(found.st_mode) else "not a file")
    if not found.st_size:
        raise OSError("empty file")


@functools.cache
def _load_plugins() -> None:
    """Add the formats of installed packages to Pillow."""
    for module, register in PLUGINS.items():
        if importlib.util.find_spec(module) is not None:
            with suppress(Exception):  # a package that does not fit this Pillow: its formats stay unread
                plugin = importlib.import_module(module)
                if register is not None:
                    getattr(plugin, register)()


def _formats() -> list[str]:
    """Return the formats that are read."""
    from PIL import Image

    Image.init()
    _load_plugins()
    return [name for name in Image.ID if name not in REFUSED]


def is_read(ending: str) -> bool:
    """Return true if files with this ending are images that can be read."""
    from PIL import Image

    formats = _formats()
    return Image.registered_extensions().get(f".{ending.lower()}") in formats


def unread_reason(ending: str) -> str:
    """Return the reason why images with an ending of `UNREAD` are left out, and what to do."""
    package = UNREAD[ending.lower()]
    install = f", or pip install {package}" if package else ""
    return f"{ending.upper()} is not read: convert it to JPEG or PNG{install}"


@contextmanager
def opened(source: Any) -> Iterator[Image.Image]:
    """Open an image and read its header only.

    Args:
        source: a path, the bytes of a file, or an open binary file.

    Raises:
        OSError: not an image, one that is too large, or damage, also damage that shows only while the image is used.
    """
    from PIL import Image

    with as_oserror():
        if isinstance(source, str | Path):
            check_file(source)
        if isinstance(source, bytes):
            if not source:
                raise OSError("empty file")
            source = io.BytesIO(source)
        with Image.open(source, formats=_formats()) as image:
            check_header(image)
            yield image


# -- as a viewer shows them -------------------------------------------------------------------------------------------


def decode(source: Any, size: Size | None = None) -> Image.Image:
    """Read an image completely and turn it upright; of an animation the first frame.

    Args:
        source: a path, the bytes of a file, an open binary file, or a Pillow image that need not be read yet.
        size: (height, width) that is needed; a JPEG much larger than that is read at a fraction of its size, and what a
            centre crop would leave out may be missing. None: all of the image.

    Raises:
        OSError: it cannot be read, for any reason.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with as_oserror():
            check_header(source)
            source.load()
            return _shown(source, size)
    with opened(source) as image:
        if size is not None:
            needed = 2 * max(size) / min(image.size)
            image.draft(image.mode, tuple(math.ceil(side * needed) for side in image.size))
        if image.info.get("default_image"):
            image.seek(1)  # the default image is for viewers without support for animations
        image.load()
        return _shown(image, size)


def pixels(image: Image.Image, channels: int) -> Float[Tensor, "c h w"]:
    """Convert an image to floats in [0, 1], with transparency over white or kept as alpha.

    Raises:
        OSError: a mode that cannot be converted.
    """
    with as_oserror():
        return from_pil(image, channels)


def _shown(image: Image.Image, size: Size | None) -> Image.Image:
    whole = _eight_bits(_upright(image), getattr(image, "tag_v2", {}))
    return whole if size is None else _reduced(_middle(whole, size), size)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    # damaged metadata of the camera do not concern the pixels; the exception depends on the format
    except Exception:
        return image


def _eight_bits(image: Image.Image, tags: Any) -> Image.Image:
    """Convert integers of more than 8 bits, and floats, to grey levels that preserve the image."""
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    numbers = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    most = float(numbers.max())
    if image.mode == "F":
        white = 1.0 if most <= 1 else 255.0 if most <= 255 else most
    elif tags.get(BITS) == (12,):
        white = 4095.0
    else:
        white = max(most, 65535.0)
    levels = (numbers / white).clip(0, 1)
    if tags.get(PHOTOMETRIC) == 0:  # with more than 8 bits, Pillow does not invert images in which 0 means white
        levels = 1 - levels
    grey = Image.fromarray((levels * 255).round().astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8)))
    return grey


def _middle(image: Image.Image, size: Size) -> Image.Image:
    """Crop a very long or very high image to the visible part: resized as a whole it might take gigabytes."""
    sides, wanted = image.size, size[::-1]
    scale = max(need / side for need, side in zip(wanted, sides, strict=True))
    box = [0, 0, *sides]
    for axis, (need, side) in enumerate(zip(wanted, sides, strict=True)):
        if side * scale > 4 * need:
            margin = (side - math.ceil(need / scale)) // 2 - 2
            box[axis], box[axis + 2] = margin, side - margin
    return image if box == [0, 0, *sides] else image.crop(tuple(box))


def _reduced(image: Image.Image, size: Size) -> Image.Image:
    """Reduce a huge image by an integer factor, to at least twice the size that is needed, as JPEGs are read anyway."""
    factor = min(side // (2 * need) for side, need in zip(image.size, size[::-1], strict=True))
    if factor < 2 or math.prod(image.size) <= MANY_PIXELS:
        return image
    if image.mode in ("1", "P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    return image.reduce(factor)

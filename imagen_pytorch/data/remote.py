"""Pictures in whatever form the row of a table holds them, addresses included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..images import Size
from .captions import is_text
from .decoding import as_damage, decode
from .skipping import DataError

if TYPE_CHECKING:
    from PIL import Image

#: Columns that are looked for where none is named.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "txt", "TEXT")

#: Bytes of a picture that is fetched, at most.
LARGEST = 2**26

AGENT = "imagen-pytorch data loader"


def fetch(address: str | None, timeout: float, attempts: int = 2) -> bytes:
    """What is behind an http(s) address.

    Args:
        address: of a picture; None, as an empty cell has it, is refused like any other.
        timeout: seconds without an answer after which an attempt fails.
        attempts: how often to try; a refusal (404 and the like) is final.

    Raises:
        OSError: no answer, a refusal, more than 64 MiB, or another kind of address.
    """
    if not isinstance(address, str) or not address.lower().startswith(("http://", "https://")):
        raise OSError(f"not an http address: {address}")
    for attempt in range(1, attempts + 1):
        try:
            with urlopen(Request(address, headers={"User-Agent": AGENT}), timeout=timeout) as answer:
                content = answer.read(LARGEST + 1)
            break
        except HTTPError as error:
            if error.code < 500 or attempt == attempts:
                raise
        except OSError:
            if attempt == attempts:
                raise
        # a broken answer or an impossible address: nothing that trying again would change
        except Exception as error:
            raise OSError(f"{address}: {type(error).__name__}: {error}") from error
    if len(content) > LARGEST:
        raise OSError(f"{address} is larger than {LARGEST // 2**20} MiB")
    return content


def picture_of(value: Any, size: Size) -> Image.Image:
    """A cell of a table as a picture: a Pillow image, encoded bytes, a path, an array, or a dict with bytes or path.

    Raises:
        OSError: it is empty or cannot be read.
        TypeError: nothing that could be a picture.
    """
    from PIL import Image

    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise OSError("the cell is empty")
    if isinstance(value, bytes):
        return decode(value, size)
    if isinstance(value, str | Image.Image):
        return decode(value, size)
    if hasattr(value, "__array_interface__"):
        with as_damage():
            return decode(Image.fromarray(value), size)
    raise TypeError(
        f"a picture is a Pillow image, bytes, a path, an array or a dict of these, got {type(value).__name__}"
    )


def find_column(given: str | None, usual: Iterable[str], columns: tuple[str, ...], argument: str) -> str | None:
    """The column that is named, or the first usual one that exists, or None.

    Raises:
        DataError: the named column does not exist; the message lists those that do.
    """
    if given is not None and given not in columns:
        raise DataError(f'no column "{given}"; set {argument} to one of: {", ".join(columns)}')
    return given or next((name for name in usual if name in columns), None)


def captions_of(value: Any) -> tuple[str, ...]:
    """A cell of a table as captions: one string, or several in a list.

    Raises:
        OSError: there is none.
        TypeError: something else.
    """
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a string or a list of strings, got {type(value).__name__}: {value!r}")
    kept = tuple(text.strip() for text in texts if text and text.strip() and is_text(text))
    if not kept:
        raise OSError("no caption")
    return kept

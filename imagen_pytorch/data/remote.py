"""Images in any form that a row of a table holds, URLs included."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from ..images import Size
from .captions import is_text
from .decoding import as_oserror, decode, reason_of
from .local_folder import MAX_TEXT_BYTES
from .skipping import DataError
from .trouble import OWN

if TYPE_CHECKING:
    from PIL import Image

#: Usual names of columns, used by default.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "txt", "TEXT")

#: Largest number of bytes of a fetched image.
MAX_BYTES = 2**26

#: Factor from the timeout of an attempt to the longest time that fetching an image may take.
SLOWEST = 3

#: Message for one that takes longer.
LATE = "too slow: the answer did not end in time"

AGENT = "imagen-pytorch data loader"


class NoAnswer(OSError):
    """A URL that does not answer, or not in time. A refusal is an answer."""


class _Timed(io.RawIOBase):
    """A connection with a deadline. The library's own timeout only limits pauses between bytes."""

    def __init__(self, sock: socket.socket, timeout: float, end: float) -> None:
        self.sock, self.timeout, self.end = sock, timeout, end
        self.inner = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read some bytes before the deadline."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(LATE)
        self.sock.settimeout(min(self.timeout, left))
        return self.inner.readinto(buffer)

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()
        super().close()


def _answer(end: float, timeout: float, sock: socket.socket, *args: Any, **options: Any) -> HTTPResponse:
    """Return the response of a connection, the first line and the headers included, with a deadline."""
    answer = HTTPResponse(sock, *args, **options)
    answer.fp.close()
    answer.fp = io.BufferedReader(_Timed(sock, timeout, end))
    return answer


class _Until(HTTPHandler, HTTPSHandler):
    """Opens URLs with a deadline."""

    def __init__(self, end: float) -> None:
        HTTPSHandler.__init__(self)
        self.end = end

    def _connection(self, kind: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        connection = kind(host, **options)
        connection.response_class = partial(_answer, self.end, connection.timeout)  # type: ignore[assignment]
        return connection

    def http_open(self, request: Request) -> HTTPResponse:
        """Open an http URL."""
        return self.do_open(partial(self._connection, HTTPConnection), request)

    def https_open(self, request: Request) -> HTTPResponse:
        """Open an https URL."""
        return self.do_open(partial(self._connection, HTTPSConnection), request, context=self._context)


def _opener(end: float) -> OpenerDirector:
    """Return an opener of http(s) URLs with a deadline. It redirects to such URLs only, because ftp has no deadline."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(), UnknownHandler(), HTTPDefaultErrorHandler(), HTTPRedirectHandler(),
                    HTTPErrorProcessor(), _Until(end)):  # fmt: skip
        opener.add_handler(handler)
    return opener


def fetch(address: str | None, timeout: float, attempts: int = 2) -> bytes:
    """Fetch the contents of an http(s) URL.

    Args:
        address: of an image; None, as in an empty cell, is refused like any invalid URL.
        timeout: seconds without an answer after which an attempt fails. All attempts together, and so a server that
            sends a byte now and then, may take three times as long.
        attempts: number of attempts; a refusal (404 and the like) is final.

    Raises:
        NoAnswer: no answer, or not in time.
        OSError: a refusal, more than 64 MiB, or another kind of URL. Its number shows lack of memory or of open
            files on this machine.
    """
    if not isinstance(address, str) or not address.lower().startswith(("http://", "https://")):
        raise OSError(f"not an http address: {address}")
    end = time.monotonic() + SLOWEST * timeout
    opener = _opener(end)
    for attempt in range(1, attempts + 1):
        try:
            left = max(end - time.monotonic(), 0.001)
            request = Request(address, headers={"User-Agent": AGENT})
            with opener.open(request, timeout=min(timeout, left)) as answer:
                content = answer.read(MAX_BYTES + 1)
            break
        except HTTPError as error:
            if error.code < 500 or attempt == attempts:
                raise
        except OSError as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, OSError) and reason.errno in OWN:
                raise reason from error
            if attempt == attempts or time.monotonic() >= end:
                raise NoAnswer(_reason(reason)) from error
        except MemoryError:
            raise
        # a broken answer or an invalid URL: a further attempt would not change it
        except Exception as error:
            raise OSError(f"{address}: {type(error).__name__}: {error}") from error
    if len(content) > MAX_BYTES:
        raise OSError(f"{address} is larger than {MAX_BYTES // 2**20} MiB")
    return content


def outage(addresses: Iterable[Any], timeout: float) -> str | None:
    """Return the reason why nothing can be fetched at present, or None if one of these URLs answers or there is none.

    A refusal is an answer as well. All are requested in parallel, once.
    """

    def failure(address: Any) -> str | None:
        try:
            fetch(address, timeout, attempts=1)
        except NoAnswer as error:
            return reason_of(error)
        except OSError:
            return None
        return None

    addresses = list(dict.fromkeys(addresses))
    if not addresses:
        return None
    with ThreadPoolExecutor(len(addresses)) as pool:
        reasons = list(pool.map(failure, addresses))
    return f"no address answers ({reasons[0]})" if all(reasons) else None


def _reason(error: object) -> str:
    """Return an error without its number: a lost server is not a problem of this machine."""
    if isinstance(error, TimeoutError) and str(error) == LATE:
        return LATE
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def to_pil_image(value: Any, size: Size) -> Image.Image:
    """Convert a cell of a table to an image: a Pillow image, encoded bytes, a path, an array, or a dict with bytes or
    path.

    Raises:
        OSError: it is empty or cannot be read.
        TypeError: a value of another type.
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
        with as_oserror():
            return decode(Image.fromarray(value), size)
    raise TypeError(
        f"an image is a Pillow image, bytes, a path, an array or a dict of these, got {type(value).__name__}"
    )


def find_column(given: str | None, usual: Iterable[str], columns: tuple[str, ...], argument: str) -> str | None:
    """Return the given column, or the first usual one that exists, or None.

    Raises:
        DataError: the given column does not exist; the message lists the existing ones.
    """
    if given is not None and given not in columns:
        raise DataError(f'no column "{given}"; set {argument} to one of: {", ".join(columns)}')
    return given or next((name for name in usual if name in columns), None)


def captions_of(value: Any) -> tuple[str, ...]:
    """Convert a cell of a table to captions: one string, or several in a list.

    Raises:
        OSError: no caption, or more than 1 Mi characters.
        TypeError: a value of another type.
    """
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a string or a list of strings, got {type(value).__name__}: {value!r}")
    if sum(len(text) for text in texts if text) > MAX_TEXT_BYTES:
        raise OSError(f"caption: larger than {MAX_TEXT_BYTES // 2**20} MiB")
    kept = tuple(text.strip() for text in texts if text and text.strip() and is_text(text))
    if not kept:
        raise OSError("no caption")
    return kept

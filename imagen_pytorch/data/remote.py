"""Pictures in whatever form the row of a table holds them, addresses included."""

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
from .decoding import as_damage, decode, reason_of
from .local_folder import LARGEST_TEXT
from .skipping import DataError
from .trouble import OWN

if TYPE_CHECKING:
    from PIL import Image

#: Columns that are looked for where none is named.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "txt", "TEXT")

#: Bytes of a picture that is fetched, at most.
LARGEST = 2**26

#: A picture that is fetched may take so many times the seconds after which silence ends an attempt.
SLOWEST = 3

#: What is said of one that takes longer.
LATE = "too slow: the answer did not end in time"

AGENT = "imagen-pytorch data loader"


class NoAnswer(OSError):
    """An address that does not answer, or not in time; a refusal is an answer."""


class _Timed(io.RawIOBase):
    """A connection that answers until a moment; the library's own timeout only limits how long it says nothing."""

    def __init__(self, sock: socket.socket, timeout: float, end: float) -> None:
        self.sock, self.timeout, self.end = sock, timeout, end
        self.inner = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Some bytes."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(LATE)
        self.sock.settimeout(min(self.timeout, left))
        return self.inner.readinto(buffer)

    def close(self) -> None:
        """Let go of the connection."""
        self.inner.close()
        super().close()


def _answer(end: float, timeout: float, sock: socket.socket, *args: Any, **options: Any) -> HTTPResponse:
    """What comes through a connection, the first line and the headers included, until a moment."""
    answer = HTTPResponse(sock, *args, **options)
    answer.fp.close()
    answer.fp = io.BufferedReader(_Timed(sock, timeout, end))
    return answer


class _Until(HTTPHandler, HTTPSHandler):
    """Opens addresses whose answers end at a moment."""

    def __init__(self, end: float) -> None:
        HTTPSHandler.__init__(self)
        self.end = end

    def _connection(self, kind: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        connection = kind(host, **options)
        connection.response_class = partial(_answer, self.end, connection.timeout)  # type: ignore[assignment]
        return connection

    def http_open(self, request: Request) -> HTTPResponse:
        """Open an http address."""
        return self.do_open(partial(self._connection, HTTPConnection), request)

    def https_open(self, request: Request) -> HTTPResponse:
        """Open an https address."""
        return self.do_open(partial(self._connection, HTTPSConnection), request, context=self._context)


def _opener(end: float) -> OpenerDirector:
    """Opens http(s) addresses until a moment, and follows redirections to other ones alone: ftp knows no moment."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(), UnknownHandler(), HTTPDefaultErrorHandler(), HTTPRedirectHandler(),
                    HTTPErrorProcessor(), _Until(end)):  # fmt: skip
        opener.add_handler(handler)
    return opener


def fetch(address: str | None, timeout: float, attempts: int = 2) -> bytes:
    """What is behind an http(s) address.

    Args:
        address: of a picture; None, as an empty cell has it, is refused like any other.
        timeout: seconds without an answer after which an attempt fails; all of them together, and so a server that
            sends a byte now and then, may take three times as long.
        attempts: how often to try; a refusal (404 and the like) is final.

    Raises:
        NoAnswer: nobody answers, or not in time.
        OSError: a refusal, more than 64 MiB, or another kind of address. Its number tells lack of memory or of open
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
                content = answer.read(LARGEST + 1)
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
        # a broken answer or an impossible address: nothing that trying again would change
        except Exception as error:
            raise OSError(f"{address}: {type(error).__name__}: {error}") from error
    if len(content) > LARGEST:
        raise OSError(f"{address} is larger than {LARGEST // 2**20} MiB")
    return content


def silence(addresses: Iterable[Any], timeout: float) -> str | None:
    """Why nothing can be fetched at present: none of these addresses answers; None if one does, or there is none.

    A refusal is an answer as well. All are asked side by side, once.
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
    """An error without its number: a server that is gone is no trouble of this machine."""
    if isinstance(error, TimeoutError) and str(error) == LATE:
        return LATE
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
        OSError: there is none, or more than 1 Mi characters.
        TypeError: something else.
    """
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a string or a list of strings, got {type(value).__name__}: {value!r}")
    if sum(len(text) for text in texts if text) > LARGEST_TEXT:
        raise OSError(f"caption: larger than {LARGEST_TEXT // 2**20} MiB")
    kept = tuple(text.strip() for text in texts if text and text.strip() and is_text(text))
    if not kept:
        raise OSError("no caption")
    return kept

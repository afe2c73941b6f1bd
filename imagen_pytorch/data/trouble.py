"""Problems of the machine, its storage or its network, as opposed to damage of the file that was being read."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from .decoding import reason_of
from .skipping import DataUnavailable

Got = TypeVar("Got")

#: Number of attempts, and seconds before the second one; they double.
ATTEMPTS, PAUSE = 3, 0.5

#: Numbers of temporary errors that no damage of a file causes. EAGAIN is not among them: decoders of videos return it
#: for damage.
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EBUSY", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE"),
        *("ENOBUFS", "ENODEV", "ENOLCK", "ENOMEM", "ENOTCONN", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)

#: Those of them that only this machine causes, independent of servers.
OWN = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


def is_trouble(error: BaseException) -> bool:
    """Return true for an error of the machine, its storage or its network, and not of a file."""
    if isinstance(error, MemoryError | TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in PASSING


def unavailable(what: str, reason: str) -> DataUnavailable:
    """Return the error for data that cannot be read at present."""
    return DataUnavailable(
        f"{what} cannot be read at present: {reason}. This is a problem of the machine, its storage or its network, "
        "not of the data; nothing was left out, and the same command can be run again"
    )


def retry(ask: Callable[[], Got], what: str, may_pass: Callable[[BaseException], bool] = is_trouble) -> Got:
    """Call a function up to three times, with pauses, while it raises temporary errors.

    Args:
        ask: the function.
        what: name of the result, for the message.
        may_pass: returns true for an error that is temporary.

    Raises:
        DataUnavailable: a problem of the machine, every time.
        OSError: any other error that ``may_pass``, every time.
        Exception: an error that is not temporary, unchanged.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except Exception as error:
            if not may_pass(error):
                raise
            if attempt == ATTEMPTS:
                reason = f"{reason_of(error)} (tried {ATTEMPTS} times)"
                raise (unavailable(what, reason) if is_trouble(error) else OSError(reason)) from error
        time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def damage_of(check: Callable[[], object], what: str) -> str | None:
    """Return the reason why something cannot be used, or None if it can.

    Args:
        check: raises an ``OSError`` if it cannot.
        what: name of the object, for the message.

    Raises:
        DataUnavailable: a problem of the machine.
    """
    try:
        retry(check, what)
    except OSError as error:
        return reason_of(error)
    return None

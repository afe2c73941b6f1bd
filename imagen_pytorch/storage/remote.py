"""Object stores and other places behind a network: calls that are tried again, and files moved in one piece."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .errors import CheckpointUnreachable, reason
from .places import is_local, parent_of

#: seconds between attempts; there is one attempt more than waits
WAITS = (0.5, 2.0)
#: answers that another attempt would get again
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def attempts(action: Callable[[], Any]) -> Any:
    """The result of a call, which is tried again after a while unless the answer is clear."""
    for wait in WAITS:
        try:
            return action()
        except _FINAL:
            raise
        except Exception:  # every store has errors of its own
            time.sleep(wait)
    return action()


def forget_listings(fs: Any, path: str) -> None:
    """Let the next look at a path and its folder go to the store itself."""
    fs.invalidate_cache(path)
    fs.invalidate_cache(parent_of(path))


def kind_of(fs: Any, path: str) -> str | None:
    """What is at a path: "file", "directory", "other", or None for nothing.

    Raises:
        CheckpointUnreachable: the store does not tell.
    """
    if is_local(fs):
        if os.path.isdir(path):
            return "directory"
        return "file" if os.path.isfile(path) else "other" if os.path.lexists(path) else None
    try:
        forget_listings(fs, path)
        return str(attempts(lambda: fs.info(path))["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # every store has errors of its own
        raise CheckpointUnreachable(f"cannot see what is at {path}: {reason(error)}") from error


def put_file(fs: Any, local: str, path: str) -> None:
    """Create an object from a local file in one piece and see that all of it arrived."""
    wanted = os.path.getsize(local)

    def put() -> None:
        fs.put_file(local, path)
        forget_listings(fs, path)
        arrived = fs.size(path)
        if arrived != wanted:
            raise OSError(f"{arrived} of {wanted} bytes arrived")

    attempts(put)


def get_file(fs: Any, path: str, local: str) -> None:
    """Copy an object to a local file and see that all of it arrived."""

    def get() -> None:
        wanted = fs.size(path)
        fs.get_file(path, local)
        arrived = os.path.getsize(local)
        if wanted is not None and arrived != wanted:
            raise OSError(f"{arrived} of {wanted} bytes arrived")

    attempts(get)

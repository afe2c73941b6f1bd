"""Paths and fsspec URLs: their file system, what is there, and calls that are retried."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..registry import no_file_system
from .errors import CheckpointMisaddressed, CheckpointNotWritten, CheckpointUnreachable, errors_as, reason

#: packages that open the URLs of the large object stores
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}
#: stores without folders: making one would make a bucket, perhaps that of a misspelt name
_WITHOUT_FOLDERS = {*_PACKAGES, "abfs", "abfss", "az"}
#: seconds between the attempts of a call
WAITS = (0.5, 2.0)
#: answers that another attempt would get again
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


# -- addresses --------------------------------------------------------------------------------------------------------


def _protocols() -> set[str]:
    from fsspec import available_protocols
    from fsspec.registry import registry

    return {*available_protocols(), *registry}


def locate(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path as that file system spells it.

    A name without ``://`` is a local one, whatever else is in it; ``::`` chains URLs only where one of them has ``://``.

    Args:
        path: a local path or any fsspec URL such as ``s3://bucket/a.pt``.
        fs: a ready file system to use in place of the one that the URL names.
        fs_kwargs: arguments for making the file system.

    Raises:
        CheckpointMisaddressed: a URL of an unknown kind, or one whose file system cannot be opened.
    """
    text = str(path)
    with errors_as(CheckpointMisaddressed, f"cannot open {path}"):
        if fs is not None:
            return fs, fs._strip_protocol(text)
        if "://" not in text:
            return _locate_local(text, fs_kwargs or {})
        return open_url(text, fs_kwargs or {})


def open_url(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the file system of a URL, made with these arguments, and the path as that file system spells it.

    Raises:
        ValueError: an unknown protocol, also of a URL in a chain.
        ImportError: the package of the file system is not installed; the message says how to install it.
    """
    from fsspec.core import url_to_fs

    *outer, last = url.split("::")
    known = tuple(sorted(_protocols()))
    for part in (*outer, *([last] if "://" in last else [])):
        if (protocol := part.partition("://")[0]) not in known:
            raise ValueError(no_file_system(protocol, known))
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(url.partition("://")[0].split("::")[-1])
        hint = f"; pip install {package}" if package else ""
        raise ImportError(f"{' '.join(str(error).split())}{hint}") from error


def _locate_local(text: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    from fsspec.implementations.local import LocalFileSystem

    protocol, slash, _ = text.partition(":/")
    if slash and protocol in _protocols() - {"file", "local"} and not os.path.isdir(f"{protocol}:"):
        # a URL that has lost a slash, as in a `Path`
        raise CheckpointMisaddressed(f"cannot open {text}: write {protocol}:// with two slashes, as a string")
    if text.startswith(("file:", "local:")) and not text.startswith("file:/"):
        text = f"./{text}"  # fsspec would take the beginning of the name for a protocol
    place = LocalFileSystem._strip_protocol(text)
    # "~name" stays as it is where no such user exists
    return LocalFileSystem(**options), place if os.path.isabs(place) else f"{os.getcwd()}/{place}"


def is_local(fs: Any) -> bool:
    """Return whether paths of this file system are paths of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def ends_with_process(fs: Any) -> bool:
    """Return whether what is written there is lost when the process ends, as in ``memory://``."""
    from fsspec.implementations.memory import MemoryFileSystem

    while fs is not None and not isinstance(fs, MemoryFileSystem):
        fs = getattr(fs, "fs", None)  # of a file system around another one, such as a cache
    return fs is not None


def parent_of(path: str) -> str:
    """Return the folder of a path with forward slashes."""
    return path.rsplit("/", 1)[0] if "/" in path else ""


def name_of(path: Any) -> str:
    """Return the last part of a path with forward slashes."""
    return str(path).rstrip("/").rsplit("/", 1)[-1]


# -- calls ------------------------------------------------------------------------------------------------------------


def retry(action: Callable[[], Any]) -> Any:
    """Call a function up to three times, with pauses, until it does not fail or the answer is final."""
    for wait in WAITS:
        try:
            return action()
        except _FINAL:
            raise
        except Exception:  # every store has errors of its own
            time.sleep(wait)
    return action()


def forget_listings(fs: Any, path: str) -> None:
    """Drop what fsspec remembers about a path and its folder, so that the next look goes to the store."""
    fs.invalidate_cache(path)
    fs.invalidate_cache(parent_of(path))


def kind_of(fs: Any, path: str) -> str | None:
    """Return what is at a path: "file", "directory", "other", or None for nothing; a CheckpointUnreachable if the store
    does not answer."""
    if is_local(fs):
        if os.path.isdir(path):
            return "directory"
        return "file" if os.path.isfile(path) else "other" if os.path.lexists(path) else None
    with errors_as(CheckpointUnreachable, f"cannot see what is at {path}"):
        forget_listings(fs, path)
        try:
            return str(retry(lambda: fs.info(path))["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


def names_in(fs: Any, folder: str) -> list[str]:
    """Return the names in a folder, as the file system has them now."""
    forget_listings(fs, folder)
    listed = retry(lambda: fs.ls(folder, detail=False))
    return [name_of(path) for path in listed if str(path).rstrip("/") != folder]  # some list the folder in itself


def sizes_in(fs: Any, folder: str) -> dict[str, int]:
    """Return the names and sizes in bytes of the files in a folder, as the file system has them now."""
    forget_listings(fs, folder)
    listed = retry(lambda: fs.ls(folder, detail=True))
    return {name_of(item["name"]): item["size"] for item in listed if item["type"] == "file"}


def put_file(fs: Any, local: str, path: str) -> None:
    """Create an object from a local file in one piece, and check that all of it arrived."""
    wanted = os.path.getsize(local)

    def put() -> None:
        fs.put_file(local, path)
        forget_listings(fs, path)
        if (arrived := fs.size(path)) != wanted:
            raise OSError(f"{arrived} of {wanted} bytes arrived")

    retry(put)


def get_file(fs: Any, path: str, local: str) -> None:
    """Copy an object to a local file, after a look at the disk space, and check that all of it arrived."""

    def get() -> None:
        fs.get_file(path, local)
        if wanted is not None and (arrived := os.path.getsize(local)) != wanted:
            raise OSError(f"{arrived} of {wanted} bytes arrived")

    wanted = retry(lambda: fs.size(path))
    check_disk_space(os.path.dirname(local), wanted or 0)
    retry(get)


def make_folder(fs: Any, folder: str) -> None:
    """Make a folder with its parents and check that it is writable; object stores need none. A CheckpointNotWritten if
    something is in the way, or the folder is read-only."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if folder and not protocols & _WITHOUT_FOLDERS:
        try:
            fs.makedirs(folder, exist_ok=True)
        except Exception as error:  # every store has errors of its own
            text = f"cannot make the checkpoint folder {folder}: {reason(error)}; choose another path"
            raise CheckpointNotWritten(text) from error
    if is_local(fs) and folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise CheckpointNotWritten(
            f"cannot write checkpoints into {folder}: not a folder, or read-only; choose another path"
        )


def check_disk_space(folder: str, needed: int) -> None:
    """Raise an OSError if a local folder has less than ``needed`` bytes of free disk space."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:  # some drives do not tell
        return
    if usage.total and usage.free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {usage.free:,} are free in {folder}")

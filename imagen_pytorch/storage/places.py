"""Paths and URLs: which filesystem they belong to, and folders on it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..registry import no_file_system
from .errors import CheckpointMisaddressed, CheckpointNotWritten, reason

#: packages that open the URLs of the large object stores
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}
#: stores without folders: making one would make a bucket, and perhaps that of a misspelt name
_WITHOUT_FOLDERS = {*_PACKAGES, "abfs", "abfss", "az"}


def _protocols() -> set[str]:
    """The names of all filesystems that fsspec knows, those included that a program has registered."""
    from fsspec import available_protocols
    from fsspec.registry import registry

    return {*available_protocols(), *registry}


def _unknown_in(url: str) -> str | None:
    """What is wrong with the first protocol of a URL, or chain of URLs, that nobody knows; None if all are known."""
    known = tuple(sorted(_protocols()))
    *outer, last = url.split("::")
    for part in (*outer, *([last] if "://" in last else [])):
        protocol = part.partition("://")[0]
        if protocol not in known:
            return no_file_system(protocol, known)
    return None


def locate(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The filesystem of a path or URL, and the path as that filesystem spells it.

    A name without ``://`` is a local one, whatever else is in it; ``::`` chains URLs only where one of them has ``://``.

    Args:
        path: a local path or any fsspec URL such as ``s3://bucket/a.pt``.
        fs: a ready filesystem to use in place of the one that the URL names.
        fs_kwargs: arguments for making the filesystem.

    Raises:
        CheckpointMisaddressed: a URL of an unknown kind, or one whose filesystem cannot be opened.
    """
    from fsspec.core import url_to_fs

    text = str(path)
    try:
        if fs is not None:
            return fs, fs._strip_protocol(text)
        if "://" not in text:
            return _local(text, fs_kwargs or {})
        if unknown := _unknown_in(text):
            raise CheckpointMisaddressed(f"cannot open {path}: {unknown}")
        return url_to_fs(text, **(fs_kwargs or {}))
    except CheckpointMisaddressed:
        raise
    except ImportError as error:
        package = _PACKAGES.get(text.split("://", 1)[0])
        hint = f"; pip install {package}" if package else ""
        raise CheckpointMisaddressed(f"cannot open {path}: {reason(error)}{hint}") from error
    except Exception as error:  # every filesystem has errors of its own
        raise CheckpointMisaddressed(f"cannot open {path}: {reason(error)}") from error


def _local(text: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The local filesystem, and an absolute path; a URL that has lost a slash, as in a `Path`, is refused."""
    from fsspec.implementations.local import LocalFileSystem

    protocol, slash, _ = text.partition(":/")
    if slash and protocol in _protocols() - {"file", "local"} and not os.path.isdir(f"{protocol}:"):
        raise CheckpointMisaddressed(f"cannot open {text}: write {protocol}:// with two slashes, as a string")
    if text.startswith(("file:", "local:")) and not text.startswith("file:/"):
        text = f"./{text}"  # fsspec would take the beginning of the name for a protocol
    place = LocalFileSystem._strip_protocol(text)
    # a "~" that is nobody's home is a name
    return LocalFileSystem(**options), place if os.path.isabs(place) else f"{os.getcwd()}/{place}"


def is_local(fs: Any) -> bool:
    """Whether paths of this filesystem are paths of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def ends_with_process(fs: Any) -> bool:
    """Whether what is written to a filesystem is lost when the process ends, as in ``memory://``."""
    from fsspec.implementations.memory import MemoryFileSystem

    while fs is not None:
        if isinstance(fs, MemoryFileSystem):
            return True
        fs = getattr(fs, "fs", None)  # of a filesystem around another one, such as a cache or a folder
    return False


def parent_of(path: str) -> str:
    """The folder of a path, in the notation with forward slashes that fsspec uses."""
    return path.rsplit("/", 1)[0] if "/" in path else ""


def make_folder(fs: Any, folder: str) -> None:
    """Make a folder with its parents, and see that it can be written to; object stores need none.

    Raises:
        CheckpointNotWritten: something is in the way, or the folder is read-only.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    try:
        if folder and not protocols & _WITHOUT_FOLDERS:
            fs.makedirs(folder, exist_ok=True)
    except Exception as error:  # every store has errors of its own
        raise CheckpointNotWritten(
            f"cannot make the checkpoint folder {folder}: {reason(error)}; choose another path"
        ) from error
    if is_local(fs) and folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise CheckpointNotWritten(
            f"cannot write checkpoints into {folder}: not a folder, or read-only; choose another path"
        )


def check_room(folder: str, needed: int) -> None:
    """See that a local folder has room for so many bytes.

    Raises:
        OSError: it has not.
    """
    try:
        free = shutil.disk_usage(folder)
    except OSError:  # some drives do not tell
        return
    if free.total and free.free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free.free:,} are free in {folder}")


def sync_folder(folder: str) -> None:
    """Have the names in a local folder on the disk, so that a new one survives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some drives cannot; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

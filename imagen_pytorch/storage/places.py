"""Paths and URLs: which filesystem they belong to, and folders on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..registry import no_file_system
from .errors import CheckpointMisaddressed, CheckpointNotWritten, reason

#: packages that open the URLs of the large object stores
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}
#: stores without folders: making one would make a bucket, and perhaps that of a misspelt name
_WITHOUT_FOLDERS = {*_PACKAGES, "abfs", "abfss", "az"}


def _unknown_in(url: str) -> str | None:
    """What is wrong with the first protocol of a URL, or chain of URLs, that nobody knows; None if all are known."""
    from fsspec import available_protocols

    known = tuple(sorted(available_protocols()))
    for protocol in (part.partition("://")[0] for part in url.split("::") if "://" in part):
        if protocol not in known:
            return no_file_system(protocol, known)
    return None


def locate(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The filesystem of a path or URL, and the path as that filesystem spells it.

    Args:
        path: a local path or any fsspec URL such as ``memory://runs/a.pt``.
        fs: a ready filesystem to use in place of the one that the URL names.
        fs_kwargs: arguments for making the filesystem.

    Raises:
        CheckpointMisaddressed: a URL of an unknown kind, or of one whose package is not installed.
    """
    from fsspec.core import url_to_fs

    if fs is not None:
        return fs, fs._strip_protocol(str(path))
    try:
        return url_to_fs(str(path), **(fs_kwargs or {}))
    except ImportError as error:
        package = _PACKAGES.get(str(path).split("://", 1)[0])
        hint = f"; pip install {package}" if package else ""
        raise CheckpointMisaddressed(f"cannot open {path}: {reason(error)}{hint}") from error
    except ValueError as error:
        raise CheckpointMisaddressed(f"cannot open {path}: {_unknown_in(str(path)) or reason(error)}") from error


def is_local(fs: Any) -> bool:
    """Whether paths of this filesystem are paths of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


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

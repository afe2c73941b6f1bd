"""Checkpoint files: written whole or not at all, read without running anything that they contain.

A checkpoint is one zip file of tensors and plain containers at any path or URL that fsspec knows. It is written under
a temporary name, checked and renamed (object stores: written locally, then put in one piece), so that a reader never
sees half of it.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: entries of a file besides its tensors are small; a zip that claims more than this beyond its own size is hostile
SLACK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used, with the file and the reason."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """There is no file where one was expected."""

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointMismatch(CheckpointError):
    """A checkpoint of another model; the message lists the names and shapes that differ."""


# -- places ---------------------------------------------------------------------------------------------------------


def locate(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The filesystem of a path or URL, and the path as that filesystem spells it.

    Args:
        path: a local path or any fsspec URL such as ``memory://runs/a.pt``.
        fs: a ready filesystem to use in place of the one that the URL names.
        fs_kwargs: arguments for making the filesystem.
    """
    from fsspec.core import url_to_fs

    if fs is not None:
        return fs, fs._strip_protocol(str(path))
    return url_to_fs(str(path), **(fs_kwargs or {}))


def is_local(fs: Any) -> bool:
    """Whether paths of this filesystem are paths of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def parent_of(path: str) -> str:
    """The folder of a path, in the notation with forward slashes that fsspec uses."""
    return path.rsplit("/", 1)[0] if "/" in path else ""


def make_folder(fs: Any, folder: str) -> None:
    """Make a folder with its parents, and see that it can be written to.

    Raises:
        CheckpointError: something is in the way, or the folder is read-only.
    """
    try:
        if folder:
            fs.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot make the checkpoint folder {folder}: {error}; choose another path") from error
    if is_local(fs) and folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise CheckpointError(
            f"cannot write checkpoints into {folder}: not a folder, or read-only; choose another path"
        )


# -- writing --------------------------------------------------------------------------------------------------------


def plain_contents(value: Any, where: str = "checkpoint") -> Any:
    """A copy of nested containers that holds nothing but tensors, numbers, strings, dicts, lists and tuples.

    Raises:
        TypeError: anything else; the message says where it was found.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {key: plain_contents(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_contents(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{where} is a {type(value).__name__}: checkpoints hold only tensors, numbers, strings, dicts, lists and tuples"
    )


def size_of(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    return sum(size_of(item) for item in value) if isinstance(value, list | tuple) else 0


def _write_local(contents: Mapping[str, Any], path: str) -> None:
    """Write beside the target, check, then rename: the old file stays until the new one is whole and on the disk."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        check_whole(temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    if hasattr(os, "O_DIRECTORY"):  # the new name itself must survive a power cut
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_remote(contents: Mapping[str, Any], fs: Any, path: str) -> None:
    """Write locally, then create the object in one piece: an error before that leaves the old object as it was."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "checkpoint.pt")
        _write_local(contents, local)
        fs.put_file(local, path)
        fs.invalidate_cache(parent_of(path))
        written, wanted = fs.size(path), os.path.getsize(local)
    if written != wanted:
        raise OSError(f"{written} of {wanted} bytes arrived")


def write_checkpoint(
    contents: Mapping[str, Any],
    path: str | Path,
    fs: Any = None,
    fs_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a checkpoint so that ``path`` is always either its old self or the whole new file. Parents are made.

    Args:
        contents: tensors and plain containers.
        path: a local path or any fsspec URL.
        fs, fs_kwargs: a ready filesystem, or arguments for making it.
        overwrite: whether an existing file may be replaced.

    Raises:
        TypeError: contents that are not plain.
        CheckpointError: the file exists and must not be replaced, or it could not be written.
    """
    plain = plain_contents(contents)
    fs, place = locate(path, fs, fs_kwargs)
    if not overwrite and fs.exists(place):
        raise CheckpointError(f"{path} exists already; allow overwrite=True or choose another path")
    make_folder(fs, parent_of(place))
    try:
        if is_local(fs):
            _write_local(plain, place)
        else:
            _write_remote(plain, fs, place)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not write {path} (about {size_of(plain):,} bytes): {error}; what was there before is untouched"
        ) from error


# -- reading --------------------------------------------------------------------------------------------------------


def check_whole(path: str) -> None:
    """See that a local file is a complete zip of uncompressed entries whose checksums are right.

    Reads the file once in small pieces; nothing is unpacked.

    Raises:
        CheckpointError: cut off, changed, compressed, or another kind of file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > os.path.getsize(path) + SLACK:
                raise CheckpointError("it claims to unpack to more than its own size")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError("its entries are compressed, which no checkpoint of this package is")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError("it is cut off, damaged or another kind of file") from error
    if damaged is not None:
        raise CheckpointError(f"the checksum of its entry {damaged} is wrong")


def _read_local(path: str) -> dict[str, Any]:
    check_whole(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "it holds more than tensors and plain containers, which could run code; nothing was executed"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"its contents cannot be decoded ({type(error).__name__})") from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"it holds a {type(contents).__name__} instead of a dict")
    return contents


def read_checkpoint(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of a checkpoint, every tensor on the CPU. Nothing in the file is ever executed.

    Raises:
        CheckpointMissing: no such file.
        CheckpointError: the file is damaged, or holds anything but tensors and plain containers.
    """
    fs, place = locate(path, fs, fs_kwargs)
    if not fs.exists(place):
        raise CheckpointMissing(f"there is no checkpoint at {os.path.abspath(place) if is_local(fs) else path}")
    if not fs.isfile(place):
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
    try:
        if is_local(fs):
            return _read_local(place)
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "checkpoint.pt")
            fs.get_file(place, local)
            return _read_local(local)
    except CheckpointError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error

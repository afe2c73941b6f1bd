"""Reading without running anything that is in the file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .archives import check, read_archive
from .background import settle
from .errors import CheckpointError, CheckpointMissing, CheckpointUnreachable, reason
from .own_files import note_unusable
from .places import check_room, is_local, locate
from .ptfiles import read_pt
from .remote import attempts, get_file, kind_of
from .safefiles import check_safetensors, is_safetensors, looks_like_safetensors, read_safetensors
from .temporaries import temporary_file

#: the file whose presence says that a folder of shards is whole
MANIFEST = "manifest.json"


def _is_safetensors(file: BinaryIO, name: str) -> bool:
    """The kind of an open file, told by how it begins, and by its name if that says nothing."""
    start, total = file.read(9), os.fstat(file.fileno()).st_size
    return looks_like_safetensors(start, total) or (is_safetensors(name) and not start.startswith(b"PK"))


def _read_local(path: str, name: str) -> dict[str, Any]:
    """The contents of a local file."""
    with open(path, "rb") as file:
        try:
            contents = read_safetensors(file) if _is_safetensors(file, name) else read_pt(file)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            size = os.path.getsize(path)
            raise CheckpointUnreachable(f"there is not enough memory for its {size:,} bytes") from error
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise CheckpointError(f"it holds a {type(contents).__name__} instead of named entries")
    return contents


def check_local(path: str) -> None:
    """See that a local file is complete and unchanged, without memory for what it holds.

    Raises:
        CheckpointError: it is not, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if _is_safetensors(file, path):
                check_safetensors(file)
            else:
                check(file, read_archive(file))
    except CheckpointError as error:
        raise type(error)(f"cannot read the checkpoint {path}: {error}") from error
    except OSError as error:
        raise CheckpointUnreachable(f"cannot read the checkpoint {path}: {reason(error)}") from error


def _read_remote(fs: Any, path: str) -> dict[str, Any]:
    folder = tempfile.gettempdir()
    with temporary_file(folder) as file:
        try:
            check_room(folder, attempts(lambda: fs.size(path)) or 0)
            get_file(fs, path, file.name)
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has errors of its own
            raise CheckpointUnreachable(reason(error)) from error
        return _read_local(file.name, path)


def is_sharded(fs: Any, folder: str) -> bool:
    """Whether a folder is a whole checkpoint in several files."""
    return kind_of(fs, f"{folder.rstrip('/')}/{MANIFEST}") == "file"


def _read_folder(fs: Any, path: str) -> dict[str, Any]:
    if not is_sharded(fs, path):
        raise CheckpointError(f"it is a folder without {MANIFEST}, not a checkpoint file")
    from .sharded import read_sharded

    return read_sharded(fs, path)


def read_checkpoint(path: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of a checkpoint, every tensor on the CPU. Nothing in the file is ever executed.

    Reads files of `write_checkpoint`, of torch.save and of safetensors, and folders of shards. Files of this package
    are compared with their checksum, others with what their format offers. A write in the background is waited for.

    Raises:
        CheckpointMissing: no such file.
        CheckpointUnreachable: no connection, permission, room or memory.
        CheckpointError: the file is damaged, or holds anything but tensors and plain containers.
    """
    settle()
    fs, place = locate(path, fs, fs_kwargs)
    missing = f"there is no checkpoint at {os.path.abspath(place) if is_local(fs) else path}"
    try:
        kind = kind_of(fs, place)
        if kind is None:
            raise CheckpointMissing(missing)
        if kind == "directory":
            return _read_folder(fs, place)
        if kind != "file":
            raise CheckpointError("it is no ordinary file")
        return _read_local(place, place) if is_local(fs) else _read_remote(fs, place)
    except CheckpointMissing:
        raise
    except FileNotFoundError as error:  # gone since it was looked for
        raise CheckpointMissing(missing) from error
    except CheckpointError as error:
        if not isinstance(error, CheckpointUnreachable):
            note_unusable(fs, place, f"cannot read the checkpoint {path}: {error}")
        raise type(error)(f"cannot read the checkpoint {path}: {error}") from error
    except OSError as error:
        # a disk that cannot read its own file has lost a part of it
        kind_of_error = CheckpointError if is_local(fs) and not isinstance(error, PermissionError) else None
        raise (kind_of_error or CheckpointUnreachable)(f"cannot read the checkpoint {path}: {reason(error)}") from error

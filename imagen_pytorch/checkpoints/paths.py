"""Names of checkpoints: complete folders, the one before, what is set aside, and errors that name the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io.atomic import second_name
from ..io.errors import CheckpointError, CheckpointMismatch, CheckpointMissing, CheckpointUnreachable, reason
from ..io.files import is_local, kind_of, retry

#: the file whose presence makes a folder a complete checkpoint
MANIFEST = "manifest.json"


@contextmanager
def reading(fs: Any, path: str | Path) -> Iterator[None]:
    """Raise errors of the block as those of reading a checkpoint, with its name."""
    try:
        yield
    except (CheckpointMissing, CheckpointMismatch):
        raise
    except CheckpointError as error:
        raise type(error)(f"cannot read the checkpoint {path}: {error}") from error
    except FileNotFoundError as error:  # gone since it was looked for
        raise CheckpointMissing(f"no checkpoint at {path}") from error
    except Exception as error:  # every store has errors of its own
        no_memory = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error))
        if is_local(fs) and not (no_memory or isinstance(error, OSError)):
            raise
        # a disk that cannot read its own file has lost a part of it
        lost = is_local(fs) and not no_memory and not isinstance(error, PermissionError)
        text = "there is not enough memory for it" if no_memory else reason(error)
        kind = CheckpointError if lost else CheckpointUnreachable
        raise kind(f"cannot read the checkpoint {path}: {text}") from error


def is_sharded(fs: Any, folder: str) -> bool:
    """Return whether a folder is a complete checkpoint in several files."""
    return kind_of(fs, f"{folder.rstrip('/')}/{MANIFEST}") == "file"


def is_folder(fs: Any, place: str, path: str | Path) -> bool:
    """Return whether a checkpoint is a complete folder of shards, and not one file; a CheckpointMissing if there is
    nothing, a CheckpointError if there is something else."""
    kind = kind_of(fs, place)
    if kind is None:
        raise CheckpointMissing(f"no checkpoint at {path}")
    if kind == "directory" and is_sharded(fs, place):
        return True
    if kind != "file":
        odd = f"a folder without {MANIFEST}, not a checkpoint file" if kind == "directory" else "not an ordinary file"
        raise CheckpointError(f"cannot read the checkpoint {path}: it is {odd}")
    return False


def previous_of(path: str) -> str:
    """Return where the file before the last write is kept: ``a.previous.pt`` for ``a.pt``, next to the file itself if
    ``path`` is a link."""
    local = path.removeprefix("file://")
    stem, suffix = os.path.splitext(os.path.realpath(local) if os.path.islink(local) else path)
    return f"{stem}.previous{suffix}"


def set_aside(fs: Any, path: str, problem: str) -> str:
    """Give what cannot be read the name ``a.unreadable.pt``, before something else is written in its place.

    Trouble in reading is not always damage, so nothing is thrown away. A warning names both. A file keeps its old name
    too, until something else is written there. Returns the new name.
    """
    stem, suffix = os.path.splitext(path)
    number, name = 1, f"{stem}.unreadable{suffix}"
    while kind_of(fs, name) is not None:
        number += 1
        name = f"{stem}.unreadable-{number}{suffix}"
    if kind_of(fs, path) != "directory":
        second_name(fs, path, name)
    elif is_local(fs):
        os.rename(path, name)
    else:
        retry(lambda: fs.copy(path, name, recursive=True))
    warnings.warn(f"{problem}; {path} is kept as {name}", stacklevel=2)
    return name

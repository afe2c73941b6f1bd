"""Checkpoint files: written whole or not at all, read without running anything that they contain.

A checkpoint is one file of tensors and plain containers at any path or URL that fsspec knows, in the format of
torch.save or of safetensors. It is written under a temporary name, read back, sealed with a checksum and renamed;
object stores get a file that was written locally, in one piece. So a reader never sees half of it.
"""

from __future__ import annotations

from .claims import FolderClaim
from .contents import nonfinite_tensors, plain_contents, size_of, snapshot
from .errors import (
    CheckpointError,
    CheckpointLocked,
    CheckpointMisaddressed,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointNotWritten,
    CheckpointUnreachable,
)
from .keeping import previous_of
from .locks import FolderLock, lock_of, lock_of_file, lock_of_folder
from .places import ends_with_process, is_local, locate, make_folder, parent_of
from .ptfiles import check_whole
from .reading import read_checkpoint
from .remote import kind_of
from .store import CheckpointStore
from .writing import write_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointLocked",
    "CheckpointMisaddressed",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointNotWritten",
    "CheckpointStore",
    "CheckpointUnreachable",
    "FolderClaim",
    "FolderLock",
    "check_whole",
    "ends_with_process",
    "is_local",
    "kind_of",
    "locate",
    "lock_of",
    "lock_of_file",
    "lock_of_folder",
    "make_folder",
    "nonfinite_tensors",
    "parent_of",
    "plain_contents",
    "previous_of",
    "read_checkpoint",
    "size_of",
    "snapshot",
    "write_checkpoint",
]

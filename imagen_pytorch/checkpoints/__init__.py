"""Checkpoints as files and folders: written in one step, sealed with a checksum, read without executing anything."""

from __future__ import annotations

from ..io.errors import (
    CheckpointError,
    CheckpointLocked,
    CheckpointMisaddressed,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointNotWritten,
    CheckpointUnreachable,
)
from .background import BackgroundWriter
from .contents import nonfinite_tensors, snapshot
from .files import CheckpointInfo, describe_checkpoint, read_checkpoint, write_checkpoint
from .paths import previous_of
from .store import CheckpointStore, newest_in, verify_checkpoint

__all__ = [
    "BackgroundWriter",
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointLocked",
    "CheckpointMisaddressed",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointNotWritten",
    "CheckpointStore",
    "CheckpointUnreachable",
    "describe_checkpoint",
    "newest_in",
    "nonfinite_tensors",
    "previous_of",
    "read_checkpoint",
    "snapshot",
    "verify_checkpoint",
    "write_checkpoint",
]

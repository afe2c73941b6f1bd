"""Checkpoints and the models in them: the public names."""

from __future__ import annotations

from .checkpoints import (
    CheckpointError,
    CheckpointLocked,
    CheckpointMisaddressed,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointNotWritten,
    CheckpointStore,
    CheckpointUnreachable,
    read_checkpoint,
    write_checkpoint,
)
from .checkpoints.model import load_imagen_from_checkpoint
from .export import export_model

__all__ = [
    "CheckpointError",
    "CheckpointLocked",
    "CheckpointMisaddressed",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointNotWritten",
    "CheckpointStore",
    "CheckpointUnreachable",
    "export_model",
    "load_imagen_from_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

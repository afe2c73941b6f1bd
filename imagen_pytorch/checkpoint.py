"""Checkpoints and the models in them: the public names."""

from __future__ import annotations

from . import imagen  # noqa: F401 - registers the kinds of models that checkpoints describe
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

"""Folders of checkpoints, and models from checkpoints."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .cascade.cascade import Cascade
from .imagen import imagen_from_config
from .storage import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointMissing,
    locate,
    make_folder,
    read_checkpoint,
    write_checkpoint,
)

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointStore",
    "load_imagen_from_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)

NAME = re.compile(r"^checkpoint\.(\d+)\.pt$")


class CheckpointStore:
    """A folder of checkpoints called ``checkpoint.<steps>.pt``; every other file in it is left alone.

    Args:
        url: folder, a local path or any fsspec URL.
        keep: number of newest checkpoints that survive a write; 0 or less keeps all.
        fs, fs_kwargs: a ready filesystem, or arguments for making it.

    Raises:
        CheckpointError: the folder cannot be made or written to.
    """

    def __init__(
        self, url: str | Path, keep: int = 20, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.url, self.keep = str(url), keep
        self.fs, folder = locate(url, fs, fs_kwargs)
        self.folder = folder.rstrip("/") or "/"
        make_folder(self.fs, self.folder)

    def path(self, steps: int) -> str:
        """Where the checkpoint after so many steps is."""
        return f"{self.folder.rstrip('/')}/checkpoint.{steps}.pt"

    def steps(self) -> list[int]:
        """The step counts of all checkpoints in the folder, newest first."""
        self.fs.invalidate_cache(self.folder)
        if not self.fs.exists(self.folder):
            return []
        names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.folder, detail=False)]
        return sorted((int(found[1]) for found in map(NAME.match, names) if found), reverse=True)

    def paths(self) -> list[str]:
        """The paths of all checkpoints, newest first."""
        return [self.path(steps) for steps in self.steps()]

    def write(self, steps: int, contents: Mapping[str, Any]) -> str:
        """Write a checkpoint, then remove those beyond ``keep``; returns its path.

        Raises:
            TypeError: contents that are not plain.
            CheckpointError: it could not be written; nothing was removed.
        """
        path = self.path(steps)
        write_checkpoint(contents, path, self.fs)
        self.prune()
        return path

    def prune(self) -> None:
        """Remove the oldest checkpoints beyond ``keep``."""
        if self.keep <= 0:
            return
        for steps in self.steps()[self.keep :]:
            try:
                self.fs.rm_file(self.path(steps))
            except FileNotFoundError:
                continue  # another process was faster

    def read(self, steps: int = -1) -> tuple[str, dict[str, Any]] | None:
        """Path and contents of the checkpoint after ``steps`` steps, or of the newest one that is whole.

        A damaged checkpoint is passed over with a warning that names it. None if the folder holds no checkpoint.

        Raises:
            CheckpointMissing: no checkpoint with that number.
            CheckpointError: there are checkpoints and none of them is readable.
        """
        if steps >= 0:
            return self.path(steps), read_checkpoint(self.path(steps), self.fs)
        paths = self.paths()
        for path in paths:
            try:
                return path, read_checkpoint(path, self.fs)
            except CheckpointError as error:
                warnings.warn(f"{error}; the one before it is taken instead", stacklevel=3)
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.url} is readable; move them away to start afresh"
            )
        return None


# -- models ---------------------------------------------------------------------------------------------------------


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What two sets of named tensors do not have in common, one phrase for each kind of difference."""
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    shapes = [
        f"{name}: {tuple(found[name].shape)} in the file, {tuple(wanted[name].shape)} in the model"
        for name in found
        if name in wanted and found[name].shape != wanted[name].shape
    ]
    kinds = {"missing in the file": missing, "not in the model": surplus, "of another shape": shapes}
    return [f"{kind} ({len(names)}): {', '.join(names)}" for kind, names in kinds.items() if names]


def fitting(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors that the other set has too, in the same shape."""
    return {name: item for name, item in found.items() if name in wanted and item.shape == wanted[name].shape}


def _averaged_weights(averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint under the names that they have in the model."""
    pattern = re.compile(r"^(\d+)\.ema_model\.(.+)$")
    matches = ((pattern.match(name), item) for name, item in averages.items())
    return {f"unets.{found[1]}.{found[2]}": item for found, item in matches if found}


def described_model(contents: Mapping[str, Any], path: str | Path) -> Cascade:
    """The model that the contents of a checkpoint describe, with fresh weights.

    Raises:
        CheckpointError: they do not say how their model was made.
    """
    config = contents.get("imagen_params")
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} does not say how its model was made: build the model yourself and use ImagenTrainer.load, or "
            "build it from a configuration (ImagenConfig) before saving"
        )
    return imagen_from_config({"type": contents.get("imagen_type", "original"), **config})


def load_imagen_from_checkpoint(
    checkpoint_path: str | Path, load_weights: bool = True, load_ema_if_available: bool = False
) -> Cascade:
    """The model that a checkpoint describes.

    Args:
        checkpoint_path: a local path or any fsspec URL.
        load_weights: False gives a model with fresh weights.
        load_ema_if_available: take the averaged weights if the file has them; the log says which were taken.

    Raises:
        CheckpointMissing: no such file.
        CheckpointError: the file is damaged, unsafe, or does not say how its model was made.
        CheckpointMismatch: the weights do not belong to the model that the file describes.
    """
    contents = read_checkpoint(checkpoint_path)
    imagen = described_model(contents, checkpoint_path)
    if not load_weights:
        return imagen
    weights = dict(contents["model"])
    averages = _averaged_weights(contents.get("ema") or {}) if load_ema_if_available else {}
    weights |= averages
    logger.info("loading the %s weights of %s", "averaged" if averages else "trained", checkpoint_path)
    wanted = imagen.state_dict()
    found = differences(weights, wanted)
    if found and "unet_numbers" not in contents.get("state", {}):
        raise CheckpointMismatch(f"{checkpoint_path} does not fit the model it describes: {'; '.join(found)}")
    if found:
        warnings.warn(
            f"{checkpoint_path} holds a part of its model; the rest is untrained: {'; '.join(found)}", stacklevel=2
        )
    imagen.load_state_dict(fitting(weights, wanted), strict=False)
    return imagen

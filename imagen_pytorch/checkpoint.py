"""Models from checkpoints."""

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
from .storage.errors import reason
from .training.rehearsal import TooLarge, rehearse

__all__ = [
    "CheckpointError",
    "CheckpointLocked",
    "CheckpointMisaddressed",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointNotWritten",
    "CheckpointStore",
    "CheckpointUnreachable",
    "load_imagen_from_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)

#: a description is believed if its networks have at most so many times what the file holds (the file of one U-Net
#: describes all of them), or so much
_TIMES, _NUMBERS, _PARTS = 32, 100_000_000, 2_000


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
        CheckpointError: they do not say how their model was made, or it cannot be built.
    """
    config = contents.get("imagen_params")
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} does not say how its model was made: build the model yourself and use ImagenTrainer.load, or "
            "build it from a configuration (ImagenConfig) before saving"
        )
    config = {"type": contents.get("imagen_type", "original"), **config}
    held = contents.get("model")
    tensors = [item for item in held.values() if isinstance(item, Tensor)] if isinstance(held, dict) else []
    numbers = _NUMBERS + _TIMES * sum(item.numel() for item in tensors)
    parts = _PARTS + _TIMES * len(tensors)
    try:
        rehearse(lambda: imagen_from_config(config), numbers, parts)
        return imagen_from_config(config)
    except TooLarge as error:
        raise CheckpointError(f"{path} describes a model that has nothing to do with what it holds: {error}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {reason(error)}") from error


def _weights(contents: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Tensor]:
    """The named tensors of one entry.

    Raises:
        CheckpointError: the entry holds something else.
    """
    found = contents.get(name)
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(item, Tensor) for key, item in found.items()
    ):
        raise CheckpointError(f'{path} has no weights under "{name}"; it is not a checkpoint of a model')
    return dict(found)


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
    weights = _weights(contents, "model", checkpoint_path)
    averaged = load_ema_if_available and contents.get("ema")
    averages = _averaged_weights(_weights(contents, "ema", checkpoint_path)) if averaged else {}
    weights |= averages
    logger.info("loading the %s weights of %s", "averaged" if averages else "trained", checkpoint_path)
    wanted = imagen.state_dict()
    found = differences(weights, wanted)
    if found and "unet_numbers" not in (contents.get("state") or {}):
        raise CheckpointMismatch(f"{checkpoint_path} does not fit the model it describes: {'; '.join(found)}")
    if found:
        warnings.warn(
            f"{checkpoint_path} holds a part of its model; the rest is untrained: {'; '.join(found)}", stacklevel=2
        )
    imagen.load_state_dict(fitting(weights, wanted), strict=False)
    return imagen

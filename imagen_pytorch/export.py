"""Export of a model: a checkpoint without anything that only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import nonfinite_tensors, read_checkpoint, write_checkpoint
from .checkpoints.model import DescribedModel, is_part
from .data import SOURCES
from .training.snapshots import Reconstructed, reconstruct


def export_model(
    checkpoint_path: str | Path,
    path: str | Path,
    *,
    half: bool = True,
    averaged: bool = True,
    overwrite: bool = False,
    ema_width: float | None = None,
    snapshots: str | Path | None = None,
) -> dict[int, Reconstructed]:
    """Write the model of a checkpoint without anything that only training needs: a file to share.

    The file is a checkpoint as well: every function and command that opens one takes it. Half precision halves its size
    again; networks compute in single precision all the same once it is loaded.

    Args:
        checkpoint_path: the checkpoint of a training, a local path or any fsspec URL.
        path: the file to write; ``.safetensors`` at its end chooses that format.
        half: store floating-point weights in float16.
        averaged: take the averaged weights if the checkpoint has them.
        overwrite: whether an existing file may be replaced.
        ema_width: average the weights over this fraction of the training instead: the relative standard deviation of
            the profile, at most 0.288, made from the averages that ``ImagenTrainer(posthoc_ema=True)`` tracked.
        snapshots: their folder; by default the one next to the checkpoint.

    Returns:
        with ``ema_width``, by the number of the U-Net, how its average was made.

    Raises:
        CheckpointMissing, CheckpointError, CheckpointMismatch: as `load_imagen_from_checkpoint` does.
        ValueError: weights that float16 cannot hold, a width that no average has, or a checkpoint without post-hoc
            averages.
        CheckpointNotWritten: the file exists and must not be replaced, or it cannot be written.
    """
    contents = read_checkpoint(checkpoint_path, mapped=True)
    described = DescribedModel(contents, checkpoint_path)
    made = {} if ema_width is None else reconstruct(contents, checkpoint_path, ema_width, snapshots)
    others = {
        f"unets.{number - 1}.{name}": item for number, average in made.items() for name, item in average.weights.items()
    }
    weights = described.weights(averaged, others)
    if half:
        weights = {name: item.half() if item.is_floating_point() else item for name, item in weights.items()}
        if broken := nonfinite_tensors(weights):
            names = ", ".join(broken[:5]) + (" ..." if len(broken) > 5 else "")
            raise ValueError(f"weights beyond the range of float16 ({len(broken)}): {names}; pass half=False")
    kept = ("version", "imagen_type", "imagen_params", "steps")
    exported = {**{name: contents[name] for name in kept if name in contents}, **_public(contents), "model": weights}
    write_checkpoint(exported, path, overwrite=overwrite)
    return made


def _public(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file to share says of its training: which U-Nets it holds, and embedded data.

    The name of any other data may be a path of the person who trained it.
    """
    state = {"state": {"unet_numbers": contents["state"]["unet_numbers"]}} if is_part(contents) else {}
    data = contents.get("data_source")
    embedded = isinstance(data, dict) and isinstance(data.get("name"), str) and data["name"] in SOURCES
    return {**state, **({"data_source": data} if embedded else {})}

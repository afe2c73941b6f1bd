"""Export of a model: a checkpoint without anything that only training needs, or the network of a U-Net as ONNX."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import CheckpointNotWritten, read_checkpoint
from .checkpoints.model import DescribedModel, is_part, load_imagen_from_checkpoint
from .data import SOURCES
from .io.atomic import write_bytes
from .io.files import kind_of, locate, make_folder, parent_of
from .model_files import stored_weights, write_model
from .profiling.shapes import as_rows, one_row
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
    weights = stored_weights(described.weights(averaged, others), half)
    kept = ("version", "imagen_type", "imagen_params", "steps")
    exported = {**{name: contents[name] for name in kept if name in contents}, **_public(contents), "model": weights}
    write_model({**exported, "imagen_type": described.config["type"]}, path, overwrite)
    return made


def _public(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file to share says of its training: which U-Nets it holds, and embedded data.

    The name of any other data may be a path of the person who trained it.
    """
    state = {"state": {"unet_numbers": contents["state"]["unet_numbers"]}} if is_part(contents) else {}
    data = contents.get("data_source")
    embedded = isinstance(data, dict) and isinstance(data.get("name"), str) and data["name"] in SOURCES
    return {**state, **({"data_source": data} if embedded else {})}


# -- ONNX -------------------------------------------------------------------------------------------------------------

#: conditions of a network that a program of another language can compute; an empty mask is the null caption
_CONDITIONS = ("text_embeds", "text_mask", "lowres_cond_img", "lowres_noise_times", "cond_images")
#: largest difference between the predictions of onnxruntime and torch, relative to the largest number of torch's
ONNX_TOLERANCE = 1e-4


class _Positional(nn.Module):
    """A network whose conditions come as a list: torch cannot map shapes to keywords that are only passed on."""

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.unet, self.names = unet, names

    def forward(self, x: Tensor, time: Tensor, conditions: list[Tensor]) -> Tensor:
        return self.unet(x, time, **dict(zip(self.names, conditions, strict=True)))


def export_onnx(
    checkpoint_path: str | Path,
    path: str | Path,
    *,
    unet_number: int = 1,
    averaged: bool = True,
    overwrite: bool = False,
) -> float | None:
    """Write the network of one U-Net in single precision as ONNX, for batches of any size.

    Its inputs are the noisy image "x" as the network receives it (scaled to about unit variance), its noise condition
    "time", and those conditions that the network takes: "text_embeds", "text_mask", "lowres_cond_img",
    "lowres_noise_times" and "cond_images". Its output is the "prediction". Image size, number of tokens and number of
    frames are those of the model; a caption whose mask is false throughout is the null caption.

    Args:
        checkpoint_path: the checkpoint, a local path or any fsspec URL.
        path: the file to write.
        unet_number: of the U-Net, 1-based.
        averaged: take the averaged weights if the checkpoint has them.
        overwrite: whether an existing file may be replaced.

    Returns:
        the largest difference from torch's prediction for a batch of another size, relative to the largest number in
        it; None if onnxruntime is not installed.

    Raises:
        CheckpointMissing, CheckpointError, CheckpointMismatch: as `load_imagen_from_checkpoint` does.
        ImportError: onnx or onnxscript is missing.
        ValueError: no such U-Net, or a network that cannot be exported, or not correctly.
        CheckpointNotWritten: the file exists and must not be replaced.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"ONNX needs packages that are missing: pip install {' '.join(missing)}")
    fs, place = locate(path)
    if kind_of(fs, place) and not overwrite:
        raise CheckpointNotWritten(f"{path} exists already; allow overwrite=True or choose another path")
    cascade = load_imagen_from_checkpoint(checkpoint_path, load_ema_if_available=averaged).eval()
    unet, row = cascade.get_unet(unet_number), one_row(cascade, unet_number, whole=True)

    def inputs(count: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(count)

        def random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        rows = as_rows(row, count, random, torch.device("cpu"))
        found = rows.conditioning()
        return {"x": rows.x0, "time": rows.noise.flatten(1)[:, 0]} | {k: found[k] for k in _CONDITIONS if k in found}

    data = _onnx_program(unet, inputs(2))
    difference = _onnx_difference(data, unet, inputs(3)) if importlib.util.find_spec("onnxruntime") else None
    if difference is not None and not difference <= ONNX_TOLERANCE:
        raise ValueError(
            f"the exported network of U-Net {unet_number} predicts something else: off by {difference:.2g}"
        )
    make_folder(fs, parent_of(place))
    write_bytes(fs, place, data)
    return difference


def _onnx_program(unet: nn.Module, inputs: Mapping[str, Tensor]) -> bytes:
    """The network as ONNX.

    Raises:
        ValueError: torch cannot export it.
    """
    from torch.export import Dim

    names, (x, time, *conditions) = list(inputs), inputs.values()
    rows = {0: Dim("batch", min=1)}
    shapes = {"x": rows, "time": rows, "conditions": [rows] * len(conditions)}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, on its own work
            logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                _Positional(unet, names[2:]),
                (x, time, conditions),
                input_names=names,
                output_names=["prediction"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        return program.model_proto.SerializeToString()
    except Exception as error:  # the exporter has errors of many kinds
        raise ValueError(f"torch cannot export {type(unet).__name__} as ONNX: {str(error)[:300]}") from error
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _onnx_difference(data: bytes, unet: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference between onnxruntime and torch, relative to torch's largest number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}  # one that does not matter is left out
    (found,) = session.run(None, {name: item.numpy() for name, item in inputs.items() if name in taken})
    wanted = unet(**inputs)
    return float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))

"""Models from checkpoints."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..cascade.cascade import Cascade
from ..data import SOURCES
from ..imagen import imagen_from_config
from ..io.errors import CheckpointError, CheckpointMismatch, reason
from ..registry import UnknownMember
from ..text import TextEncoder
from ..text.own import as_encoder
from ..training.rehearsal import TooLarge, rehearse
from ..training.snapshots import Reconstructed, reconstruct
from .contents import nonfinite_tensors
from .files import read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

#: a description is believed if its networks have at most this many times what the file holds (the file of one U-Net
#: describes all of them), or so much
_TIMES, _NUMBERS, _PARTS = 32, 100_000_000, 2_000


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return how two sets of named tensors differ, one phrase for each kind of difference."""
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
    """Return those tensors that the other set has too, in the same shape."""
    return {name: item for name, item in found.items() if name in wanted and item.shape == wanted[name].shape}


def _averaged_weights(averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint under the names that they have in the model."""
    pattern = re.compile(r"^(\d+)\.ema_model\.(.+)$")
    matches = ((pattern.match(name), item) for name, item in averages.items())
    return {f"unets.{found[1]}.{found[2]}": item for found, item in matches if found}


def _held(contents: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of elements and of tensors of the weights in a checkpoint; shared memory counts once."""
    held = contents.get("model")
    tensors = [item for item in held.values() if isinstance(item, Tensor)] if isinstance(held, dict) else []
    storages = {item.untyped_storage()._cdata: item.untyped_storage().nbytes() // item.itemsize for item in tensors}
    return sum(storages.values()), len(tensors)


class _Described:
    """The model that contents, or a description of them, describe: first without memory, then with fresh weights.

    A CheckpointError is raised if they do not say how their model was made, or if it cannot be built.
    """

    def __init__(self, contents: Mapping[str, Any], path: str | Path, text_encoder: Any = None) -> None:
        config = contents.get("imagen_params")
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{path} does not say how its model was made: build the model yourself and use ImagenTrainer.load, or "
                "build it from a configuration (ImagenConfig) before saving"
            )
        self.path = path
        self.config = {"type": contents.get("imagen_type", "original"), **config}
        if text_encoder is not None:  # here, because a function may be asked for the width of its embeddings
            with self._errors():
                self.config["text_encoder"] = as_encoder(text_encoder, config.get("text_embed_dim"))
        numbers, tensors = _held(contents)
        most = _NUMBERS + _TIMES * numbers, _PARTS + _TIMES * tensors
        with self._errors():
            #: None where a network looks at its weights while it is made
            self.without_memory = rehearse(lambda: imagen_from_config(self.config), *most)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of building a model as those of a checkpoint."""
        try:
            yield
        except TooLarge as error:
            text = f"{self.path} describes a model that has nothing to do with what it holds: {error}"
            raise CheckpointError(text) from error
        except UnknownMember as error:
            raise CheckpointError(
                f"{self.path} needs the {error.member or 'member of a family'}, which is not registered: import the "
                f"file that registers it before, as --import my_parts.py does on the command line ({reason(error)})"
            ) from error
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} describes a model that cannot be built: {reason(error)}") from error

    def refuse_other(self, weights: Mapping[str, Tensor], is_part: bool) -> dict[str, Tensor]:
        """Return the weights of the model by name, mostly without memory, after a comparison of names and shapes.

        A CheckpointMismatch is raised if the given ones belong to another model, and a warning if only to a part of it.
        """
        wanted = (self.without_memory or self.build()).state_dict()
        found = differences(weights, wanted)
        if found and not is_part:
            raise CheckpointMismatch(f"{self.path} does not fit the model it describes: {'; '.join(found)}")
        if found:
            text = f"{self.path} holds a part of its model; the rest is untrained: {'; '.join(found)}"
            warnings.warn(text, stacklevel=3)
        return wanted

    def build(self) -> Cascade:
        """Return the model, with fresh weights."""
        with self._errors():
            return imagen_from_config(self.config)


def described_model(contents: Mapping[str, Any], path: str | Path, compare: bool = False) -> Cascade:
    """Return the model that the contents of a checkpoint describe, with fresh weights.

    Args:
        contents: of the checkpoint, or a description of them.
        path: of the checkpoint, for messages.
        compare: compare names and shapes of the weights in it with the model, before that takes memory.

    Raises:
        CheckpointError: they do not say how their model was made, or it cannot be built.
        CheckpointMismatch: the weights do not belong to it.
    """
    described = _Described(contents, path)
    if compare and not _is_part(contents):
        described.refuse_other(_weights(contents, "model", path), is_part=False)
    return described.build()


def _is_part(contents: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint says that it holds some U-Nets of its model only."""
    run = contents.get("state")
    return isinstance(run, dict) and "unet_numbers" in run


def _weights(contents: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Tensor]:
    """The named tensors of one entry; a CheckpointError if it holds something else."""
    found = contents.get(name)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise CheckpointError(f'{path} has no weights under "{name}"; it is not a checkpoint of a model')
    return dict(found)


def _check_numbers(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that weights are finite in the precision of the model, and of its kind of numbers (floating or not)."""
    other = [
        f"{name}: {str(item.dtype).removeprefix('torch.')} in the file"
        for name, item in weights.items()
        if name in wanted and item.is_floating_point() != wanted[name].is_floating_point()
    ]
    if other:
        raise CheckpointMismatch(f"{path} has weights of another kind of number ({len(other)}): {_first(other)}")
    found = {name: item.to(wanted[name].dtype) if name in wanted else item for name, item in weights.items()}
    if broken := nonfinite_tensors(found):
        raise CheckpointError(
            f"{path} has weights that are not finite (NaN or infinity; {len(broken)}): {_first(broken)}; take an "
            "earlier checkpoint of the run"
        )


def _first(names: Sequence[str], count: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def load_imagen_from_checkpoint(
    checkpoint_path: str | Path,
    load_weights: bool = True,
    load_ema_if_available: bool = False,
    text_encoder: TextEncoder | Callable[..., Any] | None = None,
) -> Cascade:
    """Return the model that a checkpoint describes.

    Args:
        checkpoint_path: a local path or any fsspec URL.
        load_weights: False gives a model with fresh weights.
        load_ema_if_available: take the averaged weights if the file has them; the log says which were taken.
        text_encoder: an encoder object or a function from a list of captions to embeddings, in place of the encoder
            that the file names; needed where the model was made with such an object.

    Raises:
        CheckpointMissing: no such file.
        CheckpointError: the file is damaged, unsafe, does not say how its model was made, or holds weights that are not
            finite.
        CheckpointMismatch: the weights do not belong to the model that the file describes.
    """
    contents = read_checkpoint(checkpoint_path, mapped=True)
    described = _Described(contents, checkpoint_path, text_encoder)
    if not load_weights:
        return described.build()
    weights = _sampling_weights(contents, checkpoint_path, load_ema_if_available)
    wanted = described.refuse_other(weights, _is_part(contents))
    _check_numbers(weights, wanted, checkpoint_path)
    imagen = described.build()
    imagen.load_state_dict(fitting(weights, wanted), strict=False)
    return imagen


def _sampling_weights(contents: Mapping[str, Any], path: str | Path, averaged: bool) -> dict[str, Tensor]:
    """Return the weights to sample with: the averaged ones where they are wanted and the checkpoint has them."""
    averages = _averaged_weights(_weights(contents, "ema", path)) if averaged and contents.get("ema") else {}
    logger.info("loading the %s weights of %s", "averaged" if averages else "trained", path)
    return _weights(contents, "model", path) | averages


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
    described = _Described(contents, checkpoint_path)
    weights = _sampling_weights(contents, checkpoint_path, averaged)
    made = {} if ema_width is None else reconstruct(contents, checkpoint_path, ema_width, snapshots)
    for number, average in made.items():
        weights |= {f"unets.{number - 1}.{name}": item for name, item in average.weights.items()}
    wanted = described.refuse_other(weights, _is_part(contents))
    _check_numbers(weights, wanted, checkpoint_path)
    weights = fitting(weights, wanted)
    if half:
        weights = {name: item.half() if item.is_floating_point() else item for name, item in weights.items()}
        if broken := nonfinite_tensors(weights):
            raise ValueError(f"weights beyond the range of float16 ({len(broken)}): {_first(broken)}; pass half=False")
    kept = ("version", "imagen_type", "imagen_params", "steps")
    exported = {**{name: contents[name] for name in kept if name in contents}, **_public(contents), "model": weights}
    write_checkpoint(exported, path, overwrite=overwrite)
    return made


def _public(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file to share says of its training: which U-Nets it holds, and embedded data.

    The name of any other data may be a path of the person who trained it.
    """
    state = {"state": {"unet_numbers": contents["state"]["unet_numbers"]}} if _is_part(contents) else {}
    data = contents.get("data_source")
    embedded = isinstance(data, dict) and isinstance(data.get("name"), str) and data["name"] in SOURCES
    return {**state, **({"data_source": data} if embedded else {})}

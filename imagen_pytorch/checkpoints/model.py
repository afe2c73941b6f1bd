"""Models from checkpoints."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..cascade.cascade import Cascade
from ..cascade.description import imagen_from_config
from ..construction import ModelTooLarge, build_on_meta
from ..io.errors import CheckpointError, CheckpointMismatch, reason
from ..registry import UnknownMember
from ..text import TextEncoder
from ..text.own import as_encoder
from .contents import named_tensors, nonfinite_tensors
from .files import read_checkpoint

logger = logging.getLogger(__name__)

#: a description is believed if its networks have at most this many times what the file holds (the file of one U-Net
#: describes all of them), or so much
_TIMES, _NUMBERS, _PARTS = 32, 100_000_000, 2_000
#: names of averaged weights in a checkpoint
_AVERAGED = re.compile(r"^(\d+)\.ema_model\.(.+)$")


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


class DescribedModel:
    """The model that the contents of a checkpoint, or a description of them, describe: first without memory, then with
    fresh weights.

    A ``text_encoder`` takes the place of the one that they name. A CheckpointError if they do not say how their model
    was made, or it cannot be built.
    """

    def __init__(self, contents: Mapping[str, Any], path: str | Path, text_encoder: Any = None) -> None:
        config = contents.get("imagen_params")
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{path} does not say how its model was made: build the model yourself and use ImagenTrainer.load, or "
                "build it from a configuration (ImagenConfig) before saving"
            )
        self.contents, self.path, self.on_meta = contents, path, None
        self.config = {"type": contents.get("imagen_type", "original"), **config}
        if text_encoder is not None:  # here, because a function may be asked for the width of its embeddings
            with self._errors():
                self.config["text_encoder"] = as_encoder(text_encoder, config.get("text_embed_dim"))
        tensors = [tensor for _, tensor in named_tensors(contents.get("model"))]
        storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}  # shared memory counts once
        numbers = sum(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in storages.values())
        most = _NUMBERS + _TIMES * numbers, _PARTS + _TIMES * len(tensors)
        with self._errors(), suppress(NotImplementedError):  # a network reads its weights while it is built
            self.on_meta = build_on_meta(lambda: imagen_from_config(self.config), *most)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of building a model as those of a checkpoint."""
        try:
            yield
        except ModelTooLarge as error:
            text = f"{self.path} describes a model that has nothing to do with what it holds: {error}"
            raise CheckpointError(text) from error
        except UnknownMember as error:
            raise CheckpointError(
                f"{self.path} needs the {error.member or 'member of a family'}, which is not registered: import the "
                f"file that registers it before, as --import my_parts.py does on the command line ({reason(error)})"
            ) from error
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} describes a model that cannot be built: {reason(error)}") from error

    def refuse_other(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the model by name, mostly without memory, after a comparison of names and shapes.

        A CheckpointMismatch if the given ones belong to another model; that they belong to a part of it is a warning.
        """
        wanted = (self.on_meta or self.build()).state_dict()
        found = differences(weights, wanted)
        if found and not is_part(self.contents):
            raise CheckpointMismatch(f"{self.path} does not fit the model it describes: {'; '.join(found)}")
        if found:
            text = f"{self.path} holds a part of its model; the rest is untrained: {'; '.join(found)}"
            warnings.warn(text, stacklevel=4)
        return wanted

    def weights(self, averaged: bool, others: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return those weights of the checkpoint that fit the model: finite numbers, of its names and shapes.

        ``averaged`` takes the averaged weights where the checkpoint has them; ``others`` take the place of those with
        the same name. Errors as of `load_imagen_from_checkpoint`.
        """
        found = _weights(self.contents, "ema", self.path) if averaged and self.contents.get("ema") else {}
        matches = ((_AVERAGED.match(name), item) for name, item in found.items())
        averages = {f"unets.{match[1]}.{match[2]}": item for match, item in matches if match}
        logger.info("loading the %s weights of %s", "averaged" if averages else "trained", self.path)
        weights = _weights(self.contents, "model", self.path) | averages | dict(others or {})
        wanted = self.refuse_other(weights)
        _check_numbers(weights, wanted, self.path)
        return {name: item for name, item in weights.items() if name in wanted and item.shape == wanted[name].shape}

    def build(self) -> Cascade:
        """Return the model, with fresh weights."""
        with self._errors():
            return imagen_from_config(self.config)


def described_model(contents: Mapping[str, Any], path: str | Path, compare: bool = False) -> Cascade:
    """Return the model that the contents of a checkpoint describe, with fresh weights; errors as of `DescribedModel`.

    ``compare`` compares names and shapes of the weights in it with the model, before that takes memory: a
    CheckpointMismatch if they do not belong to it.
    """
    described = DescribedModel(contents, path)
    if compare and not is_part(contents):
        described.refuse_other(_weights(contents, "model", path))
    return described.build()


def is_part(contents: Mapping[str, Any]) -> bool:
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
    described = DescribedModel(contents, checkpoint_path, text_encoder)
    if not load_weights:
        return described.build()
    weights = described.weights(load_ema_if_available)
    imagen = described.build()
    imagen.load_state_dict(weights, strict=False)
    return imagen

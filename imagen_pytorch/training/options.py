"""Keywords of the trainer that belong to somebody else, sorted to their owners and checked there."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..registry import suggestion

#: what the trainer itself gives to Adam
_ADAM_OWN = ("params", "lr", "betas", "eps")
_EMA_OWN = ("model", "ema_model", "include_online_model")


class Forwarded(NamedTuple):
    """Keyword arguments for the averages, the Accelerator and the optimizer."""

    ema: dict[str, Any]
    accelerate: dict[str, Any]
    adam: dict[str, Any]


def _accepted(callee: type, without: Sequence[str] = ()) -> tuple[str, ...]:
    # of the constructor itself: a metaclass may hide it behind *args
    return tuple(name for name in inspect.signature(callee.__init__).parameters if name not in (*without, "self"))


def forwarded(given: Mapping[str, Any], own: Sequence[str]) -> Forwarded:
    """Sort keywords by owner: ``ema_*`` to ema-pytorch, ``accelerate_*`` to Accelerate, the rest to Adam.

    Args:
        given: keywords that are not the trainer's own.
        own: the trainer's own ones, for "did you mean".

    Raises:
        TypeError: a keyword that its owner does not take.
    """
    from accelerate import Accelerator
    from ema_pytorch import EMA

    adam = [name for name in _accepted(torch.optim.Adam, _ADAM_OWN) if name != "decoupled_weight_decay"]
    known = {
        "ema_": _accepted(EMA, _EMA_OWN),
        "accelerate_": _accepted(Accelerator),
        "": (*adam, "decoupled_weight_decay"),
    }
    result: dict[str, dict[str, Any]] = {prefix: {} for prefix in known}
    every = (*own, *(prefix + name for prefix, names in known.items() for name in names))
    for keyword, value in given.items():
        prefix = next(prefix for prefix in known if keyword.startswith(prefix))
        name = keyword.removeprefix(prefix)
        if name not in known[prefix]:
            raise TypeError(f'ImagenTrainer takes no argument "{keyword}"{suggestion(keyword, every)}')
        result[prefix][name] = value
    return Forwarded(result["ema_"], result["accelerate_"], result[""])


def warn_of_lion(use_lion: bool) -> None:
    """Say that the Lion optimizer of old versions is gone."""
    if use_lion:
        warnings.warn("use_lion is no longer supported; training goes on with Adam", DeprecationWarning, stacklevel=3)

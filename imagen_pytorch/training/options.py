"""Keywords of the trainer that are passed on to other libraries, sorted by library and checked there."""

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


#: arguments of the Accelerator that do here what they say
HONOURED = ("cpu", "gradient_accumulation_steps", "kwargs_handlers", "log_with", "mixed_precision", "project_config",
            "project_dir")  # fmt: skip
#: arguments of parts of Accelerate that the trainer does itself, and what to say instead
REFUSED = {
    "device_placement": "the trainer brings model and batches to its device",
    "split_batches": "use split_batches",
    "dataloader_config": "use split_batches, or give add_train_dataset the arguments of a DataLoader",
    "deepspeed_plugin": 'DeepSpeed is not supported; strategy="fsdp2" shards the weights',
    "deepspeed_plugins": 'DeepSpeed is not supported; strategy="fsdp2" shards the weights',
    "fsdp_plugin": 'use strategy="fsdp2"',
    "torch_tp_plugin": 'tensor parallelism is not supported; strategy="fsdp2" shards the weights',
    "megatron_lm_plugin": 'Megatron-LM is not supported; strategy="fsdp2" shards the weights',
    "parallelism_config": 'use strategy="ddp" or "fsdp2"',
    "rng_types": "the trainer keeps its own random state; use seed",
    "gradient_accumulation_plugin": "use accelerate_gradient_accumulation_steps",
    "step_scheduler_with_optimizer": "the rate always follows the updates; use warmup_steps or cosine_decay_max_steps",
    "dynamo_backend": "say compile",
    "dynamo_plugin": "say compile",
}


class Forwarded(NamedTuple):
    """Keyword arguments for the averages, the Accelerator and the optimizer."""

    ema: dict[str, Any]
    accelerate: dict[str, Any]
    adam: dict[str, Any]


def _accepted(callee: type, without: Sequence[str] = ()) -> tuple[str, ...]:
    # of the constructor itself: a metaclass may replace its parameters by *args
    return tuple(name for name in inspect.signature(callee.__init__).parameters if name not in (*without, "self"))


def forwarded(given: Mapping[str, Any], own: Sequence[str]) -> Forwarded:
    """Sort keywords by owner: ``ema_*`` to ema-pytorch, ``accelerate_*`` to Accelerate, the rest to Adam.

    ``own`` are the trainer's own ones, for "did you mean". A TypeError for a keyword that its owner does not take, a
    ValueError for one of Accelerate's whose part the trainer does itself.
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
    _refuse(result["accelerate_"])
    return Forwarded(result["ema_"], result["accelerate_"], result[""])


def _refuse(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in HONOURED:
            instead = REFUSED.get(name, "the trainer does that itself")
            raise ValueError(f"accelerate_{name} does nothing here: {instead}")
    for name in ("project_dir", "project_config"):
        if name in given and given.get("log_with") is None:
            raise ValueError(f"accelerate_{name} is for trackers: it needs accelerate_log_with")


def warn_of_lion(use_lion: bool) -> None:
    """Say that the Lion optimizer of old versions is gone."""
    if use_lion:
        warnings.warn("use_lion is no longer supported; training goes on with Adam", DeprecationWarning, stacklevel=3)

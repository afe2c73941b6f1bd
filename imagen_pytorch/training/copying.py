"""Copies of a trainer, which train on by themselves."""

from __future__ import annotations

import copy
from typing import Any

from ..checkpoints import BackgroundWriter
from .loaders import BatchStream
from .rng import TrainingRandomness

#: what a copy shares with the trainer that it is a copy of
_SHARED = ("processes", "tracking", "precision", "train_dl", "valid_dl", "_fs", "_fs_kwargs")
#: what is made anew: only one trainer saves into a folder
_ANEW = ("store", "snapshots", "checkpoint_path", "checkpoint_every", "_writer", "randomness", "state", "train_dl_iter",
         "valid_dl_iter")  # fmt: skip


def _copied_stream(stream: BatchStream | None, seed: int) -> BatchStream | None:
    if stream is None:
        return None
    new = BatchStream(stream.loader, seed, stream.processes, together=stream.together)
    new.load_state(stream.state())
    return new


def copied(trainer: Any, memo: dict[Any, Any]) -> Any:
    """A trainer with its own model, averages, optimizers and random state, at the same place of the same data.

    It has no checkpoint folder.

    Raises:
        ValueError: the weights are shared out among processes.
    """
    if trainer.processes.sharded:
        raise ValueError('a trainer with strategy "fsdp2" cannot be copied: save it, and load it into another run')
    new = object.__new__(type(trainer))
    memo[id(trainer)] = new
    for name in _SHARED:
        memo[id(trainer.__dict__[name])] = trainer.__dict__[name]
    for name, value in trainer.__dict__.items():
        if name not in _ANEW:
            new.__dict__[name] = copy.deepcopy(value, memo)
    new.__dict__ |= dict.fromkeys(("store", "snapshots", "checkpoint_path", "checkpoint_every"))
    new._writer = BackgroundWriter()
    broadcast = trainer.processes.broadcast if trainer.is_distributed else None
    new.randomness = TrainingRandomness(trainer.seed, trainer.device, broadcast)
    new.randomness.load_state(trainer.randomness.state())
    new.state = type(trainer.state)(new.imagen, new.unet_trainers, new.ema_unets, new.steps)
    for name in ("train_dl_iter", "valid_dl_iter"):
        stream = getattr(trainer, name)
        new.__dict__[name] = _copied_stream(stream, 0 if stream is None else stream.seed)
    return new

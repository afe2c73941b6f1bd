"""The state that a trainer takes over from a checkpoint beside weights and optimizers: what the caller states stays,
the rest is as in the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .settings import AVERAGES, PERIODS, changed


def settings_of(trainer: Any) -> dict[str, Any]:
    """The settings that a checkpoint tells beside those of its optimizers."""
    found: dict[str, Any] = {
        name: [unet_trainer.settings[name] for unet_trainer in trainer.unet_trainers] for name in PERIODS
    }
    found["optimizer"] = trainer.unet_trainers[0].settings["optimizer"].name
    found["max_grad_norm"] = trainer.max_grad_norm
    if trainer.ema_unets is not None:
        found["averages"] = {name: getattr(trainer.ema_unets[0], name) for name in AVERAGES}
    return found


def take_over_settings(trainer: Any, found: Mapping[str, Any]) -> list[str]:
    """Take those settings that the caller did not state.

    Args:
        trainer: an ``ImagenTrainer``.
        found: what `settings_of` gave.

    Returns:
        A line for each stated one that the checkpoint has otherwise.
    """
    notes: list[str] = []
    if "max_grad_norm" in found:
        if "max_grad_norm" in trainer.stated:
            notes += changed({"max_grad_norm": trainer.max_grad_norm}, found)
        else:
            trainer.max_grad_norm = found["max_grad_norm"]
    averages = trainer.ema_unets or ()
    for name, value in found.get("averages", {}).items() if averages else ():
        if f"ema_{name}" in trainer.stated:
            notes += changed({f"ema_{name}": getattr(averages[0], name)}, {f"ema_{name}": value})
            continue
        for average in averages:
            setattr(average, name, value)
    return notes


@contextmanager
def run_put_back_on_error(trainer: Any) -> Iterator[None]:
    """An error inside the block leaves settings, random state and place in the data as they were before it."""
    own = {name: trainer.__dict__[name] for name in ("max_grad_norm", "resume_notes", "randomness")}
    averages = [(average, name) for average in trainer.ema_unets or () for name in AVERAGES]
    values, position = [getattr(average, name) for average, name in averages], trainer._data_state()
    trainer.randomness = copy.copy(trainer.randomness)
    try:
        yield
    except BaseException:
        trainer.__dict__.update(own)
        for (average, name), value in zip(averages, values, strict=True):
            setattr(average, name, value)
        trainer._load_data_state(position)
        raise

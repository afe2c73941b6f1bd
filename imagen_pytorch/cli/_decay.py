"""The learning rate of a run falls until its last step, unless the configuration says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._progress import Span

if TYPE_CHECKING:
    from ..configs import TrainingConfig
    from ..trainer import ImagenTrainer


def states_decay(config: TrainingConfig) -> bool:
    """Return whether a configuration says where the decay ends."""
    return "cosine_decay_max_steps" in config.trainer.model_fields_set


def fit_decay(trainer: ImagenTrainer, config: TrainingConfig, span: Span) -> Iterator[str]:
    """Let the learning rate fall until the run's goal, unless the configuration says that it falls more slowly or not
    at all: no step is computed at a rate of 0. With ``cooldown_steps`` it falls at the end of the run only.

    Yields:
        what is to be said about it.
    """
    number, end = span.unet_number, span.last
    before, cooldown = trainer.decay_steps(number), trainer.cooldown_steps(number)
    if states_decay(config):
        stated = config.trainer.cosine_decay_max_steps
        stated = stated[number - 1] if isinstance(stated, list | tuple) else stated
        if stated is None and cooldown is not None:
            yield (
                f"U-Net {number}: the learning rate stays constant: trainer.cosine_decay_max_steps is null, so "
                "cooldown_steps has no effect; leave cosine_decay_max_steps out for a cool-down at the end of the run"
            )
        if stated is None or stated >= end:
            return
        reason = f"trainer.cosine_decay_max_steps is {stated}"
    else:
        reason = "it was constant" if before is None else f"it ended at step {before}"
    if end == before:
        return
    trainer.set_decay(number, end)
    if span.first or states_decay(config):
        rate = trainer.get_lr(number)
        begin = 0 if cooldown is None else max(0, end - cooldown)
        constant = f"is constant until step {begin} and " if begin > span.first else ""
        yield (
            f"U-Net {number}: the learning rate {constant}falls until step {end}, where this run ends, from "
            f"{rate:.2g} now ({reason})"
        )

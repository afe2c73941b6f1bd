"""Check whether a training fits into the available memory, before it takes any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ._errors import MEMORY, CommandFailed

if TYPE_CHECKING:
    import torch

    from ..cascade.cascade import Cascade
    from ..configs import TrainingConfig
    from ..profiling.estimates import Plan, Training

#: a bound that is this small a part of the memory needs no better estimate, which takes seconds
_SMALL = 0.25


def plan_of(config: TrainingConfig, cascade: Cascade) -> Plan:
    """The training options of a configuration that affect memory."""
    from ..profiling.estimates import Plan
    from ..training.precision import chosen_precision

    trainer, (loader, source) = config.trainer.given(), config.split_dataset_arguments()
    return Plan(
        batch_size=loader["batch_size"] or 1,
        max_batch_size=config.max_batch_size,
        precision=chosen_precision(trainer.get("fp16", False), trainer.get("precision"), "no"),
        averages=trainer.get("use_ema", True) + 2 * bool(trainer.get("posthoc_ema")),
        frames=cascade.video_frames or source.get("num_frames"),
    )


class MemoryCheck:
    """Compare the memory for training U-Nets of a configuration with the available memory.

    The encoder of captions and the data are not counted. Several processes that a launcher has started share the batch
    and, on a CPU, the memory; with ``strategy="fsdp2"`` also the weights and all that goes with them.

    Args:
        config: the configuration.
        numbers: the U-Nets to train, 1-based.
        device: where they are trained.
        force: look at nothing and refuse nothing; None: the command has no such option, so none is named.
    """

    def __init__(
        self, config: TrainingConfig, numbers: Sequence[int], device: torch.device, force: bool | None = False
    ) -> None:
        from ..construction import build_on_meta
        from ..profiling.advice import this_machine
        from ..signatures import ConfigError

        self.hint = "" if force is None else "; --force tries all the same"
        self.numbers = [] if force else list(numbers)
        if force:
            return
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes))
        # other processes take their part meanwhile: each would find another amount that is free
        machine = this_machine(device, free=self.processes == 1)
        self.machine = machine._replace(memory=machine.memory // beside) if machine.device == "cpu" else machine
        self.shared = config.trainer.given().get("strategy") == "fsdp2"
        try:
            self.cascade = build_on_meta(config.imagen._make)
        except (ConfigError, NotImplementedError):  # it cannot be made, or not without memory: making it says why
            self.numbers = []
            return
        config.imagen.note_built(self.cascade)
        self.plan = replace(plan_of(config, self.cascade), device=self.machine.device, enough=0)

    def before_data(self) -> None:
        """Refuse what does not fit whatever the data are: weights, averages, gradients, moments.

        Raises:
            CommandFailed: with the nearest setting that fits.
        """
        for number in self.numbers:
            self._refuse(number, self._shared(self._states(number)), self.plan)

    def before_training(self, items: int, frames: int | None = None) -> None:
        """Refuse steps that do not fit.

        Args:
            items: how many the data set has: no batch is larger.
            frames: of each clip of a video model; None: as the configuration says.

        Raises:
            CommandFailed: with the nearest setting that fits.
        """
        from ..profiling.estimates import estimate_training, most_activations

        for number in self.numbers:
            rows = -(-min(self.plan.batch_size, items) // self.processes)
            plan = replace(self.plan, batch_size=max(rows, 1), frames=frames or self.plan.frames)
            states = self._shared(self._states(number))
            if states.total + most_activations(self.cascade, number, plan) <= _SMALL * self.machine.room:
                continue
            need = self._shared(estimate_training(self.cascade, number, plan))
            self._refuse(number, need, plan)

    def _states(self, number: int) -> Training:
        from ..profiling.estimates import training_states

        return training_states(self.cascade, number, self.plan)

    def _shared(self, need: Training) -> Training:
        """The memory that this process holds of it."""
        if not self.shared or self.processes == 1:
            return need
        names = ("weights", "averages", "gradients", "moments")
        parts = {name: getattr(need, name) // self.processes for name in names}
        return replace(need, **parts, total=sum(parts.values()) + need.activations)

    def _refuse(self, number: int, need: Training, plan: Plan) -> None:
        from ..profiling.advice import training_advice

        checkpointing = bool(getattr(self.cascade.unets[number - 1], "gradient_checkpointing", False))
        sentence = training_advice(number, need, plan, self.machine, checkpointing)
        if sentence is not None:
            raise CommandFailed(f"{sentence}{self.hint}", MEMORY)

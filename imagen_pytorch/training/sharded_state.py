"""The state of a training run whose weights are sharded over processes, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..cascade.cascade import Cascade
from ..checkpoints.sharded import ShardedCheckpoint, nested
from .distributed import Distributed
from .precision import Precision
from .sharding import fill, gathered, is_shared, load_optimizer_tensors, module_tensors, optimizer_tensors, shard
from .state import TrainingState
from .unet_trainer import UnetTrainer


def shard_model(cascade: Cascade, averages: nn.ModuleList | None, processes: Distributed, precision: Precision) -> None:
    """Leave each process a part of every U-Net and of its average; before the optimizers are made.

    Raises:
        ValueError: fp16, whose loss scaling is not made for parts.
        ImportError: this torch cannot.
    """
    if precision.name == "fp16":
        raise ValueError('strategy fsdp2 does not go with precision "fp16"; take "bf16" or "no"')
    mesh = processes.mesh()
    for index, unet in enumerate(cascade.unets):
        if next(unet.parameters(), None) is None:
            continue
        shard(unet, mesh)
        if averages is not None:
            shard(averages[index].ema_model, mesh)


def split_shared(contents: Mapping[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """The tensors of nested dicts of which this process has a part, by path, and all the rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[Any, Any] = {}
    for key, value in contents.items():
        if isinstance(value, Mapping):
            inner, rest[key] = split_shared(value, f"{prefix}{key}/")
            tensors |= inner
        elif isinstance(value, Tensor) and is_shared(value):
            tensors[f"{prefix}{key}"] = value
        else:
            rest[key] = value
    return tensors, rest


def described(source: ShardedCheckpoint) -> dict[str, Any]:
    """The contents of a sharded checkpoint with tensors that have shapes and no memory."""
    return nested({name: torch.empty(shape, device="meta") for name, shape in source.shapes.items()}, source.plain())


class ShardedState(TrainingState):
    """The parts of a trainer that outlive it; every method is called by all processes."""

    def _model(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        named = ((index, module_tensors(unet)) for index, unet in enumerate(self.cascade.unets))
        tensors = {f"unets.{index}.{name}": item for index, items in named for name, item in items.items()}
        return self._chosen(tensors, numbers, "unets.")

    def _averages(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {} if self.averages is None else self._chosen(module_tensors(self.averages), numbers)

    def gather(self, numbers: Sequence[int], with_optimizer: bool) -> dict[str, Any]:
        """As `TrainingState.gather`, with tensors of which each process has a part.

        Raises:
            ValueError: gradients wait for an update.
        """
        if any(unet_trainer.pending for unet_trainer in self.unet_trainers):
            raise ValueError("a sharded training is saved between updates: call update() first")
        contents = super().gather(numbers, with_optimizer)
        for unet_trainer in self.unet_trainers:
            name = f"optim{unet_trainer.number - 1}"
            if name in contents:
                tensors, contents[name] = optimizer_tensors(unet_trainer.optimizer, name)
                contents = nested(tensors, contents)
        return contents

    def whole(self, contents: dict[str, Any], keep: bool) -> dict[str, Any]:
        """The result of `gather` with whole tensors, for a file; processes with ``keep`` false only take part."""
        tensors, rest = split_shared(contents)
        return nested(gathered(tensors, keep), rest)

    def restore(self, contents: dict[str, Any], only_model: bool, source: ShardedCheckpoint | None = None) -> list[str]:
        """As `TrainingState.restore`; each process takes its part."""

        def load(targets: Mapping[str, Tensor]) -> None:
            parts = {} if source is None else {name: targets[name] for name in targets if name in source.shapes}
            if source is not None:
                source.load(parts)
            fill({name: item for name, item in targets.items() if name not in parts}, contents)

        numbers = self.numbers_in(contents)
        wanted, own = self._model(numbers), dict(self.cascade.state_dict(keep_vars=True))
        targets = {f"model/{name}": own[name] for name in wanted if _fits(contents["model"], name, wanted)}
        if self.averages is not None and "ema" in contents:
            averaged, own = self._averages(numbers), dict(self.averages.state_dict(keep_vars=True))
            targets |= {f"ema/{name}": own[name] for name in averaged if _fits(contents["ema"], name, averaged)}
        load(targets)
        if self.averages is not None and "ema" not in contents:
            self._restore_averages(contents, numbers)
        if only_model:
            return []
        return self._restore_lanes(contents, numbers, lambda unet_trainer: _optimizer_loader(unet_trainer, load))


def _fits(found: Mapping[str, Tensor], name: str, wanted: Mapping[str, Tensor]) -> bool:
    return name in found and found[name].shape == wanted[name].shape


def _optimizer_loader(
    unet_trainer: UnetTrainer, load: Callable[[Mapping[str, Tensor]], None]
) -> Callable[[Optimizer, dict[str, Any]], None]:
    """Copy an optimizer's state, moments included."""
    name = f"optim{unet_trainer.number - 1}"
    return lambda optimizer, saved: load(load_optimizer_tensors(optimizer, saved, name))

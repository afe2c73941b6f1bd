"""The state of a training run, gathered from its parts for a checkpoint and restored to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..cascade.cascade import Cascade
from ..checkpoints import CheckpointError, CheckpointMismatch
from ..checkpoints.contents import local_part
from ..checkpoints.model import differences, fitting
from ..wording import first_of
from .ema import start_average
from .meaning import changes
from .unet_trainer import UnetTrainer
from .validation import ruined_tensors, unusable_weights, wrong_entries


def _describes(name: str, indices: Sequence[int], prefix: str = "") -> bool:
    """Return whether a name such as "unets.1.…" or "1.…" belongs to one of these U-Nets (or to none)."""
    head = name.removeprefix(prefix).split(".", 1)[0]
    return not name.startswith(prefix) or not head.isdigit() or int(head) in indices


class TrainingState:
    """The parts of a trainer that outlive it.

    Args:
        cascade: the model.
        unet_trainers: one per U-Net.
        averages: the moving averages, or None.
        steps: updates taken by each U-Net.
    """

    def __init__(
        self, cascade: Cascade, unet_trainers: Sequence[UnetTrainer], averages: nn.ModuleList | None, steps: Tensor
    ) -> None:
        self.cascade, self.unet_trainers, self.averages, self.steps = cascade, unet_trainers, averages, steps

    def _chosen(self, tensors: dict[str, Tensor], numbers: Sequence[int], prefix: str = "") -> dict[str, Tensor]:
        indices = [number - 1 for number in numbers]
        return {name: item for name, item in tensors.items() if _describes(name, indices, prefix)}

    def _model(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self._chosen(dict(self.cascade.state_dict()), numbers, "unets.")

    def _averages(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {} if self.averages is None else self._chosen(dict(self.averages.state_dict()), numbers)

    def gather(self, numbers: Sequence[int], with_optimizer: bool) -> dict[str, Any]:
        """Entries of a checkpoint for these U-Nets (1-based): model, steps, averages, optimizers, and how to make
        the model again.
        """
        contents: dict[str, Any] = {"model": self._model(numbers), "steps": self.steps.clone()}
        for unet_trainer in self.unet_trainers:
            if unet_trainer.number in numbers:
                contents |= unet_trainer.state(with_optimizer)
        if self.averages is not None:
            contents["ema"] = self._averages(numbers)
        try:
            config = self.cascade.to_config()
        except TypeError as error:
            warnings.warn(f"the checkpoint cannot say how its model was made: {error}", stacklevel=4)
            return contents
        return contents | {"imagen_type": config.pop("type"), "imagen_params": config}

    def numbers_in(self, contents: dict[str, Any]) -> list[int]:
        """The U-Nets that a checkpoint holds."""
        return list(contents.get("state", {}).get("unet_numbers", range(1, len(self.unet_trainers) + 1)))

    def check(
        self, contents: dict[str, Any], only_model: bool, strict: bool, path: str | Path
    ) -> tuple[list[str], list[str]]:
        """Everything in a checkpoint that does not fit, and all that it says otherwise of the model; before anything
        is changed.

        Args:
            contents: of the checkpoint.
            only_model: whether nothing but weights and averages matters.
            strict: whether it has to fit, and unless ``only_model`` to mean the same by its weights.
            path: what errors call it.

        Raises:
            CheckpointError: entries are missing or something else than `gather` gives.
            CheckpointMismatch: something does not fit, and ``strict``.
        """
        wrong = wrong_entries(contents, only_model)
        if not only_model:
            wrong += [name for unet_trainer in self.unet_trainers for name in unet_trainer.wrong_entries(contents)]
        if wrong:
            raise CheckpointError(
                f"{path} is not a checkpoint of a training, nothing was loaded; missing or not as expected: "
                f"{', '.join(wrong)}"
            )
        numbers = self.numbers_in(contents)
        if unusable := self._unusable(contents, numbers):
            raise CheckpointError(
                f"{path} holds weights that cannot be used, nothing was loaded: NaN, infinities, numbers that are too "
                f"large or of another kind in {first_of(unusable)}; go on from an earlier checkpoint"
            )
        if unknown := [number for number in numbers if not 1 <= number <= len(self.unet_trainers)]:
            raise CheckpointMismatch(
                f"the checkpoint {path} holds U-Net {unknown[0]}, the model has {len(self.unet_trainers)}; "
                "nothing was loaded"
            )
        found = [f"model: {text}" for text in differences(contents["model"], self._model(numbers))]
        if self.averages is not None and "ema" in contents:
            found += [f"ema: {text}" for text in differences(contents["ema"], self._averages(numbers))]
        if not only_model:
            if len(contents.get("steps", ())) != len(self.unet_trainers):
                found.append(
                    f"steps of {len(contents.get('steps', ()))} U-Nets, the model has {len(self.unet_trainers)}"
                )
            for unet_trainer in self.unet_trainers:
                found += unet_trainer.differences(contents)
        described = changes(contents, self.cascade, numbers)
        if strict and not only_model:
            found += [f"another meaning of its weights: {line}" for line in described.meaning]
        if found and strict:
            raise CheckpointMismatch(
                f"the checkpoint {path} belongs to another model, nothing was loaded; {'; '.join(found)}. "
                "strict=False loads what fits"
            )
        return found, described.meaning + described.rest

    def _unusable(self, contents: dict[str, Any], numbers: Sequence[int]) -> list[str]:
        """The names of weights and averages that are no finite real numbers."""
        found = [f"model/{name}" for name in unusable_weights(contents["model"], self._model(numbers))]
        if self.averages is None:
            return found
        averages = unusable_weights(contents.get("ema", {}), self._averages(numbers))
        return found + [f"ema/{name}" for name in averages]

    def ruined(self) -> list[str]:
        """The names of weights, averages and moments, as in a checkpoint, from which no training can go on.

        Where they are shared out, of the part that this process holds.
        """
        weights = {f"model/{name}": item for name, item in self.cascade.state_dict(keep_vars=True).items()}
        if self.averages is not None:
            averages = self.averages.state_dict(keep_vars=True)
            weights |= {f"ema/{name}": item for name, item in averages.items()}
        for unet_trainer in self.unet_trainers:
            for index, each in enumerate(unet_trainer.posthoc.tensors if unet_trainer.posthoc is not None else ()):
                weights |= {
                    f"posthoc{unet_trainer.number - 1}/averages/{index}/{name}": item for name, item in each.items()
                }
        moments = {name: item for unet_trainer in self.unet_trainers for name, item in unet_trainer.moments()}
        return ruined_tensors(weights, moments)

    def whole(self, contents: dict[str, Any], keep: bool) -> dict[str, Any]:
        """The result of `gather`, as one process writes it; with ``keep`` false for a process that does not."""
        return contents

    @contextmanager
    def put_back_on_error(self) -> Iterator[None]:
        """An error inside the block leaves weights, averages, optimizers and counts as they were before it.

        Holds a copy of weights and averages in main memory meanwhile.
        """
        modules = [self.cascade, *([] if self.averages is None else [self.averages])]
        tensors = [local_part(item)[0] for module in modules for item in module.state_dict(keep_vars=True).values()]
        copies = [item.detach().to("cpu", copy=True) for item in tensors]
        steps, unet_trainers = self.steps.clone(), [unet_trainer.kept() for unet_trainer in self.unet_trainers]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for tensor, copy in zip(tensors, copies, strict=True):
                    tensor.copy_(copy)
            self.steps.copy_(steps)
            for put_back in unet_trainers:
                put_back()
            raise

    def restore(self, contents: dict[str, Any], only_model: bool, source: Any = None) -> list[str]:
        """Take over everything that fits; call `check` first.

        Args:
            contents: of a checkpoint.
            only_model: weights and averages, and nothing else.
            source: where tensors are read from that ``contents`` only describes; for those with shards.

        Returns:
            A line for each setting of this trainer that the checkpoint has otherwise.
        """
        numbers = self.numbers_in(contents)
        self.cascade.load_state_dict(fitting(contents["model"], self._model(numbers)), strict=False)
        self._restore_averages(contents, numbers)
        return [] if only_model else self._restore_lanes(contents, numbers)

    def _restore_lanes(
        self,
        contents: dict[str, Any],
        numbers: Sequence[int],
        loader: Callable[[UnetTrainer], Callable[[Optimizer, dict[str, Any]], object]] | None = None,
    ) -> list[str]:
        saved, notes = contents.get("steps", ()), []
        for unet_trainer in self.unet_trainers:
            if unet_trainer.number not in numbers:
                continue
            if unet_trainer.number <= len(saved):
                self.steps[unet_trainer.number - 1] = int(saved[unet_trainer.number - 1])
            fits = contents if not unet_trainer.differences(contents) else {"state": contents.get("state", {})}
            notes += unet_trainer.load_state(
                fits, int(self.steps[unet_trainer.number - 1]), loader and loader(unet_trainer)
            )
        return notes

    def _restore_averages(self, contents: dict[str, Any], numbers: Sequence[int]) -> None:
        if self.averages is None:
            return
        if "ema" in contents:
            self.averages.load_state_dict(fitting(contents["ema"], self._averages(numbers)), strict=False)
            return
        for number in numbers:
            start_average(self.averages[number - 1])
        warnings.warn("the checkpoint has no averaged weights: the averages start from its weights", stacklevel=4)

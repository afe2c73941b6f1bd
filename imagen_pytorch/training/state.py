"""The state of a training run: what a checkpoint holds of it, loaded completely or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade.cascade import Cascade
from ..checkpoints import CheckpointError, CheckpointMismatch
from ..checkpoints.contents import local_part, ruined_tensors
from ..checkpoints.model import differences
from ..checkpoints.sharded import ShardedCheckpoint
from ..version import __version__
from ..wording import excerpt, first_of
from .data import TrainingData
from .distributed import Distributed
from .ema import start_average
from .fsdp import fill, module_tensors
from .identity import facts_of_checkpoint
from .meaning import changes
from .optim import PERIODS
from .rng import TrainingRandomness
from .settings import AVERAGES, merged
from .unet_trainer import UnetTrainer
from .validation import unusable_weights, wrong_entries

#: characters of a version, and of a note, at most: both quote the file
_SHORT, _LONG = 40, 2000
#: entries of a checkpoint that are the trainer's own
_RESERVED = ("model", "ema", "steps", "version", "state", "imagen_type", "imagen_params")
_PER_UNET = ("optim", "scaler", "scheduler", "gradients", "posthoc")


class CheckpointRuined(CheckpointError):
    """A checkpoint whose weights are not finite, known after they were read."""


@dataclass(eq=False)
class TrainingState:
    """All that outlives the process of a training. Where weights are sharded, all processes call each method.

    Attributes:
        stated: names of the settings that the caller chose; a checkpoint does not replace them.
        steps: updates taken by each U-Net.
        notes: how the checkpoint that was loaded last differs from this trainer, a line each.
    """

    cascade: Cascade
    averages: nn.ModuleList | None
    unet_trainers: tuple[UnetTrainer, ...]
    randomness: TrainingRandomness
    data: TrainingData
    processes: Distributed
    max_grad_norm: float | None
    stated: Collection[str]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps = torch.zeros(len(self.unet_trainers), dtype=torch.long)

    # -- for a checkpoint ---------------------------------------------------------------------------------------------

    def _tensors(self, numbers: Collection[int] | None = None, saved: bool = True) -> dict[str, dict[str, Tensor]]:
        """Return weights and averages of these U-Nets, or all, and of none by entry and name: as they are saved, or the
        trainer's own."""
        numbers = range(1, len(self.unet_trainers) + 1) if numbers is None else numbers
        found: dict[str, dict[str, Tensor]] = {}
        for entry, module, prefix in (("model", self.cascade, "unets."), ("ema", self.averages, "")):
            if module is None:
                continue
            tensors = module_tensors(module) if saved else module.state_dict(keep_vars=True)
            heads = {name: name.removeprefix(prefix).split(".", 1)[0] for name in tensors if name.startswith(prefix)}
            others = {name for name, head in heads.items() if head.isdigit() and int(head) + 1 not in numbers}
            found[entry] = {name: item for name, item in tensors.items() if name not in others}
        return found

    def state_dict(
        self, numbers: Sequence[int] | None = None, with_optimizer: bool = True, extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the contents of a checkpoint of these U-Nets (1-based; all by default), and in them how to build the
        model again.

        Raises:
            ValueError: an extra entry with a name that is taken, or sharded gradients that wait for an update.
        """
        for name in extra or ():
            if name in _RESERVED or name.rstrip("0123456789") in _PER_UNET:
                raise ValueError(f'the entry "{name}" of a checkpoint is the trainer\'s own; choose another name')
        if self.processes.sharded and any(each.pending for each in self.unet_trainers):
            raise ValueError("a sharded training is saved between updates: call update() first")
        tensors = self._tensors(numbers)
        contents: dict[str, Any] = {"version": __version__, "state": self._run(numbers), "model": tensors.pop("model")}
        contents["steps"] = self.steps.clone()
        for each in self.unet_trainers:
            if numbers is None or each.number in numbers:
                contents |= each.state_dict(with_optimizer)
        contents |= tensors
        try:
            config = self.cascade.to_config()
            contents |= {"imagen_type": config.pop("type"), "imagen_params": config}
        except TypeError as error:
            warnings.warn(f"the checkpoint cannot say how its model was made: {error}", stacklevel=4)
        return contents | dict(extra or {})

    def _run(self, numbers: Sequence[int] | None) -> dict[str, Any]:
        """Return the entry "state" of a checkpoint."""
        settings = {name: [each.settings[name] for each in self.unet_trainers] for name in PERIODS}
        settings |= {"optimizer": self.unet_trainers[0].settings["optimizer"].name, "max_grad_norm": self.max_grad_norm}
        if self.averages is not None:
            settings["averages"] = {name: getattr(self.averages[0], name) for name in AVERAGES}
        return {
            "randomness": self.randomness.state_dict(),
            "skipped_steps": [each.skipped for each in self.unet_trainers],
            "skipped_in_a_row": [each.skipped_in_a_row for each in self.unet_trainers],
            "processes": self.processes.count,
            "settings": settings,
            **self.data.state_dict(),
            **({} if numbers is None else {"unet_numbers": list(numbers)}),
        }

    def ruined(self) -> list[str]:
        """Return the names of weights, averages and moments, as in a checkpoint, from which no training can go on.

        Where weights are sharded, of the part that this process holds.
        """
        tensors = self._tensors(saved=False)
        weights = {f"{entry}/{name}": item for entry, items in tensors.items() for name, item in items.items()}
        for each in self.unet_trainers:
            for index, average in enumerate(each.posthoc.tensors if each.posthoc is not None else ()):
                place = f"posthoc{each.number - 1}/averages/{index}"
                weights |= {f"{place}/{name}": item for name, item in average.items()}
        moments = {name: item for each in self.unet_trainers for name, item in each.moments()}
        return ruined_tensors(weights, moments)

    # -- from a checkpoint --------------------------------------------------------------------------------------------

    def _numbers_in(self, contents: Mapping[str, Any]) -> list[int]:
        return list(contents.get("state", {}).get("unet_numbers", range(1, len(self.unet_trainers) + 1)))

    def check(
        self, contents: Mapping[str, Any], only_model: bool, strict: bool, path: str | Path
    ) -> tuple[list[str], list[str]]:
        """Return what of a checkpoint does not fit, and what it says otherwise of the model; nothing is changed.

        With ``only_model`` nothing but weights and averages matters. With ``strict`` it has to fit, and unless
        ``only_model`` to mean the same by its weights.

        Raises:
            CheckpointError: entries are missing or not as `state_dict` returns them.
            CheckpointMismatch: something does not fit, and ``strict``.
        """
        wrong = wrong_entries(contents, only_model)
        if not only_model:
            wrong += [name for each in self.unet_trainers for name in each.wrong_entries(contents)]
        if wrong:
            raise CheckpointError(
                f"{path} is not a checkpoint of a training, nothing was loaded; missing or not as expected: "
                f"{', '.join(wrong)}"
            )
        numbers, count = self._numbers_in(contents), len(self.unet_trainers)
        tensors = {entry: items for entry, items in self._tensors(numbers).items() if entry in contents}
        unusable = [
            f"{entry}/{name}" for entry, items in tensors.items() for name in unusable_weights(contents[entry], items)
        ]
        if unusable:
            raise CheckpointError(
                f"{path} holds weights that cannot be used, nothing was loaded: NaN, infinities, numbers that are too "
                f"large or of another kind in {first_of(unusable)}; go on from an earlier checkpoint"
            )
        if unknown := [number for number in numbers if not 1 <= number <= count]:
            raise CheckpointMismatch(
                f"the checkpoint {path} holds U-Net {unknown[0]}, the model has {count}; nothing was loaded"
            )
        found = [f"{entry}: {text}" for entry, items in tensors.items() for text in differences(contents[entry], items)]
        if not only_model:
            steps = len(contents.get("steps", ()))
            found += [] if steps == count else [f"steps of {steps} U-Nets, the model has {count}"]
            found += [text for each in self.unet_trainers for text in each.differences(contents)]
        described = changes(contents, self.cascade, numbers)
        if strict and not only_model:
            found += [f"another meaning of its weights: {line}" for line in described.meaning]
        if found and strict:
            raise CheckpointMismatch(
                f"the checkpoint {path} belongs to another model, nothing was loaded; {'; '.join(found)}. "
                "strict=False loads what fits"
            )
        return found, described.meaning + described.rest

    def load_state_dict(
        self,
        contents: dict[str, Any],
        path: str | Path,
        only_model: bool = False,
        strict: bool = True,
        source: ShardedCheckpoint | None = None,
    ) -> None:
        """Go on from the contents of a checkpoint, or of the sharded ``source`` that they describe; see
        `Checkpointing.load`.

        They are checked before anything is changed. An error after that leaves everything as it was.

        Raises:
            CheckpointError, CheckpointMismatch: as `check`, or weights in shards that are not finite.
            ProcessesDiffer: other processes have other contents.
        """
        advice = "put the same file where each of them reads it"
        if self.processes.count > 1:  # the digest takes time
            self.processes.check_same(f"the checkpoint {path}", facts_of_checkpoint(contents), advice)
        left, notes = self.check(contents, only_model, strict, path)
        notes += [f"loaded what fits; left out: {each}" for each in left]
        if contents.get("version", __version__) != __version__:
            found = excerpt(contents["version"], _SHORT)
            notes.append(f"the checkpoint is of version {found}, this is version {__version__}")
        with self._transaction():
            notes += self._load(contents, only_model, source)
            if source is not None and not self.processes.all_true(not (names := self.ruined())):
                where = f" in {names[0]}" if names else ""
                raise CheckpointRuined(f"{path}: it holds weights that are not finite{where}; nothing was loaded")
        self.notes = [excerpt(note, _LONG) for note in notes]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Leave everything as it was before an error inside the block: tensors with their gradients, attributes of
        objects, loss scalers. A copy of the tensors is in main memory meanwhile; objects are replaced, not changed."""
        tensors = [self.steps, *(item for items in self._tensors(saved=False).values() for item in items.values())]
        kept = [(item, item.grad, local_part(item)[0].detach().to("cpu", copy=True)) for item in tensors]
        objects = [self, self.randomness, self.data, *self.data.streams(), *(self.averages or ()), *self.unet_trainers]
        objects += [each.posthoc for each in self.unet_trainers if each.posthoc is not None]
        attributes = [(each, dict(vars(each))) for each in objects]
        scales = [each.scaler.state_dict() for each in self.unet_trainers]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for item, gradient, copy in kept:
                    local_part(item)[0].copy_(copy)
                    item.grad = gradient
            for each, before in attributes:
                vars(each).clear()
                vars(each).update(before)
            for each, scale in zip(self.unet_trainers, scales, strict=True):
                each.scaler.load_state_dict(scale)
            raise

    def _load(self, contents: dict[str, Any], only_model: bool, source: ShardedCheckpoint | None) -> list[str]:
        """Load all that fits; return a line for each setting of this trainer that the checkpoint has otherwise."""

        def load(targets: Mapping[str, Tensor]) -> None:
            in_shards = {} if source is None else {name: targets[name] for name in targets if name in source.shapes}
            if source is not None:
                source.load(in_shards)
            fill({name: item for name, item in targets.items() if name not in in_shards}, contents)

        numbers = self._numbers_in(contents)
        saved, own = self._tensors(numbers), self._tensors(numbers, saved=False)
        load(
            {
                f"{entry}/{name}": own[entry][name]
                for entry, items in saved.items()
                for name, item in items.items()
                if entry in contents and name in contents[entry] and contents[entry][name].shape == item.shape
            }
        )
        if self.averages is not None and "ema" not in contents:
            for number in numbers:
                start_average(self.averages[number - 1])
            warnings.warn("the checkpoint has no averaged weights: the averages start from its weights", stacklevel=5)
        if only_model:
            return []
        steps, notes = contents.get("steps", ()), []
        for each in self.unet_trainers:
            if each.number not in numbers:
                continue
            if each.number <= len(steps):
                self.steps[each.number - 1] = int(steps[each.number - 1])
            fits = contents if not each.differences(contents) else {"state": contents.get("state", {})}
            notes += each.load_state_dict(fits, int(self.steps[each.number - 1]), load)
        return notes + self._load_run(contents.get("state", {}))

    def _load_run(self, run: Mapping[str, Any]) -> list[str]:
        """Load the entry "state" of a checkpoint."""
        notes = self._load_settings(run.get("settings", {}))
        self.randomness.load_state_dict(run.get("randomness", {}))
        self.data.load_state_dict(run)
        before = run.get("processes", self.processes.count)
        if before != self.processes.count:
            notes.append(
                f"the checkpoint is of a run on {before} processes, this is one on {self.processes.count}: batches and "
                "random draws are those of the whole batch and stay the same"
            )
        for attribute, entry in (("skipped", "skipped_steps"), ("skipped_in_a_row", "skipped_in_a_row")):
            for each, value in zip(self.unet_trainers, run.get(entry, ()), strict=False):
                setattr(each, attribute, value)
        return notes

    def _load_settings(self, found: Mapping[str, Any]) -> list[str]:
        """Load the settings that the caller did not state; return a line for each stated one that differs."""
        own = {"max_grad_norm": self.max_grad_norm}
        given = {name: found[name] for name in own if name in found}
        if self.averages is not None:
            own |= {f"ema_{name}": getattr(self.averages[0], name) for name in AVERAGES}
            given |= {f"ema_{name}": value for name, value in found.get("averages", {}).items()}
        settings, notes = merged(own, given, self.stated)
        self.max_grad_norm = settings.pop("max_grad_norm")
        for average in self.averages or ():
            for name, value in settings.items():
                setattr(average, name.removeprefix("ema_"), value)
        return notes

"""The training of one U-Net, independent of the others: optimizer, schedule, loss scaler and averages."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..cascade.batch import TrainingBatch
from ..cascade.cascade import Cascade
from ..cascade.module_state import compile_once
from ..checkpoints.contents import nonfinite_tensors, ruined_tensors
from ..tensors import BatchShard
from ..wording import first_of
from .batches import apart_from_its_graph
from .distributed import Distributed, lost_connections_named
from .fsdp import gradient_norm, load_optimizer_state, optimizer_state, parameters_of
from .optim import ADAM, BY_NAME, PERIODS, Choice, Warmup, make_optimizer, make_scheduler
from .posthoc import PowerAverages
from .precision import Precision
from .settings import merged, optimizer_in, settings_in
from .validation import are_averages, are_gradients, is_optimizer_state, is_scale, is_schedule

#: entries of every checkpoint, without the number of the U-Net
_ENTRIES = ("optim", "scheduler", "scaler", "gradients", "posthoc")

_CURE = "go on from an earlier checkpoint, and lower lr or set max_grad_norm"
_ADVICE = "check the images and embeddings for NaN, lower lr, or set max_grad_norm"

#: a function that gets the times and the losses of items
Observer = Callable[[Tensor, Tensor], None]


def _among(names: list[str]) -> str:
    """Return the names of the tensors in brackets; empty if they are not known here."""
    return f" ({first_of(names)})" if names else ""


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had no finite loss or gradient."""


class UnetTrainer:
    """Optimizer, learning-rate schedule, loss scaler and averages of one U-Net, and the counts of its updates.

    Args:
        cascade: the model.
        number: 1-based number of the U-Net.
        processes, precision: of the run.
        settings: of its optimizer and schedule, by name; what `make_optimizer` and `make_scheduler` take.
        average: moving average of its weights, or None.
        stated: names of the settings that the caller chose; a checkpoint does not replace them.
        widths: of post-hoc averages of its weights, or None.
        max_skipped: number of updates in a row that may be skipped.

    Attributes:
        network: the U-Net as several processes train it; made by `wrap`.
        whole: false while an update changes weights, moments, schedule and averages, and after it failed.
        pending: whether gradients wait for an update, those of ``added`` complete batches among them.
        skipped, skipped_in_a_row: numbers of updates.
    """

    def __init__(
        self,
        cascade: Cascade,
        number: int,
        processes: Distributed,
        precision: Precision,
        settings: Mapping[str, Any],
        average: Any,
        stated: Collection[str],
        widths: Sequence[float] | None,
        max_skipped: int,
    ) -> None:
        self.cascade, self.number, self.unet = cascade, number, cascade.unets[number - 1]
        self.processes, self.precision = processes, precision
        self.settings, self.stated = dict(settings), frozenset(stated)
        self.optimizer: Optimizer = make_optimizer(self.unet, settings)
        self.scheduler: LambdaLR | None = make_scheduler(self.optimizer, settings)
        self.scaler = precision.scaler()
        self.average, self.max_skipped = average, max_skipped
        self.posthoc = None if widths is None else PowerAverages(self.unet, widths)
        self.network: nn.Module | None = None
        self.added = self.skipped = self.skipped_in_a_row = 0
        self.pending, self.finite, self.whole = False, True, True
        self._warned = self._begun = self._warned_of_zero = False

    def __deepcopy__(self, memo: dict[Any, Any]) -> UnetTrainer:
        """Return a trainer of the copied network, with an optimizer of its own in the same state."""
        new = memo[id(self)] = object.__new__(UnetTrainer)
        anew = ("optimizer", "scheduler", "scaler", "network")
        new.__dict__ |= {name: copy.deepcopy(item, memo) for name, item in vars(self).items() if name not in anew}
        new.network, new.scaler = None, new.precision.scaler()
        new.scaler.load_state_dict(self.scaler.state_dict())
        new.optimizer = make_optimizer(new.unet, new.settings)
        new.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        taken = 0 if self.scheduler is None else self.scheduler.last_epoch
        new.scheduler = make_scheduler(new.optimizer, new.settings, taken)
        for mine, theirs in zip(self.unet.parameters(), new.unet.parameters(), strict=True):
            theirs.grad = None if mine.grad is None else mine.grad.clone()
        return new

    @property
    def warmup(self) -> Warmup | None:
        """The progress of the warm-up of the rate; None if it has none."""
        period = self.settings["warmup_steps"]
        return None if self.scheduler is None or period is None else Warmup(self.scheduler, period)

    def set_decay(self, end: int | None, taken: int) -> None:
        """Let the rate fall to 0 at update ``end``, or not at all, after ``taken`` updates; see
        `ImagenTrainer.set_decay`. Nothing is changed if ``end`` is not a number of updates."""
        settings = {**self.settings, "cosine_decay_max_steps": end}
        self.scheduler, self.settings = make_scheduler(self.optimizer, settings, taken), settings
        self.stated |= {"cosine_decay_max_steps"}

    # -- steps --------------------------------------------------------------------------------------------------------

    def wrap(self, compile_mode: bool | str) -> None:
        """Prepare the network for training: compiled if asked for, and known to all processes, which call this."""
        if self.network is None:
            compile_once(self.unet, compile_mode)
            self.network = self.processes.wrap(self.unet)

    def loss(
        self,
        batch: TrainingBatch,
        shard: BatchShard,
        max_batch_size: int | None,
        backward: bool,
        observe: Observer | None = None,
    ) -> float:
        """Compute the loss of a batch of this process in microbatches, and with ``backward`` add its gradient to those
        that wait.

        ``shard`` is its place in the global batch. ``observe`` is called with the times and the losses of the items, a
        microbatch at a time.
        """
        network = self.network if backward else None
        total = torch.zeros((), device=self.precision.device)
        whole = apart_from_its_graph(batch) if backward else nullcontext(batch)
        with self._complete_batches(), lost_connections_named(), torch.set_grad_enabled(backward), whole as independent:
            microbatches = self.processes.microbatches(independent, max_batch_size, shard.largest)
            for index, (part, fraction) in enumerate(microbatches, start=1):
                # gradients are exchanged with the last microbatch only
                alone = index < len(microbatches) and hasattr(network, "no_sync")
                with network.no_sync() if alone else nullcontext():
                    with self.precision.autocast():
                        if observe is None:
                            loss = self.cascade.loss(part, network)
                        else:
                            each = self.cascade.losses(part, network)
                            loss = each.mean()
                            if fraction:  # one without items only keeps step with the other processes
                                observe(part.t, each.detach())
                        loss = loss * (shard.weight * fraction)
                    if backward:
                        self.backward(loss)
                total += loss.detach()
        value = float(total)
        if backward:
            self.finite &= math.isfinite(value)
        return value

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those that wait for the next update; a ValueError if nothing of the network is
        to be trained.

        The gradient of a loss that is not finite is made NaN, even where it happens to be a number: so every process
        learns from the common gradient that the update is to be skipped.
        """
        if not loss.requires_grad:
            raise ValueError(
                f"U-Net {self.number} has nothing to train: none of its parameters requires a gradient; call "
                "requires_grad_() on those that are to be trained"
            )
        one_or_nan = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._begun = True
        self.scaler.scale(loss * (one_or_nan / self.processes.accumulated)).backward()
        self.pending = True

    @contextmanager
    def _complete_batches(self) -> Iterator[None]:
        """Drop the gradient of a part of a batch if an error inside the block interrupts its microbatches.

        Gradients of batches before it are dropped with it, because they cannot be separated.
        """
        self._begun = False
        try:
            yield
        except BaseException:
            if self._begun:
                self.optimizer.zero_grad()
                self.pending, self.finite, self.added = False, True, 0
            raise

    def update(self, max_grad_norm: float | None = None) -> bool:
        """Take one optimizer step from the waiting gradients, then schedule and averages; return whether it was taken.

        None is taken as long as batches are missing. The step is skipped, and neither schedule nor averages move, if
        the loss or any gradient is not finite. A ValueError if no gradient waits, a `TrainingDiverged` after too many
        skipped steps in a row.
        """
        if not self.pending:
            raise ValueError(
                f"U-Net {self.number} has nothing to update from: call trainer(images, ..., "
                f"unet_number={self.number}) in training mode first"
            )
        self.added += 1
        if self.added < self.processes.accumulated:
            return False
        self.added = 0
        self._warn_of_rate_zero()
        parameters = [item for item in self.unet.parameters() if item.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(parameters)
        taken = self.finite and bool(torch.isfinite(norm))
        if taken:
            if max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
            self.whole = False
            self.scaler.step(self.optimizer)
        finding_scale = self._follow_scale(taken)
        self.optimizer.zero_grad()
        loss_was_finite, self.pending, self.finite = self.finite, False, True
        if taken:
            self._advance()
            self.whole = True
        else:
            self._skip(loss_was_finite, finding_scale)
        return taken

    def _follow_scale(self, taken: bool) -> bool:
        """Adapt the loss scale; whether the step was skipped for nothing but too large a scale."""
        if not self.scaler.is_enabled():
            return False
        scale = self.scaler.get_scale()
        overflow = not taken and self.processes.all_true(self.finite)
        # a loss that is not a number says nothing about the scale, which bad data would else bring down to nothing
        self.scaler.update(None if taken or overflow else scale)
        return overflow and scale > 1

    def _warn_of_rate_zero(self) -> None:
        """Say once that nothing more is learned, unless the rate was 0 from the beginning."""
        end = self.settings["cosine_decay_max_steps"]
        if self._warned_of_zero or end is None or self.scheduler is None or self.scheduler.last_epoch < end:
            return
        self._warned_of_zero = True
        warnings.warn(
            f"the learning rate of U-Net {self.number} fell to 0 at update {end}, so nothing more is learned: "
            f"set_decay({self.number}, ...) lets it end later",
            stacklevel=4,
        )

    def _advance(self) -> None:
        self.skipped_in_a_row = 0
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update()
        if self.posthoc is not None:
            self.posthoc.update()

    def _skip(self, loss_was_finite: bool, finding_scale: bool) -> None:
        self.skipped += 1
        if finding_scale:  # an overflow halves it until it fits: no failure
            return
        self.skipped_in_a_row += 1
        what = "gradient" if loss_was_finite else "loss"
        trained = {name: item.detach() for name, item in self.unet.named_parameters()}
        lost = nonfinite_tensors(trained | dict(self.moments()))
        if not self.processes.all_true(not lost):
            raise TrainingDiverged(
                f"U-Net {self.number}: the {what} is not finite because weights or moments are not"
                f"{_among(lost)}: no batch can mend that; {_CURE}"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the {what} of U-Net {self.number} is not finite: the update was skipped, weights and averages are "
                "untouched; further ones are counted in skipped_steps",
                stacklevel=4,
            )
        if self.skipped_in_a_row > self.max_skipped:
            large = ruined_tensors(trained, {})
            reason = f"its weights are too large{_among(large)}: {_CURE}" if large else _ADVICE
            raise TrainingDiverged(
                f"U-Net {self.number}: {self.skipped_in_a_row} updates in a row without a finite loss and gradient; "
                f"{reason}"
            )

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Return every moment of the optimizer with its name in a checkpoint."""
        for index, parameter in enumerate(parameters_of(self.optimizer)):
            for name, item in self.optimizer.state.get(parameter, {}).items():
                if name != "step" and isinstance(item, Tensor):
                    yield f"optim{self.number - 1}/state/{index}/{name}", item

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self, with_optimizer: bool) -> dict[str, Any]:
        """Return the entries of a checkpoint by their names there; where weights are sharded, all processes call it."""
        index = self.number - 1
        if not with_optimizer:
            return {}
        entries = {f"scaler{index}": self.scaler.state_dict(), f"optim{index}": optimizer_state(self.optimizer)}
        if self.pending:
            gradients = {name: item.grad for name, item in self.unet.named_parameters() if item.grad is not None}
            entries[f"gradients{index}"] = {"finite": self.finite, "values": gradients, "batches": self.added}
        if self.posthoc is not None and self.posthoc.count:
            entries[f"posthoc{index}"] = self.posthoc.state_dict()
        return entries | ({} if self.scheduler is None else {f"scheduler{index}": self.scheduler.state_dict()})

    def wrong_entries(self, contents: dict[str, Any]) -> list[str]:
        """Return the names of entries of a checkpoint that are not as `state_dict` returns them, shapes aside."""
        index = self.number - 1
        found = {part: contents.get(f"{part}{index}") for part in _ENTRIES}
        of_adam = optimizer_in(contents) == ADAM.name
        known = f"optim{index}" not in contents or is_optimizer_state(found["optim"], of_adam)
        fits = {
            "optim": known,
            "scheduler": is_schedule(found["scheduler"], found["optim"] if known else None),
            "scaler": not self.scaler.is_enabled() or is_scale(found["scaler"]),
            "gradients": are_gradients(found["gradients"]),
            "posthoc": are_averages(found["posthoc"]),
        }
        held = [part for part in _ENTRIES if found[part] is not None or part == "optim"]
        return [f"{part}{index}" for part in held if not fits[part]]

    def differences(self, contents: dict[str, Any]) -> list[str]:
        """Return the entries of a checkpoint that do not fit this U-Net; none if all do or are absent."""
        index = self.number - 1
        own = dict(self.unet.named_parameters())
        gradients = (contents.get(f"gradients{index}") or {"values": {}})["values"]
        found = [
            f"gradients{index}: {name} of shape {tuple(item.shape)} for a parameter of {tuple(own[name].shape)}"
            for name, item in gradients.items()
            if name in own and item.shape != own[name].shape
        ]
        saved = contents.get(f"posthoc{index}")
        shapes = {name: item.shape for name, item in self.unet.state_dict().items()}
        averages = [] if saved is None or self.posthoc is None else saved["averages"]
        if any(shapes != {name: item.shape for name, item in each.items()} for each in averages):
            found.append(f"posthoc{index} has averages of other names or shapes than the network")
        return found + self._moments_that_differ(contents, f"optim{index}")

    def _optimizer_for(self, contents: Mapping[str, Any]) -> Choice:
        """Return the optimizer with which training goes on: the stated one, else that of the checkpoint if its name
        tells which it is."""
        own: Choice = self.settings["optimizer"]
        return own if "optimizer" in self.stated else BY_NAME.get(optimizer_in(contents), own)

    def _moments_that_differ(self, contents: Mapping[str, Any], name: str) -> list[str]:
        saved, choice, before = contents.get(name), self._optimizer_for(contents), optimizer_in(contents)
        if saved is None or (choice.name != before and "optimizer" in self.stated):
            return []
        if choice.name != before:
            return [f"{name} is of the optimizer {before}: give the trainer this one as optimizer=..., or another one"]
        separate = len(saved["param_groups"]) > 1
        made = make_optimizer(self.unet, {**self.settings, "optimizer": choice}, separate=separate)
        groups = [group["params"] for group in made.param_groups]
        found = [len(group["params"]) for group in saved["param_groups"]]
        if [len(group) for group in groups] != found:
            return [f"{name} has parameter groups of {found}, the trainer of {[len(group) for group in groups]}"]
        own = [item for group in groups for item in group]
        if choice.make is not None:  # what it remembers of a parameter is its own affair
            return []
        shapes = (
            (index, key, tuple(getattr(item, "shape", ())), () if key == "step" else tuple(own[index].shape))
            for index, moments in saved["state"].items()
            for key, item in moments.items()
        )
        return [
            f"{name}: {key} of shape {shape} for a parameter of {tuple(own[index].shape)}"
            for index, key, shape, wanted in shapes
            if shape != wanted
        ]

    def load_state_dict(
        self, contents: Mapping[str, Any], taken: int, load: Callable[[Mapping[str, Tensor]], object]
    ) -> list[str]:
        """Take over settings, optimizer, scaler, gradients and averages of a checkpoint, as far as it has them.

        The schedule is at ``taken`` updates; ``load`` fills sharded moments in place, given by their names in the
        checkpoint. Return a line for each stated setting that the checkpoint has otherwise.
        """
        index, of = self.number - 1, f" of U-Net {self.number}"
        found = settings_in(contents, index, not self.stated.isdisjoint(PERIODS))
        settings, notes = merged(self.settings, found, self.stated, of)
        choice, before = self._optimizer_for(contents), optimizer_in(contents)
        if choice.name != before:
            notes.append(f"optimizer{of}: {choice} (the checkpoint has {before}), its moments begin anew")
        settings["optimizer"] = choice
        optimizer = make_optimizer(self.unet, settings)
        if f"optim{index}" in contents and choice.name == before:
            saved = contents[f"optim{index}"]
            grouped = make_optimizer(self.unet, settings, separate=len(saved["param_groups"]) > 1)
            load_optimizer_state(optimizer, saved, f"optim{index}", load, parameters_of(grouped))
        self.optimizer, self.settings = optimizer, settings
        self.scheduler = make_scheduler(optimizer, settings, taken)
        own, scale = self.scaler.state_dict(), contents.get(f"scaler{index}") or {}
        self.scaler.load_state_dict({name: scale.get(name, own[name]) for name in own})
        self._load_gradients(contents.get(f"gradients{index}"))
        return notes + self._load_averages(contents.get(f"posthoc{index}"), taken)

    def _load_averages(self, saved: Mapping[str, Any] | None, taken: int) -> list[str]:
        """Go on with post-hoc averages, or begin anew; a line if that is not what a reader would expect."""
        of = f" of U-Net {self.number}"
        if self.posthoc is None:
            return [] if saved is None else [f"post-hoc averages{of} end: the checkpoint has them, posthoc_ema is off"]
        if self.posthoc.load_state_dict(saved) or not taken:
            return []
        return [f"post-hoc averages{of} begin after update {taken}: the checkpoint has none of these widths"]

    def _load_gradients(self, saved: Mapping[str, Any] | None) -> None:
        """Let the gradients wait that waited when the checkpoint was written; any others are dropped."""
        self.optimizer.zero_grad()
        self.pending, self.finite = saved is not None, saved is None or saved["finite"]
        self.added = 0 if saved is None else saved.get("batches", 0)
        for name, parameter in self.unet.named_parameters() if saved is not None else ():
            if name in saved["values"]:
                parameter.grad = saved["values"][name].to(parameter, copy=True)
                self.scaler.scale(parameter.grad.new_ones(()))  # its scale exists from its first use on only

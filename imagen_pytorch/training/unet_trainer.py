"""The training of one U-Net, independent of every other one: optimizer, schedule, loss scaler and averages."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..checkpoints import nonfinite_tensors
from ..wording import first_of
from .choosing import ADAM, BY_NAME, Choice
from .posthoc import PowerAverages
from .settings import PERIODS, changed, move_moments, optimizer_in, optimizer_of, scheduler_of, settings_in
from .sharding import clip_gradients, gradient_norm
from .validation import (
    are_averages,
    are_counts,
    are_tensors,
    is_adams,
    is_optimizers,
    is_scale,
    is_schedule,
    matches,
    ruined_tensors,
)
from .warmup import Warmup

#: attributes that a checkpoint replaces
_KEPT = ("settings", "optimizer", "scheduler", "pending", "finite", "added", "skipped", "skipped_in_a_row")
#: entries of every checkpoint, without the number of the U-Net
_ENTRIES = ("optim", "scheduler", "scaler", "gradients")


_CURE = "go on from an earlier checkpoint, and lower lr or set max_grad_norm"
_ADVICE = "check the images and embeddings for NaN, lower lr, or set max_grad_norm"


def _among(names: list[str]) -> str:
    """The names of the tensors in brackets; empty if they are not known here."""
    return f" ({first_of(names)})" if names else ""


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had no finite loss or gradient."""


class UnetTrainer:
    """Optimizer, learning-rate schedule, loss scaler and averages of one U-Net, and what became of its updates.

    Args:
        number: 1-based number of the U-Net.
        unet: the network.
        settings: of its optimizer and schedule, by name; what `optimizer_of` and `scheduler_of` take.
        stated: names of those that the caller chose; a checkpoint does not replace them.
        scaler: of its loss.
        average: moving average of its weights, or None.
        max_skipped: number of updates in a row that may be skipped.
        batches: whose mean gradient makes one update.
        all_true: whether something holds on all processes, called by each of them.
    """

    def __init__(
        self,
        number: int,
        unet: nn.Module,
        *,
        settings: Mapping[str, Any],
        stated: Collection[str] = (),
        scaler: torch.amp.GradScaler,
        average: Any,
        max_skipped: int,
        batches: int = 1,
        all_true: Callable[[bool], bool] = bool,
    ) -> None:
        self.number, self.unet, self._all_true = number, unet, all_true
        self.settings, self.stated = dict(settings), frozenset(stated)
        self.optimizer: Optimizer = optimizer_of(unet, settings)
        self.scheduler: LambdaLR | None = scheduler_of(self.optimizer, settings)
        self.scaler, self.average, self.max_skipped = scaler, average, max_skipped
        self.posthoc: PowerAverages | None = None
        self.network: nn.Module | None = None  # the network as several processes train it, made with the first loss
        self.batches = batches
        self.added = 0  # batches whose gradients wait for the others
        self.pending = False
        self.finite = True
        self.whole = True  # false while an update changes weights, moments, schedule and averages, and after it failed
        self.skipped = self.skipped_in_a_row = 0
        self._warned = self._begun = self._warned_of_zero = False

    def __deepcopy__(self, memo: dict[Any, Any]) -> UnetTrainer:
        """A trainer of the copied network, with an optimizer of its own in the same state."""
        new = object.__new__(UnetTrainer)
        memo[id(self)] = new
        anew = ("optimizer", "scheduler", "scaler", "network", "_all_true")
        new.__dict__ |= {name: copy.deepcopy(item, memo) for name, item in vars(self).items() if name not in anew}
        new.network, new._all_true = None, self._all_true
        new.optimizer = optimizer_of(new.unet, new.settings)
        new.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        new.scheduler = None
        if self.scheduler is not None:
            new.scheduler = scheduler_of(new.optimizer, new.settings, self.scheduler.last_epoch)
        new.scaler = type(self.scaler)(self.scaler._device, enabled=self.scaler.is_enabled())
        new.scaler.load_state_dict(self.scaler.state_dict())
        for mine, theirs in zip(self.unet.parameters(), new.unet.parameters(), strict=True):
            theirs.grad = None if mine.grad is None else mine.grad.clone()
        return new

    @property
    def warmup(self) -> Warmup | None:
        """The progress of the warm-up of the rate; None without one."""
        period = self.settings["warmup_steps"]
        return None if self.scheduler is None or period is None else Warmup(self.scheduler, period)

    def set_decay(self, end: int | None, taken: int) -> None:
        """Let the rate fall to 0 at update ``end``, or not at all; the present rate becomes the one of that schedule.

        With a cool-down the fall begins ``cooldown_steps`` before the end.

        Args:
            end: counted from the first update; None turns the decay off.
            taken: number of updates so far.

        Raises:
            TypeError, ValueError: ``end`` is not a number of updates; nothing is changed.
        """
        settings = {**self.settings, "cosine_decay_max_steps": end}
        self.scheduler, self.settings = scheduler_of(self.optimizer, settings, taken), settings
        self.stated |= {"cosine_decay_max_steps"}

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those that wait for the next update.

        The gradient of a loss that is not finite is made NaN, even where it happens to be a number: so every process
        learns from the common gradient that the update is to be skipped.

        Raises:
            ValueError: nothing of the network is to be trained.
        """
        if not loss.requires_grad:
            raise ValueError(
                f"U-Net {self.number} has nothing to train: none of its parameters requires a gradient; call "
                "requires_grad_() on those that are to be trained"
            )
        fate = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._begun = True
        self.scaler.scale(loss * (fate / self.batches)).backward()
        self.pending = True

    def update(self, max_grad_norm: float | None = None) -> bool:
        """One optimizer step from the waiting gradients, then schedule and averages; false if none was taken.

        None is taken as long as batches are missing. The step is skipped, and neither schedule nor averages move, if
        the loss or any gradient is not finite.

        Raises:
            ValueError: no gradient waits.
            TrainingDiverged: too many skipped steps in a row.
        """
        if not self.pending:
            raise ValueError(
                f"U-Net {self.number} has nothing to update from: call trainer(images, ..., "
                f"unet_number={self.number}) in training mode first"
            )
        self.added += 1
        if self.added < self.batches:
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
                clip_gradients(parameters, norm, max_grad_norm)
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

    @contextmanager
    def whole_batches(self) -> Iterator[None]:
        """Drop the gradient of a part of a batch if an error inside the block interrupts its pieces.

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

    def _follow_scale(self, taken: bool) -> bool:
        """Adapt the loss scale; whether the step was skipped for nothing but too large a scale."""
        if not self.scaler.is_enabled():
            return False
        scale = self.scaler.get_scale()
        overflow = not taken and self._all_true(self.finite)
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
        if not self._all_true(not lost):
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
        """Every moment of the optimizer with its name in a checkpoint."""
        parameters = [item for group in self.optimizer.param_groups for item in group["params"]]
        for index, parameter in enumerate(parameters):
            for name, item in self.optimizer.state.get(parameter, {}).items():
                if name != "step" and isinstance(item, Tensor):
                    yield f"optim{self.number - 1}/state/{index}/{name}", item

    def state(self, with_optimizer: bool) -> dict[str, Any]:
        """Entries of a checkpoint, by their names there."""
        index = self.number - 1
        if not with_optimizer:
            return {}
        entries = {f"scaler{index}": self.scaler.state_dict(), f"optim{index}": self.optimizer.state_dict()}
        if self.pending:
            gradients = {name: item.grad for name, item in self.unet.named_parameters() if item.grad is not None}
            entries[f"gradients{index}"] = {"finite": self.finite, "values": gradients, "batches": self.added}
        if self.posthoc is not None and self.posthoc.count:
            entries[f"posthoc{index}"] = self.posthoc.state()
        return entries | ({} if self.scheduler is None else {f"scheduler{index}": self.scheduler.state_dict()})

    def wrong_entries(self, contents: dict[str, Any]) -> list[str]:
        """The names of those entries of a checkpoint that are something else than `state` gives, shapes aside."""
        names = {part: f"{part}{self.number - 1}" for part in (*_ENTRIES, "posthoc")}
        found = {part: contents.get(name) for part, name in names.items()}
        is_usual = is_adams if optimizer_in(contents) == ADAM.name else is_optimizers
        wrong = [] if names["optim"] not in contents or is_usual(found["optim"]) else ["optim"]
        if found["scheduler"] is not None and not is_schedule(found["scheduler"], None if wrong else found["optim"]):
            wrong.append("scheduler")
        if self.scaler.is_enabled() and found["scaler"] is not None and not is_scale(found["scaler"]):
            wrong.append("scaler")
        waiting = found["gradients"]
        if waiting is not None and not (
            matches(waiting, {"finite": 1, "values": {}})
            and are_tensors(waiting["values"])
            and are_counts([waiting.get("batches", 0)])
        ):
            wrong.append("gradients")
        if found["posthoc"] is not None and not are_averages(found["posthoc"]):
            wrong.append("posthoc")
        return [names[part] for part in wrong]

    def differences(self, contents: dict[str, Any]) -> list[str]:
        """The entries of a checkpoint that do not fit this U-Net; none if all do or are absent."""
        index = self.number - 1
        own = dict(self.unet.named_parameters())
        gradients = (contents.get(f"gradients{index}") or {"values": {}})["values"]
        found = [
            f"gradients{index}: {name} of shape {tuple(item.shape)} for a parameter of {tuple(own[name].shape)}"
            for name, item in gradients.items()
            if name in own and item.shape != own[name].shape
        ]
        found += self._averages_that_differ(contents.get(f"posthoc{index}"), index)
        return found + self._moments_that_differ(contents, f"optim{index}")

    def _averages_that_differ(self, saved: Mapping[str, Any] | None, index: int) -> list[str]:
        if saved is None or self.posthoc is None:
            return []
        own = {name: tuple(item.shape) for name, item in self.unet.state_dict().items()}
        return [
            f"posthoc{index} has averages of other names or shapes than the network"
            for each in saved["averages"]
            if own != {name: tuple(item.shape) for name, item in each.items()}
        ][:1]

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
        made = optimizer_of(self.unet, {**self.settings, "optimizer": choice}, separate=separate)
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

    def merged_settings(self, contents: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The settings with which training goes on from a checkpoint, and in which of those stated it has others.

        What the caller stated stays; everything else is as in the checkpoint, as far as it tells.
        """
        scheduled = not self.stated.isdisjoint(PERIODS)
        found = settings_in(contents, self.number - 1, scheduled)
        stated = {name: value for name, value in found.items() if name in self.stated}
        rest = {name: value for name, value in found.items() if name not in self.stated}
        notes, of = changed(self.settings, stated, f" of U-Net {self.number}"), f" of U-Net {self.number}"
        choice, before = self._optimizer_for(contents), optimizer_in(contents)
        if choice.name != before:
            notes.append(f"optimizer{of}: {choice} (the checkpoint has {before}), its moments begin anew")
        return {**self.settings, **rest, "optimizer": choice}, notes

    def load_state(
        self,
        contents: dict[str, Any],
        taken: int,
        load_optimizer: Callable[[Optimizer, dict[str, Any]], object] | None = None,
    ) -> list[str]:
        """Take over settings, optimizer and scaler of a checkpoint, as far as it has them.

        Args:
            contents: of the checkpoint.
            taken: number of updates that the schedule is at.
            load_optimizer: in place of ``Optimizer.load_state_dict``.

        Returns:
            A line for each stated setting that the checkpoint has otherwise.
        """
        index = self.number - 1
        settings, notes = self.merged_settings(contents)
        optimizer = optimizer_of(self.unet, settings)
        if f"optim{index}" in contents and settings["optimizer"].name == optimizer_in(contents):
            saved = contents[f"optim{index}"]
            holder = optimizer_of(self.unet, settings, separate=len(saved["param_groups"]) > 1)
            # how an optimizer computes is of this trainer: only the moments are taken
            saved = {"state": saved["state"], "param_groups": holder.state_dict()["param_groups"]}
            (load_optimizer or Optimizer.load_state_dict)(holder, saved)
            move_moments(holder, optimizer)
        self.optimizer, self.settings = optimizer, settings
        self.scheduler = scheduler_of(optimizer, settings, taken)
        own, scale = self.scaler.state_dict(), contents.get(f"scaler{index}") or {}
        self.scaler.load_state_dict({name: scale.get(name, own[name]) for name in own})
        self._load_gradients(contents.get(f"gradients{index}"))
        return notes + self._load_averages(contents.get(f"posthoc{index}"), taken)

    def _load_averages(self, saved: Mapping[str, Any] | None, taken: int) -> list[str]:
        """Go on with post-hoc averages, or begin anew; a line if that is not what a reader would expect."""
        of = f" of U-Net {self.number}"
        if self.posthoc is None:
            return [] if saved is None else [f"post-hoc averages{of} end: the checkpoint has them, posthoc_ema is off"]
        if self.posthoc.load_state(saved) or not taken:
            return []
        return [f"post-hoc averages{of} begin after update {taken}: the checkpoint has none of these widths"]

    def kept(self) -> Callable[[], None]:
        """Return a function that restores the present optimizer, schedule, scaler and gradients after a load."""
        attributes = {name: getattr(self, name) for name in _KEPT}
        scaler, parameters = self.scaler.state_dict(), list(self.unet.parameters())
        gradients = [item.grad for item in parameters]
        posthoc = self.posthoc
        averages = None if posthoc is None else (posthoc.count, posthoc.checked, posthoc.tensors)

        def put_back() -> None:
            for name, value in attributes.items():
                setattr(self, name, value)
            self.scaler.load_state_dict(scaler)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if posthoc is not None and averages is not None:
                posthoc.put_back(*averages)

        return put_back

    def _load_gradients(self, saved: dict[str, Any] | None) -> None:
        """Gradients that waited for an update when the checkpoint was written wait again; any others are dropped."""
        self.optimizer.zero_grad()
        self.pending, self.finite = saved is not None, saved is None or saved["finite"]
        self.added = 0 if saved is None else saved.get("batches", 0)
        for name, parameter in self.unet.named_parameters() if saved is not None else ():
            if name in saved["values"]:
                parameter.grad = saved["values"][name].to(parameter, copy=True)
                self.scaler.scale(parameter.grad.new_ones(()))  # its scale exists from its first use on only

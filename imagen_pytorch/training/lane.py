"""What the training of one U-Net needs besides the network: its lane, independent of every other one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .sharding import clip_gradients, gradient_norm

#: how an optimizer computes belongs to the machine and is not taken from a checkpoint
_MACHINE = ("fused", "foreach", "capturable", "differentiable")


class TrainingDiverged(RuntimeError):
    """So many updates in a row had no finite loss or gradient that going on is pointless."""


class Lane:
    """Optimizer, learning-rate schedule, loss scaler and averages of one U-Net, and what became of its updates.

    Args:
        number: 1-based number of the U-Net.
        unet: the network.
        optimizer, scheduler, scaler: for its parameters; the schedule may be absent.
        average: moving average of its weights, or None.
        max_skipped: number of updates in a row that may be skipped.
    """

    def __init__(
        self,
        number: int,
        unet: nn.Module,
        *,
        optimizer: Optimizer,
        scheduler: LambdaLR | None,
        scaler: torch.amp.GradScaler,
        average: Any,
        max_skipped: int,
    ) -> None:
        self.number, self.unet = number, unet
        self.optimizer, self.scheduler, self.scaler, self.average = optimizer, scheduler, scaler, average
        self.max_skipped = max_skipped
        self.network: nn.Module | None = None  # the network as several processes train it, made with the first loss
        self.pending = False
        self.finite = True
        self.skipped = self.skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those that wait for the next update.

        The gradient of a loss that is not finite is made NaN, even where it happens to be a number: so every process
        learns from the common gradient that the update is to be skipped.
        """
        fate = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self.scaler.scale(loss * fate).backward()
        self.pending = True

    def update(self, max_grad_norm: float | None = None) -> bool:
        """One optimizer step from the waiting gradients, then schedule and averages; false if it was skipped.

        The step is skipped, and neither schedule nor averages move, if the loss or any gradient is not finite.

        Raises:
            ValueError: no gradient waits.
            TrainingDiverged: too many skipped steps in a row.
        """
        if not self.pending:
            raise ValueError(
                f"U-Net {self.number} has nothing to update from: call trainer(images, ..., "
                f"unet_number={self.number}) in training mode first"
            )
        parameters = [item for item in self.unet.parameters() if item.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(parameters)
        taken = self.finite and bool(torch.isfinite(norm))
        if taken:
            if max_grad_norm is not None:
                clip_gradients(parameters, norm, max_grad_norm)
            self.scaler.step(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad()
        loss_was_finite, self.pending, self.finite = self.finite, False, True
        if taken:
            self._advance()
        else:
            self._skip(loss_was_finite)
        return taken

    def _advance(self) -> None:
        self.skipped_in_a_row = 0
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update()

    def _skip(self, loss_was_finite: bool) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        finding_scale = self.scaler.is_enabled() and loss_was_finite  # overflow is how a scaler finds its scale
        if self.skipped == 1 and not finding_scale:
            what = "gradient" if loss_was_finite else "loss"
            warnings.warn(
                f"the {what} of U-Net {self.number} is not finite: the update was skipped, weights and averages are "
                "untouched; further ones are counted in skipped_steps",
                stacklevel=4,
            )
        if self.skipped_in_a_row > self.max_skipped:
            raise TrainingDiverged(
                f"U-Net {self.number}: {self.skipped_in_a_row} updates in a row without a finite loss and gradient; "
                "check the pictures and embeddings for NaN, lower lr, or set max_grad_norm"
            )

    def state(self, with_optimizer: bool) -> dict[str, Any]:
        """Entries of a checkpoint, by their names there."""
        index = self.number - 1
        if not with_optimizer:
            return {}
        entries = {f"scaler{index}": self.scaler.state_dict(), f"optim{index}": self.optimizer.state_dict()}
        if self.pending:
            gradients = {name: item.grad for name, item in self.unet.named_parameters() if item.grad is not None}
            entries[f"gradients{index}"] = {"finite": self.finite, "values": gradients}
        return entries | ({} if self.scheduler is None else {f"scheduler{index}": self.scheduler.state_dict()})

    def differences(self, contents: dict[str, Any]) -> list[str]:
        """Why the optimizer state of a checkpoint does not fit this U-Net; nothing if it does or is absent."""
        saved = contents.get(f"optim{self.number - 1}")
        if saved is None:
            return []
        own = [item for group in self.optimizer.param_groups for item in group["params"]]
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        found = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != found:
            return [f"optim{self.number - 1} has parameter groups of {found}, the trainer of {sizes}"]
        return [
            f"optim{self.number - 1}: moment of shape {tuple(item.shape)} for a parameter of {tuple(own[index].shape)}"
            for index, moments in saved["state"].items()
            for item in moments.values()
            if isinstance(item, Tensor) and item.ndim and item.shape != own[index].shape
        ]

    def load_state(
        self, contents: dict[str, Any], load_optimizer: Callable[[dict[str, Any]], object] | None = None
    ) -> None:
        """Take over optimizer, schedule and scaler of a checkpoint, as far as it has them.

        Args:
            contents: of the checkpoint.
            load_optimizer: in place of the optimizer's own ``load_state_dict``.
        """
        index = self.number - 1
        machine = [{name: group.get(name) for name in _MACHINE} for group in self.optimizer.param_groups]
        if f"optim{index}" in contents:
            (load_optimizer or self.optimizer.load_state_dict)(contents[f"optim{index}"])
            for group, own in zip(self.optimizer.param_groups, machine, strict=True):
                group.update(own)
        if self.scheduler is not None and f"scheduler{index}" in contents:
            self.scheduler.load_state_dict(contents[f"scheduler{index}"])
            schedule = zip(self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
            for group, rate, factor in schedule:  # of this trainer: its length may have been changed
                group["lr"] = rate * factor(self.scheduler.last_epoch)
        if self.scaler.is_enabled() and contents.get(f"scaler{index}"):
            self.scaler.load_state_dict(contents[f"scaler{index}"])
        self._load_gradients(contents.get(f"gradients{index}"))

    def _load_gradients(self, saved: dict[str, Any] | None) -> None:
        """Gradients that waited for an update when the checkpoint was written wait again; any others are dropped."""
        self.optimizer.zero_grad()
        self.pending, self.finite = saved is not None, saved is None or saved["finite"]
        for name, parameter in self.unet.named_parameters() if saved is not None else ():
            if name in saved["values"]:
                parameter.grad = saved["values"][name].to(parameter, copy=True)

"""Properties of a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade.cascade import Cascade
from ..cascade.limits import check_unet_number
from ..cascade.module_state import device_of
from ..imagen import ElucidatedImagen
from .distributed import Distributed
from .sampling import untrained
from .unet_trainer import UnetTrainer


class TrainerStatus:
    """The part of `ImagenTrainer` that only answers."""

    imagen: Cascade
    num_unets: int
    ema_unets: nn.ModuleList | None
    unet_trainers: tuple[UnetTrainer, ...]
    steps: Tensor
    processes: Distributed
    only_train_unet_number: int | None
    unet_being_trained: int
    verbose: bool

    @property
    def accelerator(self) -> Any:
        """The ``accelerate.Accelerator``."""
        return self.processes.accelerator

    @property
    def device(self) -> torch.device:
        """The device of the training."""
        return self.processes.device

    @property
    def is_distributed(self) -> bool:
        """Return whether several processes train together."""
        return self.accelerator.num_processes > 1

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that writes."""
        return self.accelerator.is_main_process

    @property
    def is_local_main(self) -> bool:
        """Return whether this is the first process of its machine."""
        return self.accelerator.is_local_main_process

    @property
    def is_elucidated(self) -> bool:
        """Return whether the model is an `ElucidatedImagen`."""
        return isinstance(self.imagen, ElucidatedImagen)

    @property
    def unwrapped_unet(self) -> nn.Module:
        """The U-Net that is being trained."""
        return self.imagen.unets[max(self.unet_being_trained, 0)]

    @property
    def unets(self) -> nn.ModuleList:
        """The averaged U-Nets, or the model's own without averages."""
        if self.ema_unets is None:
            return self.imagen.unets
        return nn.ModuleList(average.ema_model for average in self.ema_unets)

    @property
    def skipped_steps(self) -> list[int]:
        """The number of skipped updates of each U-Net, because a loss or gradient was not finite."""
        return [unet_trainer.skipped for unet_trainer in self.unet_trainers]

    def validate_unet_number(self, unet_number: int | None = None) -> int:
        """The number of the U-Net that is meant: the given one, the only one, or the only one that may be trained.

        Raises:
            TypeError, ValueError: it is not clear, or the U-Net does not exist.
        """
        number = unet_number
        if number is None:  # 0 is a mistake, no absence
            number = self.only_train_unet_number or self.imagen.only_train_unet_number
        if number is None:
            if self.num_unets > 1:
                raise ValueError(f"name the U-Net: unet_number=1 to {self.num_unets}")
            number = 1
        return check_unet_number(number, self.num_unets)

    def validate_and_set_unet_being_trained(self, unet_number: int | None = None) -> int:
        """The number of the U-Net that is trained from now on; another one may follow at any time.

        Raises:
            ValueError: as `validate_unet_number`, or the trainer was told to train another one only.
        """
        number = self.validate_unet_number(unet_number)
        if self.only_train_unet_number not in (None, number):
            raise ValueError(f"this trainer trains U-Net {self.only_train_unet_number} only, got {number}")
        self.unet_being_trained = number - 1
        return number

    def num_steps_taken(self, unet_number: int | None = None) -> int:
        """The number of updates of a U-Net so far."""
        return int(self.steps[self.validate_unet_number(unet_number) - 1])

    def get_lr(self, unet_number: int) -> float:
        """The present learning rate of a U-Net."""
        return float(self.unet_trainers[self.validate_unet_number(unet_number) - 1].optimizer.param_groups[0]["lr"])

    def decay_steps(self, unet_number: int) -> int | None:
        """Return the update at which the rate of a U-Net reaches 0, counted from its first; None if it never does."""
        return self.unet_trainers[self.validate_unet_number(unet_number) - 1].settings["cosine_decay_max_steps"]

    def cooldown_steps(self, unet_number: int) -> int | None:
        """Return the number of last updates over which the rate of a U-Net falls; None if it falls from the first."""
        return self.unet_trainers[self.validate_unet_number(unet_number) - 1].settings["cooldown_steps"]

    def get_ema_unet(self, unet_number: int | None = None) -> nn.Module:
        """The averaged weights of a U-Net, or its own without averages."""
        return self.unets[self.validate_unet_number(unet_number) - 1]

    def reset_ema_unets_all_one_device(self, device: torch.device | str | None = None) -> None:
        """Bring all averages to one device, by default the trainer's."""
        if self.ema_unets is not None:
            self.ema_unets.to(device or self.device)

    def print(self, message: str) -> None:
        """Say something on the main process, if the trainer is verbose."""
        if self.verbose:
            self.accelerator.print(message)

    def print_unet_devices(self) -> None:
        """Say where every U-Net is."""
        for number, unet in enumerate(self.imagen.unets, start=1):
            self.print(f"U-Net {number}: {device_of(unet)}")

    def print_untrained_unets(self) -> None:
        """Say which U-Nets have not been trained yet."""
        for number, (unet, steps) in enumerate(zip(self.imagen.unets, self.steps, strict=True), start=1):
            if not steps and untrained(unet):
                self.print(f"U-Net {number} has not been trained yet")

    def encode_text(self, texts: Sequence[str], return_attn_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Embeddings of captions, as `Cascade.encode_text`."""
        return self.imagen.encode_text(texts, return_attn_mask)

"""What the optimizer of a U-Net and its learning-rate schedule are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .optim import make_optimizer, make_scheduler

#: names of what the schedule is made of
PERIODS = ("warmup_steps", "cosine_decay_max_steps")
#: names of what the trainer itself gives to `make_optimizer`; everything else is for Adam
_NAMED = ("lr", "eps", "beta1", "beta2", "group_wd_params")


def optimizer_of(unet: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a network.

    Args:
        unet: the network.
        settings: ``lr``, ``eps``, ``beta1``, ``beta2``, ``group_wd_params``, and keywords of ``torch.optim.Adam``.

    Raises:
        ValueError: as `make_optimizer`.
    """
    options = {name: value for name, value in settings.items() if name not in (*_NAMED, *PERIODS)}
    return make_optimizer(
        unet,
        lr=settings["lr"],
        eps=settings["eps"],
        betas=(settings["beta1"], settings["beta2"]),
        group_wd_params=settings["group_wd_params"],
        options=options,
    )


def scheduler_of(optimizer: Optimizer, settings: Mapping[str, Any], taken: int = 0) -> LambdaLR | None:
    """The schedule of an optimizer after ``taken`` updates, from ``warmup_steps`` and ``cosine_decay_max_steps``.

    Raises:
        TypeError, ValueError: as `make_scheduler`.
    """
    return make_scheduler(optimizer, *(settings[name] for name in PERIODS), taken)

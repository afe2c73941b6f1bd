"""Optimizers, learning-rate schedules and the size of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .arguments import check_arguments

#: devices for which torch has one kernel for the whole optimizer step
_FUSED = ("cpu", "cuda", "xpu", "mps")


def parameter_groups(unet: nn.Module, separate: bool) -> list[dict[str, Any]]:
    """The parameters of a network: in one group, or those to decay (matrices, convolutions) and those not to
    (gains, biases and other vectors).
    """
    parameters = list(unet.parameters())
    if not separate:
        return [{"params": parameters}]
    groups = [
        {"params": [item for item in parameters if item.ndim >= 2]},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    unet: nn.Module,
    *,
    lr: float,
    eps: float,
    betas: tuple[float, float],
    group_wd_params: bool = True,
    options: Mapping[str, Any] | None = None,
    separate: bool | None = None,
) -> Optimizer:
    """Adam (Kingma & Ba 2014, arXiv 1412.6980), or with ``weight_decay`` AdamW (Loshchilov & Hutter 2017,
    arXiv 1711.05101); in one kernel for all parameters where the device has it.

    Args:
        unet: network to train.
        lr, eps, betas: as in torch.
        group_wd_params: decay only parameters with two and more axes.
        options: further keywords of ``torch.optim.Adam``; ``decoupled_weight_decay=False`` asks for Adam's own L2
            penalty in place of AdamW.
        separate: whether there are two groups, as for `parameter_groups`; by default if there is a decay and
            ``group_wd_params``.

    Raises:
        ValueError: numbers that torch refuses.
    """
    options = dict(options or {})
    decay = options.get("weight_decay", 0.0)
    decoupled = options.pop("decoupled_weight_decay", True)
    kind = torch.optim.AdamW if decay and decoupled else torch.optim.Adam
    if not {"fused", "foreach", "differentiable"} & set(options):
        options["fused"] = all(item.device.type in _FUSED and item.is_floating_point() for item in unet.parameters())
    options.setdefault("weight_decay", 0.0)
    groups = parameter_groups(unet, separate=bool(decay) and group_wd_params if separate is None else separate)
    return kind(groups, lr=lr, eps=eps, betas=betas, **options)


def rate_factor(
    step: int,
    warmup_steps: int | None = None,
    cosine_decay_max_steps: int | None = None,
    cooldown_steps: int | None = None,
) -> float:
    """Compute the fraction of the full learning rate after ``step`` updates.

    It rises linearly and is 1 from update ``warmup_steps`` on. It falls to 0 at ``cosine_decay_max_steps`` and stays
    there: with a half cosine from the first update, or with ``cooldown_steps`` only over that number of last updates,
    as 1 - sqrt(fraction of the cool-down that has passed) (Hägele et al. 2024, arXiv 2405.18392). Before the cool-down
    the rate does not depend on the length of the run.

    Args:
        step: number of updates so far.
        warmup_steps: length of the rise; None for none.
        cosine_decay_max_steps: end of the fall, counted from the first update; None for no fall.
        cooldown_steps: length of the fall; it is the whole run if that is shorter.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    end = cosine_decay_max_steps
    if not end:
        return rise
    if cooldown_steps is None:
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / end)))
    begin = max(0, end - cooldown_steps)
    return rise * (1 - math.sqrt(min(1.0, max(0, step - begin) / (end - begin))))


def make_scheduler(
    optimizer: Optimizer,
    warmup_steps: int | None,
    cosine_decay_max_steps: int | None,
    cooldown_steps: int | None = None,
    taken: int = 0,
) -> LambdaLR | None:
    """The learning-rate schedule of `rate_factor`; None for a constant rate.

    An optimizer that has a schedule already gets the new one in its place.

    Args:
        optimizer: its rates become those of the schedule.
        warmup_steps, cosine_decay_max_steps, cooldown_steps: as for `rate_factor`; None leaves that part out.
        taken: number of updates so far.

    Raises:
        TypeError, ValueError: numbers that are none of steps; nothing is changed then.
    """
    periods = {
        "warmup_steps": warmup_steps,
        "cosine_decay_max_steps": cosine_decay_max_steps,
        "cooldown_steps": cooldown_steps,
    }
    check_arguments(periods)
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    if warmup_steps is None and cosine_decay_max_steps is None:
        return None
    factor = partial(rate_factor, **periods)
    scheduler = LambdaLR(optimizer, factor)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor(taken)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler.load_state_dict(
        {"last_epoch": taken, "_step_count": taken + 1, "_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    )
    return scheduler

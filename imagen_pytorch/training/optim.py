"""Optimizers, by name or any of torch's interface, and learning-rate schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..registry import suggestion
from .arguments import check_arguments
from .muon import Muon, muon_groups

#: optimizers that have a name; a checkpoint of one of them can be continued by the name alone
NAMES = ("adam", "adamw", "muon")
#: weight decay of "adamw", as in torch
USUAL_DECAY = 0.01
#: settings that only the named ones take
_OF_ADAM = ("eps", "beta1", "beta2")
#: names of the settings that make the schedule
PERIODS = ("warmup_steps", "cosine_decay_max_steps", "cooldown_steps")
#: names of the settings of an optimizer that the trainer states itself; the others are keywords of Adam
_NAMED = ("lr", "eps", "beta1", "beta2", "group_wd_params", "optimizer")
#: devices for which torch has one kernel for the whole optimizer step
_FUSED = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True)
class Choice:
    """An optimizer and what a checkpoint calls it.

    Attributes:
        name: "adam", "muon", or module and name of a class or function.
        make: for others than the named ones, makes the optimizer from groups of parameters and ``lr``.
    """

    name: str
    make: Callable[..., Optimizer] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


ADAM, MUON = Choice("adam"), Choice("muon")
#: what a checkpoint that does not say more was trained with
BY_NAME = {choice.name: choice for choice in (ADAM, MUON)}


def chosen_optimizer(given: Any, options: Mapping[str, Any], stated: Collection[str], sharded: bool) -> Choice:
    """Return the optimizer that the arguments of a trainer ask for.

    Args:
        given: "adam" (AdamW where there is a ``weight_decay``), "adamw", "muon", module and name of a class with dots
            between, or a class or function that takes groups of parameters and ``lr``.
        options: for Adam that the trainer was given.
        stated: names of all arguments that it was given.
        sharded: whether several processes share the weights.

    Raises:
        TypeError: neither a name nor something that makes an optimizer.
        ValueError: an unknown name, or arguments that the optimizer does not take.
    """
    if given in ("adam", "adamw"):
        return ADAM
    if sharded:
        raise ValueError(f'strategy="fsdp2" trains with optimizer="adam" only, got {given!r}')
    if given == "muon":
        if surplus := options.keys() - {"weight_decay"}:
            raise ValueError(f'optimizer="muon" takes no {", ".join(sorted(surplus))}')
        return MUON
    made = _imported(given) if isinstance(given, str) else given
    inner = made
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(given, Optimizer) or not callable(made):
        raise TypeError(
            f"optimizer must be one of {', '.join(NAMES)}, or a class or function that makes an optimizer from groups "
            f"of parameters and lr, got {given!r}"
        )
    name = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    if surplus := [name for name in _OF_ADAM if name in stated]:
        raise ValueError(
            f"optimizer={name}: {', '.join(surplus)} would not reach it; bind its own arguments with functools.partial"
        )
    return Choice(name, made)


def _imported(path: str) -> Any:
    """Return what "package.module.Class" names; a ValueError if the module or the name does not exist."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(
            f'no optimizer "{path}"; known: {", ".join(NAMES)}, or a class such as "torch.optim.SGD"'
            f"{suggestion(path, NAMES)}"
        )
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'optimizer "{path}" cannot be imported: {error}') from error


def parameter_groups(unet: nn.Module, separate: bool) -> list[dict[str, Any]]:
    """Return the parameters of a network in one group, or those to decay (matrices, convolutions) and those not
    to (gains, biases and other vectors).
    """
    parameters = list(unet.parameters())
    if not separate:
        return [{"params": parameters}]
    groups = [
        {"params": [item for item in parameters if item.ndim >= 2]},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(unet: nn.Module, settings: Mapping[str, Any], separate: bool | None = None) -> Optimizer:
    """Make the optimizer of a network.

    By default Adam (Kingma & Ba 2014, arXiv 1412.6980), or with ``weight_decay`` AdamW (Loshchilov & Hutter 2017,
    arXiv 1711.05101); in one kernel for all parameters where the device has it.

    Args:
        unet: network to train.
        settings: ``lr``, ``eps``, ``beta1``, ``beta2``; ``group_wd_params``: decay only parameters with two and more
            axes; ``optimizer``, a `Choice`; keywords of ``torch.optim.Adam``, where ``decoupled_weight_decay=False``
            asks for Adam's own L2 penalty in place of AdamW.
        separate: whether there are two groups, as for `parameter_groups`; by default if there is a decay and
            ``group_wd_params``. `Muon` has groups of its own.

    Raises:
        ValueError: numbers that torch refuses.
        TypeError: what the caller gave makes no optimizer.
    """
    options = {name: value for name, value in settings.items() if name not in (*_NAMED, *PERIODS)}
    choice, lr, grouped = settings.get("optimizer", ADAM), settings["lr"], settings["group_wd_params"]
    decay, betas = options.get("weight_decay", 0.0), (float(settings["beta1"]), float(settings["beta2"]))
    if choice.name == "muon":
        return Muon(muon_groups(unet, decay, not grouped), lr=lr, betas=betas, eps=settings["eps"])
    groups = parameter_groups(unet, separate=bool(decay) and grouped if separate is None else separate)
    if choice.make is not None:
        made = choice.make(groups, lr=lr, **options)
        if not isinstance(made, Optimizer):
            raise TypeError(f"optimizer={choice} makes a {type(made).__name__}, not a torch.optim.Optimizer")
        return made
    decoupled = options.pop("decoupled_weight_decay", True)
    kind = torch.optim.AdamW if decay and decoupled else torch.optim.Adam
    if not {"fused", "foreach", "differentiable"} & set(options):
        options["fused"] = all(item.device.type in _FUSED and item.is_floating_point() for item in unet.parameters())
    return kind(groups, lr=lr, eps=settings["eps"], betas=betas, **{"weight_decay": 0.0, **options})


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


def make_scheduler(optimizer: Optimizer, settings: Mapping[str, Any], taken: int = 0) -> LambdaLR | None:
    """Make the learning-rate schedule of `rate_factor` after ``taken`` updates; None for a constant rate.

    The rates of the optimizer become those of the schedule; one that has a schedule already gets the new one in its
    place. ``settings`` are the arguments of `rate_factor` by name, see `PERIODS`, among others. Nothing is changed if
    they are not numbers of updates.
    """
    periods = {name: settings[name] for name in PERIODS}
    check_arguments(periods, per_unet=False)
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    if periods["warmup_steps"] is None and periods["cosine_decay_max_steps"] is None:
        return None
    factor = functools.partial(rate_factor, **periods)
    scheduler = LambdaLR(optimizer, factor)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor(taken)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler.load_state_dict(
        {"last_epoch": taken, "_step_count": taken + 1, "_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    )
    return scheduler


class Warmup:
    """A view of the progress of a warm-up, which is a part of the schedule; the rate is full from update
    ``warmup_period`` on."""

    def __init__(self, scheduler: LambdaLR, warmup_period: int) -> None:
        self._scheduler, self.warmup_period = scheduler, warmup_period

    @property
    def last_step(self) -> int:
        """The number of updates so far."""
        return int(self._scheduler.last_epoch)

    def warmup_factor(self, step: int | None = None) -> float:
        """Return the factor of the warm-up after this number of updates, by default now: from 1 / period up to 1."""
        return rate_factor(self.last_step if step is None else step, self.warmup_period)

    def state_dict(self) -> dict[str, int]:
        """Return ``last_step`` by its name; a checkpoint has it in the schedule."""
        return {"last_step": self.last_step}

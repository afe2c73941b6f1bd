"""The optimizer of a trainer: by name, or any of torch's interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch.optim import Optimizer

from ..registry import suggestion

#: optimizers that have a name; a checkpoint of one of them can be continued by the name alone
NAMES = ("adam", "adamw", "muon")
#: weight decay of "adamw", as in torch
USUAL_DECAY = 0.01
#: settings that only the named ones take
_OF_ADAM = ("eps", "beta1", "beta2")


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

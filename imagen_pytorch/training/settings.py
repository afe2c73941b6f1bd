"""The settings of a U-Net's optimizer and its learning-rate schedule: those that the caller states, and the others from
a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..tensors import per_stage
from .optim import ADAM, PERIODS

#: settings of the averages that may change while they are taken; attributes of ema-pytorch's ``EMA``
AVERAGES = ("beta", "inv_gamma", "power", "min_value", "update_after_step", "update_every")


def remembers_stated(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of ``__init__``: keeps the names of the keywords that were passed in ``self.stated``."""

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__dict__["stated"] = frozenset(kwargs)
        init(self, *args, **kwargs)

    return wrapper


def settings_per_unet(count: int, per_unet: Mapping[str, Any], shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each of ``count`` U-Nets: those that are one value or one for each, as `per_stage` takes
    them, and those that all of them share."""
    rows = zip(*(per_stage(value, count, name) for name, value in per_unet.items()), strict=True)
    return [{**shared, **dict(zip(per_unet, row, strict=True))} for row in rows]


def optimizer_in(contents: Mapping[str, Any]) -> str:
    """Return the name of the optimizer that wrote a checkpoint; that of Adam if the checkpoint does not tell."""
    found: Any = contents
    for name in ("state", "settings", "optimizer"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ADAM.name


def settings_in(contents: Mapping[str, Any], index: int, scheduled: bool) -> dict[str, Any]:
    """Return the settings of one U-Net (0-based) that a checkpoint tells, by name; none that it does not tell.

    Older checkpoints do not tell their schedule, only the present rate: it goes on as it is unless the caller states a
    schedule (``scheduled``) to apply to the full rate.
    """
    run = contents.get("state", {}).get("settings", {})
    found = {name: run[name][index] for name in PERIODS if index < len(run.get(name, ()))}
    saved = contents.get(f"optim{index}")
    if not saved or not saved["param_groups"]:
        return found
    groups = saved["param_groups"]
    first = groups[0]
    full = first.get("initial_lr", first["lr"]) if found or scheduled else first["lr"]
    found["lr"] = full
    if "betas" in first and "eps" in first:
        found |= {"eps": first["eps"], "beta1": first["betas"][0], "beta2": first["betas"][1]}
    found |= {name: first[name] for name in ("weight_decay", "amsgrad") if name in first}
    if found.get("weight_decay"):
        found["group_wd_params"] = groups[-1].get("weight_decay") != first["weight_decay"]
        found |= {name: first[name] for name in ("decoupled_weight_decay",) if name in first}
    return found


def merged(
    own: Mapping[str, Any], found: Mapping[str, Any], stated: Collection[str], of: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings with which training goes on, and a line for each stated one that a checkpoint has otherwise,
    "lr of U-Net 1: 1 (the checkpoint has 2)": what the caller stated stays, the others are as in the checkpoint."""
    notes = [
        f"{name}{of}: {own[name]} (the checkpoint has {value})"
        for name, value in found.items()
        if name in stated and name in own and own[name] != value
    ]
    return {**own, **{name: value for name, value in found.items() if name not in stated}}, notes

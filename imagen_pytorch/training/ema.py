"""Averaged weights: exponential moving averages by ema-pytorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn


def _apply_but_for_counters(
    average: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """Move or convert an average, but leave its counters, which every update reads, on the CPU: an accelerator would be
    waited for four times."""
    counters = average.step, average.initted
    type(average)._apply(average, function, recurse)
    average.step, average.initted = counters
    return average


def _copied(average: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """Return a copy for ``copy.deepcopy``: the class of an average cannot be made without its network."""
    new = object.__new__(type(average))
    memo[id(average)] = new
    for name, value in average.__dict__.items():
        new.__dict__[name] = copy.deepcopy(value, memo)
    return new


def make_average(unet: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Make the moving average of a network's weights, as an ``ema_pytorch.EMA`` on the same device with these keywords.
    The network is watched, not contained."""
    from ema_pytorch import EMA

    average = EMA(unet, include_online_model=False, **{"use_foreach": True, **options})
    average._apply = partial(_apply_but_for_counters, average)
    average.__deepcopy__ = partial(_copied, average)
    average.ema_model.eval().requires_grad_(False)
    return average


def start_average(average: Any) -> None:
    """Let an average begin at the present weights."""
    average.copy_params_from_model_to_ema()
    average.step.zero_()
    average.initted.fill_(False)

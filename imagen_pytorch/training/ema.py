"""Averaged weights: exponential moving averages by ema-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ema_pytorch import EMA
from torch import Tensor, nn


class Average(EMA):
    """``ema_pytorch.EMA`` whose counters, which every update reads, stay on the CPU: an accelerator would be waited for
    four times."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Average:
        counters = self.step, self.initted
        super()._apply(fn, recurse)
        self.step, self.initted = counters
        return self


def make_average(unet: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """The moving average of a network's weights, as an ``ema_pytorch.EMA`` on the same device.

    Args:
        unet: the network that is trained; it is watched, not contained.
        options: keywords of ``EMA``.
    """
    average = Average(unet, include_online_model=False, **{"use_foreach": True, **options})
    average.ema_model.eval().requires_grad_(False)
    return average


def start_average(average: Any) -> None:
    """Let an average begin at the present weights."""
    average.copy_params_from_model_to_ema()
    average.step.zero_()
    average.initted.fill_(False)


@contextmanager
def standing_in(owner: nn.Module, stand_ins: nn.ModuleList) -> Iterator[None]:
    """``owner.unets`` are other networks inside the block and the very same ones as before after it."""
    own = owner.unets
    owner.unets = stand_ins
    try:
        yield
    finally:
        owner.unets = own

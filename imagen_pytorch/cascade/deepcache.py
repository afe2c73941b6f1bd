"""Feature caching: inner maps of a network are reused at the next noise levels, where they would hardly differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class FeatureCache:
    """A cache for the calls of one network in one stage (Ma et al. 2024, "DeepCache", arXiv 2312.00858, with a uniform
    interval).

    Args:
        interval: one of ``interval`` calls computes all levels. The others compute the level with the largest maps, and
            reuse the maps of the other levels from the last complete call.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._maps: Sequence[Tensor] = ()
        self._batch = self._age = 0

    def answer(self, unet: nn.Module, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Return the prediction of ``unet``. ``arguments`` and ``named`` are those of its `forward` after ``x``.

        If a call has fewer items than the last complete one, which served both halves of guidance, they are its first.
        """
        if self.interval == 1:
            return unet(x, *arguments, **named)
        self._age += 1
        if self._age < self.interval and len(x) <= self._batch:
            inner = [item[: len(item) * len(x) // self._batch] for item in self._maps]  # clips have an entry per frame
            return unet(x, *arguments, **named, inner=inner)
        answer, maps = unet(x, *arguments, **named, return_inner=True)
        # a recorded CUDA graph writes the outputs of its next call into the same memory
        self._maps = [item.clone() for item in maps] if x.is_cuda and unet._compiled_call_impl is not None else maps
        self._batch, self._age = len(x), 0
        return answer

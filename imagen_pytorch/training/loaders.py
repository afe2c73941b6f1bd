"""Data on its way to the trainer: endless, resumable, whatever shape its batches have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, random_split

from .randomness import derived_seed, isolated


def named_batch(batch: Any, names: Sequence[str]) -> dict[str, Any]:
    """What a loader yields as keyword arguments of the trainer.

    Args:
        batch: a dict, a tuple or list in the order of ``names``, or pictures alone. An entry that is a list of strings
            is always ``texts``.
        names: of the entries of a tuple.

    Raises:
        ValueError: a tuple with more entries than names.
        TypeError: something that is no batch.
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor | np.ndarray):
        return {"images": batch}
    if not isinstance(batch, list | tuple):
        raise TypeError(f"a loader yields tensors, tuples or dicts, got {type(batch).__name__}")
    if len(batch) > len(names):
        raise ValueError(
            f"the loader yields {len(batch)} values, but only {len(names)} names are known: {', '.join(names)}; "
            "name them all in dl_tuple_output_keywords_names"
        )
    return {"texts" if is_texts(value) else name: value for name, value in zip(names, batch, strict=False)}


def is_texts(value: Any) -> bool:
    """Whether this is a batch of captions."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


def as_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with arrays as tensors."""
    return {name: torch.as_tensor(item) if isinstance(item, np.ndarray) else item for name, item in arguments.items()}


def make_loader(dataset: Any, batch_size: int, seed: int, **options: Any) -> DataLoader:
    """A ``DataLoader`` with its own order, so that nothing else disturbs it; ``options`` go to torch's constructor.

    Fewer items than a batch are a batch of their own, also with ``drop_last``.
    """
    batch_size = min(batch_size, max(1, len(dataset)))
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return DataLoader(dataset, batch_size=batch_size, **options)


def split_off(dataset: Any, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Training and validation part of a data set; the same for the same seed.

    Raises:
        ValueError: nothing would be left for one of them.
    """
    count = len(dataset)
    kept = math.floor((1 - fraction) * count)
    if kept in (0, count):
        raise ValueError(
            f"split_valid_fraction={fraction} of {count} samples leaves {kept} to train on and {count - kept} to "
            "validate with; both need at least one"
        )
    train, valid = random_split(dataset, [kept, count - kept], generator=torch.Generator().manual_seed(seed))
    return train, valid


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that decide a loader's order."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [item for index, item in enumerate(found) if isinstance(item, torch.Generator) and item not in found[:index]]


class BatchStream:
    """Epoch after epoch of a loader, with a position that can be saved and returned to.

    Args:
        loader: any iterable that can be iterated again.
        seed: from which the random draws of a data set in this process (random flips) are derived, batch by batch.

    Raises:
        ValueError: while iterating, an epoch without any batch.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader, self.seed = loader, seed
        self.epoch = self.position = 0
        self._iterator: Iterator[Any] | None = None
        self._orders: list[Tensor] = []

    def __iter__(self) -> BatchStream:
        return self

    def _begin(self) -> Iterator[Any]:
        generators = _generators(self.loader)
        if len(self._orders) == len(generators):  # set by `load_state`
            for generator, order in zip(generators, self._orders, strict=True):
                generator.set_state(order)
        self._orders = [generator.get_state() for generator in generators]
        sampler = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        with isolated(derived_seed(self.seed, self.epoch)):
            iterator = iter(self.loader)
        for position in range(self.position):
            try:
                self._take(iterator, position)
            except StopIteration:  # the data have become fewer since the position was saved: the epoch is over
                break
        return iterator

    def restart(self) -> None:
        """Go back to the first batch of the first epoch."""
        self.epoch, self.position, self._iterator, self._orders = 0, 0, None, []

    def _take(self, iterator: Iterator[Any], position: int) -> Any:
        with isolated(derived_seed(self.seed, self.epoch, position)):
            return next(iterator)

    def __next__(self) -> Any:
        while True:
            if self._iterator is None:
                self._iterator = self._begin()
            try:
                batch = self._take(self._iterator, self.position)
            except StopIteration:
                self._end_epoch()
                continue
            self.position += 1
            if batch is not None:  # a collate function that found nothing readable gives None
                return batch

    def _end_epoch(self) -> None:
        if self.position == 0:
            raise ValueError(
                "the loader yields no batch: the data set is empty, or smaller than batch_size with drop_last=True"
            )
        self.epoch, self.position, self._iterator, self._orders = self.epoch + 1, 0, None, []

    def state(self) -> dict[str, Any]:
        """Where the stream is, as plain containers."""
        orders = self._orders or [generator.get_state() for generator in _generators(self.loader)]
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position, "orders": list(orders)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the same samples in the same order; those already seen are passed over."""
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._orders, self._iterator = list(state["orders"]), None

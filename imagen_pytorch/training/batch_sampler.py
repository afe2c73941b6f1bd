"""In which order data are seen, and by whom: a pure function of seed, epoch and position, whatever reads them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .distributed import rows_of
from .rng import derived_seed


@contextmanager
def global_states_kept() -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python when the block ends."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users' data sets draw from
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


class SeededDataset(Dataset):
    """A data set whose items draw from a seed of their own, so that they do not depend on the process that reads them.

    They may draw their flips and crops from torch, NumPy or Python.

    Args:
        dataset: anything with items; an index here is a pair (seed, index there).
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[Any]:
        """Return the items of a batch. The random states are kept once for all of them, which takes the most time."""
        with global_states_kept():
            return [self._drawn_from(*place) for place in places]

    def _drawn_from(self, seed: int, index: int) -> Any:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        return self.dataset[index]


class SeededBatchSampler(Sampler):
    """Batches of (seed, index) pairs for `SeededDataset`: each item once per epoch, in an order that depends on seed
    and epoch alone, from any place on.

    Args:
        count: number of items.
        batch_size: items of a batch of all processes together.
        shuffle: another order in each epoch.
        drop_last: leave out a last batch that is smaller.
        seed: of the orders and of the items' own draws.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int) -> None:
        self.count, self.batch_size, self.shuffle, self.drop_last = count, batch_size, shuffle, drop_last
        self.seed, self.passes = seed, 0
        self._chosen: tuple[int, int, int] | None = None

    @contextmanager
    def continuing(self, seed: int, epoch: int, start: int) -> Iterator[None]:
        """Passes that begin inside the block are that of an epoch, without its first ``start`` items.

        Any other pass is one over all items, in an order of its own.
        """
        self._chosen = seed, epoch, start
        try:
            yield
        finally:
            self._chosen = None

    def __len__(self) -> int:
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._pass() if self._chosen is None else self._batches(*self._chosen)

    def _pass(self) -> Iterator[list[tuple[int, int]]]:
        self.passes += 1
        yield from self._batches(self.seed, self.passes - 1, 0)

    def _batches(self, seed: int, epoch: int, start: int) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        seeds = torch.empty(self.count, dtype=torch.int64).random_(generator=generator)
        for first in range(start, self.count, self.batch_size):
            chosen = order[first : first + self.batch_size]
            if self.drop_last and len(chosen) < self.batch_size:
                return
            yield list(zip(seeds[chosen].tolist(), chosen.tolist(), strict=True))


class DistributedBatchSampler(Sampler):
    """One process's part of every batch of a sampler. Where a batch has nothing for it, it reads the batch's first
    item, which then counts nothing.

    Args:
        batches: the same in all processes.
        rank, processes: number of this process, and how many there are.
        joined: number of batches of the sampler that make one shared batch.

    Attributes:
        sizes: of the whole batches, in the order in which they were given out; the consumer of a batch takes its size.
    """

    def __init__(self, batches: Iterable[list[Any]], rank: int, processes: int, joined: int = 1) -> None:
        self.batches, self.rank, self.processes, self.joined = batches, rank, processes, joined
        self.sizes: deque[int] = deque()

    def __len__(self) -> int:
        return -(-len(self.batches) // self.joined)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        self.sizes.clear()
        return self._shares(iter(self.batches))

    def _shares(self, whole: Iterator[list[Any]]) -> Iterator[list[Any]]:
        while group := [item for batch in islice(whole, self.joined) for item in batch]:
            yield self._own(group)

    def _own(self, batch: list[Any]) -> list[Any]:
        self.sizes.append(len(batch))
        return batch[rows_of(len(batch), self.rank, self.processes)] or batch[:1]


def size_of_batch(batch: Any) -> int:
    """Return the number of items of a batch, for `rows_from`.

    Raises:
        TypeError: it has no images.
    """
    fields = list(batch.values()) if isinstance(batch, Mapping) else batch
    fields = fields if isinstance(fields, list | tuple) else [fields]
    for field in fields:
        if isinstance(field, Tensor | np.ndarray):
            return len(field)
    raise TypeError(f"a batch holds images as a tensor or an array, this one has {[type(item) for item in fields]}")


def rows_from(batch: Any, rows: slice) -> Any:
    """Return some rows of a batch.

    Args:
        batch: tensors, arrays and lists with an entry per item, alone or in a dict, list or tuple; other values serve
            all rows.
        rows: which.
    """
    size = size_of_batch(batch)

    def cut(value: Any) -> Any:
        own = isinstance(value, Tensor | np.ndarray) and value.ndim > 0 or isinstance(value, list | tuple)
        return value[rows] if own and len(value) == size else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return type(batch)(map(cut, batch)) if isinstance(batch, list | tuple) else cut(batch)

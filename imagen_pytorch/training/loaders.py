"""Data on its way to the trainer: endless, resumable, whatever shape its batches have."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    default_collate,
    default_convert,
    random_split,
)

from ..cascade.limits import check_flag
from ..ranges import check_whole
from ..tensors import BatchShard
from .batch_sampler import DistributedBatchSampler, SeededBatchSampler, SeededDataset, rows_from, size_of_batch
from .distributed import Distributed, rows_of
from .identity import items_of
from .rng import derived_seed, isolated
from .workers import Staff, Waiting, is_lost_worker, like

#: options of torch's ``DataLoader`` that decide its order and that we do not replace
_OWN_ORDER = ("sampler", "batch_sampler", "generator")


def make_loader(dataset: Any, batch_size: int, seed: int, **options: Any) -> DataLoader:
    """Make a ``DataLoader`` whose order and items' random draws depend on ``seed`` and epoch alone.

    Fewer items than a batch are a batch of their own, also with ``drop_last``.

    Args:
        dataset: anything with a length and items, or an ``IterableDataset``, which has its own order.
        batch_size: items of a batch of all processes together.
        seed: of everything that is random.
        options: of torch's constructor; ``sampler``, ``batch_sampler`` and ``generator`` mean an order of your own.

    Raises:
        TypeError: no data set, or options of another kind.
        ValueError: a batch without items.
    """
    if isinstance(dataset, str | bytes) or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise TypeError(
            f"a data set has a length and items, got {type(dataset).__name__}; imagen_pytorch.data.Dataset reads a "
            "folder"
        )
    batch_size = check_whole(batch_size, "batch_size")
    check_whole(options.get("num_workers", 0), "num_workers", 0)
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=batch_size, **options)
    batch_size = min(batch_size, max(1, len(dataset)))
    if any(options.get(name) is not None for name in _OWN_ORDER):
        sizes = {} if options.get("batch_sampler") is not None else {"batch_size": batch_size}
        return DataLoader(dataset, **sizes, **options)
    shuffle, drop_last = (check_flag(options.pop(name, False), name) for name in ("shuffle", "drop_last"))
    order = SeededBatchSampler(len(dataset), batch_size, shuffle, drop_last, seed)
    return DataLoader(SeededDataset(dataset), batch_sampler=order, **options)


def shared_loader(loader: Any, processes: Distributed, split_batches: bool = True) -> Any:
    """Return a loader that yields this process's part of every batch; each item goes to one process.

    A ``DataLoader`` reads no more than its part. Of anything else every process reads all and keeps its rows. A loader
    with a ``DistributedSampler`` is shared already and stays as it is.

    Args:
        loader: the same on every process.
        processes: who shares it.
        split_batches: its batches are those of all processes together; otherwise as many of them as there are
            processes make one.
    """
    if processes.count == 1 or isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return loader
    batches = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or batches is None or isinstance(loader.dataset, IterableDataset):
        return _RowsOfBatches(loader, processes)
    order = DistributedBatchSampler(batches, processes.rank, processes.count, 1 if split_batches else processes.count)
    return like(loader, batch_sampler=order)


class _RowsOfBatches:
    """One process's rows of the batches of any iterable."""

    def __init__(self, loader: Any, processes: Distributed) -> None:
        self.loader, self.processes = loader, processes
        self.sizes: deque[int] = deque()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.sizes.clear()
        for batch in self.loader:
            size = 0 if batch is None else size_of_batch(batch)  # None: a collate function found nothing readable
            rows = rows_of(size, self.processes.rank, self.processes.count)
            self.sizes.append(size)
            yield rows_from(batch, rows if rows.stop > rows.start else slice(0, 1)) if size else None


def split_off(dataset: Any, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Training and validation part of a data set; the same for the same seed.

    Raises:
        ValueError: nothing would be left for one of them, or the data set has no length.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"split_valid_from_train needs a data set with a length, {type(dataset).__name__} has none: add validation "
            "data with add_valid_dataset and leave split_valid_from_train out"
        )
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
    """Return the generators that decide a loader's order."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [item for index, item in enumerate(found) if isinstance(item, torch.Generator) and item not in found[:index]]


def may_leave_out(loader: Any) -> bool:
    """Return whether batches can lack items: a caller's own collate function may leave out what is unreadable."""
    from ..data import collate_mixed  # who brings a loader of other data does not wait for ours

    collate = getattr(getattr(loader, "loader", loader), "collate_fn", None)
    return collate not in (None, default_collate, default_convert, collate_mixed)


class BatchStream:
    """Epoch after epoch of a loader, with a position that can be saved and returned to.

    A loader of `make_loader` goes on at any place without reading what came before; of any other one the batches before
    that place are read again and passed over.

    Args:
        loader: any iterable that can be iterated again.
        seed: of the order, and of random draws in this process (those of a collate function), batch by batch.
        processes: among which the loader was shared by `shared_loader`; None: one process.
        together: whether all of them take every batch at the same time. Where items can be left out, they then tell
            each other how many they have, so that each batch is one of what can be read, whichever process reads it.
        choose_workers: start processes that read, where reading takes long and its source is one of this package.

    Attributes:
        epoch: passes over the data that are complete.
        position: batches of this epoch that were given out.
        seen: items of this epoch that were given out, to all processes together; 0 where the loader does not tell.
        shard: the place of the last batch in that of all processes together; None where it is not known.

    Raises:
        ValueError: while iterating, an epoch without any batch.
        WorkersLost: while iterating, worker processes that end again and again; the position stays what it was.
    """

    def __init__(
        self,
        loader: Any,
        seed: int,
        processes: Distributed | None = None,
        *,
        together: bool = False,
        choose_workers: bool = False,
    ) -> None:
        self.loader, self.seed = loader, seed
        self.processes = None if processes is None or processes.count == 1 else processes
        self.together = together and self.processes is not None and may_leave_out(loader)
        self.epoch = self.position = self.seen = 0
        self._found_any = False
        self.shard: BatchShard | None = None
        self._iterator: Iterator[Any] | None = None
        self._orders: list[Tensor] = []
        self._items = items_of(loader)
        self._staff, self._waiting = Staff(choose_workers), Waiting()
        self._returned: float | None = None
        batches = getattr(loader, "batch_sampler", None)
        inner = batches.batches if isinstance(batches, DistributedBatchSampler) else batches
        self._order = inner if isinstance(inner, SeededBatchSampler) else None
        owner = batches if isinstance(batches, DistributedBatchSampler) else loader
        self._sizes: deque[int] | None = getattr(owner, "sizes", None)

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchStream:
        """Return another stream at the same place of the same loader."""
        new = BatchStream(self.loader, self.seed, self.processes, together=self.together)
        new.load_state_dict(self.state_dict())
        return new

    def __iter__(self) -> BatchStream:
        return self

    def _begin(self) -> Iterator[Any]:
        if self._order is not None:
            with self._order.continuing(self.seed, self.epoch, self.seen):
                return self._opened()
        generators = _generators(self.loader)
        if len(self._orders) == len(generators):  # set by `load_state_dict`
            for generator, order in zip(generators, self._orders, strict=True):
                generator.set_state(order)
        self._orders = [generator.get_state() for generator in generators]
        sampler = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        iterator, self.seen = self._opened(), 0
        for position in range(self.position):
            try:
                self._take(iterator, position)
            except StopIteration:  # the data have become fewer since the position was saved: the epoch is over
                break
        return iterator

    def _opened(self) -> Iterator[Any]:
        with isolated(derived_seed(self.seed, self.epoch)):
            return self._staff.opened(self.loader)

    @property
    def reading_share(self) -> float | None:
        """The share of the last steps' time that was spent waiting for data, from 0 to 1; None before three steps."""
        return self._waiting.share

    def restart(self) -> None:
        """Go back to the first batch of the first epoch."""
        self.epoch = 0
        self._rewind()

    def _rewind(self) -> None:
        self.position = self.seen = 0
        self._found_any = False
        self._iterator, self._orders = None, []

    def _take(self, iterator: Iterator[Any], position: int) -> Any:
        with isolated(derived_seed(self.seed, self.epoch, position)):
            batch = next(iterator)
        size = 0
        if self._order is not None:
            size = min(self._order.batch_size, self._order.count - self.seen)
        elif self._sizes is not None:
            size = self._sizes.popleft()
        self.seen += size
        self.shard = self._expected_shard(size)
        return batch

    def _expected_shard(self, size: int) -> BatchShard | None:
        """Return the part of this process if everything can be read."""
        if self.processes is None or not size:
            return None
        every = (rows_of(size, rank, self.processes.count) for rank in range(self.processes.count))
        return BatchShard.of([rows.stop - rows.start for rows in every], self.processes.rank)

    def _agreed(self, processes: Distributed, batch: Any) -> Any:
        """This process's part of what all of them have; None if they have nothing.

        Every process must take part in every step. One that has nothing gets a row of another one, which counts
        nothing.
        """
        own = 0 if batch is None or (self.shard is not None and not self.shard.weight) else size_of_batch(batch)
        told = processes.all_gather(-1 if batch is None else own)
        counts = [max(count, 0) for count in told]
        if not any(counts):
            return None
        self.shard = BatchShard.of(counts, processes.rank)
        if -1 in told:
            giver = next(rank for rank, count in enumerate(counts) if count)
            given = processes.broadcast(rows_from(batch, slice(0, 1)) if processes.rank == giver else None, giver)
            return given if batch is None else batch
        return batch

    def __next__(self) -> Any:
        began = time.monotonic()
        batch = self._next()
        now = time.monotonic()
        if self._returned is not None:
            self._waiting.note(now - began, began - self._returned)
        self._returned = now
        return batch

    def _next(self) -> Any:
        while True:
            began = time.monotonic()
            try:
                if self._iterator is None:
                    self._iterator = self._begin()
                batch = self._take(self._iterator, self.position)
            except StopIteration:
                self._end_epoch()
                continue
            except RuntimeError as error:
                if not is_lost_worker(error):
                    raise
                self._iterator = None
                warnings.warn(self._staff.replace(error), stacklevel=3)
                if getattr(self.loader, "persistent_workers", False):  # torch would ask the lost ones again
                    self.loader = like(self.loader)
                continue
            self.position += 1
            self._note_reading(time.monotonic() - began)
            if self.together and self.processes is not None:
                batch = self._agreed(self.processes, batch)
            if batch is not None:  # a collate function that found nothing readable gives None
                self._found_any = True
                return batch

    def _note_reading(self, seconds: float) -> None:
        """Read on with worker processes from here if reading takes long."""
        if self._order is None:
            return
        count = 1 if self.processes is None else self.processes.count
        size = min(self._order.batch_size, self._order.count)
        if self._staff.noted(self.loader, seconds, -(-size // count), (self._order.count - self.seen) // count):
            self._iterator = None

    def _end_epoch(self) -> None:
        if self.position == 0:
            raise ValueError(
                "the loader yields no batch: the data set is empty, or smaller than batch_size with drop_last=True"
            )
        if not self._found_any:
            raise ValueError("no batch of the loader holds anything: nothing in the data set can be read")
        self.epoch += 1
        self._rewind()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream, with an identity of its items, as plain containers."""
        orders = self._orders or [generator.get_state() for generator in _generators(self.loader)]
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "seen": self.seen,
            "orders": [] if self._order is not None else list(orders),
            **self._items,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str | None:
        """Go on where ``state`` was taken: the same samples in the same order; those already seen are passed over.

        If the data are not the ones that it was taken of, a place in their order means nothing: the epoch begins anew.

        Returns:
            What to say about that; None if the data are the same, or unknown.
        """
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        batch_size = 0 if self._order is None else self._order.batch_size
        self.seen = state.get("seen", self.position * batch_size)
        self._orders, self._iterator, self._found_any = list(state["orders"]), None, True
        changed = [name for name in ("items", "names") if state.get(name, (own := self._items.get(name))) != own]
        if not changed or not self.position:
            return None
        self.position = self.seen = 0
        before, now = (f"{found.get('items', '?')} items" for found in (state, self._items))
        what = f"{before} then, {now} now" if before != now else f"{now}, but other ones"
        return f"the training data are not those of the checkpoint ({what}): epoch {self.epoch + 1} begins anew"

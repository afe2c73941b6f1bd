"""The trainer's data: a training and a validation loader, each endless and resumable."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from .distributed import Distributed
from .identity import facts_of_data
from .loaders import BatchStream, make_loader, shared_loader, split_off
from .rng import derived_seed, draw_seed


class TrainingData:
    """The data of a trainer.

    Args:
        processes: which share every batch.
        seed: of the order; None draws one from torch's global random state.
        split_batches: whether the batch size of a loader is that of all processes together.
        split_valid_from_train, split_valid_fraction, split_random_seed: whether a part of a data set is set aside for
            validation, how much, and the seed of the choice.

    Attributes:
        train_dl, valid_dl: the loaders of this process, or None.
        train_dl_iter, valid_dl_iter: their endless streams of batches.
        prepared: training has begun, so no data can be added any more.
    """

    def __init__(
        self,
        processes: Distributed,
        seed: int | None,
        split_batches: bool,
        split_valid_from_train: bool,
        split_valid_fraction: float,
        split_random_seed: int,
    ) -> None:
        self.processes, self.seed, self.split_batches = processes, seed, split_batches
        self.split_valid_from_train, self.split_valid_fraction = split_valid_from_train, split_valid_fraction
        self.split_random_seed, self.prepared = split_random_seed, False
        self.train_dl: Any = None
        self.valid_dl: Any = None
        self.train_dl_iter: BatchStream | None = None
        self.valid_dl_iter: BatchStream | None = None
        self._saved_position: Mapping[str, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingData:
        """Return the same data at the same place, with streams of their own."""
        new = copy.copy(self)
        new.train_dl_iter, new.valid_dl_iter = copy.deepcopy(self.train_dl_iter), copy.deepcopy(self.valid_dl_iter)
        return new

    def streams(self) -> list[BatchStream]:
        """Return the streams that there are."""
        return [stream for stream in (self.train_dl_iter, self.valid_dl_iter) if stream is not None]

    # -- adding -------------------------------------------------------------------------------------------------------

    def _order_seed(self) -> int:
        return self.processes.broadcast(draw_seed()) if self.seed is None else derived_seed(self.seed, 1)

    def _make_loader(self, dataset: Any, batch_size: int, options: Mapping[str, Any]) -> Any:
        whole = batch_size if self.split_batches else batch_size * self.processes.count
        return shared_loader(make_loader(dataset, whole, self._order_seed(), **options), self.processes)

    def _check_free(self, kind: str) -> None:
        if self.prepared:
            raise ValueError(f"the {kind} data must be added before the first step (or prepare())")
        if getattr(self, f"{kind}_dl") is not None:
            raise ValueError(f"the trainer has its {kind} data already; make a new trainer for other data")

    def add_train_dataset(self, ds: Any = None, *, batch_size: int = 1, **dataloader_kwargs: Any) -> None:
        """Train on a data set; with ``split_valid_from_train`` a part of it is set aside for validation.

        Args:
            ds: anything with a length and items; they are images, tuples in the order of
                ``dl_tuple_output_keywords_names``, or dicts; a string is a caption. None does nothing.
            batch_size: items per step: of all processes together, or of each with ``split_batches=False``.
            dataloader_kwargs: of torch's ``DataLoader``. Without ``num_workers`` the trainer starts processes that read
                while that takes long and images are left that have to be read; data sets that are none of this
                package's sources are read by the training process.

        Raises:
            ValueError: there is training data already, training has begun, or nothing can be set aside.
            ProcessesDiffer: the processes of the run have other data, or other options, each.
        """
        if ds is None:
            return
        self._check_free("train")
        valid = None
        if self.split_valid_from_train:
            ds, valid = split_off(ds, self.split_valid_fraction, self.split_random_seed)
        self._add("train", self._make_loader(ds, batch_size, dataloader_kwargs), "num_workers" not in dataloader_kwargs)
        unordered = ("shuffle", "drop_last", "sampler", "batch_sampler", "generator")
        plain = {name: value for name, value in dataloader_kwargs.items() if name not in unordered}
        self.add_valid_dataset(valid, batch_size=batch_size, **plain)

    def add_valid_dataset(self, ds: Any = None, *, batch_size: int = 1, **dataloader_kwargs: Any) -> None:
        """Validate on a data set, in its own order. Arguments and errors as for `add_train_dataset`."""
        if ds is not None:
            self._check_free("valid")
            self._add("valid", self._make_loader(ds, batch_size, dataloader_kwargs))

    def add_train_dataloader(self, dl: DataLoader | Iterable[Any] | None = None) -> None:
        """Train on the batches of a loader. None does nothing.

        Several processes share each of its batches, or with ``split_batches=False`` as many batches as they are; a
        loader with a ``DistributedSampler`` is left alone.

        Raises:
            ValueError: as `add_train_dataset`.
        """
        if dl is None:
            return
        self._check_free("train")
        if self.split_valid_from_train and self.valid_dl is None:
            warnings.warn(
                "split_valid_from_train splits data sets, not loaders, so nothing is set aside: add the data with "
                "add_train_dataset, or validation data with add_valid_dataloader before",
                stacklevel=3,
            )
        self._add("train", shared_loader(dl, self.processes, self.split_batches))

    def add_valid_dataloader(self, dl: DataLoader | Iterable[Any] | None = None) -> None:
        """Validate on the batches of a loader. None does nothing.

        Raises:
            ValueError: as `add_train_dataset`.
        """
        if dl is None:
            return
        self._check_free("valid")
        self._add("valid", shared_loader(dl, self.processes, self.split_batches))

    def _add(self, kind: str, loader: Any, choose_workers: bool = False) -> None:
        seed = self._order_seed()
        if not isinstance(getattr(loader, "sampler", None), DistributedSampler):
            advice = "give every process the same files and the same options"
            self.processes.check_same(f"their {kind} data", facts_of_data(loader, seed), advice)
        options = {"together": kind == "train", "choose_workers": choose_workers}
        stream = BatchStream(loader, seed, self.processes, **options)
        setattr(self, f"{kind}_dl", loader)
        setattr(self, f"{kind}_dl_iter", stream)
        if kind == "train" and self._saved_position is not None:
            self._continue(stream, self._saved_position)

    def _continue(self, stream: BatchStream, state: Mapping[str, Any]) -> None:
        note = stream.load_state_dict(state)
        if note is not None and self.processes.is_main:
            warnings.warn(note, stacklevel=5)

    # -- streams ------------------------------------------------------------------------------------------------------

    @property
    def reading_share(self) -> float | None:
        """The fraction of the last training steps' time that was spent waiting for data; None before three steps."""
        return None if self.train_dl_iter is None else self.train_dl_iter.reading_share

    def create_train_iter(self) -> BatchStream:
        """Return the endless stream of training batches.

        Raises:
            ValueError: the trainer has no training data.
        """
        return self.existing("train")

    def create_valid_iter(self) -> BatchStream:
        """Return the endless stream of validation batches, from its beginning.

        Raises:
            ValueError: the trainer has no validation data.
        """
        stream = self.existing("valid")
        stream.restart()
        return stream

    def existing(self, kind: str) -> BatchStream:
        """Return the stream of "train" or "valid" batches where it is.

        Raises:
            ValueError: the trainer has no such data.
        """
        stream = getattr(self, f"{kind}_dl_iter")
        if stream is None:
            hint = ", or set split_valid_from_train=True" if kind == "valid" else ""
            raise ValueError(f"no {kind} data: call add_{kind}_dataset or add_{kind}_dataloader{hint}")
        return stream

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data, under "data"; nothing if there is none."""
        if self.train_dl_iter is not None:
            return {"data": self.train_dl_iter.state_dict()}
        return {} if self._saved_position is None else {"data": dict(self._saved_position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; if data are yet to be added, when they are."""
        self._saved_position = state.get("data")
        if self.train_dl_iter is not None and self._saved_position is not None:
            self._continue(self.train_dl_iter, self._saved_position)

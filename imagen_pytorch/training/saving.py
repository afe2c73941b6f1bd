"""The trainer's checkpoints: single files, and a folder of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import CheckpointStore
from ..storage import locate, read_checkpoint, write_checkpoint
from ..version import __version__
from .lane import Lane
from .randomness import TrainingRandomness
from .state import TrainingState

#: entries of a checkpoint that are the trainer's own
_RESERVED = ("model", "ema", "steps", "version", "state", "imagen_type", "imagen_params")
_PER_UNET = ("optim", "scaler", "scheduler")


class TrainerCheckpoints:
    """The part of `ImagenTrainer` that saves and loads."""

    lanes: tuple[Lane, ...]
    steps: Tensor
    randomness: TrainingRandomness
    state: TrainingState
    checkpoint_every: int | None
    max_checkpoints_keep: int
    _fs: Any
    _fs_kwargs: Mapping[str, Any] | None

    def _init_checkpoints(self, folder: str | Path | None, every: int | None) -> None:
        if (folder is None) != (every is None):
            raise ValueError("checkpoint_path and checkpoint_every belong together: give both or neither")
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {every}")
        self.checkpoint_path, self.checkpoint_every = folder, every
        self.store = None
        if folder is not None:
            self.store = CheckpointStore(folder, self.max_checkpoints_keep, self._fs, self._fs_kwargs)

    @property
    def can_checkpoint(self) -> bool:
        """Whether there is a folder for checkpoints."""
        return self.store is not None

    @property
    def fs(self) -> Any:
        """The filesystem of the checkpoint folder, or the one that was given."""
        return self._fs if self.store is None else self.store.fs

    # -- files --------------------------------------------------------------------------------------------------------

    def _contents(
        self, numbers: Sequence[int] | None, with_optimizer: bool, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        for name in extra:
            if name in _RESERVED or name.rstrip("0123456789") in _PER_UNET:
                raise ValueError(f'the entry "{name}" of a checkpoint is the trainer\'s own; choose another name')
        run = {
            "randomness": self.randomness.state(),
            "skipped_steps": [lane.skipped for lane in self.lanes],
            **self._data_state(),
            **({} if numbers is None else {"unet_numbers": list(numbers)}),
        }
        every = range(1, len(self.lanes) + 1)
        return {
            "version": __version__,
            "state": run,
            **self.state.gather(every if numbers is None else numbers, with_optimizer),
            **extra,
        }

    def save(
        self,
        path: str | Path,
        overwrite: bool = True,
        without_optim_and_sched: bool = False,
        unet_number: int | None = None,
        **extra: Any,
    ) -> None:
        """Write one file with everything that training needs to go on. It appears whole or not at all.

        Args:
            path: a local path or any fsspec URL; folders are made.
            overwrite: whether an existing file may be replaced.
            without_optim_and_sched: leave out optimizers and schedules; the file is then for sampling.
            unet_number: keep only this U-Net in the file, to be joined with others by loading one after another.
            extra: further entries, tensors and plain containers.

        Raises:
            ValueError: an entry with a name that is taken.
            TypeError: an entry that is not plain.
            CheckpointError: the file exists and must not be replaced, or it cannot be written.
        """
        numbers = None if unet_number is None else [self.validate_unet_number(unet_number)]
        contents = self._contents(numbers, not without_optim_and_sched, extra)
        write_checkpoint(contents, path, self._fs, self._fs_kwargs, overwrite)

    def load(
        self, path: str | Path, only_model: bool = False, strict: bool = True, noop_if_not_exist: bool = False
    ) -> dict[str, Any] | None:
        """Go on from a file that `save` wrote. Nothing is changed if it does not fit.

        Args:
            path: a local path or any fsspec URL.
            only_model: take weights and averages, and train afresh.
            strict: refuse a checkpoint of another model; False takes what fits and says what did not.
            noop_if_not_exist: do nothing and return None if there is no such file.

        Returns:
            The contents of the file.

        Raises:
            CheckpointMissing: no such file.
            CheckpointError: it is damaged, or holds more than tensors and plain containers.
            CheckpointMismatch: it belongs to another model, and ``strict``.
        """
        if noop_if_not_exist:
            fs, place = locate(path, self._fs, self._fs_kwargs)
            if not fs.exists(place):
                return None
        contents = read_checkpoint(path, self._fs, self._fs_kwargs)
        self._take_over(contents, only_model, strict)
        return contents

    def _take_over(self, contents: dict[str, Any], only_model: bool, strict: bool) -> None:
        left = self.state.check(contents, only_model, strict)
        if left:
            self.print(f"loaded what fits; left out: {'; '.join(left)}")
        if contents.get("version", __version__) != __version__:
            self.print(f"the checkpoint is of version {contents['version']}, this is version {__version__}")
        self.state.restore(contents, only_model)
        run = contents.get("state", {})
        if only_model:
            return
        self.randomness.load_state(run.get("randomness", {}))
        self._load_data_state(run)
        for lane, skipped in zip(self.lanes, run.get("skipped_steps", ()), strict=False):
            lane.skipped = skipped

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _folder(self) -> CheckpointStore:
        if self.store is None:
            raise ValueError("this trainer has no checkpoint folder: give it checkpoint_path and checkpoint_every")
        return self.store

    @property
    def all_checkpoints_sorted(self) -> list[str]:
        """The checkpoints in the folder, newest first."""
        return self._folder().paths()

    def save_to_checkpoint_folder(self) -> str:
        """Write ``checkpoint.<total steps>.pt`` into the folder and remove those beyond ``max_checkpoints_keep``.

        Returns:
            Its path.

        Raises:
            ValueError: there is no folder.
            CheckpointError: it cannot be written; no older one was removed.
        """
        return self._folder().write(int(self.steps.sum()), self._contents(None, True, {}))

    def load_from_checkpoint_folder(self, last_total_steps: int = -1) -> str | None:
        """Go on from the newest checkpoint in the folder that is whole, or from the one after so many total steps.

        Returns:
            Its path; None if the folder holds none.

        Raises:
            ValueError: there is no folder.
            CheckpointError: none is readable.
            CheckpointMismatch: it belongs to another model.
        """
        found = self._folder().read(last_total_steps)
        if found is None:
            return None
        path, contents = found
        self._take_over(contents, only_model=False, strict=True)
        self.print(f"going on from {os.path.basename(path)}")
        return path

    def _save_if_due(self) -> None:
        if self.store is not None and int(self.steps.sum()) % self.checkpoint_every == 0:
            self.save_to_checkpoint_folder()

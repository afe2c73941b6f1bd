"""The checkpoints of a training: single files, and a folder of them."""

from __future__ import annotations

import copy
import functools
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cascade.limits import check_unet_number
from ..checkpoints import (
    BackgroundWriter,
    CheckpointError,
    CheckpointNotWritten,
    CheckpointStore,
    read_checkpoint,
    snapshot,
    verify_checkpoint,
    write_checkpoint,
)
from ..checkpoints.paths import is_sharded
from ..checkpoints.sharded import ShardedCheckpoint, write_sharded
from ..checkpoints.store import read_finite
from ..io.files import kind_of, locate
from ..wording import first_of
from .fsdp import gathered, split_shared
from .snapshots import Snapshots
from .state import CheckpointRuined, TrainingState


class Checkpointing:
    """Saves and loads the state of a training, on demand and when it is due.

    Args:
        state: what is saved.
        say: prints a line on the main process.
        snapshots: of the post-hoc averages, or None.
        checkpoint_path and the following: as of `ImagenTrainer`.

    Attributes:
        store: the folder, or None.
    """

    def __init__(
        self,
        state: TrainingState,
        say: Callable[[str], None],
        snapshots: Snapshots | None,
        *,
        checkpoint_path: str | Path | None,
        checkpoint_every: int | None,
        max_checkpoints_keep: int,
        checkpoint_fs: Any,
        fs_kwargs: Mapping[str, Any] | None,
        save_in_background: bool,
        on_save_error: str,
    ) -> None:
        if (checkpoint_path is None) != (checkpoint_every is None):
            raise ValueError("checkpoint_path and checkpoint_every belong together: give both or neither")
        self.state, self.processes, self.say = state, state.processes, say
        self.checkpoint_path, self.checkpoint_every = checkpoint_path, checkpoint_every
        self.max_checkpoints_keep, self.snapshots = max_checkpoints_keep, snapshots
        self.save_in_background, self.on_save_error = save_in_background, on_save_error
        self._fs, self._fs_kwargs = checkpoint_fs, fs_kwargs
        self._writer = BackgroundWriter()
        self.store: CheckpointStore | None = None
        if checkpoint_path is not None:
            self.store = CheckpointStore(checkpoint_path, max_checkpoints_keep, checkpoint_fs, fs_kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Checkpointing:
        """Return one for the copy of the state, without a folder: only one trainer saves into it."""
        new = copy.copy(self)
        new.state, new.say = copy.deepcopy((self.state, self.say), memo)
        new.store = new.snapshots = new.checkpoint_path = new.checkpoint_every = None
        new._writer = BackgroundWriter()
        return new

    @property
    def can_checkpoint(self) -> bool:
        """True if there is a folder for checkpoints."""
        return self.store is not None

    @property
    def fs(self) -> Any:
        """The filesystem of the checkpoint folder, or the one that was given."""
        return self._fs if self.store is None else self.store.fs

    # -- files --------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        overwrite: bool = True,
        without_optim_and_sched: bool = False,
        unet_number: int | None = None,
        background: bool = False,
        keep_previous: bool = False,
        **extra: Any,
    ) -> None:
        """Write one file with everything that training needs to go on. It appears whole or not at all.

        On several processes the main one writes and the others do nothing; it may also be called by the main one alone,
        but not where the weights are sharded: there all of them call it.

        Args:
            path: a local path or any fsspec URL; folders are made. Where the weights are sharded, a path without a
                suffix becomes a folder that all processes write together, and any number of them can read.
            overwrite: whether an existing file may be replaced.
            without_optim_and_sched: leave out optimizers and schedules; the file is then for sampling.
            unet_number: keep only this U-Net in the file, to be joined with others by loading one after another.
            background: copy the state now and write it while training goes on; what goes wrong there is raised by the
                next update, save or `wait_for_saves`. One file is written at a time, and the process does not end
                before it is whole. Not for a folder that all processes write together, see `writes_folder`.
            keep_previous: leave the file or folder that is replaced as ``<stem>.previous<suffix>``.
            extra: further entries, tensors and plain containers.

        Raises:
            ValueError: an entry with a name that is taken, or ``background`` for a folder.
            TypeError: an entry that is not plain.
            CheckpointNotWritten: the file exists and must not be replaced, or it cannot be written.
        """
        numbers = None if unet_number is None else [check_unet_number(unet_number, len(self.state.unet_trainers))]
        if background and self.writes_folder(path):
            raise ValueError(
                f"background=True is not for {path}: all processes write this folder together and at once; give the "
                "path a suffix such as .pt, or pass background=False"
            )
        contents = self.state.state_dict(numbers, not without_optim_and_sched, extra)
        with self._save_errors():
            self._refuse_ruined(path)
            if self.writes_folder(path):
                self._writer.wait()
                fs, place = locate(path, self._fs, self._fs_kwargs)
                write_sharded(fs, place, *split_shared(contents), overwrite=overwrite, keep_previous=keep_previous)
            else:
                contents = gathered(contents, keep=self.processes.is_main)
                target = (path, self._fs, self._fs_kwargs, overwrite, keep_previous)
                if self.processes.is_main:
                    self._write(contents, lambda held: write_checkpoint(held, *target), background)
            done = "is being written" if background else "saved"
            self.say(
                f"checkpoint {done} to {path}: trainer.load({str(path)!r}) goes on from it, "
                f'imagen sample --model {shlex.quote(str(path))} "..." draws with it'
            )

    def writes_folder(self, path: str | Path) -> bool:
        """Return whether `save` makes a path a folder that all processes write together: weights that are sharded, and
        a path without a suffix."""
        return self.processes.sharded and not os.path.splitext(str(path))[1]

    def _refuse_ruined(self, path: str | Path) -> None:
        """Raise a CheckpointNotWritten if weights, averages or moments are not finite; where the weights are sharded,
        all processes call this."""
        names = self.state.ruined()
        if self.processes.all_true(not names) if self.processes.sharded else not names:
            return
        where = f" in {first_of(names)}" if names else ""
        raise CheckpointNotWritten(
            f"{path} is not written, and what was there before is untouched: the weights are not finite or too large"
            f"{where}; go on from an earlier checkpoint, and lower lr or set max_grad_norm"
        )

    def _write(self, contents: dict[str, Any], write: Callable[[dict[str, Any]], object], later: bool) -> None:
        """Write now, or a copy of the present state while training goes on."""
        self.wait_for_saves()  # that an earlier one failed must not cost this one
        with self._save_errors():
            if later:
                self._writer.submit(functools.partial(write, snapshot(contents)))
            else:
                write(contents)

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Handle a checkpoint that cannot be written."""
        try:
            yield
        except CheckpointNotWritten as error:
            if self.on_save_error == "stop":
                raise
            warnings.warn(f"{error}; training goes on, as on_save_error says", stacklevel=5)

    def wait_for_saves(self) -> None:
        """Wait until no checkpoint is being written in the background; a CheckpointNotWritten if the last one could not
        be written."""
        with self._save_errors():
            self._writer.wait()

    def load(
        self, path: str | Path, only_model: bool = False, strict: bool = True, noop_if_not_exist: bool = False
    ) -> dict[str, Any] | None:
        """Go on from a file that `save` wrote, and return its contents. Nothing is changed if it does not fit.

        What was passed to the constructor stays: rate, warm-up, decay and the like. Everything else is as in the file.
        Each difference is one line in ``resume_notes``, which is printed.

        Of several processes each reads the file: all of them call this, and the place is one that all can reach.

        Args:
            path: a local path or any fsspec URL.
            only_model: take weights and averages, and train afresh.
            strict: refuse a checkpoint of another model, or unless ``only_model`` one whose weights mean something else
                (another objective, noise schedule, normalisation ...); False takes what fits and says what did not.
            noop_if_not_exist: do nothing and return None if the file does not exist.

        Raises:
            CheckpointMissing: no such file.
            CheckpointError: it is damaged, or holds more than tensors and plain containers.
            CheckpointMismatch: it belongs to another model, and ``strict``.
        """
        fs, place = locate(path, self._fs, self._fs_kwargs)
        if noop_if_not_exist and self.processes.on_main(lambda: kind_of(fs, place)) is None:
            return None
        source = ShardedCheckpoint(fs, place) if self.processes.sharded and is_sharded(fs, place) else None
        contents = read_checkpoint(path, self._fs, self._fs_kwargs) if source is None else source.described()
        self.take_over(contents, path, only_model, strict, source)
        return contents

    def take_over(
        self,
        contents: dict[str, Any],
        path: str | Path,
        only_model: bool = False,
        strict: bool = True,
        source: ShardedCheckpoint | None = None,
    ) -> None:
        """Go on from the contents of a checkpoint. Arguments and errors as `TrainingState.load_state_dict`."""
        self.state.load_state_dict(contents, path, only_model, strict, source)
        for note in self.state.notes:
            self.say(note)

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _folder(self) -> CheckpointStore:
        if self.store is None:
            raise ValueError("this trainer has no checkpoint folder: give it checkpoint_path and checkpoint_every")
        return self.store

    @property
    def all_checkpoints_sorted(self) -> list[str]:
        """The checkpoints in the folder, newest first."""
        return self._folder().paths()

    def save_to_checkpoint_folder(self, background: bool = False) -> str:
        """Write ``checkpoint.<total steps>.pt`` into the folder, remove those beyond ``max_checkpoints_keep``, and
        return its path. Arguments as for `save`.

        With sharded weights it is a folder ``checkpoint.<total steps>``, which all processes write together, never in
        the background, and any number of them can read.

        Raises:
            ValueError: the trainer has no checkpoint folder.
            CheckpointNotWritten: it cannot be written; no older one was removed.
            CheckpointLocked: another run saves into this folder.
        """
        folder, steps = self._folder(), int(self.state.steps.sum())
        path = folder.folder_path(steps) if self.processes.sharded else folder.path(steps)
        with self._save_errors():
            self._refuse_ruined(path)
            if self.processes.sharded:
                self.processes.on_main(folder.lock)
                tensors, rest = split_shared(self.state.state_dict())
                self.processes.on_main(lambda: folder.make_way(path))
                write_sharded(folder.fs, path, tensors, rest)
                if self.processes.is_main:
                    folder.wrote(path)
            elif self.processes.is_main:
                folder.lock()
                self._write(self.state.state_dict(), lambda held: folder.write(steps, held), background)
        return path

    def load_from_checkpoint_folder(self, last_total_steps: int = -1) -> str | None:
        """Go on from the newest checkpoint in the folder that is whole, or from the one of this total number of steps.
        Return its path; None if the folder holds none.

        Raises:
            ValueError: the trainer has no checkpoint folder.
            CheckpointError: none is readable.
            CheckpointMismatch: it belongs to another model.
        """
        folder, sharded = self._folder(), self.processes.sharded
        ruined: dict[str, CheckpointError] = {}
        held: dict[str, Any] = {}

        def read(path: str, fs: Any) -> Any:
            if path in ruined:
                raise ruined[path]
            return verify_checkpoint(path, fs) if sharded else read_finite(path, fs)

        def newest() -> str | None:  # called by the main process only
            path, held["contents"] = folder.read(last_total_steps, read) or (None, None)
            return path

        while (path := self.processes.on_main(newest)) is not None:
            try:
                if sharded:
                    self.load(path)
                else:
                    self.take_over(held.get("contents") or read_checkpoint(path, folder.fs), path)
            except CheckpointRuined as error:  # only of shards, of which each process has read its own
                if last_total_steps >= 0:
                    raise
                ruined[path] = error
                continue
            self.say(f"going on from {os.path.basename(path)}")
            return path
        return None

    def lock(self) -> None:
        """Lock the folder before anything is trained; a CheckpointLocked if another run saves into it."""
        if self.store is not None:
            self.processes.on_main(self.store.lock)

    def after_update(self, number: int) -> None:
        """Write what is due after an update of a U-Net: a snapshot of its post-hoc averages, a checkpoint."""
        averages, snapshots = self.state.unet_trainers[number - 1].posthoc, self.snapshots
        if snapshots is not None and averages is not None and snapshots.is_due(averages):
            if self.processes.is_main:
                contents, checked = snapshots.contents(averages), averages.checked
                self._write(contents, lambda held: snapshots.write(number, held, checked), self.save_in_background)
            averages.checked = averages.count
        if self._writer.failed():
            self.wait_for_saves()
        if self.store is not None and int(self.state.steps.sum()) % self.checkpoint_every == 0:
            self.save_to_checkpoint_folder(background=self.save_in_background)

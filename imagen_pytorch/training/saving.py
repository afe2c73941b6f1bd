"""The trainer's checkpoints: single files, and a folder of them."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

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
from ..version import __version__
from ..wording import excerpt, first_of
from .distributed import Distributed
from .identity import facts_of_checkpoint
from .resuming import run_put_back_on_error, settings_of, take_over_settings
from .rng import TrainingRandomness
from .sharded_state import described, split_shared
from .snapshots import Snapshots
from .state import TrainingState
from .unet_trainer import UnetTrainer

#: characters of a version, and of a note, at most: both quote the file
_SHORT, _LONG = 40, 2000
#: entries of a checkpoint that are the trainer's own
_RESERVED = ("model", "ema", "steps", "version", "state", "imagen_type", "imagen_params")
_PER_UNET = ("optim", "scaler", "scheduler", "gradients", "posthoc")


class CheckpointRuined(CheckpointError):
    """A checkpoint whose weights are not finite, known after they were read."""


class TrainerCheckpoints:
    """The part of `ImagenTrainer` that saves and loads."""

    unet_trainers: tuple[UnetTrainer, ...]
    steps: Tensor
    processes: Distributed
    randomness: TrainingRandomness
    state: TrainingState
    checkpoint_every: int | None
    max_checkpoints_keep: int
    save_in_background: bool
    on_save_error: str
    resume_notes: list[str]
    snapshots: Snapshots | None
    _fs: Any
    _fs_kwargs: Mapping[str, Any] | None
    _writer: BackgroundWriter

    def _init_checkpoints(self, folder: str | Path | None, every: int | None) -> None:
        if (folder is None) != (every is None):
            raise ValueError("checkpoint_path and checkpoint_every belong together: give both or neither")
        self.checkpoint_path, self.checkpoint_every = folder, every
        self.store = None
        self._writer = BackgroundWriter()
        if folder is not None:
            self.store = CheckpointStore(folder, self.max_checkpoints_keep, self._fs, self._fs_kwargs)

    @property
    def can_checkpoint(self) -> bool:
        """Return whether the trainer has a folder for checkpoints."""
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
            "skipped_steps": [unet_trainer.skipped for unet_trainer in self.unet_trainers],
            "skipped_in_a_row": [unet_trainer.skipped_in_a_row for unet_trainer in self.unet_trainers],
            "processes": self.processes.count,
            "settings": settings_of(self),
            **self._data_state(),
            **({} if numbers is None else {"unet_numbers": list(numbers)}),
        }
        every = range(1, len(self.unet_trainers) + 1)
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
        background: bool = False,
        keep_previous: bool = False,
        **extra: Any,
    ) -> None:
        """Write one file with everything that training needs to go on. It appears whole or not at all.

        On several processes the main one writes and the others do nothing; it may also be called by the main one alone,
        but not where the weights are shared out: there all of them call it.

        Args:
            path: a local path or any fsspec URL; folders are made. Where the weights are shared out, a path without a
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
        numbers = None if unet_number is None else [self.validate_unet_number(unet_number)]
        if background and self.writes_folder(path):
            raise ValueError(
                f"background=True is not for {path}: all processes write this folder together and at once; give the "
                "path a suffix such as .pt, or pass background=False"
            )
        contents = self._contents(numbers, not without_optim_and_sched, extra)
        with self._save_errors():
            self._refuse_ruined(path)
            if self.writes_folder(path):
                self._writer.wait()
                fs, place = locate(path, self._fs, self._fs_kwargs)
                kept = {"overwrite": overwrite, "keep_previous": keep_previous}
                write_sharded(fs, place, *split_shared(contents), **kept)
            else:
                contents = self.state.whole(contents, keep=self.processes.is_main)
                target = (path, self._fs, self._fs_kwargs, overwrite, keep_previous)
                if self.processes.is_main:
                    self._write(contents, lambda held: write_checkpoint(held, *target), background)
            done = "is being written" if background else "saved"
            self.print(
                f"checkpoint {done} to {path}: trainer.load({str(path)!r}) goes on from it, "
                f'imagen sample --model {shlex.quote(str(path))} "..." draws with it'
            )

    def writes_folder(self, path: str | Path) -> bool:
        """Return whether `save` makes a path a folder that all processes write together: weights that are sharded, and
        a path without a suffix."""
        return self.processes.sharded and not os.path.splitext(str(path))[1]

    def _refuse_ruined(self, path: str | Path) -> None:
        """See that the state is worth writing; where the weights are shared out, all processes call this.

        Raises:
            CheckpointNotWritten: weights, averages or moments are not finite.
        """
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
            if not later:
                write(contents)
                return
            held = snapshot(contents)
            self._writer.submit(lambda: write(held))

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Handle a checkpoint that cannot be written."""
        try:
            yield
        except CheckpointNotWritten as error:
            if self.on_save_error == "stop":
                raise
            warnings.warn(f"{error}; training goes on, as on_save_error says", stacklevel=4)

    def wait_for_saves(self) -> None:
        """Wait until no checkpoint is being written in the background.

        Raises:
            CheckpointNotWritten: the last one could not be written.
        """
        with self._save_errors():
            self._writer.wait()

    def load(
        self, path: str | Path, only_model: bool = False, strict: bool = True, noop_if_not_exist: bool = False
    ) -> dict[str, Any] | None:
        """Go on from a file that `save` wrote. Nothing is changed if it does not fit.

        What was passed to the constructor stays: rate, warm-up, decay and the like. Everything else is as in the file.
        Each difference is one line in ``resume_notes``, which is printed.

        Of several processes each reads the file: all of them call this, and the place is one that all can reach.

        Args:
            path: a local path or any fsspec URL.
            only_model: take weights and averages, and train afresh.
            strict: refuse a checkpoint of another model, or unless ``only_model`` one whose weights mean something else
                (another objective, noise schedule, normalisation ...); False takes what fits and says what did not.
            noop_if_not_exist: do nothing and return None if the file does not exist.

        Returns:
            The contents of the file.

        Raises:
            CheckpointMissing: no such file.
            CheckpointError: it is damaged, or holds more than tensors and plain containers.
            CheckpointMismatch: it belongs to another model, and ``strict``.
        """
        if noop_if_not_exist:
            fs, place = locate(path, self._fs, self._fs_kwargs)
            if self.processes.on_main(lambda: kind_of(fs, place)) is None:
                return None
        fs, place = locate(path, self._fs, self._fs_kwargs)
        if self.processes.sharded and is_sharded(fs, place):
            source = ShardedCheckpoint(fs, place)
            contents = described(source)
            self.take_over(contents, path, only_model, strict, source)
            return contents
        contents = read_checkpoint(path, self._fs, self._fs_kwargs)
        self.take_over(contents, path, only_model, strict)
        return contents

    def take_over(
        self,
        contents: dict[str, Any],
        path: str | Path,
        only_model: bool = False,
        strict: bool = True,
        source: ShardedCheckpoint | None = None,
    ) -> None:
        """Go on from the contents of a checkpoint, as `load` does.

        Args:
            contents: as `read_checkpoint` gives them.
            path: where they were read, for messages.
            only_model, strict: as for `load`.
            source: the folder of shards that they describe.

        Raises:
            CheckpointError: as `load`.
        """
        if self.processes.count > 1:
            advice = "put the same file where each of them reads it"
            self.processes.check_same(f"the checkpoint {path}", facts_of_checkpoint(contents), advice)
        left, notes = self.state.check(contents, only_model, strict, path)
        notes += [f"loaded what fits; left out: {each}" for each in left]
        if contents.get("version", __version__) != __version__:
            found = excerpt(contents["version"], _SHORT)
            notes.append(f"the checkpoint is of version {found}, this is version {__version__}")
        with self.state.put_back_on_error(), run_put_back_on_error(self):
            self.resume_notes = notes + self.state.restore(contents, only_model, source)
            if not only_model:
                self._take_over_run(contents.get("state", {}))
            if source is not None and not self.processes.all_true(not (names := self.state.ruined())):
                where = f" in {names[0]}" if names else ""
                raise CheckpointRuined(f"{path}: it holds weights that are not finite{where}; nothing was loaded")
        self.resume_notes = [excerpt(note, _LONG) for note in self.resume_notes]
        for note in self.resume_notes:
            self.print(note)

    def _take_over_run(self, run: Mapping[str, Any]) -> None:
        """Restore the state of the run beside weights and optimizers."""
        self.resume_notes += take_over_settings(self, run.get("settings", {}))
        self.randomness.load_state(run.get("randomness", {}))
        self._load_data_state(run)
        before = run.get("processes", self.processes.count)
        if before != self.processes.count:
            self.resume_notes.append(
                f"the checkpoint is of a run on {before} processes, this is one on {self.processes.count}: batches and "
                "random draws are those of the whole batch and stay the same"
            )
        for unet_trainer, skipped in zip(self.unet_trainers, run.get("skipped_steps", ()), strict=False):
            unet_trainer.skipped = skipped
        for unet_trainer, skipped in zip(self.unet_trainers, run.get("skipped_in_a_row", ()), strict=False):
            unet_trainer.skipped_in_a_row = skipped

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
        """Write ``checkpoint.<total steps>.pt`` into the folder and remove those beyond ``max_checkpoints_keep``.

        With sharded weights it is a folder ``checkpoint.<total steps>``, which all processes write together
        and any number of them can read.

        Args:
            background: as for `save`; never with sharded weights.

        Returns:
            Its path.

        Raises:
            ValueError: the trainer has no checkpoint folder.
            CheckpointNotWritten: it cannot be written; no older one was removed.
            CheckpointLocked: another run saves into this folder.
        """
        folder, steps = self._folder(), int(self.steps.sum())
        path = folder.folder_path(steps) if self.processes.sharded else folder.path(steps)
        with self._save_errors():
            self._refuse_ruined(path)
            if self.processes.sharded:
                self._write_shards(folder, path)
            elif self.processes.is_main:
                folder.lock()
                self._write(self._contents(None, True, {}), lambda held: folder.write(steps, held), background)
        return path

    def _write_shards(self, folder: CheckpointStore, path: str) -> None:
        self.processes.on_main(folder.lock)
        tensors, rest = split_shared(self._contents(None, True, {}))
        self.processes.on_main(lambda: folder.make_way(path))
        write_sharded(folder.fs, path, tensors, rest)
        if self.processes.is_main:
            folder.wrote(path)

    def load_from_checkpoint_folder(self, last_total_steps: int = -1) -> str | None:
        """Go on from the newest checkpoint in the folder that is whole, or from the one of this total number of steps.

        Returns:
            Its path; None if the folder holds none.

        Raises:
            ValueError: the trainer has no checkpoint folder.
            CheckpointError: none is readable.
            CheckpointMismatch: it belongs to another model.
        """
        folder = self._folder()
        if self.processes.sharded:
            return self._load_shards(folder, last_total_steps)
        contents: dict[str, Any] = {}

        def newest() -> str | None:
            found = folder.read(last_total_steps, read_finite)
            contents.update(found[1] if found is not None else {})
            return None if found is None else found[0]

        path = self.processes.on_main(newest)
        if path is None:
            return None
        contents = contents or read_checkpoint(path, folder.fs)
        self.take_over(contents, path, only_model=False, strict=True)
        self.print(f"going on from {os.path.basename(path)}")
        return path

    def _load_shards(self, folder: CheckpointStore, steps: int) -> str | None:
        """The main process finds the newest checkpoint whose checksums are right; each one reads its part of it."""
        ruined: dict[str, CheckpointError] = {}

        def verify(path: str, fs: Any) -> None:
            if path in ruined:
                raise ruined[path]
            verify_checkpoint(path, fs)

        while (found := self.processes.on_main(lambda: folder.read(steps, verify))) is not None:
            try:
                self.load(found[0])
            except CheckpointRuined as error:
                if steps >= 0:
                    raise
                ruined[found[0]] = error
                continue
            self.print(f"going on from {os.path.basename(found[0])}")
            return found[0]
        return None

    def _claim_folder(self) -> None:
        """See, before anything is trained, that no other run saves into the folder."""
        if self.store is None:
            return
        self.processes.on_main(self.store.lock)

    def _snapshot_if_due(self, number: int) -> None:
        """Write a snapshot of the post-hoc averages of a U-Net if it is time for one."""
        averages, snapshots = self.unet_trainers[number - 1].posthoc, self.snapshots
        if snapshots is None or averages is None or not snapshots.is_due(averages):
            return
        if self.processes.is_main:
            contents, checked = snapshots.contents(averages), averages.checked
            self._write(contents, lambda held: snapshots.write(number, held, checked), self.save_in_background)
        averages.checked = averages.count

    def _save_if_due(self) -> None:
        if self._writer.failed():
            self.wait_for_saves()
        if self.store is not None and int(self.steps.sum()) % self.checkpoint_every == 0:
            self.save_to_checkpoint_folder(background=self.save_in_background)

"""The checkpoint of a training: its place, loading at the start, and saving at the end or after an error."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._checkpoints import has_checkpoint, intact_or_previous, make_output, refuse_volatile
from ._errors import USAGE, CommandFailed, exit_code, format_error, say
from ._files import listed_outputs, remember, set_aside
from ._signals import is_main_process

if TYPE_CHECKING:
    from ..trainer import ImagenTrainer


def _copy(path: Path, name: Path) -> None:
    """Give a file another name in its folder: a second link to it, or a copy where the file system has no links.

    Raises:
        OSError: that is not possible.
    """
    beside = name.with_name(f".imagen-{secrets.token_hex(8)}.tmp")
    try:
        with suppress(OSError):
            os.link(path, beside)
        if not beside.exists():
            shutil.copyfile(path, beside)
        os.replace(beside, name)
    finally:
        beside.unlink(missing_ok=True)


class SavedRun:
    """The place of a run's checkpoint, to which no other run saves in the meantime.

    Args:
        path: where it is.
        quiet: say nothing but warnings.
        start: the checkpoint to go on from, if it is another one.
        keep: number of earlier checkpoints that stay, each with its steps in its name.
    """

    trainer: ImagenTrainer
    extra: Mapping[str, Any]

    def __init__(self, path: str, quiet: bool = False, start: str | None = None, keep: int | None = None) -> None:
        self.path, self.quiet, self.start, self.keep = path, quiet, start or path, keep or 0
        self.lock: Any = None
        self.began_at: list[int] = []  # steps of every U-Net when this run began
        self.saved_at: list[int] = []  # and in the checkpoint

    def lock_output(self, output: Path) -> None:
        """Lock the place, before anything is read.

        Args:
            output: the folder of the other results, which is made as well.

        Raises:
            CheckpointError: another run saves there.
            CommandFailed: it cannot be written there, or nothing into the output folder.
            click.UsageError: the place does not outlast this process.
        """
        from ..checkpoints import CheckpointNotWritten
        from ..io.files import locate, make_folder, parent_of
        from ..io.locks import lock_of

        fs, place = locate(self.path)
        refuse_volatile(fs, self.path)
        folder = parent_of(place)
        if is_main_process():
            try:
                make_output(output)
                make_folder(fs, folder)
                self.lock = lock_of(place, fs, self.path)
                self.lock.acquire()
            except CheckpointNotWritten as error:
                raise CommandFailed(format_error(error), USAGE) from error

    def release(self) -> None:
        """Unlock the place, so that others can save there."""
        if self.lock is not None:
            self.lock.release()

    def attach(self, trainer: ImagenTrainer, extra: Mapping[str, Any]) -> None:
        """Save the state of this trainer, with further entries."""
        if self.keep and ("://" in self.path or trainer.writes_folder(self.path)):
            raise CommandFailed(f"--keep is for a checkpoint that is one local file, which {self.path} is not", USAGE)
        self.trainer, self.extra = trainer, extra
        self.began_at = self.saved_at = self.taken()

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text)

    def taken(self) -> list[int]:
        """Training steps so far, of every U-Net."""
        return [int(steps) for steps in self.trainer.steps]

    def _steps_in_words(self) -> str:
        taken = self.taken()
        if len(taken) == 1:
            return f"{taken[0]} steps"
        return ", ".join(f"{steps} steps of U-Net {number}" for number, steps in enumerate(taken, start=1))

    # -- going on -----------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether there is something to go on from; all processes call this."""
        return self.trainer.processes.on_main(lambda: has_checkpoint(self.start))

    def load(self, strict: bool) -> dict[str, Any]:
        """Go on from the checkpoint, or from the one before it if it is damaged or gone; returns its contents.

        Args:
            strict: refuse the checkpoint of a model that differs.

        Raises:
            CommandFailed: neither can be used.
        """
        from ..checkpoint import CheckpointError

        read: dict[str, dict[str, Any] | None] = {}

        def whole() -> str:
            path, contents = intact_or_previous(self.start)
            read[path] = contents
            return path

        try:
            found = self.trainer.processes.on_main(whole)
            if (contents := read.get(found)) is None:
                contents = self.trainer.load(found, strict=strict) or {}
            else:  # what has just been checked
                self.trainer.take_over(contents, found, strict=strict)
        except CheckpointError as error:
            hint = f"cannot go on from {self.start} (--checkpoint names another file to train in)"
            reason = format_error(error)
            reason = reason.replace("strict=False loads what fits", "--allow-mismatch goes on with what fits")
            raise CommandFailed(f"{hint}: {reason}", exit_code(error)) from error
        self.began_at = self.saved_at = self.taken()
        self._say(f"going on from {found} after {self._steps_in_words()}")
        return contents

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, background: bool = False) -> None:
        """Write the checkpoint, unless it holds the present state already; perhaps while training goes on.

        Raises:
            CheckpointError: it cannot be written, or another run has the place by now.
        """
        if self.taken() != self.saved_at:
            if self.lock is not None:
                self.lock.check()
            self._number()
            later = background and not self.trainer.writes_folder(self.path)
            self.trainer.save(self.path, background=later, keep_previous=True, **self.extra)
            self.saved_at = self.taken()
        elif not background:
            self.trainer.wait_for_saves()

    def save_last(self) -> None:
        """Write the checkpoint at the end of the run.

        Raises:
            CheckpointNotWritten: it cannot be written, though ``on_save_error`` let earlier failures pass.
        """
        self.trainer.wait_for_saves()
        if self.trainer.on_save_error != "stop":  # it is unknown whether the last one was written
            self.trainer.on_save_error, self.saved_at = "stop", self.began_at
        self.save()
        self._number()

    def _beside(self, word: str, number: int) -> Path:
        """The name of another checkpoint of this run, which trained a U-Net (1-based) last."""
        path = Path(self.path)
        return path.with_name(f"{path.stem}{word}{f'-unet{number}' if number > 1 else ''}{path.suffix}")

    def save_best(self, number: int) -> None:
        """Write the present state beside the checkpoint as the best one of a U-Net (1-based)."""
        self.trainer.save(self._beside(".best", number), background=True, **self.extra)

    def _number(self) -> None:
        """Keep the checkpoint that was written last under a name with its steps; the oldest of these are removed."""
        pairs = zip(self.saved_at, self.began_at, strict=False)
        trained = [place for place, (now, before) in enumerate(pairs) if now > before]
        if not (self.keep and trained and self.trainer.processes.is_main):
            return
        self.trainer.wait_for_saves()
        name = self._beside(f"-{self.saved_at[trained[-1]]:06}", trained[-1] + 1)
        try:
            if not (name.exists() and name.samefile(self.path)):
                set_aside(name)
                _copy(Path(self.path), name)
                remember([name])
            pattern = re.compile(rf"{re.escape(Path(self.path).stem)}-\d{{6,}}(-unet\d+)?{re.escape(name.suffix)}")
            ours = [name.with_name(each) for each in listed_outputs(name.parent) if pattern.fullmatch(each)]
            there = sorted((path for path in ours if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
            for path in there[: -self.keep]:
                path.unlink()
        except OSError as error:
            warnings.warn(f"no {name}: {format_error(error)}; the training goes on", stacklevel=2)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save the state of the training if an error inside the block ends the run."""
        try:
            yield
        except Exception as error:
            if self._can_save(error):
                self._rescue(error)
            raise

    def _can_save(self, error: Exception) -> bool:
        """Return whether there is something to save, whole, and by this process alone if the others may be lost."""
        from ..checkpoints import CheckpointLocked
        from ..training.unet_trainer import TrainingDiverged

        together = isinstance(error, TrainingDiverged)  # on all processes at the same step
        alone = self.trainer.processes.is_main and not self.trainer.processes.sharded
        whole = all(unet_trainer.whole for unet_trainer in self.trainer.unet_trainers)
        mine = not isinstance(error, CheckpointLocked)  # else another run has the place by now
        return (alone or together) and whole and mine and self.taken() != self.began_at

    def _rescue(self, error: Exception) -> None:
        from ..checkpoints import CheckpointNotWritten

        self.trainer.on_save_error = "stop"
        try:
            try:
                self.trainer.wait_for_saves()
                known = not isinstance(error, CheckpointNotWritten)
            except CheckpointNotWritten:
                known = False
            if known and self.saved_at == self.taken():
                return
            self.saved_at = []
            self.save()
        except Exception as other:  # the error that ends the run counts more
            if not isinstance(other, type(error)):
                warnings.warn(f"what was learned last could not be saved: {format_error(other)}", stacklevel=2)
        else:
            self._say(f"saved to {self.path} after {self._steps_in_words()}, before the run ends")

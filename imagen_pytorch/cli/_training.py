"""``imagen train``: steps, samples, validations and checkpoints, each when it is due."""

from __future__ import annotations

import math
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..lines import backup
from ._data import noun_of, open_data, open_or_adapt, stage_size, with_clip_length, without_text
from ._decay import fit_decay, states_decay
from ._errors import MEMORY, USAGE, CommandFailed, exit_code, format_error, say
from ._files import backup_output, encoded, overwrite, tell
from ._making import make_trainer
from ._memory import MemoryCheck
from ._metrics import MetricsLog
from ._options import chosen_device
from ._program import command_line, program
from ._progress import Progress, Span
from ._runs import environment, placed, precision_of, resolved, write_record
from ._samples import Samples, borrowed_captions
from ._saving import SavedRun
from ._settings import Request, Settings, build_settings, placed_checkpoint
from ._signals import Interruption, is_main_process
from ._sources import change_of_data, data_record

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..configs import TrainingConfig

#: steps of a training whose length is not stated
USUAL_STEPS = 1000
#: batches of one validation, at most
VALIDATION_BATCHES = 8
#: the entry of a checkpoint that says what it was trained on
_DATA = "data_source"


class Run:
    """One call of ``imagen train``.

    Args:
        request: the options of the command.
        config: the configuration that they and the file give.
        may_drop_text: whether data without captions make a model without text of the configuration's model.
    """

    def __init__(self, request: Request, config: TrainingConfig, may_drop_text: bool = False) -> None:
        self.request, self.config, self.may_drop_text = request, config, may_drop_text
        self.folder = request.folder
        self.checkpoint = placed_checkpoint(config, request)
        self.saved = SavedRun(self.checkpoint, request.quiet, request.resume, request.keep)
        self.log = MetricsLog(self.folder / "metrics.jsonl", writes=is_main_process())
        self.span = Span(0, 0, 0)
        self.stopped = self.recorded = False
        self.failed: set[str] = set()  # what went wrong once and has been named
        self.enlarging: set[int] = set()  # U-Nets of which it was said that their samples enlarge images of the data
        count = len(config.imagen.unets)
        null = [number for number, unet in enumerate(config.imagen.unets, start=1) if getattr(unet, "is_null", False)]
        every = [number for number in range(1, count + 1) if number not in null]
        self.numbers = every if request.unet is None else [request.unet]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.saved.release()

    # -- before the first step ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Model, data and, if there is one, the checkpoint to go on from.

        Raises:
            click.ClickException: one of them cannot be used.
        """
        memory = MemoryCheck(self.config, self.numbers, chosen_device(self.request.device), self.request.force)
        memory.before_data()
        self.saved.lock_output(self.folder)
        dataset, noun = self._open()
        frames = getattr(self.config.imagen, "video_frames", None)
        memory.before_training(len(dataset), frames)  # type: ignore[arg-type]
        self.unit = "clips" if noun == "clip" else "img"
        self.trainer = make_trainer(self.config, self.request)
        self.processes = self.trainer.processes
        loader, arguments = self.config.split_dataset_arguments()
        self.batch_size = min(loader["batch_size"], len(dataset))  # type: ignore[arg-type]
        self.trainer.add_train_dataset(dataset, **loader)
        captions = self.config.sample_texts
        if not captions and self.config.imagen.condition_on_text:
            captions = borrowed_captions(dataset)
        self.samples = Samples(self.trainer, dataset, captions, self.folder, self.request.cond_scale)
        self.outputs = self.samples.outputs
        from ..data import SkippedReport

        self.skipped = SkippedReport(self.trainer.train_dl, self.folder, self.config.max_skipped_share)
        self.list_skipped()
        self._say_data(dataset, noun)
        self.data = data_record(self.config.dataset_name, dataset, arguments)
        if self.processes.count > 1:
            self.say(f"strategy {self.processes.strategy}: {self.processes.count} processes share every batch")
        self.say(f"device {self.trainer.device}, precision {precision_of(self.trainer)}")
        self.saved.attach(self.trainer, {_DATA: self.data})
        self.goes_on = self.saved.exists()
        if self.goes_on and self.request.fresh:
            raise CommandFailed(f"--fresh: {self.checkpoint} exists already; --checkpoint names another file", USAGE)
        if self.goes_on:
            self._resume()
        elif is_main_process():
            backup(self.log.path)
            backup_output(self.folder / "loss.png")

    def _open(self) -> tuple[Dataset, str]:
        """Open the data and adapt the configuration to them, with a message; also return "image" or "clip"."""
        size, asked = stage_size(self.config, max(self.numbers)), self.config.imagen.condition_on_text
        if self.may_drop_text:
            dataset, self.config = open_or_adapt(self.config, size)
        else:
            dataset = open_data(self.config, size)
        noun = noun_of(dataset[0])
        source = getattr(dataset, "dataset", dataset)
        if hasattr(source, "as_uint8"):
            source.as_uint8 = True  # the batches become floats on the device of the training
        if not self.config.imagen.condition_on_text:
            self._drop_captions(asked, noun)
        self.config = with_clip_length(self.config, dataset)
        return dataset, noun

    def _drop_captions(self, asked: bool, noun: str) -> None:
        """Remove the captions for samples of a model without text."""
        if self.request.text:
            raise click.UsageError(
                f"--text is a caption, and the model takes none: no {noun} of {self.config.dataset_name} has one"
                if asked
                else '--text is a caption, and the model takes none: its configuration says "condition_on_text": false'
            )
        if asked:
            self.say(f"no {noun} of {self.config.dataset_name} has a caption: this model is trained without text")
        elif self.config.sample_texts:
            self.say('sample_texts is left out: the model takes no captions ("condition_on_text" is false)')
        self.config = without_text(self.config)

    def _say_data(self, dataset: Dataset, noun: str) -> None:
        captions = "" if self.config.imagen.condition_on_text else " without captions"
        single = f", each trained as a {self.outputs.noun} of one frame" if noun != self.outputs.noun else ""
        self.say(f"{self.config.dataset_name}: {len(dataset)} {noun}s{captions}{single}")  # type: ignore[arg-type]

    def _resume(self) -> None:
        contents = self.saved.load(strict=not self.request.allow_mismatch)
        for note in (*self.trainer.resume_notes, *change_of_data(contents.get(_DATA), self.data)):
            self.say(note)

    def save(self) -> None:
        """Write the checkpoint, unless it holds the present state already."""
        self.saved.save()

    # -- questions ----------------------------------------------------------------------------------------------------

    def taken(self) -> list[int]:
        """Training steps so far, of every U-Net."""
        return [int(steps) for steps in self.trainer.steps]

    def say(self, text: str) -> None:
        """Print one line of output."""
        if not self.request.quiet:
            say(text)

    def goal(self, number: int) -> int:
        """The number of steps after which a U-Net is done."""
        request, taken = self.request, self.taken()[number - 1]
        if request.max_steps is not None:
            return request.max_steps
        if request.steps is not None:
            return taken + request.steps
        if request.epochs is not None:
            return taken + request.epochs * len(self.trainer.train_dl)
        total = self.config.total_steps(number)
        if total is not None:
            return total
        decay = None if states_decay(self.config) else self.trainer.decay_steps(number)
        return decay if decay is not None and decay > taken else taken + USUAL_STEPS

    def resume_command(self) -> str:
        """The command to type after an interruption, to be pasted unless a launcher stood in front of it."""
        stated = any(value is not None for value in (self.request.steps, self.request.epochs, self.request.max_steps))
        goal = self.span.last if stated and self.span.last else None
        line = command_line(self.folder, goal) if self.processes.count == 1 else None
        if line is not None:
            return f"to go on: {line}"
        if goal is None or self.request.max_steps is not None:
            return "the same command goes on"
        return f"the same command with --max-steps {goal} in place of --steps or --epochs goes on"

    # -- training -----------------------------------------------------------------------------------------------------

    @contextmanager
    def warn_on_error(self, what: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn an error inside the block into a warning, once; the training goes on.

        Args:
            what: the result that is then missing.
            but: errors that do end it.
        """
        from ..training.distributed import ProcessLost

        try:
            yield
        except (ProcessLost, *but):
            raise
        except Exception as error:
            if what not in self.failed:
                self.failed.add(what)
                warnings.warn(f"no {what}: {format_error(error)}; the training goes on", stacklevel=3)

    def stops(self, interruption: Interruption) -> bool:
        """Return whether all processes stop here, because one of them has got a signal."""
        signal = self.processes.stop_after(sum(self.taken()), interruption.number)
        if signal is not None:
            interruption.number, self.stopped = signal, True
        return self.stopped

    def train(self, number: int, interruption: Interruption) -> None:
        """Train one U-Net to its goal, or until there is a signal.

        Whatever ends it is raised after what was learned has been saved.
        """
        span = self.span = Span(number, self.taken()[number - 1], self.goal(number))
        advice = "start every process with the same options"
        self.processes.check_same("the options of the training", self._common_values(span), advice)
        if span.first >= span.last:
            self.say(f"U-Net {number} has been trained for {span.first} steps; --steps N trains it further")
            return
        for line in fit_decay(self.trainer, self.config, span):
            self.say(line)
        every, duties, epoch = self.request.log_every, self._periodic_tasks(), len(self.trainer.train_dl)
        parameters = sum(item.numel() for item in self.trainer.imagen.unets[number - 1].parameters())
        steps = f"{span.last - span.first} steps, {epoch} to an epoch"
        self.say(f"U-Net {number}: {parameters:,} parameters, {steps}, each with {self.batch_size} {self.unit}")
        progress = Progress(
            span,
            self.batch_size,
            self.log,
            every,
            self.request.quiet,
            self.unit,
            self.processes.mean,
            lambda: self.trainer.reading_share,
            epoch,
        )
        with self.saved.kept(), progress:
            step, stops = span.first, self.stops(interruption)
            if not stops:
                self._record()
            if self.request.sample_at_first and not (step or stops):
                began = time.monotonic()
                self.sample(number, step, progress)
                progress.pause(time.monotonic() - began)
            while step < span.last and not stops:
                rate = self.trainer.get_lr(number)
                loss = self.trainer.train_step(unet_number=number, max_batch_size=self.config.max_batch_size)
                step, before = self.taken()[number - 1], step
                progress.advance(step, loss, rate)
                stops = self.stops(interruption)
                began = time.monotonic()
                for period, duty in duties:
                    if period and step > before and step % period == 0 and not stops:
                        duty(number, step, progress)
                progress.pause(time.monotonic() - began)

    def _record(self) -> None:
        """Write once how this run is made."""
        if is_main_process() and not self.recorded:
            self.recorded = True
            with self.warn_on_error("record of the run"):
                values = resolved(self.config, self.checkpoint, self.folder)
                write_record(self.folder, values, environment(self.trainer), self.goes_on)

    def _common_values(self, span: Span) -> dict[str, Any]:
        """The values that several processes must have in common to do the same at every step."""
        names = ("max_batch_size", "save_at_every", "validate_at_every", "sample_at_every")
        own = {"the last step": span.last, "sample_at_first": self.request.sample_at_first}
        return {**own, **{name: getattr(self.config, name) for name in names}}

    def _periodic_tasks(self) -> tuple[tuple[int, Callable[[int, int, Progress], None]], ...]:
        """The periodic tasks and their periods; saving comes first, before anything that may fail."""
        config = self.config
        return (
            (config.save_at_every, lambda *_: self.saved.save(background=True)),
            (self.request.log_every, lambda *_: self.list_skipped()),
            (config.validate_at_every, self.validate),
            (config.sample_at_every, self.sample),
        )

    def list_skipped(self) -> None:
        """Name in ``skipped.jsonl`` what of the data could not be used.

        Raises:
            DataError: more than ``max_skipped_share`` of the data.
        """
        from ..data import DataError

        with self.warn_on_error("list of what was left out", but=(DataError,)):
            try:
                self.skipped.update()
            except DataError as error:
                where = "an entry of the configuration file, which `imagen config` writes"
                raise DataError(f"{error} ({where})") from error

    def validate(self, number: int, _: int, progress: Progress) -> None:
        """Compute the mean loss over a part of the data that is not trained on, also by noise level.

        The noise is the same each time.
        """
        import torch

        from ..training.diagnosis import LEVELS, losses_by_level

        mean, seen = math.nan, []
        with self.warn_on_error("validation"):
            count = min(VALIDATION_BATCHES, len(self.trainer.valid_dl))
            self.trainer.create_valid_iter()  # the same batches each time
            step: dict[str, Any] = {"unet_number": number, "max_batch_size": self.config.max_batch_size}
            step["observe"] = lambda *pair: seen.append([item.cpu() for item in pair])
            mean = sum(self.trainer.valid_step(**step) for _ in range(count)) / count
        mean = self.processes.mean(mean)  # each process takes part, also where it failed
        levels = losses_by_level(*map(torch.cat, zip(*seen, strict=True))) if seen else {}
        levels = {name: self.processes.mean(levels.get(name, math.nan)) for name in LEVELS}
        if math.isfinite(mean):
            self._track(number, {"valid_loss": mean})
            progress.validated(mean, {name: value for name, value in levels.items() if math.isfinite(value)})
            self._keep_best(number, mean)

    def _track(self, number: int, values: Mapping[str, float]) -> None:
        """Hand numbers about a U-Net to the trackers, beside those that the trainer gives them."""
        if self.trainer.tracking.active:
            named = {f"unet{number}/{name}": value for name, value in values.items()}
            with self.warn_on_error("validation loss for the trackers"):
                self.trainer.accelerator.log(named, step=sum(self.taken()))

    def _track_sheet(self, number: int, path: Path) -> None:
        """Hand a sheet to the trackers that take images."""
        import numpy as np
        from PIL import Image

        for tracker in self.trainer.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                with Image.open(path) as sheet:
                    images = np.asarray(sheet.convert("RGB"))[None]
                tracker.log_images({f"unet{number}/samples": images}, step=sum(self.taken()))

    def _keep_best(self, number: int, loss: float) -> None:
        """Write the checkpoint with the lowest validation loss of a U-Net, if earlier checkpoints are to be kept."""
        if self.request.keep:
            curve = self.log.history().get(f"U-Net {number} validation", [])
            if self.processes.broadcast(all(loss <= earlier for _, earlier in curve)):
                self.saved.save_best(number)

    def sample(self, number: int, step: int, progress: Progress) -> None:
        """Write a sheet of samples of the U-Net, and the curve of the losses so far."""
        if not (is_main_process() or self.processes.sharded):
            return
        with self.warn_on_error(f"samples of U-Net {number}"):
            if self.samples.needs_examples(number) and number not in self.enlarging:
                self.enlarging.add(number)
                progress.say(
                    f"samples of U-Net {number} enlarge images of the data: a U-Net before it has not been trained yet"
                )
            path = self.samples.write(number, step)
            if path is not None:
                progress.say(f"wrote {path}")
                self._track_sheet(number, path)
        self._draw_curve()

    def _draw_curve(self) -> Any:
        """Draw ``loss.png`` anew from the whole log; returns its path, None if there is nothing to draw."""
        if not is_main_process():
            return None
        from ..evaluation.plots import loss_curve

        with self.warn_on_error("loss.png"):
            history = self.log.history()
            if history:
                path = self.folder / "loss.png"
                overwrite(encoded(loss_curve(history)), path)
                return path
        return None

    def draw_curve(self) -> None:
        """Draw ``loss.png`` anew from the whole log, and report it."""
        path = self._draw_curve()
        if path is not None:
            self.say(f"wrote {path}")

    def write_report(self) -> None:
        """Write ``report.html`` anew from what is in the folder, and report it."""
        from ._report import write_report

        with self.warn_on_error("report.html"):
            path = write_report(self.folder) if is_main_process() else None
            if path is not None:
                self.say(f"wrote {path}")

    # -- the end ------------------------------------------------------------------------------------------------------

    def report_end(self) -> None:
        """Report what was left out, how to go on, and where the checkpoint is."""
        left_out = self.skipped.line()
        if left_out:
            self.say(left_out)
        if self.stopped and not any(self.taken()):
            self.say("interrupted before the first step; the same command starts again")
            return
        if self.stopped:
            self.say(f"interrupted and saved; {self.resume_command()}")
        else:
            self._report_diagnosis()
            self._say_what_is_next()
        tell(self.checkpoint)

    def _report_diagnosis(self) -> None:
        """Report a diagnosis for each U-Net of this run whose curve is long enough."""
        from ..training.diagnosis import diagnose

        for finding in diagnose(self.log.rows()):
            if finding.unet in self.numbers:
                self.say(f"U-Net {finding.unet}: {finding.text}")

    def _say_what_is_next(self) -> None:
        from ..training.sampling import last_trained

        unets = list(self.trainer.imagen.unets)
        trained = last_trained(unets, self.taken())
        if trained:
            caption = ' "..."' if self.config.imagen.condition_on_text else ""
            self.say(f"next: {program()} sample --model {shlex.quote(str(self.checkpoint))}{caption}")
        if trained < len(unets):
            first = "" if trained else "next: "
            self.say(f"{first}the same command with --unet {trained + 1} trains U-Net {trained + 1} of {len(unets)}")


@contextmanager
def _smaller_batches_suggested(config: TrainingConfig) -> Iterator[None]:
    """Add the setting to try next to an error of too little memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if exit_code(error) != MEMORY:
            raise
        loader, _ = config.split_dataset_arguments()
        smaller = max((config.max_batch_size or loader["batch_size"]) // 2, 1)
        raise CommandFailed(f"{format_error(error)}; try --max-batch-size {smaller}", MEMORY) from error


def run(request: Request) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    if not is_main_process():
        request = replace(request, quiet=True)
    request = placed(request)
    with Interruption() as interruption:
        return _run(request, build_settings(request), interruption)


def _run(request: Request, settings: Settings, interruption: Interruption) -> int:
    with (
        Run(request, settings.config, may_drop_text=not settings.states_text) as training,
        _smaller_batches_suggested(training.config),
    ):
        training.prepare()
        for number in training.numbers:
            if not training.stopped:  # by a signal that all processes know of
                training.train(number, interruption)
        training.saved.save_last()
        training.draw_curve()
        training.list_skipped()
        training.write_report()
        if is_main_process():
            training.report_end()
        for tracker in training.trainer.accelerator.trackers:
            tracker.finish()
        # a launcher ends all processes when the first has gone: none goes before the last word
        training.processes.broadcast(None)
    return interruption.exit_code() if training.stopped else 0

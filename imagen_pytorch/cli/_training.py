"""What ``imagen train`` does: steps, samples, validations and checkpoints, each when it is due."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._checkpoints import make_output, whole_or_previous
from ._data import caption_of, informed, noun_of, open_data, stage_size
from ._errors import MEMORY, USAGE, CommandFailed, described, exit_code, say
from ._files import encoded, set_aside, write_new, write_over
from ._memory import MemoryCheck
from ._options import chosen_device
from ._outputs import Pictures, Videos, outputs_of
from ._progress import MetricsLog, Progress, Span
from ._settings import Request, placed_checkpoint, settle
from ._signals import Interruption, is_main_process

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..cascade.cascade import Cascade
    from ..configs import TrainingConfig
    from ..trainer import ImagenTrainer

#: steps of a training about whose length nobody says anything
USUAL_STEPS = 1000
#: batches of one validation, at most
VALIDATION_BATCHES = 8
#: captions that are taken from the data where none are given for samples
BORROWED_CAPTIONS = 4


def _make_trainer(config: TrainingConfig, request: Request) -> ImagenTrainer:
    import torch

    device = chosen_device(request.device)
    options: dict[str, Any] = {}
    if device.type == "cpu" and chosen_device("auto").type != "cpu":
        options["accelerate_cpu"] = True
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if request.seed is not None:
        torch.manual_seed(request.seed)  # of the new weights; the trainer's is that of everything else
        options["seed"] = request.seed
    if config.validate_at_every:
        options["split_valid_from_train"] = True
    return config.create(**options)


def _captions(dataset: Dataset) -> list[str]:
    """A few different captions from all over a data set; none if it has none."""
    count = len(dataset)  # type: ignore[arg-type]
    items = [dataset[index * count // BORROWED_CAPTIONS] for index in range(min(BORROWED_CAPTIONS, count))]
    return list(dict.fromkeys(caption for caption in map(caption_of, items) if caption is not None))


def _outputs(imagen: Cascade) -> Pictures:
    """What samples are files of; a video model that was only shown pictures makes the shortest videos it can."""
    if imagen.is_video and imagen.video_frames is None:
        return Videos(imagen, frames=imagen.temporal_downsample_factor[0])
    return outputs_of(imagen)


class Run:
    """One call of ``imagen train``.

    Args:
        request: the options of the command.
        config: the configuration that they and the file give.
    """

    def __init__(self, request: Request, config: TrainingConfig) -> None:
        self.request, self.config = request, config
        self.folder = Path(request.output)
        self.checkpoint = placed_checkpoint(config, request.output)
        self.log = MetricsLog(self.folder / "metrics.jsonl", writes=is_main_process())
        self.began_at: list[int] = []  # steps of every U-Net when this run began
        self.saved_at: list[int] = []  # and in the checkpoint
        self.captions = config.sample_texts
        self.span = Span(0, 0, 0)
        self.lock: Any = None
        self.stopped = False
        count = len(config.imagen.unets)
        null = [number for number, unet in enumerate(config.imagen.unets, start=1) if getattr(unet, "is_null", False)]
        every = [number for number in range(1, count + 1) if number not in null]
        self.numbers = every if request.unet is None else [request.unet]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()

    def prepare(self) -> None:
        """Model, data and, if there is one, the checkpoint to go on from.

        Raises:
            click.ClickException: one of them cannot be used.
        """
        from ..storage import kind_of

        memory = MemoryCheck(self.config, self.numbers, chosen_device(self.request.device), bool(self.request.force))
        memory.before_data()
        fs, place = self.claim()
        dataset = open_data(self.config, stage_size(self.config, max(self.numbers)))
        self.config, noun = informed(self.config, dataset), noun_of(dataset[0])
        memory.before_training(len(dataset), getattr(self.config.imagen, "video_frames", None))  # type: ignore[arg-type]
        self.unit = "clips" if noun == "clip" else "img"
        self.trainer = _make_trainer(self.config, self.request)
        self.outputs = _outputs(self.trainer.imagen)
        from ..data import SkippedReport

        loader, _ = self.config.split_dataset_arguments()
        self.batch_size = min(loader["batch_size"], len(dataset))  # type: ignore[arg-type]
        self.trainer.add_train_dataset(dataset, **loader)
        if not self.captions and self.config.imagen.condition_on_text:
            self.captions = _captions(dataset)
        self.skipped = SkippedReport(self.trainer.train_dl, self.folder, self.config.max_skipped_share)
        self.skipped.update()
        single = f", each trained as a {self.outputs.noun} of one frame" if noun != self.outputs.noun else ""
        self.say(f"{self.config.dataset_name}: {len(dataset)} {noun}s{single}")  # type: ignore[arg-type]
        self.processes = self.trainer.processes
        if self.processes.count > 1:
            self.say(f"strategy {self.processes.strategy}: {self.processes.count} processes share every batch")
        if self.processes.from_main(lambda: kind_of(fs, place)) is not None:
            self._resume()
            self.say(f"going on from {self.checkpoint} after {self.taken()} steps")
        elif is_main_process():
            set_aside(self.log.path)
            set_aside(self.folder / "loss.png")
        self.began_at = self.saved_at = self.taken()

    def claim(self) -> tuple[Any, str]:
        """Where the checkpoint is to be, which nobody else saves to from now on.

        Raises:
            CheckpointError: another run saves there.
            CommandFailed: it cannot be written there, or nothing into the output folder; known before anything is read.
        """
        from ..storage import CheckpointNotWritten, FolderClaim, is_local, locate, lock_of, make_folder, parent_of

        fs, place = locate(self.checkpoint)
        folder = parent_of(place)
        if is_main_process():
            try:
                make_output(self.folder)
                make_folder(fs, folder)
                self.lock = lock_of(place) if is_local(fs) else FolderClaim(fs, folder, self.checkpoint)
                self.lock.acquire()
            except CheckpointNotWritten as error:
                raise CommandFailed(described(error), USAGE) from error
        return fs, place

    def _resume(self) -> None:
        from ..checkpoint import CheckpointError

        try:
            found = self.processes.from_main(lambda: whole_or_previous(self.checkpoint))
            self.trainer.load(found)
        except CheckpointError as error:
            hint = f"cannot go on from {self.checkpoint} (--checkpoint names another file to train in)"
            raise CommandFailed(f"{hint}: {described(error)}", exit_code(error)) from error

    def taken(self) -> list[int]:
        """Training steps so far, of every U-Net."""
        return [int(steps) for steps in self.trainer.steps]

    def say(self, text: str) -> None:
        """One line of talk."""
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
        return taken + USUAL_STEPS if total is None else total

    def how_to_go_on(self) -> str:
        """What to type after an interruption."""
        if not self.span.last or (self.request.steps is None and self.request.epochs is None):
            return "the same command goes on"
        return f"the same command with --max-steps {self.span.last} in place of --steps or --epochs goes on"

    def save(self, background: bool = False) -> None:
        """Write the checkpoint, unless it holds the present state already; perhaps while training goes on."""
        if self.taken() != self.saved_at:
            if is_main_process() and hasattr(self.lock, "check"):  # an object store has no locks
                self.lock.check()
            self.trainer.save(self.checkpoint, background=background, keep_previous=True)
            self.saved_at = self.taken()
        elif not background:
            self.trainer.wait_for_saves()

    def save_last(self) -> None:
        """Write the checkpoint at the end of the run.

        Raises:
            CheckpointNotWritten: it cannot be written, though ``on_save_error`` let earlier failures pass.
        """
        self.trainer.wait_for_saves()
        if self.trainer.on_save_error != "stop":  # nobody knows whether the last one was written
            self.trainer.on_save_error, self.saved_at = "stop", self.began_at
        self.save()

    def stops(self, interruption: Interruption) -> bool:
        """Whether all processes stop here, because one of them has got a signal."""
        signal = self.processes.stop_after(sum(self.taken()), interruption.number)
        if signal is not None:
            interruption.number, self.stopped = signal, True
        return self.stopped

    def train(self, number: int, interruption: Interruption) -> None:
        """Train one U-Net to its goal, or until there is a signal."""
        span = self.span = Span(number, self.taken()[number - 1], self.goal(number))
        if span.first >= span.last:
            self.say(f"U-Net {number} has been trained for {span.first} steps; --steps N trains it further")
            return
        if self.trainer.get_lr(number) == 0:
            self.say(
                f"the learning rate of U-Net {number} has fallen to 0, so nothing more is learned: raise "
                "trainer.cosine_decay_max_steps in the configuration"
            )
        quiet, every = self.request.quiet, self.request.log_every
        duties = (
            (self.config.validate_at_every, self.validate),
            (self.config.sample_at_every, self.sample),
            (self.config.save_at_every, lambda *_: self.save(background=True)),
            (every, lambda *_: self.list_skipped()),
        )
        mean = self.processes.mean
        with Progress(span, self.batch_size, self.log, every, quiet, self.unit, mean) as progress:
            step, stops = span.first, self.stops(interruption)
            while step < span.last and not stops:
                loss = self.trainer.train_step(unet_number=number, max_batch_size=self.config.max_batch_size)
                step, before = self.taken()[number - 1], step
                progress.advance(step, loss, self.trainer.get_lr(number))
                stops = self.stops(interruption)
                began = time.monotonic()
                for period, duty in duties:
                    if period and step > before and step % period == 0 and not stops:
                        duty(number, step, progress)
                progress.pause(time.monotonic() - began)

    def list_skipped(self) -> None:
        """Name in ``skipped.jsonl`` what of the data could not be used; what was learned is kept if it is too much.

        Raises:
            DataError: more than ``max_skipped_share`` of the data.
        """
        from ..data import DataError

        try:
            self.skipped.update()
        except DataError:
            self.save()
            raise

    def validate(self, number: int, _: int, progress: Progress) -> None:
        """Mean loss over a part of the data that is not trained on; its noise is the same each time."""
        count = min(VALIDATION_BATCHES, len(self.trainer.valid_dl))
        self.trainer.create_valid_iter()  # the same batches each time
        losses = [
            self.trainer.valid_step(unet_number=number, max_batch_size=self.config.max_batch_size) for _ in range(count)
        ]
        progress.validated(self.processes.mean(sum(losses) / count))

    def sample(self, number: int, step: int, progress: Progress) -> None:
        """A sheet of what the U-Net makes now, always from the same captions and seeds."""
        from ..training.sampling import last_trained

        if not (is_main_process() or self.processes.sharded):
            return
        imagen = self.trainer.imagen
        if last_trained(list(imagen.unets), self.taken()) < number:
            progress.say(f"no samples of U-Net {number}: a U-Net before it has not been trained yet")
            return
        guided = self.config.imagen.condition_on_text and imagen.can_classifier_guidance
        texts = {"texts": self.captions} if self.captions else {"batch_size": BORROWED_CAPTIONS}
        items = self.trainer.sample(
            **texts,
            **self.outputs.arguments(),
            seed=0,
            cond_scale=self.request.cond_scale if guided else 1.0,
            stop_at_unet_number=number,
            use_tqdm=False,
        )
        if not is_main_process():
            return
        name = f"sample-{step // self.config.sample_at_every}" + (f"-unet{number}" if number > 1 else "")
        sheet, suffix = self.outputs.grid(items, self.captions or [""] * len(items)), self.outputs.suffix
        path = write_new(self.outputs.encode(sheet, suffix, number - 1), self.folder / f"{name}{suffix}")
        progress.say(f"wrote {path}")

    def draw_curve(self) -> None:
        """``loss.png``, drawn anew from the whole log."""
        if not is_main_process():
            return
        from ..evaluation.pictures import loss_curve

        history = self.log.history()
        if history:
            path = self.folder / "loss.png"
            write_over(encoded(loss_curve(history)), path)
            self.say(f"wrote {path}")

    def say_the_end(self) -> None:
        """What was left out, how to go on, and where the checkpoint is."""
        left_out = self.skipped.line()
        if left_out:
            self.say(left_out)
        if self.stopped and not any(self.taken()):
            self.say("interrupted before the first step; the same command starts again")
            return
        if self.stopped:
            self.say(f"interrupted and saved; {self.how_to_go_on()}")
        else:
            self.say(f'next: imagen sample --model {shlex.quote(str(self.checkpoint))} "..."')
        click.echo(self.checkpoint)


@contextmanager
def _smaller_batches_suggested(config: TrainingConfig) -> Iterator[None]:
    """Running out of memory says which setting to try next."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if exit_code(error) != MEMORY:
            raise
        loader, _ = config.split_dataset_arguments()
        smaller = max((config.max_batch_size or loader["batch_size"]) // 2, 1)
        raise CommandFailed(f"{described(error)}; try --max-batch-size {smaller}", MEMORY) from error


def run(request: Request) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    if not is_main_process():
        request = replace(request, quiet=True)
    with (
        Run(request, settle(request)) as training,
        _smaller_batches_suggested(training.config),
        Interruption() as interruption,
    ):
        training.prepare()
        for number in training.numbers:
            if not training.stopped:  # by a signal that all processes know of: what one has got is its own affair
                training.train(number, interruption)
        training.save_last()
        training.draw_curve()
        training.skipped.update()
        if is_main_process():
            training.say_the_end()
        # a launcher ends all processes when the first has gone: none goes before the last word
        training.processes.agree(None)
    return interruption.exit_code() if training.stopped else 0

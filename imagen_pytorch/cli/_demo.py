"""``imagen demo``: sheets before and after training, per stage, and a score of how well they match their captions.

This is what demos of images and of videos have in common; each has a file of its own for the rest.
"""

from __future__ import annotations

import json
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lines import backup
from ..pretrained import load_demo, pretrained_names, pretrained_prompts
from ..signatures import ConfigError, read_config
from ._data import caption_of, images_of, open_data
from ._errors import USAGE, CommandFailed, say
from ._files import check_place, overwrite, replace_file, slug, tell
from ._options import guidance_weight
from ._outputs import outputs_of
from ._presets import READY_MADE, find_config
from ._program import program
from ._progress import clock
from ._settings import Request
from ._signals import Interruption
from ._training import Run

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from ..configs import TrainingConfig

#: where results are written by default
FOLDER = "runs/demo"
#: the figures of a finished demo
METRICS = "metrics.json"
#: the sheet of the pretrained model, and the number of prompts on it
PRETRAINED, SHOWN = "pretrained", 12
#: images or clips per batch in demos
BATCH = 48
#: steps between two points of the loss curve, and between two lines of output without a terminal
LOG_EVERY = 25


@dataclass(frozen=True)
class Options:
    """The options of ``imagen demo``; the command's help says what they mean."""

    steps: int | None
    config: str
    cond_scale: Any
    judge: int
    seed: int
    output: str
    device: str
    quiet: bool


def scaled(values: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """A configuration whose first U-Net trains for this number of steps; all other step counts scale with it.

    Raises:
        CommandFailed: the configuration does not say how many steps there are.
    """
    if steps is None:
        return values
    given = values.get("steps")
    first = given[0] if isinstance(given, list) else given
    if not first:
        raise CommandFailed(
            'the configuration needs "steps", one number or one per U-Net, before they can be scaled', USAGE
        )

    def stretch(value: Any) -> Any:
        if isinstance(value, list):
            return [stretch(item) for item in value]
        return value if value is None else max(1, round(value * steps / first))

    trainer = dict(values.get("trainer") or {})
    for name in {"cosine_decay_max_steps", "cooldown_steps"} & trainer.keys():
        trainer[name] = stretch(trainer[name])
    counted = ("steps", "sample_at_every", "save_at_every")
    return {**values, **{name: stretch(values[name]) for name in counted if values.get(name)}, "trainer": trainer}


def configured(name: str, steps: int | None, seed: int) -> tuple[dict[str, Any], TrainingConfig]:
    """Return a configuration with its steps scaled and its seed set, as it stands in a file and checked.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    from ..configs import TrainingConfig
    from ..signatures import parse

    values = scaled(read_config(find_config(name).path), steps)
    values = {**values, "trainer": {**(values.get("trainer") or {}), "seed": seed}}
    return values, parse(TrainingConfig, values)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most this number of indices, evenly spread over ``range(count)``."""
    return [index * count // min(wanted, count) for index in range(min(wanted, count))]


def captions_of(dataset: Dataset | None) -> Sequence[str]:
    """All captions of a data set that has them without reading images, else none."""
    return getattr(dataset, "captions", ())


def stack_items(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Images ``(n, c, h, w)`` or clips ``(n, c, f, h, w)`` in [0, 1] and their captions."""
    import torch

    items = [dataset[index] for index in indices]
    return torch.stack([images_of(item) for item in items]), [caption_of(item) or "" for item in items]


class Demo(ABC):
    """One call of ``imagen demo``.

    Args:
        options: of the command.
        values: the contents of the configuration file, steps scaled.
        config: the same, checked.
    """

    #: the entry of ``metrics.json`` with the figures of the judge, and what to call them
    entry: str
    figures: str

    def __init__(self, options: Options, values: dict[str, Any], config: TrainingConfig) -> None:
        self.options, self.values, self.config = options, values, config
        self.folder = Path(options.output)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print one line of output."""
        if not self.options.quiet:
            say(text)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Record the duration of the block."""
        began = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - began, 2)

    def prepare(self) -> None:
        """Folder, model and data.

        Raises:
            click.ClickException: one of them cannot be used.
        """
        if not self.config.imagen.condition_on_text or not self.config.sample_texts:
            raise CommandFailed(
                "the demo samples captions: the configuration needs sample_texts, and a model with text", USAGE
            )
        path = self.folder / "config.json"
        if not self.unfinished():
            backup(self.folder)
            check_place(path)
            replace_file(f"{json.dumps(self.values, indent=4)}\n".encode(), path)
        nothing = dict.fromkeys(Request.__dataclass_fields__)
        settings = {"config": str(path), "text": (), "log_every": LOG_EVERY, "output": str(self.folder)}
        same = {name: getattr(self.options, name) for name in ("cond_scale", "seed", "device", "quiet")}
        self.training = Run(Request(**{**nothing, **settings, **same}), self.config)
        self.training.prepare()
        self.imagen, self.outputs = self.training.trainer.imagen, self.training.outputs
        self.cond_scale = guidance_weight(self.imagen, self.options.cond_scale)
        self.config = self.training.config
        self.prompts = list(self.config.sample_texts)
        self.data = open_data(self.config, self.imagen.stages[-1].size)
        split = self.held_out_split()
        self.held_out = None if split is None else self._other_split(split)

    def unfinished(self) -> bool:
        """Return whether the folder holds an interrupted demo with the same configuration."""
        config = self.folder / "config.json"
        if not config.is_file() or (self.folder / METRICS).exists():
            return False
        try:
            return read_config(config) == self.values
        except ConfigError:
            return False

    @abstractmethod
    def held_out_split(self) -> str | None:
        """The held-out part of the data, for data sets that define one."""

    def _other_split(self, split: str) -> Dataset:
        rest = {name: value for name, value in self.config.dataset.items() if name != "limit"}
        other = self.config.model_copy(update={"dataset": {**rest, "split": split}})
        return open_data(other, self.imagen.stages[-1].size)

    def notes(self) -> list[str]:
        """Return which prompts are not captions of the training data."""
        trained, held_out = set(captions_of(self.data)), set(captions_of(self.held_out))
        if not trained:
            return [""] * len(self.prompts)
        kinds = {True: "held out of training", False: "not in the data"}
        return ["" if prompt in trained else kinds[prompt in held_out] for prompt in self.prompts]

    # -- images and clips -------------------------------------------------------------------------------------------

    def draw(self, sample: Any, texts: list[str], **options: Any) -> list[Any]:
        """Sample these captions with every stage; the same seeds, hence the same noise, at every call."""
        seeds = [self.options.seed + index for index in range(len(texts))]
        arguments = {**self.outputs.arguments(), **options}
        return sample(
            texts=texts,
            seed=seeds,
            cond_scale=self.cond_scale,
            return_all_unet_outputs=True,
            use_tqdm=False,
            **arguments,
        )

    def write_sheets(self, stages: Sequence[Any], when: str) -> None:
        """One sheet with captions per stage."""
        for stage, items in enumerate(stages):
            self.write_sheet(items, stage, f"stage{stage + 1}-{when}", f"Stage {stage + 1}, {when} training")

    def show_pretrained(self) -> None:
        """Draw prompts with the pretrained model of the same name, if there is one: a sheet in the first minute."""
        name, path = self.options.config, self.folder / f"{PRETRAINED}{self.outputs.suffix}"
        if name not in pretrained_names() or path.exists():
            return
        model, prompts = load_demo(name), pretrained_prompts(name)[:SHOWN]
        outputs = outputs_of(model)
        seeds = list(range(len(prompts)))
        items = model.sample(texts=prompts, seed=seeds, use_tqdm=False, **outputs.arguments())
        sheet = outputs.grid(items, prompts, title=f'Pretrained model "{name}"')
        overwrite(outputs.encode(sheet, path.suffix, len(model.unets) - 1), path)
        self.say(f'\nthe pretrained model "{name}" draws\n  {path}')
        self.say(f"  {program()} sample --model {name} {shlex.quote(prompts[0])}")

    def write_sheet(self, items: Any, stage: int, name: str, title: str) -> Any:
        """Write and return a sheet of the results of a stage (counted from 0), with the prompts as captions."""
        title = f"{title}: {self.extent(stage)}"
        sheet = self.outputs.grid(items, self.prompts, title=title, notes=self.notes())
        path = self.folder / f"{name}{self.outputs.suffix}"
        overwrite(self.outputs.encode(sheet, path.suffix, stage), path)
        self.say(f"  {path}")
        return sheet

    def extent(self, stage: int) -> str:
        """The size of the results of a stage (counted from 0), in words."""
        height, width = self.imagen.stages[stage].size
        return f"{width} x {height}{self.outputs.length(stage)}"

    def write_samples(self, items: Any) -> None:
        """Every result of the last stage in a file of its own, named by its caption."""
        for prompt, item in zip(self.prompts, items, strict=True):
            path = self.folder / "samples" / f"{slug(prompt)}{self.outputs.suffix}"
            self.outputs.write(item, path, len(self.imagen.unets) - 1)

    def write_real(self) -> None:
        """The data's own examples of the prompts, blank where it has none."""
        import torch

        sources = (self.held_out, self.data)
        places = {text: (source, index) for source in sources for index, text in enumerate(captions_of(source))}
        blank = torch.ones_like(images_of(self.data[0]))
        found = [places.get(prompt) for prompt in self.prompts]
        real = torch.stack([blank if place is None else images_of(place[0][place[1]]) for place in found])
        self.write_sheet(real, len(self.imagen.unets) - 1, "real", f"The {self.outputs.noun}s of the data set")

    # -- figures ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def judge(self) -> dict[str, Any]:
        """Score how well the results match their captions."""

    @abstractmethod
    def tell(self, report: dict[str, Any]) -> None:
        """Print the scores of `judge` as a table."""

    def entries(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the scores of `judge` by their names in ``metrics.json``."""
        return {self.entry: report}

    # -- the whole ----------------------------------------------------------------------------------------------------

    def train(self, interruption: Interruption) -> None:
        """Train the U-Nets one by one, with a sheet after each but the last."""
        for number in self.training.numbers:
            if interruption:
                return
            taken, goal = self.training.taken()[number - 1], self.training.goal(number)
            if taken >= goal:  # before an interruption
                continue
            first = f", from step {taken}" if taken else ""
            self.say(f"\ntraining U-Net {number}, {self.extent(number - 1)}, {goal} steps{first}")
            with self.timed(f"train_unet{number}"):
                self.training.train(number, interruption)
            if number < self.training.numbers[-1] and not interruption:
                stages = self.draw(self.training.trainer.sample, self.prompts, stop_at_unet_number=number)
                self.write_sheet(stages[-1], number - 1, f"stage{number}-after", f"Stage {number}, after training")

    def run(self) -> int:
        """Everything in order; returns the exit code."""
        began = time.monotonic()
        with Interruption() as interruption:
            with self.timed("prepare"):
                self.prepare()
            with self.timed("pretrained"):
                self.show_pretrained()
            if not any(self.training.taken()):
                self.say("\nbefore training")
                with self.timed("sample_before"):
                    self.write_sheets(self.draw(self.imagen.sample, self.prompts), "before")
            self.train(interruption)
            self.training.save()
        self.training.draw_curve()
        self.training.write_report()
        if interruption:
            self.say(f"interrupted and saved to {self.training.checkpoint}; the same command goes on")
            return interruption.exit_code()
        self.say("\nafter training")
        with self.timed("sample_after"):
            stages = self.draw(self.training.trainer.sample, self.prompts)
            self.write_sheets(stages, "after")
            self.write_samples(stages[-1])
            self.write_real()
        with self.timed("judge"):
            report = self.judge() if self.options.judge else {}
        self.tell(report)
        self.seconds["total"] = round(time.monotonic() - began, 2)
        self.write_metrics(report)
        self.conclude()
        return 0

    def write_metrics(self, report: dict[str, Any]) -> None:
        """Write ``metrics.json``: all scores of this run."""
        last = {name: curve[-1][1] for name, curve in self.training.log.history().items()}
        metrics = {
            **self.entries(report),
            "loss": last,
            "steps": self.training.taken(),
            "training_clips" if self.outputs.noun == "clip" else "training_pictures": len(self.data),
            "cond_scale": self.cond_scale,
            "seed": self.options.seed,
            "seconds": self.seconds,
        }
        replace_file(f"{json.dumps(metrics, indent=2)}\n".encode(), self.folder / METRICS)

    def files(self) -> dict[Path, str]:
        """The files of the results, with a description of each."""
        last, suffix, noun = len(self.imagen.unets), self.outputs.suffix, self.outputs.noun
        sheet = self.folder / f"{PRETRAINED}{suffix}"
        return {
            self.folder / f"stage{last}-after{suffix}": f"the {noun}s, with their captions",
            **({sheet: "prompts drawn by the pretrained model"} if sheet.exists() else {}),
            self.folder / f"stage{last}-before{suffix}": "the same noise before training",
            self.folder / f"real{suffix}": "the data's own examples of these captions",
            self.folder / "loss.png": "the loss curves",
            self.folder / METRICS: f"{self.figures} and times",
            self.folder / "samples": f"every {noun} in a file of its own",
        }

    def conclude(self) -> None:
        """Print where everything is, and the commands to type next."""
        files = self.files()
        width = max(map(len, map(str, files)))
        look = "\n          ".join(f"{path!s:{width}}  {what}" for path, what in files.items())
        config = "" if self.options.config == READY_MADE else f" --config {shlex.quote(str(self.options.config))}"
        output = "" if self.options.output == FOLDER else f" --output {shlex.quote(str(self.options.output))}"
        scales = self.options.cond_scale if isinstance(self.options.cond_scale, list) else [self.options.cond_scale]
        scale = "" if scales == [None] else f" --cond-scale {','.join(f'{item:g}' for item in scales)}"
        model, noun = shlex.quote(str(self.training.checkpoint)), self.outputs.noun
        self.say(
            f"\ndone in {clock(self.seconds['total'])}\n\n"
            f"look at   {look}\n\n"
            f"next      {program()} sample --model {model}{scale} {shlex.quote(self.prompts[0])}\n"
            f"          {program()} demo{config}{output} --steps {4 * self.training.taken()[0]}\n\n"
            f"To train on your own {noun}s, add the path of their folder to\n"
            f"          {program()} train{config} --unet all --data"
        )
        tell(next(iter(files)))

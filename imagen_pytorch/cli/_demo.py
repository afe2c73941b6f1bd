"""What ``imagen demo`` does: pictures before and after training, per stage, and a figure of how well they fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..signatures import read_json
from ._errors import CommandFailed
from ._files import encoded, set_aside
from ._presets import find_config
from ._progress import clock
from ._settings import Request, open_data
from ._signals import Interruption
from ._training import Run

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

#: real pictures that the judge learns from, at most: it takes about 15 ms for each
JUDGE_LEARNS = 1200
#: pictures made at once where nobody needs to look at them
BATCH = 48
#: steps between two points of the loss curve, and between two lines of talk where there is no terminal
LOG_EVERY = 25
#: the part of the embedded data that is never trained on: a thing in an art style in which it has not been seen
HELD_OUT = "pair"


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
    """A configuration whose first U-Net trains for so many steps; all else that is counted in steps keeps pace.

    Raises:
        CommandFailed: the configuration does not say how many steps there are.
    """
    if steps is None:
        return values
    given = values.get("steps")
    first = given[0] if isinstance(given, list) else given
    if not first:
        raise CommandFailed('the configuration needs "steps", one number or one per U-Net, before they can be scaled')

    def stretch(value: Any) -> Any:
        if isinstance(value, list):
            return [stretch(item) for item in value]
        return value if value is None else max(1, round(value * steps / first))

    trainer = dict(values.get("trainer") or {})
    if "cosine_decay_max_steps" in trainer:
        trainer["cosine_decay_max_steps"] = stretch(trainer["cosine_decay_max_steps"])
    counted = ("steps", "sample_at_every", "save_at_every")
    return {**values, **{name: stretch(values[name]) for name in counted if values.get(name)}, "trainer": trainer}


def spread(count: int, wanted: int) -> list[int]:
    """At most so many indices, evenly spread over ``range(count)``."""
    return [index * count // min(wanted, count) for index in range(min(wanted, count))]


def captions_of(dataset: Dataset | None) -> Sequence[str]:
    """All captions of a data set that knows them without reading its pictures, else none."""
    return getattr(dataset, "captions", ())


def gathered(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Pictures ``(n, c, h, w)`` in [0, 1] and their captions."""
    import torch

    items = [dataset[index] for index in indices]
    return torch.stack([item[0] for item in items]), [item[1] for item in items]


def percent(figures: dict[str, float]) -> str:
    """R@1, R@5 and R@10 as columns."""
    return "".join(f"{100 * figures[name]:7.1f} %" for name in ("R@1", "R@5", "R@10"))


class Demo:
    """One call of ``imagen demo``.

    Args:
        options: of the command.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = Path(options.output)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line of talk."""
        if not self.options.quiet:
            click.echo(text, err=True)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Remember how long the block takes."""
        began = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - began, 2)

    def prepare(self) -> None:
        """Folder, configuration, model and data.

        Raises:
            click.ClickException: one of them cannot be used.
        """
        from ..configs import TrainingConfig
        from ..signatures import parse

        values = scaled(read_json(find_config(self.options.config).path), self.options.steps)
        self.config = parse(TrainingConfig, values)
        if not self.config.imagen.condition_on_text or not self.config.sample_texts:
            raise CommandFailed("the demo draws captions: the configuration needs sample_texts, and a model with text")
        set_aside(self.folder)
        self.folder.mkdir(parents=True)
        path = self.folder / "config.json"
        path.write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")
        nothing = dict.fromkeys(Request.__dataclass_fields__)
        settings = {"config": str(path), "text": (), "log_every": LOG_EVERY, "output": str(self.folder)}
        same = {name: getattr(self.options, name) for name in ("cond_scale", "seed", "device", "quiet")}
        self.training = Run(Request(**{**nothing, **settings, **same}), self.config)
        self.training.prepare()
        self.imagen = self.training.trainer.imagen
        self.prompts = list(self.config.sample_texts)
        self.data = open_data(self.config, self.imagen.stages[-1].size)
        self.held_out = self._held_out()

    def _held_out(self) -> Dataset | None:
        if self.config.dataset_name != "emoji64":
            return None
        rest = {name: value for name, value in self.config.dataset.items() if name != "limit"}
        other = self.config.model_copy(update={"dataset": {**rest, "split": HELD_OUT}})
        return open_data(other, self.imagen.stages[-1].size)

    def notes(self) -> list[str]:
        """Which prompts are no captions of the training data."""
        trained, held_out = set(captions_of(self.data)), set(captions_of(self.held_out))
        if not trained:
            return [""] * len(self.prompts)
        kinds = {True: "held out of training", False: "not in the data"}
        return ["" if prompt in trained else kinds[prompt in held_out] for prompt in self.prompts]

    # -- pictures -----------------------------------------------------------------------------------------------------

    def draw(self, sample: Any, texts: list[str], **options: Any) -> list[Tensor]:
        """Pictures of every stage for these captions; the same seeds, hence the same noise, at every call."""
        seeds = [self.options.seed + index for index in range(len(texts))]
        return sample(
            texts=texts,
            seed=seeds,
            cond_scale=self.options.cond_scale,
            return_all_unet_outputs=True,
            use_tqdm=False,
            **options,
        )

    def write_sheets(self, stages: Sequence[Tensor], when: str) -> None:
        """One sheet of pictures with captions per stage."""
        for number, pictures in enumerate(stages, start=1):
            self.write_sheet(pictures, f"stage{number}-{when}", f"Stage {number}, {when} training")

    def write_sheet(self, pictures: Tensor, name: str, title: str) -> None:
        """One sheet of pictures with the prompts as captions."""
        from ..evaluation.pictures import captioned_grid

        height, width = pictures.shape[-2:]
        sheet = captioned_grid(pictures, self.prompts, title=f"{title}: {width} x {height}", notes=self.notes())
        path = self.folder / f"{name}.png"
        path.write_bytes(encoded(sheet))
        self.say(f"  {path}")

    def write_pictures(self, pictures: Tensor) -> None:
        """Every picture in a file of its own, named by its caption."""
        from ..images import to_pil
        from ._files import slug, write_new

        for prompt, picture in zip(self.prompts, to_pil(pictures), strict=True):
            write_new(encoded(picture), self.folder / "samples" / f"{slug(prompt)}.png")

    def write_real(self) -> None:
        """What the data have for the prompts, where they have it; blank where not."""
        import torch

        sources = (self.held_out, self.data)
        places = {text: (source, index) for source in sources for index, text in enumerate(captions_of(source))}
        blank = torch.ones_like(self.data[0][0])
        found = [places.get(prompt) for prompt in self.prompts]
        real = torch.stack([blank if place is None else place[0][place[1]][0] for place in found])
        self.write_sheet(real, "real", "The pictures of the data set")

    # -- figures ------------------------------------------------------------------------------------------------------

    def judge(self) -> dict[str, Any]:
        """Caption retrieval of generated pictures, by the captions that were trained on and by those held out.

        Twice: of the pictures as they are, and shrunk to the first stage's size, where the judge sees shapes and
        colours but not the texture about which it is strict. Real pictures are shrunk alike.
        """
        from ..evaluation.features import feature_extractor
        from ..evaluation.retrieval import caption_retrieval, train_probe
        from ..images import resize

        real, captions = gathered(self.data, spread(len(self.data), JUDGE_LEARNS))
        asked = {}
        for name, source in (("trained", self.data), ("held_out", self.held_out)):
            if source is not None and len(source):
                pictures, texts = gathered(source, spread(len(source), self.options.judge))
                made = self.draw(self.training.trainer.sample, texts, max_batch_size=BATCH)[-1].cpu()
                asked[name] = (
                    made,
                    texts,
                    pictures,
                    [*texts, *(captions if name == "trained" else captions_of(source))],
                )
        report: dict[str, Any] = {}
        extractor, encoder = feature_extractor(), self.imagen.text_encoder
        for height, width in dict.fromkeys((self.imagen.stages[-1].size, self.imagen.stages[0].size)):
            seen = partial(resize, size=(height, width))
            probe = train_probe(seen(real), captions, extractor=extractor, encoder=encoder, seed=self.options.seed)
            report[f"{width}x{height}"] = {
                name: caption_retrieval(probe, seen(made), texts, candidates=candidates, real=seen(pictures))
                for name, (made, texts, pictures, candidates) in asked.items()
            }
        return report

    def tell(self, report: dict[str, Any]) -> None:
        """The figures of `judge` as a table."""
        titles = {"trained": "captions of the training data", "held_out": "captions held out of training"}
        for size, kinds in report.items():
            for name, figures in kinds.items():
                count = f"{figures['pictures']} pictures, {figures['candidates']} captions to choose from"
                self.say(f"\n{titles[name]}, judged at {size} ({count})")
                self.say(f"  {'':20}{'R@1':>9}{'R@5':>9}{'R@10':>9}")
                for row, label in (("generated", "generated"), ("chance", "chance"), ("ceiling", "real pictures")):
                    self.say(f"  {label:20}{percent(figures[row])}")

    # -- the whole ----------------------------------------------------------------------------------------------------

    def train(self, interruption: Interruption) -> None:
        """Train the U-Nets one by one, with a sheet of pictures after each but the last."""
        for number in self.training.numbers:
            if interruption:
                return
            height, width = self.imagen.stages[number - 1].size
            self.say(f"\ntraining U-Net {number}, {width} x {height} pixels, {self.training.goal(number)} steps")
            with self.timed(f"train_unet{number}"):
                self.training.train(number, interruption)
            if number < self.training.numbers[-1] and not interruption:
                stages = self.draw(self.training.trainer.sample, self.prompts, stop_at_unet_number=number)
                self.write_sheet(stages[-1], f"stage{number}-after", f"Stage {number}, after training")

    def run(self) -> int:
        """Everything in order; returns the exit code."""
        began = time.monotonic()
        with Interruption() as interruption:
            with self.timed("prepare"):
                self.prepare()
            self.say("\nbefore training")
            with self.timed("sample_before"):
                self.write_sheets(self.draw(self.imagen.sample, self.prompts), "before")
            self.train(interruption)
            self.training.save()
        self.training.draw_curve()
        if interruption:
            self.say(f"interrupted; the model as it is now: {self.training.checkpoint}")
            return interruption.exit_code()
        self.say("\nafter training")
        with self.timed("sample_after"):
            stages = self.draw(self.training.trainer.sample, self.prompts)
            self.write_sheets(stages, "after")
            self.write_pictures(stages[-1])
            self.write_real()
        with self.timed("judge"):
            report = self.judge() if self.options.judge else {}
        self.tell(report)
        self.seconds["total"] = round(time.monotonic() - began, 2)
        self.write_metrics(report)
        self.conclude()
        return 0

    def write_metrics(self, report: dict[str, Any]) -> None:
        """``metrics.json``: all figures of this run."""
        last = {name: curve[-1][1] for name, curve in self.training.log.history().items()}
        metrics = {
            "caption_retrieval": report,
            "loss": last,
            "steps": self.training.taken(),
            "training_pictures": len(self.data),
            "cond_scale": self.options.cond_scale,
            "seed": self.options.seed,
            "seconds": self.seconds,
        }
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def conclude(self) -> None:
        """Where everything is, and what to type next."""
        last = len(self.imagen.unets)
        model = self.training.checkpoint
        scale = self.options.cond_scale
        scale = ",".join(f"{item:g}" for item in (scale if isinstance(scale, list) else [scale]))
        self.say(
            f"\ndone in {clock(self.seconds['total'])}\n\n"
            f"look at   {self.folder / f'stage{last}-after.png'}   the pictures, with their captions\n"
            f"          {self.folder / f'stage{last}-before.png'}  the same noise before training\n"
            f"          {self.folder / 'real.png'}  what the data have for these captions\n"
            f"          {self.folder / 'loss.png'}  the loss curves\n"
            f"          {self.folder / 'metrics.json'}  caption retrieval and times\n"
            f"          {self.folder / 'samples'}  every picture in a file of its own\n\n"
            f'next      imagen sample --model {model} --cond-scale {scale} "{self.prompts[0]}"\n'
            f"          imagen demo --steps {4 * self.training.taken()[0]}\n"
            f"          imagen train --data FOLDER_WITH_YOUR_PICTURES --unet all"
        )
        click.echo(self.folder / f"stage{last}-after.png")


def run(options: Options) -> int:
    """Train, draw and judge as the options say; returns the exit code.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    return Demo(options).run()

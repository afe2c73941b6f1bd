"""``imagen profile``: build a model, run it on random data, and show where the time went."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..lines import next_free
from ..signatures import errors_in_file, parse, read_config
from ._errors import say
from ._files import check_place, show, tell
from ._memory import MemoryCheck
from ._options import chosen_device
from ._presets import find_config
from ._tables import table

if TYPE_CHECKING:
    import torch

    from ..cascade.cascade import Cascade
    from ..profiling.running import Profile

#: operators that are shown, and characters of their names
_MOST, _LONGEST = 15, 56
#: what a report calls the spans that hold what no other one does
_NAMES = {"step": "everything else", "backward": "rest of the backward pass", "update": "gradient norm and checks"}
#: parts in the order of a step; the others are numbered and stand where the last word is
_ORDER = ("data", "text conditioning", "noise level", "stem", "down", "middle", "up", "head", "rest of the network",
          "loss", "backward", "update", "optimizer", "EMA", "step")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The options of ``imagen profile``; the command's help says what they mean."""

    config: str | None
    model: str | None
    unet: int
    training: bool
    steps: int
    batch_size: int | None
    precision: str | None
    output: str
    device: str
    quiet: bool
    force: bool


class Subject(NamedTuple):
    """A model and how it is trained: arguments of the trainer, batch size, frames of its clips."""

    name: str
    cascade: Cascade
    trainer: dict[str, Any]
    batch_size: int
    max_batch_size: int | None
    frames: int | None


class Work(NamedTuple):
    """A function to profile: names for what it does, the number of its runs, and its steps in one run."""

    run: Callable[[], None]
    spans: Callable[[], AbstractContextManager[Any]]
    repeats: int
    steps: int


def _from_config(request: Request, device: torch.device) -> Subject:
    from ..configs import TrainingConfig

    path = find_config(request.config).path
    values = read_config(path)
    with errors_in_file(path):
        config = parse(TrainingConfig, values)
        loader, source = config.split_dataset_arguments()
        if request.training and request.unet <= len(config.imagen.unets):
            memory = MemoryCheck(config, [request.unet], device, request.force)
            memory.before_data()
            memory.before_training(request.batch_size or loader["batch_size"], source.get("num_frames"))
        cascade = config.imagen.create()
    frames = cascade.video_frames or source.get("num_frames")
    return Subject(str(path), cascade, config.trainer.given(), loader["batch_size"], config.max_batch_size, frames)


def _subject(request: Request, device: torch.device) -> Subject:
    """The model to profile.

    Raises:
        click.ClickException: there is none.
    """
    if request.model is None:
        return _from_config(request, device)
    if request.config is not None:
        raise click.UsageError("give --config or --model, not both")
    from ..checkpoint import load_imagen_from_checkpoint
    from ._models import find_model

    path = find_model(request.model)
    return Subject(path, load_imagen_from_checkpoint(path), {}, 16, None, None)


def _check_unet(cascade: Cascade, number: int) -> None:
    from ..cascade.stage import is_null

    count = len(cascade.unets)
    if number > count:
        raise click.UsageError(f"--unet {number}: the model has {count} U-Nets, numbered 1 to {count}")
    if is_null(cascade.unets[number - 1]):
        raise click.UsageError(f"--unet {number} is a NullUnet placeholder, which does nothing")


def _training(request: Request, subject: Subject, device: torch.device) -> Work:
    from ..profiling.steps import training_spans, training_step
    from ..trainer import ImagenTrainer

    options = {name: value for name, value in subject.trainer.items() if name not in ("checkpoint_path", "verbose")}
    for name in ("checkpoint_every", "imagen_checkpoint_path"):
        options.pop(name, None)
    if request.precision is not None:
        options.pop("fp16", None)
        options["precision"] = request.precision
    if device.type == "cpu" and chosen_device("auto").type != "cpu":
        options["accelerate_cpu"] = True
    trainer = ImagenTrainer(subject.cascade, **options)
    count = request.batch_size or subject.batch_size
    step = training_step(trainer, request.unet, count, subject.frames, subject.max_batch_size)
    return Work(step, lambda: training_spans(trainer, request.unet), request.steps, 1)


def _sampling(request: Request, subject: Subject, device: torch.device) -> Work:
    from ..profiling.steps import sampling_spans, sampling_steps

    cascade = subject.cascade.to(device)
    sample = sampling_steps(cascade, request.unet, request.batch_size or 1, request.steps, subject.frames)
    return Work(sample, lambda: sampling_spans(cascade, request.unet), 1, request.steps)


def _milliseconds(microseconds: float, steps: int) -> str:
    return f"{microseconds / 1000 / steps:,.2f}" if microseconds else ""


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _place(part: str) -> tuple[int, int]:
    """The place of a part in the report."""
    name, _, number = part.rpartition(" ")
    if number.isdigit():
        return _ORDER.index(name), int(number)
    return (_ORDER.index(part) if part in _ORDER else len(_ORDER)), 0


def parts_table(found: Profile, gpu: bool) -> list[str]:
    """Milliseconds of a step by part of the network, forward and backward."""
    clock = "gpu" if gpu else "host"
    parts = sorted({*found.forward, *found.backward}, key=_place)
    times = [[getattr(side[part], clock) if part in side else 0.0 for side in (found.forward, found.backward)]
             for part in parts]  # fmt: skip
    whole = sum(map(sum, times))
    both = any(backward for _, backward in times)
    rows = []
    for part, (forward, backward) in zip(parts, times, strict=True):
        sides = (forward, backward, forward + backward) if both else (forward,)
        numbers = [_milliseconds(value, found.steps) for value in sides]
        rows.append([_NAMES.get(part, part), *numbers, _share(forward + backward, whole)])
    rows.append(["total", *[""] * (2 * both), _milliseconds(whole, found.steps), ""])
    header = ("part", *(("forward", "backward") if both else ()), "ms a step", "share")
    return table(header, rows, left=(0,))


def operators_table(found: Profile, gpu: bool) -> list[str]:
    """Milliseconds and calls of a step by operator, the most expensive ones, and what the host does between them."""
    clock = "gpu" if gpu else "host"
    times = {name: getattr(spent, clock) for name, spent in found.operators.items()}
    parts = (spent for side in (found.forward, found.backward) for spent in side.values())
    whole = sum(getattr(spent, clock) for spent in parts)
    first = sorted(times, key=lambda name: -times[name])[:_MOST]
    rows = [
        [
            name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}...",
            _milliseconds(times[name], found.steps),
            _share(times[name], whole),
            f"{found.operators[name].calls / found.steps:,.4g}",
        ]
        for name in first
    ]
    between = whole - sum(times.values())
    if not gpu:
        rows.append(["no operator (Python)", _milliseconds(between, found.steps), _share(between, whole), ""])
    return table(("operator", "ms a step", "share", "calls a step"), rows, left=(0,))


def reads_lines(found: Profile, gpu: bool) -> list[str]:
    """The numbers of values that the host read from the device, and with a GPU of waits for it."""

    def listed(counts: Mapping[str, int]) -> str:
        often = sorted(counts.items(), key=lambda item: -item[1])
        return ", ".join(f"{_NAMES.get(part, part)} {count / found.steps:.3g}" for part, count in often) or "none"

    asked = sum(found.reads.values()) / found.steps
    made = [f"values that the host reads in a step: {asked:.3g} (one on a GPU has to be waited for)"]
    made.append(f"  {listed(found.reads)}")
    if gpu:
        made.append(f"waits for the GPU in a step: {listed(found.waits)}")
    return made


def _timed(work: Work) -> float:
    """Seconds of one step without the profiler, after one that warms up."""
    work.run()
    began = time.perf_counter()
    work.run()
    return (time.perf_counter() - began) / work.steps


def run(request: Request) -> None:
    """Run steps under a profiler, print where their time went, and the path of the trace.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own talk on standard error
    trace = next_free(Path(request.output) / "trace.json")
    check_place(trace)
    device = chosen_device(request.device)
    subject = _subject(request, device)
    _check_unet(subject.cascade, request.unet)

    from ..profiling.running import profiled

    work = (_training if request.training else _sampling)(request, subject, device)
    kind = "training" if request.training else "sampling"
    if not request.quiet:
        say(f"{subject.name} on {device}: {kind} steps of U-Net {request.unet}")
    seconds = _timed(work)
    with work.spans():
        found = profiled(work.run, work.repeats, device, trace)
    found.steps = work.repeats * work.steps
    gpu = device.type == "cuda"
    profiled_for = 1000 * found.seconds / found.steps
    show(f"a step takes {1000 * seconds:,.1f} ms, and {profiled_for:,.1f} ms while it is looked at")
    for part in (parts_table, operators_table, reads_lines):
        show("\n" + "\n".join(part(found, gpu)))
    tell(trace)

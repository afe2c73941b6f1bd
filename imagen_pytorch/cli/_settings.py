"""From the options of ``imagen train`` and a configuration file to a checked configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..signatures import ConfigError, parse, read_json
from ._errors import say
from ._presets import are_shipped, find_config

if TYPE_CHECKING:
    from ..configs import TrainingConfig

#: options that replace an entry of the configuration of another name
_OVERRIDES = {
    "checkpoint": "checkpoint_path",
    "max_batch_size": "max_batch_size",
    "sample_every": "sample_at_every",
    "save_every": "save_at_every",
    "validate_every": "validate_at_every",
}


@dataclass(frozen=True)
class Request:
    """The options of ``imagen train``; the command's help says what they mean. ``unet`` is None for all."""

    config: str | None
    unet: int | None
    epochs: int | None
    steps: int | None
    max_steps: int | None
    text: tuple[str, ...]
    validate_every: int | None
    data: str | None
    batch_size: int | None
    max_batch_size: int | None
    sample_every: int | None
    save_every: int | None
    log_every: int
    cond_scale: Any
    seed: int | None
    precision: str | None
    compile: bool
    strategy: str | None
    checkpoint: str | None
    output: str
    device: str
    quiet: bool
    force: bool

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            click.UsageError: naming them.
        """
        lengths = {"--epochs": self.epochs, "--steps": self.steps, "--max-steps": self.max_steps}
        given = [name for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} say how long to train: give one of them")


def _with_frames(model: Any, count: int | None) -> Any:
    """The part of a configuration that describes its model; one of videos keeps the number of their frames."""
    if isinstance(model, Mapping) and model.get("video") and count is not None:
        return {"video_frames": count, **model}
    return model


def _overridden(values: dict[str, Any], request: Request, ready_made: bool) -> dict[str, Any]:
    """The contents of a configuration file with the options of the command line in place of its own entries."""
    from ..configs import loader_arguments

    values = dict(values)
    for option, key in _OVERRIDES.items():
        if getattr(request, option) is not None:
            values[key] = getattr(request, option)
    dataset = dict(values.get("dataset") or {})
    if request.data is not None and request.data != values.get("dataset_name"):
        # arguments of the other source, and captions that belong to it, mean nothing here
        known = loader_arguments()
        values["imagen"] = _with_frames(values.get("imagen"), dataset.get("num_frames"))
        dataset = {name: value for name, value in dataset.items() if name in known}
        values["dataset_name"] = request.data
        if ready_made or are_shipped(values.get("sample_texts")):
            values.pop("sample_texts", None)
    if request.batch_size is not None:
        dataset["batch_size"] = request.batch_size
    trainer = dict(values.get("trainer") or {})
    if request.precision is not None:
        trainer["precision"] = request.precision
        trainer.pop("fp16", None)
    if request.compile:
        trainer["compile"] = True
    if request.strategy is not None:
        trainer["strategy"] = request.strategy
    values |= {"dataset": dataset, "trainer": trainer}
    if request.text:
        values["sample_texts"] = list(request.text)
    return values


def settle(request: Request) -> TrainingConfig:
    """The checked configuration of this training.

    Raises:
        click.UsageError: the options contradict each other, or the configuration does not exist.
        ConfigError: the configuration has a mistake; the message names file and place.
    """
    request.check()
    choice = find_config(request.config, request.data)
    if not request.quiet:
        say(f"configuration {choice.path}")

    from ..configs import TrainingConfig

    try:
        config = parse(TrainingConfig, _overridden(read_json(choice.path), request, choice.ready_made))
    except ConfigError as error:
        raise ConfigError(f"{choice.path}: {error}") from error
    count = len(config.imagen.unets)
    if request.unet is not None and request.unet > count:
        raise click.UsageError(f"--unet {request.unet}: the model has {count} U-Nets, numbered 1 to {count}")
    return config


def placed_checkpoint(config: TrainingConfig, output: str) -> str:
    """Where the checkpoint is kept: a relative path lies in the output folder."""
    path = config.checkpoint_path
    if "://" in path or os.path.isabs(path):
        return path
    return str(Path(output) / path)

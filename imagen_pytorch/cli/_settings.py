"""From the options of ``imagen train`` and a configuration file to a checked configuration and its data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..signatures import ConfigError, parse, read_json
from ._errors import DATA, CommandFailed, described
from ._presets import find_config

if TYPE_CHECKING:
    from torch.utils.data import Dataset

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
    checkpoint: str | None
    output: str
    device: str
    quiet: bool

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            click.UsageError: naming them.
        """
        lengths = {"--epochs": self.epochs, "--steps": self.steps, "--max-steps": self.max_steps}
        given = [name for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} say how long to train: give one of them")


def _overridden(values: dict[str, Any], request: Request, ready_made: bool) -> dict[str, Any]:
    """The contents of a configuration file with the options of the command line in place of its own entries."""
    from ..configs import loader_arguments

    values = dict(values)
    for option, key in _OVERRIDES.items():
        if getattr(request, option) is not None:
            values[key] = getattr(request, option)
    dataset = dict(values.get("dataset") or {})
    if request.data is not None:
        # arguments of the other source, and captions that belong to it, mean nothing here
        known = loader_arguments()
        dataset = {name: value for name, value in dataset.items() if name in known}
        values["dataset_name"] = request.data
        if ready_made:
            values.pop("sample_texts", None)
    if request.batch_size is not None:
        dataset["batch_size"] = request.batch_size
    trainer = dict(values.get("trainer") or {})
    if request.precision is not None:
        trainer["precision"] = request.precision
        trainer.pop("fp16", None)
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
    choice = find_config(request.config)
    if not request.quiet:
        click.echo(f"configuration {choice.path}", err=True)

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


class _WithoutCaptions:
    """The pictures of a captioned data set alone."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][0]


def open_data(config: TrainingConfig, image_size: tuple[int, int]) -> Dataset:
    """The data set of a configuration, fit for its model.

    Args:
        config: with ``dataset_name`` and ``dataset``.
        image_size: (height, width) of the largest stage that is trained.

    Raises:
        click.UsageError: the model takes captions and the pictures have none.
        CommandFailed: there is no picture in it.
    """
    from ..data import open_source

    _, arguments = config.split_dataset_arguments()
    labels = {name: getattr(config, name) for name in ("image_label", "text_label", "url_label")}
    dataset = open_source(
        config.dataset_name, **{"image_size": image_size, **{k: v for k, v in labels.items() if v}, **arguments}
    )
    try:
        first = dataset[0]
    except (OSError, IndexError) as error:
        reason = described(error)
        raise CommandFailed(f"cannot read the first picture of {config.dataset_name}: {reason}", DATA) from error
    conditional = config.imagen.condition_on_text
    if isinstance(first, tuple) and not conditional:
        return _WithoutCaptions(dataset)
    if not isinstance(first, tuple) and conditional:
        raise click.UsageError(
            f"the pictures of {config.dataset_name} have no captions, and the model needs them: write each into a .txt "
            'file beside its picture, or train a model with "condition_on_text": false'
        )
    return dataset

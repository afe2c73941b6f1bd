"""From the options of ``imagen train`` and a configuration file to a checked configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..signatures import ConfigError, errors_in_file, parse, read_config
from ..wording import excerpt
from ._errors import say
from ._presets import ConfigChoice, are_shipped, find_config
from ._sources import kept_arguments, kind_of_source, same_source

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
#: entries that name columns of a table, and so belong to the data
_LABELS = ("image_label", "url_label", "text_label")


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
    lr: Any
    sample_every: int | None
    save_every: int | None
    log_every: int
    cond_scale: Any
    seed: int | None
    precision: str | None
    compile: bool
    strategy: str | None
    checkpoint: str | None
    allow_mismatch: bool
    output: str
    device: str
    quiet: bool
    force: bool
    entries: tuple[tuple[list[str], Any], ...] = ()
    resume: str | None = None
    fresh: bool = False
    keep: int | None = None
    sample_at_first: bool = False
    log_with: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse options that contradict each other, an empty caption, and a learning rate of 0.

        Raises:
            click.UsageError: naming them.
        """
        lengths = {"--epochs": self.epochs, "--steps": self.steps, "--max-steps": self.max_steps}
        given = [name for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} say how long to train: give one of them")
        if not all(text.strip() for text in self.text):
            raise click.UsageError("--text is a caption of a sample; it must not be empty")
        rates = self.lr if isinstance(self.lr, list) else [] if self.lr is None else [self.lr]
        if any(rate <= 0 for rate in rates):
            raise click.UsageError(f"--lr is a learning rate above 0, such as 1e-4; got {min(rates):g}")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)


class Settings(NamedTuple):
    """The settings of a training run.

    Attributes:
        config: the checked configuration.
        source: its file.
        states_text: whether the user's own configuration asks for a model with captions.
    """

    config: TrainingConfig
    source: Path
    states_text: bool


def _with_frames(model: Any, count: int | None) -> Any:
    """The part of a configuration that describes its model; a video model keeps its number of frames."""
    if isinstance(model, Mapping) and model.get("video") and count is not None:
        return {"video_frames": count, **model}
    return model


def _entries(values: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A part of a configuration that has entries of its own; empty where it is missing.

    Raises:
        ConfigError: it is something else.
    """
    part = values.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise ConfigError(f"{path}: {key}: it is an object with entries, got {excerpt(repr(part), 40)}")
    return dict(part or {})


def with_entry(values: Any, parts: Sequence[str], value: Any) -> Any:
    """Return a configuration with another value at a place. Objects that are missing on the way are made.

    Raises:
        click.UsageError: the place lies in a value that has no entries, or beyond the end of a list.
    """
    if not parts:
        return value
    key, *rest = parts
    if values is None or isinstance(values, Mapping):
        return {**(values or {}), key: with_entry((values or {}).get(key), rest, value)}
    if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
        return [with_entry(item, rest, value) if index == int(key) else item for index, item in enumerate(values)]
    has = f"a list of {len(values)}, numbered from 0" if isinstance(values, list) else excerpt(repr(values), 40)
    raise click.UsageError(f'--set: no entry "{excerpt(key, 40)}" in {has}')


def _with_data(values: dict[str, Any], name: str, choice: ConfigChoice) -> tuple[dict[str, Any], list[str]]:
    """The configuration with other data; and the names of the entries that are dropped, for they do not fit them."""
    from ..configs import loader_arguments

    before = values.get("dataset_name", "emoji64")
    if isinstance(before, str) and same_source(before, name):
        return {**values, "dataset_name": name}, []
    dataset = _entries(values, "dataset", choice.path)
    alike = isinstance(before, str) and kind_of_source(before) == kind_of_source(name)
    takes = loader_arguments() | (kept_arguments(name, dataset) if alike else frozenset())
    dropped = [f"dataset.{key}" for key in dataset if key not in takes and key != "num_frames"]  # which the model keeps
    values["imagen"] = _with_frames(values.get("imagen"), dataset.get("num_frames"))
    if not alike:
        dropped += [key for key in _LABELS if values.pop(key, None) is not None]
    if choice.ready_made or are_shipped(values.get("sample_texts")):
        values.pop("sample_texts", None)
    kept = {key: value for key, value in dataset.items() if key in takes}
    return {**values, "dataset_name": name, "dataset": kept}, dropped


def _overridden(values: dict[str, Any], request: Request, choice: ConfigChoice) -> tuple[dict[str, Any], list[str]]:
    """The contents of a configuration file with the options of the command line in place of its own entries; and the
    names of the entries that are dropped.
    """
    values, dropped = dict(values), []
    for option, key in _OVERRIDES.items():
        if getattr(request, option) is not None:
            values[key] = getattr(request, option)
    if request.data is not None:
        values, dropped = _with_data(values, request.data, choice)
    dataset, trainer = (_entries(values, key, choice.path) for key in ("dataset", "trainer"))
    if request.batch_size is not None:
        dataset["batch_size"] = request.batch_size
    if request.lr is not None:
        trainer["lr"] = request.lr
    if request.precision is not None:
        trainer["precision"] = request.precision
        trainer.pop("fp16", None)
    if request.seed is not None:
        trainer["seed"] = request.seed
    if request.log_with:
        trainer["accelerate_log_with"] = list(request.log_with)
    if request.compile:
        trainer["compile"] = True
    if request.strategy is not None:
        trainer["strategy"] = request.strategy
    values |= {"dataset": dataset, "trainer": trainer}
    if request.text:
        values["sample_texts"] = list(request.text)
    return values, dropped


def _states_text(values: Mapping[str, Any]) -> bool:
    """Return whether a configuration states that it needs captions; a default does not count."""
    model = values.get("imagen")
    if not isinstance(model, Mapping) or model.get("condition_on_text") is False:
        return False
    asked = ("condition_on_text", "text_encoder_name", "text_embed_dim")
    return any(model.get(key) for key in asked) or bool(values.get("sample_texts"))


def build_settings(request: Request) -> Settings:
    """The checked configuration of this training.

    Raises:
        click.UsageError: the options contradict each other, or the configuration does not exist.
        ConfigError: the configuration has a mistake; the message names file and place.
    """
    request.check()
    choice = find_config(request.config, request.data)
    given = read_config(choice.path)
    for parts, value in request.entries or ():
        given = with_entry(given, parts, value)
    values, dropped = _overridden(given, request, choice)
    if not request.quiet:
        say(f"configuration {choice.path}")
        if dropped and not choice.ready_made:
            say(f"--data {request.data} is other data than the configuration's: {', '.join(dropped)} left out")

    from ..configs import TrainingConfig

    with errors_in_file(choice.path):
        config = parse(TrainingConfig, values)
    for key in ("checkpoint_path", "dataset_name"):
        if not getattr(config, key).strip() or "\0" in getattr(config, key):
            raise ConfigError(f"{choice.path}: {key}: a path or name must not be empty or hold a NUL character")
    count = len(config.imagen.unets)
    if request.unet is not None and request.unet > count:
        raise click.UsageError(f"--unet {request.unet}: the model has {count} U-Nets, numbered 1 to {count}")
    refuse_the_former_place(request)
    return Settings(config, choice.path, not choice.ready_made and _states_text(given))


def refuse_the_former_place(request: Request) -> None:
    """Refuse a relative ``--checkpoint`` that is nowhere but in the output folder, where earlier versions kept it.

    Raises:
        click.UsageError: training would silently start afresh beside it.
    """
    from ._checkpoints import has_checkpoint

    given = request.checkpoint
    if given is None or "://" in given or os.path.isabs(given):
        return
    former = request.folder / given
    if os.path.normpath(former) == os.path.normpath(given) or has_checkpoint(given) or not has_checkpoint(str(former)):
        return
    raise click.UsageError(
        f"--checkpoint {given} is a path from the current folder, and the checkpoint is in the output folder: give "
        f"--checkpoint {former} to go on from it"
    )


def placed_checkpoint(config: TrainingConfig, request: Request) -> str:
    """The path of the checkpoint.

    A relative path on the command line is one from the current folder; one in the configuration lies in the output
    folder.

    Raises:
        click.UsageError: "~" in front of a name that no user has.
    """
    path = os.path.expanduser(config.checkpoint_path)
    if path.startswith("~"):
        raise click.UsageError(f'the checkpoint {path}: this user does not exist; a name that begins so is "./{path}"')
    if "://" in path or os.path.isabs(path):
        return path
    return str(Path(path) if request.checkpoint is not None else request.folder / path)

"""``imagen sample --from-png``: the options of the command from the settings in an image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from ..image_metadata import MetadataError, read_settings
from ..wording import excerpt
from ._errors import CHECKPOINT, CommandFailed, say
from ._given import GIVEN, digest_of, named_file
from ._options import PerStage

#: the option of `imagen sample` that each entry of the settings states
OPTIONS = {"prompt": "text", "negative_prompt": "negative"} | {
    name: name
    for name in "seed cond_scale guidance sampler steps start_at_unet stop_at_unet strength fit frames fps window "
    "precision compile cache_interval load_ema".split()
}
#: the options among them whose values are texts
_TEXTS = ("text", "negative", "guidance", "sampler")
#: the options that take the place of others
_REPLACED = (("prompts", "text"), ("no_load_ema", "load_ema"), ("seconds", "frames"))
_COUNT = click.IntRange(min=0, max=1_000_000)


class Position(NamedTuple):
    """The place of an image in the batch that it was made in: batches of other sizes are rounded differently.

    Attributes:
        size: of the batch.
        index: of the image, from 0 on.
        tokens: of the longest caption where captions differ; else 0.
    """

    size: int = 1
    index: int = 0
    tokens: int = 0


class Source(NamedTuple):
    """An image that is to be made again.

    Attributes:
        path: of the image.
        settings: in it.
        position: in its batch.
        stated: the command line states which weights to take.
    """

    path: str
    settings: Mapping[str, Any]
    position: Position
    stated: bool

    def compare(self, maker: Mapping[str, Any], model: str) -> None:
        """Compare the model, device and versions with those in the image, and say what may change the result.

        Args:
            maker: the entries of the settings on the model, the device and the versions that will make it.
            model: the model in words.

        Raises:
            CommandFailed: another model, and the command line does not state that it is meant.
        """
        if maker["model"]["digest"] != self.settings["model"]["digest"]:
            name = excerpt(self.settings["model"]["name"])
            text = f'{self.path} was made with the model "{name}", and {model} is another one'
            if not self.stated:
                raise CommandFailed(f"{text}: name a model with --model", CHECKPOINT)
            say(f"warning: {text}")
        if others := [name for name in ("device", "versions") if maker[name] != self.settings.get(name)]:
            say(f"{self.path} was made with other {' and '.join(others)}: single pixels may differ")

    def position_for(self, batch_size: int) -> Position:
        """Return the position, or that of a single image if the batch was larger than the option allows."""
        if self.position.size <= batch_size:
            return self.position
        size = self.position.size
        say(f"{self.path} was made in a batch of {size}: only --batch-size {size} repeats each pixel")
        return Position()


def converted(option: click.Parameter, context: click.Context, value: Any) -> Any:
    """Convert a value of the settings as the same text on the command line."""
    items = value if isinstance(value, list) and isinstance(option.type, PerStage) else [value]
    if option.name in _TEXTS and not all(isinstance(item, str) for item in items):
        raise click.BadParameter("it is not a text")
    return option.type.convert(",".join(map(str, items)), option, context)


def _position(value: Any) -> Position:
    if not isinstance(value, dict):
        raise click.BadParameter("it is not an object")
    found = Position(*(_COUNT.convert(str(value.get(name)), None, None) for name in Position._fields))
    if found.index >= found.size:
        raise click.BadParameter("its index is not below its size")
    return found


def _file(value: Any) -> dict[str, str]:
    """Return the entry of a given image: its name without a folder, and its hash."""
    entry = {name: value.get(name) for name in ("name", "sha256")} if isinstance(value, dict) else {}
    if not entry or not all(isinstance(item, str) for item in entry.values()):
        raise click.BadParameter("it has no name and sha256")
    if not re.fullmatch(r"[^/\\\0]+", entry["name"]):
        raise click.BadParameter("its name is not that of a file")
    return entry


def _model(value: Any) -> str:
    """Return the name of the model."""
    values = [value.get(name) for name in ("name", "digest")] if isinstance(value, dict) else [None]
    if not all(isinstance(item, str) for item in values):
        raise click.BadParameter("it has no name and digest")
    return values[0]


def _values(path: str, settings: Mapping[str, Any], context: click.Context) -> dict[str, Any]:
    """Return the options that the settings state, "batch" as a `Position`, the name of the model, and given images by
    their entries.

    Raises:
        MetadataError: an option does not take its value, or an entry is missing.
    """
    options = {option.name: option for option in context.command.params}
    readers = {entry: partial(converted, options[name], context) for entry, name in OPTIONS.items()}
    found = {}
    readers |= {**dict.fromkeys(GIVEN, _file), "batch": _position, "model": _model}
    for entry, read in readers.items():
        value = settings.get(entry)
        if value is None and entry not in ("seed", "batch", "model"):
            continue
        try:
            found[OPTIONS.get(entry, entry)] = read(value)
        except (click.BadParameter, RecursionError) as error:
            reason = excerpt(getattr(error, "message", error))
            raise MetadataError(f"the settings in {path} cannot be used: {entry}: {reason}") from error
    return found


def _same_file(name: str, entry: dict[str, str], given: str | None, made: str) -> str:
    """Return the path of a given image: that of the command line if it is the same one, else where it is found."""
    if given is None:
        return named_file(name, entry, made)
    return given if digest_of(given) == entry["sha256"] else entry["name"]


def completed(request: dict[str, Any], context: click.Context) -> dict[str, Any]:
    """Return the options of ``imagen sample``: those of the command line, and the others from the image in "from_png".

    Raises:
        OSError: the file cannot be read.
        MetadataError: it holds no settings, or some that the command does not take.
    """
    from ..pretrained import pretrained_names

    path = request["from_png"]
    settings = read_settings(path)
    found = _values(path, settings, context)
    position, model = found.pop("batch"), found.pop("model")
    given = {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    given |= {other for name, other in _REPLACED if name in given}
    for name in GIVEN:
        if name in found:
            found[name] = _same_file(name, found[name], request[name], path)
    changed = {name: value for name, value in found.items() if name in given and value != request[name]}
    if changed and not request["quiet"]:
        pairs = (f"{name} {excerpt(request[name], 40)} for {excerpt(value, 40)}" for name, value in changed.items())
        say(f"in place of the settings in {path}: {', '.join(pairs)}")
    if model in pretrained_names() or (Path(model).name == model and Path(model).is_file()):
        found["model"] = model
    source = Source(path, settings, position, stated=bool(given & {"model", "load_ema"}))
    given |= {axis.name for axis in request["sweep"]}
    return {**request, **{name: value for name, value in found.items() if name not in given}, "from_png": source}

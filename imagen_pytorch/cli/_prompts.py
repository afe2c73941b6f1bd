"""Captions from a file: one per line, with options in kohya's notation after a caption, or as an object of JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from ..registry import suggestion
from ._from_image import converted

#: bytes of the captions of one call
_MAX_PROMPT_BYTES = 1 << 26
#: where an option begins in a line, and its parts
_START, _PARTS = re.compile(r"\s--(?=[A-Za-z])"), re.compile(r"([\w-]+)(?:[\s=]+(.*))?", re.DOTALL)
#: kohya's letters
_LETTERS = {"n": "negative", "d": "seed", "s": "steps", "l": "cond_scale", "w": "width", "h": "height"}
#: names of the caption in JSON
_CAPTIONS = ("prompt", "text", "caption")
#: the options of the command that a line may state
STATED = (
    "negative", "seed", "num_images", "cond_scale", "guidance", "steps", "sampler", "cache_interval", "init",
    "strength", "inpaint", "mask", "fit",
)  # fmt: skip
#: the size of the image, which can only be that of the model
SIDES = ("width", "height")
_KNOWN = ("prompt", *STATED, *SIDES)


class Prompt(NamedTuple):
    """A caption, and the options that stand beside it by the names of the command's parameters."""

    caption: str | None
    options: dict[str, Any]


def _split(line: str) -> dict[str, Any]:
    """Return the entries of a line by name, its caption as "prompt".

    Raises:
        click.BadParameter: neither a caption with options nor an object of JSON.
    """
    if line.startswith("{") and line.endswith("}"):
        try:
            return dict(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = f"it begins with {{ and is not valid JSON ({error})"
            raise click.BadParameter(reason) from error
    caption, *options = _START.split(line)
    entries: dict[str, Any] = {"prompt": caption.strip()}
    for option in options:
        found = _PARTS.fullmatch(option.strip())
        if found is None or not found[2]:
            raise click.BadParameter(f'--{option.strip()} has no value; {{"prompt": "..."}} draws any text as it is')
        entries[_LETTERS.get(found[1], found[1])] = found[2].strip()
    return entries


def read_line(line: str, place: str, context: click.Context) -> Prompt:
    """Return the caption and the options of a line.

    Args:
        line: of a file or from a terminal.
        place: of the line, for messages.
        context: of the command whose options a line may state.

    Raises:
        click.UsageError: an option that does not exist, or a value that it does not take.
    """
    parameters = {option.name: option for option in context.command.params}
    normalize = context.token_normalize_func or str
    caption, options = None, {}
    try:
        for given, value in _split(line).items():
            name = "prompt" if given in _CAPTIONS else normalize(given).replace("-", "_")
            if name not in _KNOWN:
                hint = suggestion(name, _KNOWN) or f"; known: {', '.join(_KNOWN)}"
                raise click.BadParameter(f'no option "{given}" of a caption{hint}')
            if value is None:
                continue
            if name == "prompt":
                caption = converted(parameters["text"], context, value)
            elif name in SIDES:
                options[name] = click.IntRange(min=1).convert(value, None, context)
            else:
                options[name] = converted(parameters[name], context, value)
    except click.BadParameter as error:
        raise click.UsageError(f"{place}: {error.message}") from error
    return Prompt(caption, options)


def read_prompts(name: str, context: click.Context) -> list[Prompt]:
    """Return the captions in a file, or in standard input for "-", with the options in their lines.

    Raises:
        click.UsageError: it cannot be read or holds none, or as for `read_line`.
    """
    return [read_line(line, f"line {number} of {name}", context) for number, line in _lines(name)]


def read_captions(name: str) -> list[str]:
    """Return the captions in a file, or in standard input for "-".

    Raises:
        click.UsageError: it cannot be read or holds none, or a line states options.
    """
    found = [(number, _split(line)) for number, line in _lines(name)]
    for number, entries in found:
        if list(entries) != ["prompt"]:
            raise click.UsageError(f"line {number} of {name}: only imagen sample takes options after a caption")
    return [str(entries["prompt"]) for _, entries in found]


def _lines(name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, without empty ones and those that begin with #.

    Raises:
        click.UsageError: it cannot be read or holds none.
    """
    try:
        text = _text(name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid UTF-8"
        raise click.UsageError(f"cannot read captions from {name}: {reason}") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not found:
        raise click.UsageError(f"no caption in {name}")
    return iter(found)


def _text(name: str) -> str:
    """The text of a file or, with -, of standard input: UTF-8, with a byte order mark or without.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
        click.UsageError: it is larger than any list of captions.
    """
    if name == "-":
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise click.UsageError(f"{name} is not a list of captions: it has more than {_MAX_PROMPT_BYTES >> 20} MiB")
    return data.decode("utf-8-sig")

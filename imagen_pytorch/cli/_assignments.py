"""Options written as ``name=value``: axes of a sweep, and the settings of one side of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from ..registry import suggestion
from ._options import split_values

#: options of sampling that may differ between the images of one call
VARIED = ("cond_scale", "guidance", "steps", "sampler", "cache_interval")


class Axis(NamedTuple):
    """An option with several values.

    Attributes:
        name: of the option, as its parameter is called.
        texts: the values as they were written.
        values: the values as the option gives them.
    """

    name: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


def _meant(name: str, context: click.Context) -> str:
    """The parameter of an option, from any of its spellings."""
    normalize = context.token_normalize_func or str
    return normalize(name.strip().lstrip("-")).replace("-", "_")


def is_axis(word: str, context: click.Context) -> bool:
    """Return whether a word of the command line has the form ``name=values`` with the name of a varied option."""
    name, equals, _ = word.partition("=")
    return bool(equals) and not word.startswith("-") and _meant(name, context) in VARIED


class _Assignments(click.ParamType):
    """Base of both kinds: looks up options by name and has them check values."""

    def _converter(
        self, name: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Callable[[str], Any]]:
        """The canonical name of a varied option, and the conversion of its values."""
        context = click.get_current_context() if ctx is None else ctx
        meant = _meant(name, context)
        option = next((item for item in context.command.params if item.name == meant), None)
        if meant not in VARIED or option is None:
            self.fail(
                f'no option "{name.strip()}" to vary; known: {", ".join(VARIED)}{suggestion(meant, VARIED)}', param, ctx
            )

        def convert(text: str) -> Any:
            try:
                return option.type.convert(text, option, context)
            except click.BadParameter as error:
                self.fail(f"{meant}: {error.message}", param, ctx)

        return meant, convert


class SweepAxis(_Assignments):
    """``name=value,value,...``: one option of the command and the values that it takes in turn."""

    name = "name=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Axis:
        """Return the axis.

        Raises:
            click.BadParameter: no such option, no values, a value twice, or one that the option refuses.
        """
        if isinstance(value, Axis):
            return value
        name, equals, rest = value.partition("=")
        texts = tuple(split_values(rest))
        if not equals or not all(texts):
            self.fail(f"{value!r} is not of the form cond_scale=1,2,4", param, ctx)
        meant, convert = self._converter(name, param, ctx)
        if len(set(texts)) < len(texts):
            self.fail(f"{value!r} has the same value twice", param, ctx)
        return Axis(meant, texts, tuple(map(convert, texts)))


class Overrides(_Assignments):
    """``name=value,name=value``: options of the command with other values; a value per U-Net keeps its commas."""

    name = "name=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Return the values by the names of their options.

        Raises:
            click.BadParameter: no such option, an option twice, or a value that the option refuses.
        """
        if isinstance(value, dict) or not value.strip():
            return value or {}
        texts: list[list[str]] = []
        for piece in split_values(value):
            name, equals, rest = piece.partition("=")
            if equals and "(" not in name:
                texts.append([name, rest.strip()])
            elif texts:
                texts[-1][1] += f",{piece.strip()}"
            else:
                self.fail(f"{value!r} is not of the form cond_scale=3,steps=8", param, ctx)
        found: dict[str, Any] = {}
        for name, text in texts:
            meant, convert = self._converter(name, param, ctx)
            if meant in found:
                self.fail(f"{value!r} sets {meant} twice", param, ctx)
            found[meant] = convert(text)
        return found

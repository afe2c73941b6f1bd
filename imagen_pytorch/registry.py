"""Families of interchangeable parts, reachable by name from Python, JSON and the command line."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any, Generic, TypeVar

from .wording import excerpt

Member = TypeVar("Member")


def suggestion(name: object, known: tuple[str, ...]) -> str:
    """Return '; did you mean "x"?' if ``name`` resembles a known one, else nothing."""
    close = get_close_matches(str(name), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


class Registry(Generic[Member]):
    """A family of members by name. A member registers itself where it is defined.

    A member is a class, a function, or a ``functools.partial`` of a class that has other defaults.

    Args:
        family: name of the family, in the singular ("schedule"), for the error message.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._members: dict[str, Member] = {}
        self._canonical: list[str] = []

    def register(self, name: str, *aliases: str) -> Callable[[Member], Member]:
        """Return a decorator that registers a member as ``name`` and, unlisted, as each alias.

        Raises:
            ValueError: a name is taken already.
        """

        def decorate(member: Member) -> Member:
            keys = (name, *aliases)
            taken = next((key for key in keys if key in self._members), None)
            if taken is not None:
                raise ValueError(f'the {self.family} "{taken}" is registered already')
            self._members.update(dict.fromkeys(keys, member))
            self._canonical.append(name)
            return member

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return the canonical names, in the order of their registration."""
        return tuple(self._canonical)

    def __getitem__(self, name: str) -> Member:
        """Return the member called ``name``.

        Raises:
            ValueError: an unknown name; the message lists the known ones.
        """
        if name not in self._members:
            known = self.names()
            raise ValueError(f'no {self.family} "{excerpt(name)}"; known: {", ".join(known)}{suggestion(name, known)}')
        return self._members[name]

    def name_of(self, made: object) -> str | None:
        """Return the name of the member that makes such objects; of several, the one nearest in its parameters.

        Args:
            made: an instance of a registered class. None is returned for any other object.
        """
        fitting = [name for name in self if _class_of(self._members[name]) is type(made)]
        return min(fitting, key=lambda name: len(self._changed(name, made)), default=None)

    def _changed(self, name: str, made: object) -> dict[str, Any]:
        """Return the parameters of an object that differ from the member's defaults."""
        defaults = {key: item.default for key, item in inspect.signature(self._members[name]).parameters.items()}
        values = {key: getattr(made, key, default) for key, default in defaults.items()}
        return {key: value for key, value in values.items() if value != defaults[key]}

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._canonical)


def _class_of(member: object) -> object:
    return member.func if isinstance(member, partial) else member


@functools.cache
def import_members(package: str) -> None:
    """Import every module of a package, so that each member that it defines is registered."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def no_file_system(protocol: str, known: tuple[str, ...]) -> str:
    """Return the sentence about an unknown protocol in a URL."""
    others = "use gs://, s3://, file:// or another one of fsspec"
    return f'no file system is called "{protocol}"; {others}{suggestion(protocol, known)}'

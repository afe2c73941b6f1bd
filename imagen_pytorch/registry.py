"""Families of interchangeable members, made by name and parameters from Python, JSON and the command line.

A member is written as its name, as ``"name(key=value, ...)"``, as ``{"name": ..., "key": value}``, or it is a ready
object. Values are numbers, texts in quotes, True, False, None, inf, and lists of these. Nothing is evaluated.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from .extensions import import_entry_points
from .parameters import converted, hints_of, split_spec
from .wording import excerpt

Member = TypeVar("Member")

#: a member as users write it: a name, "name(key=value)", a mapping with "name", or an object
Spec: TypeAlias = Any


def suggestion(name: object, known: tuple[str, ...]) -> str:
    """Return '; did you mean "x"?' if ``name`` resembles a known one, else nothing."""
    close = get_close_matches(str(name), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


class UnknownMember(ValueError):
    """A name that no member of a family has.

    Attributes:
        member: the family and the name, such as 'sampler "mine"'.
    """

    member = ""


class Registry(Generic[Member]):
    """A family of members by name. A member registers itself where it is defined.

    A member is a class, a function, or a ``functools.partial`` of a class that has other defaults. Its parameters are
    the arguments of its constructor, or the keyword-only arguments of the function.

    Args:
        family: name of the family, in the singular ("schedule"), for the error message.
        base: class of all objects of the family; None for a family of functions.
        elsewhere: parameters that are arguments of their own, with the names of these.
    """

    def __init__(self, family: str, base: type | None = None, elsewhere: Mapping[str, str] | None = None) -> None:
        self.family, self.base, self.elsewhere = family, base, dict(elsewhere or {})
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
        """Return the member called ``name``. For an unknown one, packages with an entry point are imported.

        Raises:
            UnknownMember: an unknown name; the message lists the known ones.
        """
        if name not in self._members:
            import_entry_points()
        if name not in self._members:
            known, member = self.names(), f'{self.family} "{excerpt(name)}"'
            error = UnknownMember(f"no {member}; known: {', '.join(known)}{suggestion(name, known)}")
            error.member = member
            raise error
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._canonical)

    # -- members with parameters ------------------------------------------------------------------------------------

    def make(self, spec: Spec, *prepared: Any) -> Any:
        """Return the object that a specification describes. An object of the family is returned as it is.

        Args:
            spec: a name, "name(key=value)", a mapping with "name", or an object.
            prepared: objects of the family; one that has the described name gives the parameters that ``spec`` leaves
                out.

        Raises:
            ValueError: an unknown name or parameter, or a value out of range; the message lists what fits.
            TypeError: a value of another kind.
        """
        if self.fits(spec) and not isinstance(spec, str | Mapping):
            return spec
        name, given = self.parse(spec)
        start = next((own for own in prepared if self.name_of(own) == name), None)
        if start is not None and not given:
            return start
        given = {**({} if start is None else self._changed(name, start)), **given}
        member: Any = self._members[name]
        if inspect.isfunction(member):
            return partial(member, **given) if given else member
        try:
            return member(**given)
        except (ValueError, TypeError, ArithmeticError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f'the {self.family} "{name}": {error}; {self._listed(name)}') from error

    def fits(self, spec: object) -> bool:
        """Return true for a name, a mapping with "name" and an object of the family."""
        if isinstance(spec, str | Mapping):
            return isinstance(spec, str) or "name" in spec
        return callable(spec) if self.base is None else isinstance(spec, self.base)

    def parse(self, spec: Spec) -> tuple[str, dict[str, Any]]:
        """Return the canonical name and the stated parameters of a written member.

        Raises:
            ValueError: an unknown name or parameter, or a text of another form.
            TypeError: a value of another kind.
        """
        name, given = split_spec(spec, self.family)
        member = self[name]
        name = next(key for key in self if self._members[key] is member)
        known, hints = self.parameters(name), hints_of(_origin(member))
        for key, value in given.items():
            if key not in known:
                said = f"; it is {self.elsewhere[key]}" if key in self.elsewhere else suggestion(key, tuple(known))
                raise ValueError(
                    f'the {self.family} "{name}" has no parameter "{excerpt(key)}"{said}; {self._listed(name)}'
                )
            try:
                given[key] = converted(value, hints.get(key, Any))
            except (TypeError, ValueError) as error:
                text = excerpt(repr(value), 60)
                raise type(error)(f'{key} of the {self.family} "{name}" must be {error}, got {text}') from None
        return name, given

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the parameters of a member by name.

        Raises:
            ValueError: an unknown name.
        """
        member: Any = self[name]
        hidden = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if inspect.isfunction(member):
            hidden |= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        found = inspect.signature(member).parameters
        return {key: item for key, item in found.items() if item.kind not in hidden and key not in self.elsewhere}

    def name_of(self, made: object) -> str | None:
        """Return the name of the member that makes such objects; of several, the one nearest in its parameters.

        Args:
            made: an object of a registered class, or a registered function. None is returned for any other object.
        """
        kinds = (type(made), _origin(made))
        fitting = [name for name in self if any(_origin(self._members[name]) is kind for kind in kinds)]
        return min(fitting, key=lambda name: len(self._changed(name, made)), default=None)

    def spell(self, made: object) -> str:
        """Return the text from which `make` makes an equal object: the name, and the parameters that are not defaults.

        Raises:
            TypeError: an object of a class that is not registered.
        """
        name = self.name_of(made)
        if name is None:
            raise TypeError(
                f"{type(made).__name__} is not registered as a {self.family}: give its class a name with "
                '@....register("name")'
            )
        changed = ", ".join(f"{key}={value!r}" for key, value in self._changed(name, made).items())
        return f"{name}({changed})" if changed else name

    def _changed(self, name: str, made: Any) -> dict[str, Any]:
        """Return the parameters of an object that differ from the member's defaults."""
        if inspect.isfunction(_origin(made)):
            return dict(getattr(made, "keywords", {}))
        defaults = {key: item.default for key, item in self.parameters(name).items()}
        values = {key: getattr(made, key, default) for key, default in defaults.items()}
        return {key: value for key, value in values.items() if value != defaults[key]}

    def _listed(self, name: str) -> str:
        parameters = self.parameters(name).values()
        shown = (item.name if item.default is item.empty else f"{item.name}={item.default!r}" for item in parameters)
        return f"it has {excerpt(', '.join(shown)) or 'no parameters'}"


def _origin(member: object) -> object:
    """Return the class or function of a partial; anything else is returned as it is."""
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

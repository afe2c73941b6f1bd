"""Parameters of members as users write them: text, mappings, kinds and ranges of values."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from .wording import excerpt

#: largest number of characters of a member with its parameters
_LONGEST = 100_000
#: spellings of constants besides Python's own
_CONSTANTS = {"inf": math.inf, "true": True, "false": False, "none": None, "null": None}
_WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a text", type(None): "None"}


class Range(NamedTuple):
    """The range of a parameter, in its annotation: ``Annotated[float, Range(0, 1)]``.

    Attributes:
        low, high: its ends.
        above: the range excludes its lower end.
    """

    low: float
    high: float
    above: bool = False


Positive = Annotated[float, Range(0, 1e6, above=True)]
NotNegative = Annotated[float, Range(0, math.inf)]
Fraction = Annotated[float, Range(0, 1)]


def hints_of(member: Any) -> dict[str, Any]:
    """Return the kinds of a member's parameters, as far as its annotations can be read."""
    annotated = member.__init__ if inspect.isclass(member) and not is_dataclass(member) else member
    with suppress(NameError, TypeError, AttributeError):
        return get_type_hints(annotated, include_extras=True)
    return {}


def split_spec(spec: Any, family: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the parameters of a written member, without looking them up."""
    if isinstance(spec, Mapping):
        given = {str(key): value for key, value in spec.items()}
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f'a {family} with parameters is {{"name": ..., "parameter": value}}, got {excerpt(spec)}')
        return name, given
    if not isinstance(spec, str):
        raise TypeError(f"a {family} is a name, or a mapping with a name, got {excerpt(repr(spec))}")
    name, bracket, rest = spec.partition("(")
    if not bracket:
        return spec, {}
    form = f'the {family} "{excerpt(spec, 80)}" is not of the form {excerpt(name, 40)}(parameter=value, ...)'
    try:
        call = None if len(spec) > _LONGEST else ast.parse(f"f({rest.strip()}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(form)
    names = [item.arg for item in call.keywords]
    if None in names or len(set(names)) < len(names):
        raise ValueError(form)
    try:
        return name.strip(), {str(item.arg): _value(item.value) for item in call.keywords}
    except (ValueError, RecursionError):
        raise ValueError(
            f"{form}: values are numbers, texts in quotes, True, False, None, inf and lists of these"
        ) from None


def _value(node: ast.expr) -> Any:
    """Return the value of a literal.

    Raises:
        ValueError: an expression.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    raise ValueError("not a literal")


def converted(value: Any, kind: Any) -> Any:
    """Return a value as an annotated kind: float, int, bool, str, None, and unions, tuples and sequences of these.

    Values of other kinds pass unchanged.

    Raises:
        TypeError: a value of another kind; the message is what fits.
        ValueError: a value out of its `Range`; the message is what fits.
    """
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        value = converted(value, inner[0])
        for low, high, above in (item for item in inner[1:] if isinstance(item, Range)):
            if not low <= value <= high or (above and value == low):
                raise ValueError(_words(kind))
        return value
    if get_origin(kind) in (Union, UnionType):
        for each in inner:
            with suppress(TypeError):
                return converted(value, each)
        raise TypeError(_words(kind))
    if get_origin(kind) in (tuple, Sequence):
        fixed = get_origin(kind) is tuple and ... not in inner
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(inner)):
            raise TypeError(_words(kind))
        return tuple(converted(item, inner[index if fixed else 0]) for index, item in enumerate(value))
    if kind is float:
        if not isinstance(value, Real) or isinstance(value, bool) or not abs(value) < 1e300 and abs(value) != math.inf:
            raise TypeError(_words(kind))
        return float(value)
    if kind is int:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
    else:
        fits = kind not in _WORDS or isinstance(value, kind)
    if not fits:
        raise TypeError(_words(kind))
    return value


def _words(kind: Any) -> str:
    """Return what a kind accepts, in words."""
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        low, high, above = next(item for item in inner[1:] if isinstance(item, Range))
        ends = f"{'above' if above else 'of at least'} {low:g}" + (f" and at most {high:g}" if high != math.inf else "")
        return f"{_words(inner[0])} {ends}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(each) for each in inner)
    if get_origin(kind) is tuple and ... not in inner:
        return f"a list of {len(inner)} numbers"
    return "a list of numbers" if get_origin(kind) else _WORDS.get(kind, "another value")

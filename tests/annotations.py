"""Checks of annotations, shapes included, at every call of the package: jaxtyping's and typeguard's, except that an
annotation is taken apart once and not at every call, which took most of the time of tests with tiny networks.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints, is_typeddict

import jaxtyping
import typeguard

Test = Callable[[Any], bool]

_check_type = getattr(typeguard.check_type, "__wrapped__", typeguard.check_type)


def _check_type_or_union(argname: str, value: Any, expected_type: Any, memo: Any = None, **names: Any) -> None:
    """`typeguard.check_type` that knows ``int | str``; what jaxtyping puts in its place binds a signature each time."""
    check = typeguard.check_union if type(expected_type) is types.UnionType else _check_type
    check(argname, value, expected_type, memo, **names)


typeguard.check_type = _check_type_or_union
_MEMO = typeguard._TypeCheckMemo({}, {})
#: the context in which a name of an axis stands for one size
_SIZES = jaxtyping.jaxtyped("context")


def quick_test(hint: Any) -> Test:
    """Return a function that is true for most values of an annotation, and for no others; typeguard has the last word.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin in (Union, types.UnionType):
        tests = [quick_test(part) for part in parts]
        return lambda value: any(test(value) for test in tests)
    if origin in (list, set, Sequence) or origin is tuple and parts[1:] == (...,):
        test = quick_test(parts[0])
        return lambda value: isinstance(value, origin) and all(map(test, value))
    if origin is tuple:
        tests = [quick_test(part) for part in parts]
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(tests)
            and all(test(item) for test, item in zip(tests, value, strict=True))
        )
    if origin is dict:
        keys, values = map(quick_test, parts)
        return lambda value: isinstance(value, dict) and all(map(keys, value)) and all(map(values, value.values()))
    if origin in (Mapping, Iterable):  # typeguard does not look into them
        return lambda value: isinstance(value, origin)
    if origin is Callable and parts[0] is ...:
        return callable
    if origin is Literal:
        return lambda value: value in parts
    if hint is float:
        return lambda value: isinstance(value, (float, int))
    if not isinstance(hint, type) or origin or is_typeddict(hint) or getattr(hint, "_is_protocol", False):
        return lambda value: False
    return lambda value: isinstance(value, hint)


def resolve(annotation: Any, names: dict[str, Any]) -> Any:
    """Return the annotation that a string stands for, or `Any` where only type checkers know its names."""
    try:
        return get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except Exception:  # jaxtyping has errors of its own for shapes that it cannot check
        return Any


def tests_of(function: Callable) -> tuple[list[str], str | None, str | None, dict[str, tuple[Any, Test]]]:
    """Return the names of a function's positional arguments, of ``*`` and of ``**``, and the tests by name."""
    positional, rest, more, tests = [], None, None, {}
    parameters = inspect.signature(function).parameters
    for name, annotation in {**dict.fromkeys(parameters), **function.__annotations__}.items():
        hint = Any if annotation is None and name in parameters else resolve(annotation, function.__globals__)
        parameter = parameters.get(name)
        if parameter is None:
            pass
        elif parameter.kind == parameter.VAR_POSITIONAL:
            rest, hint = name, tuple[hint, ...]
        elif parameter.kind == parameter.VAR_KEYWORD:
            more, hint = name, dict[str, hint]
        else:
            positional += [name] * (parameter.kind != parameter.KEYWORD_ONLY)
            hint = Optional[hint] if parameter.default is None else hint  # noqa: UP045 - hints of jaxtyping have no "|"
        tests[name] = hint, quick_test(hint)
    return positional, rest, more, tests


def checked(function: Any) -> Any:
    """Check the arguments and the result of a function, or the arguments of a dataclass, at every call."""
    if isinstance(function, type):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = checked(function.__init__)
        return function
    if not function.__annotations__ or hasattr(function, "__wrapped__"):
        return function
    known = None

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        known = known or tests_of(function)
        positional, rest, more, tests = known
        given = {**dict(zip(positional, args, strict=False)), **kwargs}
        if rest:
            given[rest] = args[len(positional) :]
        if more:
            given[more] = {name: value for name, value in kwargs.items() if name not in tests}
        with _SIZES:
            for name in tests:  # in their order: an expression like "2*b" needs the size of b
                if name in given:
                    check(name, given[name])
            result = function(*args, **kwargs)
            if "return" in tests and result is not NotImplemented:
                check("return", result)
        return result

    def check(name: str, value: Any) -> None:
        __tracebackhide__ = True
        hint, test = known[3][name]
        if not test(value):
            where = f"{name} of {function.__module__}.{function.__qualname__}"
            typeguard.check_type(where, value, hint, _MEMO)

    return checking


def install(modules: list[str]) -> None:
    """Check the annotations of all that is imported from now on of some modules."""
    jaxtyping.jaxtyped = lambda fn=None, typechecker=None: checked if fn is None else checked(fn)
    jaxtyping.install_import_hook(modules, None)

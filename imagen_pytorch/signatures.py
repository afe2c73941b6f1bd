"""Configuration classes built from the signatures of constructors, with mistakes reported as sentences."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

from .registry import Registry, suggestion

#: largest number of mistakes in one message, of characters for each of them, and of bytes of a configuration
_MOST, _LONGEST, _LARGEST = 10, 400, 1 << 24


class ConfigError(ValueError):
    """A configuration that cannot be used. The message is one line and names the place of the mistake."""


class FieldError(ValueError):
    """A mistake in the value of one field, found in a check of several.

    Args:
        field: its name.
        message: the mistake.
    """

    def __init__(self, field: str, message: object) -> None:
        super().__init__(str(message))
        self.field = field


class _Nested(ValueError):
    """Errors of a part of a configuration, passed outwards so that the complete path can be named."""

    def __init__(self, inner: ValidationError) -> None:
        super().__init__(sentence(inner))
        self.inner = inner


def _problems(error: ValidationError, path: str = "") -> dict[str, list[str]]:
    """Return the messages by place, such as "imagen.unets[0].dim" (several for a union of types)."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        where = path
        for index, part in enumerate(item["loc"]):
            if isinstance(part, int):
                where += f"[{part}]"
            elif index == 0:
                where += f".{part}" if where else str(part)
            else:
                break  # after the field's name come the types that pydantic tried
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, _Nested):
            found |= _problems(cause.inner, where)
            continue
        if isinstance(cause, FieldError):
            where = f"{where}.{cause.field}" if where else cause.field
        found.setdefault(where, []).append(_message(item, cause))
    return found


def _message(item: Mapping[str, Any], cause: Exception | None) -> str:
    if cause is not None:
        return str(cause)
    if item["type"] == "missing":
        return "it is missing"
    given, message = repr(item["input"]), item["msg"]
    return f"{message[0].lower()}{message[1:]}, got {given if len(given) <= 40 else given[:37] + '...'}"


def sentence(error: ValidationError) -> str:
    """Return a validation error as one line: ``imagen.unets[0]: unknown key "dimm"; did you mean "dim"?``."""
    problems, parts = _problems(error), []
    for where, messages in islice(problems.items(), _MOST):
        text = _short(" or ".join(dict.fromkeys(messages)))
        parts.append(f"{where}: {text}" if where else text)
    left = len(problems) - len(parts)
    return "; ".join(parts) + (f"; and {left} more" if left else "")


def _short(text: str) -> str:
    """Return a message on one line of bounded length, however long the value in it is."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def parse(model: type[Configuration], values: Any) -> Any:
    """Return an instance of ``model`` from plain values.

    Raises:
        ConfigError: a value does not fit. One line names the place and what fits.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(sentence(error)) from error


def part(model: type[Configuration], values: Any) -> Any:
    """Return a part of a larger configuration, from plain values or ready, for use in validators.

    Raises:
        ValueError: a value does not fit. The error of the complete configuration names the place within the part.
    """
    if isinstance(values, model):
        return values
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _Nested(error) from error


class Configuration(BaseModel):
    """Keyword arguments of one callable, checked by name and type before it is called."""

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    #: the callable of `create`
    target: ClassVar[Any] = None
    #: arguments that are members of a family, one or a list of them
    families: ClassVar[Mapping[str, Registry[Any]]] = {}
    #: largest number of entries of any list
    longest: ClassVar[int | None] = None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            cls._check_unknown({key: values[key] for key in values if key not in cls.model_fields})
            for key, value in values.items():
                if cls.longest is not None and isinstance(value, list | tuple) and len(value) > cls.longest:
                    raise FieldError(key, f"it has {len(value):,} entries, there can be {cls.longest}")
        return values

    @classmethod
    def _check_unknown(cls, values: dict[str, Any]) -> None:
        """Refuse unknown arguments.

        Raises:
            ValueError: names the first of them and, if one is close, the field that was meant.
        """
        for key in values:
            raise ValueError(f'unknown key "{key}"{suggestion(key, tuple(cls.model_fields))}')

    @model_validator(mode="after")
    def _known_members(self) -> Configuration:
        for field in self.model_fields_set & self.families.keys():
            value = getattr(self, field)
            family, values = self.families[field], value if isinstance(value, list | tuple) else (value,)
            try:
                found = [item if item is None else self._member(family, item) for item in values]
            except (ValueError, TypeError) as error:
                raise FieldError(field, error) from None
            self.__dict__[field] = type(value)(found) if isinstance(value, list | tuple) else found[0]
        return self

    @staticmethod
    def _member(family: Registry[Any], value: Any) -> Any:
        """Check the description of a member and return it. An object becomes the text that describes it."""
        made = family.make(value)
        return value if isinstance(value, str | Mapping) else family.spell(made)

    def given(self) -> dict[str, Any]:
        """Return the values that the user set. All others are left to the defaults of the target."""
        chosen = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return chosen | (self.model_extra or {})

    def create(self) -> Any:
        """Call the target with the values that were set."""
        return self.target(**self.given())


def constructor_arguments(target: type) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of a class's arguments by name. ``...`` stands for a missing default.

    Arguments that a constructor passes on through ``**`` are looked up in its parents. A class attribute ``defaults``
    replaces the parents' defaults.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for owner in target.__mro__:
        if "__init__" not in vars(owner):
            continue
        hints = get_type_hints(owner.__init__)
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        for item in parameters:
            if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
                default = ... if item.default is item.empty else item.default
                found.setdefault(item.name, (hints.get(item.name, Any), default))
        if not any(item.kind == item.VAR_KEYWORD for item in parameters):
            break
    for name, default in getattr(target, "defaults", {}).items():
        found[name] = (found[name][0], default)
    return found


def model_from_signature(
    target: type, *, base: type[Configuration] = Configuration, skip: Sequence[str] = (), **fields: Any
) -> type[Any]:
    """Return a configuration class with the constructor arguments of ``target``, their types and their defaults.

    Args:
        target: the class that ``create`` builds.
        base: the parent of the configuration class. Fields that it defines are not replaced.
        skip: arguments without a field.
        **fields: further fields, as pydantic's ``create_model`` takes them.
    """
    arguments = constructor_arguments(target)
    left_out = {*skip, *base.model_fields}
    derived = {name: field for name, field in arguments.items() if name not in left_out}
    model = create_model(  # type: ignore[call-overload]
        f"{target.__name__}Config",
        __base__=base,
        __module__=base.__module__,
        __doc__=f"Arguments of `{target.__name__}`, with its defaults; ``create()`` makes one.",
        **{**derived, **fields},
    )
    model.target = target
    return model


# -- files ------------------------------------------------------------------------------------------------------------


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the contents of a configuration file: TOML or YAML by its suffix (.toml, .yaml, .yml), else JSON. An entry
    "$schema", by which editors complete and check the file, is left out.

    Raises:
        ConfigError: the file does not exist, or does not hold such an object. The message names the place of an error.
    """
    kind, loads = _FORMATS.get(Path(path).suffix.lower(), ("JSON", _from_json))
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigError(f"the configuration {path} has more than {_LARGEST:,} bytes")
        contents = loads(text.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {path} is not valid UTF-8") from error
    except _NotValid as error:
        raise ConfigError(f"{path} is not valid {kind}: {error}") from error
    except ImportError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds a number that is too long") from error
    except RecursionError as error:
        raise ConfigError(f"{path} has too many brackets within each other") from error
    if not isinstance(contents, dict):
        raise ConfigError(f"{path} must hold one {kind} object, found {type(contents).__name__}")
    contents.pop("$schema", None)
    return contents


@contextmanager
def errors_in_file(path: str | Path) -> Iterator[None]:
    """Add the name of a configuration file to errors inside the block, and the line if it can be found easily.

    Raises:
        ConfigError: as inside, with both.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}{_line_of(str(error), path)}") from error


def _line_of(message: str, path: str | Path) -> str:
    """Return " (line N)" for the only line that sets the first entry that a message names, or nothing."""
    found = re.match(r'[\w.\[\]]*?(\w+)(?:\[\d+\])*: (?:unknown key "([^"]+)")?|unknown key "([^"]+)"', message)
    key = found and (found[3] or found[2] or found[1])
    if not key:
        return ""
    with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        entry = re.compile(rf"(?<![\w$-])[\"']?{re.escape(key)}[\"']?\s*[:=]")
        lines = [number for number, line in enumerate(file, start=1) if entry.search(line)]
        return f" (line {lines[0]})" if len(lines) == 1 else ""
    return ""


class _NotValid(ValueError):
    """A text that breaks the rules of its format, with the place."""


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _NotValid(f"line {error.lineno}, column {error.colno}: {error.msg}") from error


def _from_toml(text: str) -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"TOML needs Python 3.11, or pip install {name}") from error
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise _NotValid(str(error)) from error


def _from_yaml(text: str) -> Any:
    """Read YAML 1.2, in which "no" and "off" are texts and 3e-4 is a number. Aliases, which may stand for
    any amount of data, are refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [item for item in items if item[0].rpartition(":")[2] not in ("bool", "float", "timestamp")]
            for first, items in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases are not read", self.peek_event().start_mark)
            return super().compose_node(parent, index)

    number = re.compile(r"([-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.inf|\.nan)$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|false|True|False)$"), list("tfTF"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, " ".join(str(error.problem).split())
        raise _NotValid(f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem) from error
    except yaml.YAMLError as error:
        raise _NotValid(" ".join(str(error).split())) from error


#: other formats than JSON by the suffix of a file: name, and the function that reads a text
_FORMATS = {".toml": ("TOML", _from_toml), ".yaml": ("YAML", _from_yaml), ".yml": ("YAML", _from_yaml)}

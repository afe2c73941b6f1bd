"""The command that the user calls this program with, for lines that are printed to be pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

NAMES = ("imagen", "imagen_pytorch")
#: where a context of click keeps the arguments of the present command
ARGUMENTS = "imagen.arguments"
#: options that a command has no more when it goes on: the folder and the length are stated anew
_ANEW = ("--steps", "--epochs", "--max-steps", "--output", "-o", "--resume", "--fresh")


def _spelled(path: str) -> str:
    """A path as it works from the current folder, quoted for a shell."""
    relative = os.path.relpath(path)
    return shlex.quote(os.path.abspath(path) if relative.startswith(os.pardir) else relative)


def program() -> str:
    """Return the words that start this program again from the current folder.

    "imagen" where the shell finds this installation under that name, else the path of the script, such as
    ``.venv/bin/imagen``; ``python -m imagen_pytorch`` for a program that was started so.
    """
    called = sys.argv[0]
    package, name = os.path.basename(os.path.dirname(called)), os.path.splitext(os.path.basename(called))[0]
    if (package, name) == ("imagen_pytorch", "__main__"):
        python = next((word for word in ("python", "python3") if _is_first(word, sys.executable)), None)
        return f"{python or _spelled(sys.executable)} -m imagen_pytorch"
    if name not in NAMES or _is_first(name, called):
        return name if name in NAMES else NAMES[0]
    return _spelled(called)


def _is_first(name: str, path: str) -> bool:
    """Return whether the shell finds this very file under a name."""
    found = shutil.which(name)
    return found is not None and os.path.abspath(found) == os.path.abspath(path)


def command_line(folder: Path | None = None, goal: int | None = None) -> str | None:
    """Return the present command as a line for a shell; None outside a command.

    Args:
        folder: let the command go on with the run in this folder.
        goal: and up to this step.
    """
    context = click.get_current_context(silent=True)
    arguments = None if context is None else context.meta.get(ARGUMENTS)
    if context is None or arguments is None:
        return None
    if folder is not None:
        arguments = _without(arguments, _ANEW, context.token_normalize_func or str)
        arguments += ["--resume"] if context.params.get("resume") and context.params.get("config") is None else []
        arguments += ["--output", str(folder)] if str(folder) != "." else []
        arguments += ["--max-steps", str(goal)] if goal is not None else []
    return shlex.join([*shlex.split(program()), str(context.info_name), *arguments])


def _without(arguments: list[str], options: tuple[str, ...], canonical: Callable[[str], str]) -> list[str]:
    """Return the arguments of a command without some of its options and their values."""
    kept, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        name = f"--{canonical(name[2:])}" if name.startswith("--") else name[:2]
        if name not in options:
            kept.append(word)
            continue
        optional = name == "--fresh" or (name == "--resume" and rest[:1] and rest[0].startswith("-"))
        if not (equals or optional or (name == "-o" and len(word) > 2)):
            del rest[:1]
    return kept

"""The command that the user calls this program with, for lines that are printed to be pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

NAMES = ("imagen", "imagen_pytorch")


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

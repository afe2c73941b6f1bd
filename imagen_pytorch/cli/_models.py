"""The trained model that a command takes, and how it is opened."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import USAGE, CommandFailed, exit_code, format_error
from ._program import program

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade

#: the checkpoint that is taken where none is named
MODEL = "imagen.pt"
#: names of checkpoints that are looked for below the present folder, how deep, and among how many files
CHECKPOINT, _DEPTH, _ENTRIES = re.compile(r"imagen\.pt|checkpoint\.\d{1,18}\.pt"), 4, 20_000


def find_model(given: str | None) -> str:
    """Return the checkpoint to load: the given file or address, the newest of a folder, or a pretrained model's.

    Without one: ./imagen.pt, else the newest below the current folder, else the pretrained model of images.

    Raises:
        CommandFailed: nothing is at the given place.
    """
    from ..pretrained import DEFAULT, pretrained_names, pretrained_path

    if given is None:
        found = f"./{MODEL}" if Path(MODEL).is_file() else newest_below(".")
        return str(pretrained_path(DEFAULT)) if found is None else found
    if given in pretrained_names() and not Path(given).exists():
        return str(pretrained_path(given))
    if Path(given).is_dir():
        return checkpoint_in(given)
    if "://" not in given and not Path(given).is_file():
        raise CommandFailed(
            f"no model at {given}: train one with `{program()} train` or `{program()} demo`, or name a checkpoint or "
            f"a pretrained model ({', '.join(pretrained_names())})",
            USAGE,
        )
    return given


def checkpoint_in(folder: str) -> str:
    """Return the checkpoint that a folder, here or elsewhere, stands for.

    Raises:
        CommandFailed: it holds none.
    """
    from ..checkpoints import newest_in

    newest = newest_in(folder)
    if newest is None:
        raise CommandFailed(f"the folder {folder} holds no checkpoint (imagen.pt or checkpoint.<steps>.pt)", USAGE)
    return newest


def spoken(model: str, given: str | None) -> str:
    """Return the words for the checkpoint that `find_model` returned: its place, or the name of a pretrained model."""
    from ..pretrained import pretrained_name

    name = pretrained_name(model)
    if name is None:
        return model
    return f'{"no model here: " if given is None else ""}pretrained model "{name}"'


def files_below(folder: str, name: re.Pattern[str]) -> dict[str, int]:
    """Return the files in a folder or below it whose names match, each with the time of its last change.

    Hidden folders and links to folders are skipped, and so is what lies deep or after very many other files.
    """
    found: dict[str, int] = {}
    waiting, seen = [(folder, 0)], 0
    for place, depth in waiting:  # grows while it is walked through: near folders come first
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    seen += 1
                    if name.fullmatch(entry.name) and entry.is_file():
                        found[os.path.normpath(entry.path)] = entry.stat().st_mtime_ns
                    elif depth < _DEPTH and entry.name[0] not in "._" and entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, depth + 1))
                    if seen >= _ENTRIES:
                        return found
        except OSError:  # a folder that cannot be read, or that has just gone
            continue
    return found


def newest_below(folder: str) -> str | None:
    """Return the checkpoint of the usual names that was written last, as `files_below`; None if there is none."""
    found = files_below(folder, CHECKPOINT)
    return max(found, key=found.__getitem__, default=None)


def load(model: str, load_ema: bool) -> Cascade:
    """The model in a checkpoint.

    Raises:
        CommandFailed: it is unusable; the message names the checkpoint before it if there is one.
    """
    from ..checkpoint import CheckpointError, load_imagen_from_checkpoint
    from ..checkpoints import CheckpointMisaddressed, CheckpointUnreachable, previous_of
    from ..io.files import is_local, kind_of, locate

    try:
        return load_imagen_from_checkpoint(model, load_ema_if_available=load_ema)
    except (CheckpointMisaddressed, CheckpointUnreachable):
        raise
    except CheckpointError as error:
        before = previous_of(model)
        fs, place = locate(before)
        if not is_local(fs) or kind_of(fs, place) != "file":
            raise
        hint = f"the one before it: --model {shlex.quote(before)}"
        raise CommandFailed(f"{format_error(error)}; {hint}", exit_code(error)) from error

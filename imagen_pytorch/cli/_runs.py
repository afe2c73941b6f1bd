"""The folder of a training: which one it is, and the record of how the run was made."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..lines import append_lines, next_free
from ._files import backup_output, listed_outputs, remember, replace_own, set_aside, slug
from ._models import MODEL, newest_below
from ._options import LATEST
from ._program import command_line

if TYPE_CHECKING:
    from ..configs import TrainingConfig
    from ..trainer import ImagenTrainer
    from ._settings import Request

#: files of a run beside metrics.jsonl: its configuration, the commands that trained it, and where it was trained last
RESOLVED, COMMANDS, ENVIRONMENT = "config.resolved.json", "command.txt", "environment.json"
#: packages whose versions decide the numbers of a training
_PACKAGES = ("imagen-pytorch", "torch", "numpy", "accelerate", "ema-pytorch", "transformers", "pillow")


# -- which folder -----------------------------------------------------------------------------------------------------


def placed(request: Request) -> Request:
    """Return the options with the folder, the checkpoint and the configuration that `--fresh` or `--resume` choose.

    Raises:
        click.UsageError: both of them, or nothing to go on from.
    """
    if request.fresh and request.resume is not None:
        raise click.UsageError("--fresh starts a new model, --resume goes on with one: give one of them")
    if request.fresh:
        return replace(request, output=str(_new_folder(request)))
    return request if request.resume is None else _resumed(request)


def _new_folder(request: Request) -> Path:
    """A folder without a run: the one that is named, else one below ``runs`` that is named by the time and the data."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("--fresh chooses a folder, and several processes might differ in it: name it with -o")
    words = request.data or request.config
    name = time.strftime("%Y-%m-%d_%H%M") + (f"-{slug(Path(words).stem)}" if words else "")
    folder = Path("runs", name) if request.output == "." else request.folder
    return folder if folder.is_dir() and not os.listdir(folder) else next_free(folder)


def _resumed(request: Request) -> Request:
    from ..checkpoints import newest_in

    asked = request.resume
    if asked == LATEST:
        here = request.folder / MODEL
        found = request.checkpoint or (str(here) if here.is_file() else newest_below(request.output))
        where = request.output
    else:
        found = where = asked
        if os.path.isdir(asked):
            newest = newest_in(asked)
            found = newest and os.path.join(asked, os.path.basename(newest))  # which is absolute
    if found is None or ("://" not in found and not os.path.exists(found)):
        raise click.UsageError(f"--resume: no checkpoint in {where} to go on from; without --resume training starts")
    folder = request.folder if request.output != "." or "://" in found else Path(found).parent
    config = folder / RESOLVED
    given = request.config or (str(config) if config.is_file() else None)
    return replace(request, resume=found, output=str(folder), config=given)


# -- how it was made --------------------------------------------------------------------------------------------------


def resolved(config: TrainingConfig, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Return the stated entries of a configuration as plain values, with the checkpoint as seen from the folder."""
    values = config.model_dump(mode="json", exclude_unset=True, warnings=False)
    for index, unet in enumerate(config.imagen.unets):
        if getattr(unet, "is_null", False):  # never among what was stated
            values["imagen"]["unets"][index] = {"is_null": True}
    if "://" not in checkpoint:
        inside = os.path.relpath(checkpoint, folder)
        checkpoint = os.path.abspath(checkpoint) if inside.startswith(os.pardir) else inside
    return {**values, "checkpoint_path": checkpoint}


def precision_of(trainer: ImagenTrainer) -> str:
    """Return the name of the precision that a training computes in, as the command line spells it."""
    return "fp32" if trainer.precision.name == "no" else trainer.precision.name


def environment(trainer: ImagenTrainer) -> dict[str, Any]:
    """Return the versions, the device and the processes of a training, and the commit of the code around it."""
    import torch

    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device, processes = trainer.device, trainer.processes
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": found,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "precision": precision_of(trainer),
        "processes": processes.count,
        "strategy": processes.strategy,
        "git_commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the repository that the current folder belongs to, if it is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_record(folder: Path, config: Mapping[str, Any], environment: Mapping[str, Any], goes_on: bool) -> None:
    """Write the configuration and the environment of a run, and append the present command.

    Args:
        goes_on: false keeps the files of an earlier run in the folder under other names.

    Raises:
        OSError: they cannot be written.
    """
    for name in (RESOLVED, ENVIRONMENT, COMMANDS) if not goes_on else ():
        backup_output(folder / name)
    for name, values in ((RESOLVED, config), (ENVIRONMENT, environment)):
        replace_own(f"{json.dumps(values, indent=2)}\n".encode(), folder / name)
    line, path = command_line(), folder / COMMANDS
    if line is not None:
        given = [f"{name}={shlex.quote(text)}" for name, text in os.environ.items() if name.startswith("IMAGEN_TRAIN_")]
        line = f"cd {shlex.quote(os.getcwd())} && {' '.join([*given, line])}"
        set_aside(path)
        append_lines([time.strftime("# %Y-%m-%dT%H:%M:%S%z"), line], path)
        if path.name not in listed_outputs(folder):
            remember([path])

"""Where the ready-made configurations are: inside an installed package, or in the checkout beside it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import click

from ..registry import suggestion

PACKAGE = "imagen_pytorch"
#: the configuration that a user has written, where no other one is named
USUAL = "imagen_config.json"
#: the ready-made configuration for everybody else
READY_MADE = "emoji"


def _folders() -> list[Path]:
    """The folder of presets in a wheel (``imagen_pytorch.presets``), then that of a checkout (``configs``)."""
    package = Path(str(resources.files(PACKAGE)))
    return [folder for folder in (package / "presets", package.parent / "configs") if folder.is_dir()]


def preset_names() -> tuple[str, ...]:
    """The names of all ready-made configurations; "default" is the paper's cascade."""
    found = {path.stem for folder in _folders()[:1] for path in folder.glob("*.json")}
    return ("default", *sorted(found))


def preset_path(name: str) -> Path:
    """The file of a ready-made configuration.

    Raises:
        click.UsageError: no such configuration; the message lists what there is.
    """
    if name == "default":
        return Path(str(resources.files(PACKAGE))) / "default_config.json"
    for folder in _folders():
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    known = preset_names()
    raise click.UsageError(
        f'no ready-made configuration "{name}"; there are: {", ".join(known)}{suggestion(name, known)}'
    )


class ConfigChoice(NamedTuple):
    """A configuration file, and whether it is one of ours instead of the user's."""

    path: Path
    ready_made: bool


def _made_for(data: str | None) -> str:
    """The ready-made configuration for a data set; the usual one for data that have none of their own."""
    from ..signatures import read_json

    names = (READY_MADE, *(name for name in preset_names() if name not in ("default", READY_MADE)))
    own = (name for name in names if read_json(preset_path(name)).get("dataset_name") == data)
    return next(own, READY_MADE)


def find_config(given: str | None, data: str | None = None) -> ConfigChoice:
    """The configuration to use: the given file or preset, ``./imagen_config.json``, or the ready-made one for the data.

    Raises:
        click.UsageError: the given one does not exist.
    """
    if given is None:
        usual = Path(USUAL)
        return ConfigChoice(usual, False) if usual.is_file() else ConfigChoice(preset_path(_made_for(data)), True)
    if Path(given).is_file():
        return ConfigChoice(Path(given), False)
    if given in preset_names():
        return ConfigChoice(preset_path(given), True)
    raise click.UsageError(
        f"there is no configuration {given}; `imagen config --path {given}` writes one, and these are ready made: "
        + ", ".join(preset_names())
    )

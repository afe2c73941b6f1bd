"""The ready-made configurations: inside an installed package, or in the checkout beside it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import click

from ..registry import suggestion

PACKAGE = "imagen_pytorch"
#: the configuration that a user has written, where no other one is named
USUAL = "imagen_config.json"
#: the ready-made configuration where none is named: small enough for the CPU and the memory of any machine
READY_MADE = "emoji"
#: the name of whatever `imagen config` writes where no preset is named
DEFAULT = "default"
#: the paper's cascade, which is a file of the package itself
PAPER = "paper"


def _folders() -> list[Path]:
    """The folder of presets in a wheel (``imagen_pytorch.presets``), then that of a checkout (``configs``)."""
    package = Path(str(resources.files(PACKAGE)))
    return [folder for folder in (package / "presets", package.parent / "configs") if folder.is_dir()]


def preset_names() -> tuple[str, ...]:
    """The names of all ready-made configurations.

    "default" is the one that is used where none is named, "paper" the three-stage cascade of the paper.
    """
    found = {path.stem for folder in _folders()[:1] for path in folder.glob("*.json")}
    return (DEFAULT, *sorted({*found, PAPER}))


def preset_path(name: str) -> Path:
    """The file of a ready-made configuration.

    Raises:
        click.UsageError: no such configuration; the message lists what there is.
    """
    if name == PAPER:
        return Path(str(resources.files(PACKAGE))) / "default_config.json"
    name = READY_MADE if name == DEFAULT else name
    for folder in _folders():
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    known = preset_names()
    raise click.UsageError(
        f'no ready-made configuration "{name}"; there are: {", ".join(known)}{suggestion(name, known)}'
    )


class ConfigChoice(NamedTuple):
    """A configuration file, and whether it is a ready-made one instead of the user's."""

    path: Path
    ready_made: bool


def _made_for(data: str | None) -> str:
    """The ready-made configuration for a data set; the default one for data that have none of their own."""
    from ..signatures import read_config

    names = (READY_MADE, *(name for name in preset_names() if name not in (DEFAULT, PAPER, READY_MADE)))
    own = (name for name in names if read_config(preset_path(name)).get("dataset_name") == data)
    return next(own, READY_MADE)


def are_shipped(captions: object) -> bool:
    """Return whether captions for samples are those of a ready-made configuration, which belong to its own data."""
    from ..signatures import read_config

    return any(read_config(preset_path(name)).get("sample_texts") == captions for name in preset_names())


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
    hint = suggestion(given, preset_names())
    raise click.UsageError(
        f"no configuration {given}; `imagen config --path {given}` writes one, and these are ready made: "
        f"{', '.join(preset_names())}{hint}"
    )

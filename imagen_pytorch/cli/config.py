"""``imagen config``: write a configuration to start from."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click

from ._errors import say
from ._files import check_place, replace_file, show, tell
from ._options import Place, quiet_option
from ._presets import DEFAULT, READY_MADE, USUAL, preset_names, preset_path
from ._program import program

#: what is edited first
_EDIT = "dataset_name (a folder of images with captions), image_sizes, steps and sample_texts"


@click.command(short_help="Write a configuration to start from.")
@click.option(
    "--path",
    "-o",
    "--output",
    "path",
    type=Place(),
    default=f"./{USUAL}",
    show_default=True,
    metavar="FILE",
    help="Where to write it; - shows it.",
)
@click.option(
    "--preset",
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    shell_complete=lambda _, __, begun: [name for name in preset_names() if name.startswith(begun)],
    help="A ready-made configuration: default, or emoji, is a small cascade that trains on any machine; moving-digits "
    "makes videos; paper is the three-stage cascade of the paper, which needs many large GPUs.",
)
@click.option(
    "--data",
    type=Place(),
    metavar="FOLDER",
    help="Make a configuration for the images in FOLDER and this machine: stages, steps, batch, sample captions. Says "
    "how long the training takes.",
)
@click.option(
    "--size", type=click.IntRange(16, 1024), metavar="N", help="Size of the images for --data.  [default: 64]"
)
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a configuration instead, for editors.")
@quiet_option
@click.pass_context
def config(
    context: click.Context,
    path: str,
    preset: str,
    data: str | None,
    size: int | None,
    force: bool,
    schema: bool,
    quiet: bool,
) -> None:
    """Write a configuration file, to be edited and given to `imagen train`.

    The suffix .yaml or .yml writes YAML. Files in TOML are read, too. With "$schema": "config.schema.json" in a file
    an editor completes and checks it.

    \b
    imagen config                                 a small cascade
    imagen config --data ./images --size 64       for your images and this machine
    imagen config --preset paper -o paper.json    the paper's, of 3 G parameters
    imagen config --schema > config.schema.json   the schema
    """
    if schema:
        from ._schema import config_schema

        show(json.dumps(config_schema(), indent=1))
        return
    if size is not None and data is None:
        raise click.UsageError("--size is for --data")
    if data is not None and context.get_parameter_source("preset") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--data and --preset contradict each other: give one of them")
    target = _target(path, force)
    lines = []
    if data is None:
        text, lines = preset_path(preset).read_text(encoding="utf-8"), _of_preset(preset)
    else:
        from ._recipe import recipe

        made = recipe(data, size or 64)
        text, lines = json.dumps(made.values, indent=2) + "\n", made.lines
    if target is not None and target.suffix.lower() in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
    if target is None:
        show(text.removesuffix("\n"))
    else:
        replace_file(text.encode(), target)
        tell(target)
        shown = shlex.quote(str(target))
        lines.append(f"edit {_EDIT}; `{program()} info {shown}` says what it costs")
        lines.append(f"next: {program()} train --config {shown}{'' if data is None else ' --unet all'}")
    if not quiet and (target is not None or data is not None):
        say("\n".join(lines))


def _target(path: str, force: bool) -> Path | None:
    """The file to write; None for standard output.

    Raises:
        click.UsageError: it cannot be written, must not be replaced, or is in a format that is only read.
    """
    if path == "-":
        return None
    target = Path(path)
    if target.is_dir():
        target = target / USUAL
    if target.suffix.lower() == ".toml":
        raise click.UsageError(f"{target}: TOML is read but not written; name a .json or .yaml file")
    if os.path.lexists(target) and not force:
        raise click.UsageError(f"{target} exists already; --force replaces it, --path writes another file")
    check_place(target)
    return target


def _of_preset(preset: str) -> list[str]:
    name = READY_MADE if preset == DEFAULT else preset
    others = ", ".join(other for other in preset_names() if other not in (DEFAULT, name))
    return [f"a copy of the preset {name}; there are also {others} (--preset)"]

"""``imagen config``: write a configuration to start from."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from ._errors import say
from ._files import check_place, replace_file, tell
from ._options import Place
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
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.option(
    "--preset",
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    shell_complete=lambda _, __, begun: [name for name in preset_names() if name.startswith(begun)],
    help="A ready-made configuration: default, or emoji, is a small cascade that trains on any machine; moving-digits "
    "makes videos; paper is the three-stage cascade of the paper, which needs many large GPUs.",
)
def config(path: str, force: bool, preset: str) -> None:
    """Write a configuration file, to be edited and given to `imagen train`.

    \b
    imagen config                                    a small cascade, in ./imagen_config.json
    imagen config --preset paper --path paper.json   the paper's, of three billion parameters
    """
    text = preset_path(preset).read_text(encoding="utf-8")
    if path == "-":
        click.echo(text, nl=False)
        return
    target = Path(path)
    if target.is_dir():
        target = target / USUAL
    if os.path.lexists(target) and not force:
        raise click.UsageError(f"{target} exists already; --force replaces it, --path writes another file")
    check_place(target)
    replace_file(text.encode(), target)
    tell(target)
    name = READY_MADE if preset == DEFAULT else preset
    others = ", ".join(other for other in preset_names() if other not in (DEFAULT, name))
    shown = shlex.quote(str(target))
    say(f"a copy of the preset {name}; there are also {others} (--preset)")
    say(f"edit {_EDIT}; `{program()} info {shown}` says what it costs")
    say(f"next: {program()} train --config {shown}")

"""``imagen config``: write a configuration to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ._files import check_place
from ._presets import USUAL, preset_names, preset_path


@click.command()
@click.option("--path", default=f"./{USUAL}", show_default=True, metavar="FILE", help="Where to write it; - shows it.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.option(
    "--preset",
    default="default",
    show_default=True,
    metavar="NAME",
    help="A ready-made configuration: default is the paper's three-stage cascade, emoji a small one for the embedded "
    "pictures, moving-digits one of videos.",
)
def config(path: str, force: bool, preset: str) -> None:
    """Write a configuration file, to be edited and given to `imagen train`.

    \b
    imagen config                                    the paper's cascade, in ./imagen_config.json
    imagen config --preset emoji --path mine.json    a small one that trains on a CPU
    """
    text = preset_path(preset).read_text(encoding="utf-8")
    if path == "-":
        click.echo(text, nl=False)
        return
    target = Path(path)
    if target.is_dir():
        target = target / USUAL
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists already; --force replaces it, --path writes another file")
    check_place(target)
    target.write_text(text, encoding="utf-8")
    click.echo(target)
    train = f"imagen train --config {shlex.quote(str(target))}"
    click.echo(f"presets: {', '.join(preset_names())}; next: edit it, then {train}", err=True)

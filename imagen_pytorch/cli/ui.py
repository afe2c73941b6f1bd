"""``imagen ui``: a page in the browser for what `imagen sample` does."""

from __future__ import annotations

from typing import Any

import click

from ._options import Place, device_option, quiet_option


@click.command(short_help="Open a page in the browser.")
@click.argument("folder", required=False, default=".", type=Place())
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=Place(),
    default="images",
    show_default=True,
    help="Where the images are written, with their settings in them.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Any but this machine's own loopback needs --password.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=7860,
    show_default=True,
    help="Port to listen at; 0 takes a free one.",
)
@click.option(
    "--password",
    metavar="TEXT",
    help='Ask for this password and the name "imagen". Best given as the variable IMAGEN_UI_PASSWORD: other users of '
    "this machine can read a command line.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser of this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs: the address.")
@device_option
@quiet_option
def ui(**request: Any) -> None:
    """Serve a page that makes images with the models in FOLDER and shows its trainings; print its address.

    The list of models has the pretrained ones and the checkpoints in FOLDER and below it (default: the current folder).
    Images appear while they are made, and are written to --output. Nothing is loaded from other machines. Needs gradio.

    \b
    imagen ui
    imagen ui runs --output made/ --port 8000
    IMAGEN_UI_PASSWORD=... imagen ui --host 0.0.0.0
    """
    from ._studio import run

    run(**request)

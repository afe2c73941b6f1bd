"""``imagen profile``: where the time of training or sampling goes on this machine."""

from __future__ import annotations

from typing import Any

import click

from ._options import BATCH, Place, Precision, device_option, quiet_option

COUNT, STEPS = click.IntRange(min=1), click.IntRange(min=1, max=1000)


@click.command(short_help="Show where the time of a step goes.")
@click.option(
    "--config",
    metavar="FILE",
    type=Place(),
    help="Configuration file or name of a ready-made one.  [default: ./imagen_config.json if there is one, else emoji]",
)
@click.option("-m", "--model", metavar="PATH", type=Place(), help="A checkpoint, in place of a configuration.")
@click.option("--unet", type=COUNT, default=1, show_default=True, metavar="N", help="Which U-Net.")
@click.option("--train/--sample", "training", default=True, help="Training steps (default), or guided sampling steps.")
@click.option("--steps", type=STEPS, default=3, show_default=True, metavar="N", help="Number of profiled steps.")
@click.option(
    "--batch-size",
    type=BATCH,
    metavar="N",
    help="Images or clips per batch.  [default: the configuration's, else 16; 1 for sampling]",
)
@click.option("--precision", type=Precision(), help="Of the training. Also --dtype.")
@click.option("-o", "--output", type=Place(), default=".", show_default=True, metavar="FOLDER", help="For trace.json.")
@click.option("--force", is_flag=True, help="Run although the memory seems too small for it.")
@device_option
@quiet_option
def profile(**request: Any) -> None:
    """Run a few real steps and print which parts of the network and which operators their time goes to.

    Images and captions are random: no data and no encoder are needed, and nothing is learned. The trace opens in
    https://ui.perfetto.dev or chrome://tracing; its path is printed last.

    \b
    imagen profile                                training steps of U-Net 1
    imagen profile --unet 2 --sample              sampling steps of its upsampler
    imagen profile --model imagen.pt --steps 10 --output runs/a
    """
    from ._profile import Request, run

    run(Request(**request))

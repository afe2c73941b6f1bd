"""``imagen demo``: a whole cascade, trained and sampled within minutes."""

from __future__ import annotations

from typing import Any

import click

from ._options import LARGEST_SCALE, SEED, PerStage, Place, device_option, quiet_option


@click.command(short_help="Train a small model on embedded data, and sample.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training steps of the first U-Net; those of the others keep their proportion.  [default: the "
    "configuration's]",
)
@click.option(
    "--config",
    type=Place(),
    default="emoji",
    show_default=True,
    metavar="FILE",
    help="Another configuration, a file or the name of a ready-made one, such as moving-digits for videos; its data "
    "need captions.",
)
@click.option(
    "--cond-scale", type=PerStage(float, 0, LARGEST_SCALE), help="Guidance weight.  [default: the configuration's]"
)
@click.option(
    "--judge",
    type=click.IntRange(min=0),
    default=96,
    show_default=True,
    metavar="N",
    help="Images of each kind (trained captions, held-out ones) that caption retrieval is measured with, or clips "
    "whose motion is compared with their captions; 0: none.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "-o",
    "--output",
    type=Place(),
    default="runs/demo",
    show_default=True,
    metavar="FOLDER",
    help="Where everything is written. An interrupted demo goes on; the folder of a finished one is renamed.",
)
@device_option
@quiet_option
def demo(**options: Any) -> None:
    """Train a ready-made cascade on embedded data, draw with it, and print where the images or videos are.

    \b
    imagen demo                            some minutes on two cores
    imagen demo --steps 10000              better images
    imagen demo --config moving-digits     videos
    """
    from ._demo import Options, configured
    from ._demo_images import ImageDemo
    from ._demo_videos import VideoDemo

    values, config = configured(options["config"], options["steps"], options["seed"])
    kind = VideoDemo if config.imagen.video else ImageDemo
    code = kind(Options(**options), values, config).run()
    if code:
        raise click.exceptions.Exit(code)

"""``imagen compare``: two models, or two settings of one, on the same captions and seeds."""

from __future__ import annotations

from typing import Any

import click

from ._assignments import Overrides
from ._options import BATCH, SEED, Place, device_option, quiet_option, sampling_options

COUNT = click.IntRange(min=2, max=4096)


@click.command(short_help="Compare two models, or two settings of one.")
@click.argument("first", metavar="[A]", required=False, type=Place())
@click.argument("second", metavar="[B]", required=False, type=Place())
@click.option(
    "--a",
    "settings_a",
    type=Overrides(),
    default="",
    metavar="NAME=VALUE,...",
    help="Options of A alone: cond_scale, guidance, steps, sampler or cache_interval, as in cond_scale=3,steps=8.",
)
@click.option("--b", "settings_b", type=Overrides(), default="", metavar="NAME=VALUE,...", help="The same for B alone.")
@click.option(
    "--data",
    metavar="NAME",
    help="Real images with captions: emoji64, a folder, or a hub data set.  [default: those A was trained on, else "
    "emoji64]",
)
@click.option("--split", metavar="NAME", help="Part of the data, such as pair or concept of emoji64.")
@click.option("--limit", type=COUNT, default=64, show_default=True, metavar="N", help="Most captions that are sampled.")
@click.option(
    "--prompts", metavar="FILE", type=Place(), help="Captions from a file, one per line, in place of those of the data."
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Seed of the first image.")
@sampling_options
@click.option("--no-load-ema", is_flag=True, help="Use the trained weights although there are averaged ones.")
@click.option("--stop-at-unet", type=click.IntRange(min=1), metavar="N", help="Compare what this U-Net makes.")
@click.option("--batch-size", type=BATCH, metavar="N", default=16, show_default=True, help="Size of a batch.")
@click.option("-o", "--output", type=Place(), default=".", show_default=True, metavar="FOLDER", help="For the results.")
@device_option
@quiet_option
def compare(no_load_ema: bool, **request: Any) -> None:
    """Draw the same captions with the same seeds by A and B, and print where compare.json and compare.png are.

    A and B are checkpoints or folders of checkpoints. Without B, both sides are A, with the settings of --a and --b.
    Differences of figures have an interval over the images; one that includes 0 may be chance.

    \b
    imagen compare before.pt after.pt
    imagen compare imagen.pt --a cond_scale=1 --b cond_scale=3,steps=8
    imagen compare runs/a runs/b --split pair --limit 200
    """
    from ._compare import Request, run

    run(Request(load_ema=not no_load_ema, **request))

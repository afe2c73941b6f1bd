"""``imagen enlarge``: small images through the upsamplers of a model."""

from __future__ import annotations

from typing import Any

import click

from . import canonical_option
from ._options import SEED, Caption, Place, device_option, quiet_option, sampling_options
from .sample import FITS


def _option(name: str) -> str:
    """The canonical spelling of an option; --scale is a factor of the size here, and not the guidance weight."""
    return name if name == "scale" else canonical_option(name)


@click.command(short_help="Enlarge images with a trained model.", context_settings={"token_normalize_func": _option})
@click.argument("files", nargs=-1, required=True, type=Place(), metavar="FILE...")
@click.option(
    "-m",
    "--model",
    metavar="PATH",
    type=Place(),
    help="As for imagen sample: a checkpoint, a folder of checkpoints, an address, or a pretrained model.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=Place(),
    help="A file, a folder, or - for standard output.  [default: ./photo_64x64.png for photo.png]",
)
@click.option("--prompt", "text", type=Caption(), metavar="TEXT", help="What the images show.")
@click.option("--negative", type=Caption(), metavar="TEXT", help="What they must not show.")
@click.option("--scale", type=click.IntRange(2, 1024), metavar="N", help="Enlarge N times.  [default: the most]")
@click.option(
    "--fit",
    type=click.Choice(FITS),
    help="Bring an image of another size to the one that is enlarged: its middle, all of it with a white margin, or "
    "with other proportions.  [default: refuse it]",
)
@click.option("--seed", type=SEED, metavar="N", help="Seed of each image.  [default: a random one]")
@sampling_options
@click.option("--no-metadata", is_flag=True, help="Write no settings into the files.")
@device_option
@quiet_option
def enlarge(files: tuple[str, ...], scale: int | None, fit: str | None, **request: Any) -> None:
    """Enlarge images with the upsamplers of a model and print where the results are.

    An image has to be as small as those that the model was trained to enlarge: 16x16 for the pretrained model, which
    makes 64x64 of it. Others are refused, with the sizes that fit, unless --fit says how to shrink them first.

    \b
    imagen enlarge small.png
    imagen enlarge icons/*.png -o large/ --prompt "a 3d render of a bear"
    imagen enlarge photo.jpg --fit crop
    """
    from ._enlarging import run
    from ._request import Request

    run(Request(**request), files, scale, fit)

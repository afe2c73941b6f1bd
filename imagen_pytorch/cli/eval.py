"""``imagen eval``: the quality of the images of a model or in a folder."""

from __future__ import annotations

from typing import Any

import click

from ._options import BATCH, SEED, Names, Place, device_option, quiet_option, sampling_options

COUNT, SIDE = click.IntRange(min=2, max=1_000_000), click.IntRange(min=1, max=65_536)


@click.command("eval", short_help="Measure the quality of a model or of images.")
@click.argument("target", required=False, type=Place())
@click.option(
    "--data",
    metavar="NAME",
    help="The real images: emoji64, a folder, or a hub data set.  [default: those the model was trained on, else "
    "emoji64]",
)
@click.option("--split", metavar="NAME", help="Part of the data, such as pair or concept of emoji64.")
@click.option("--limit", type=COUNT, default=200, show_default=True, metavar="N", help="Most images that are judged.")
@click.option(
    "--reference",
    type=COUNT,
    default=2000,
    show_default=True,
    metavar="N",
    help="Most real images to compare with, and captions to choose among.",
)
@click.option(
    "--extractor",
    type=Names(),
    default="",
    metavar="NAME[,NAME]",
    help="Networks whose features are compared, such as efficientnet-lite0.  [default: the one made for the data, and "
    "the first that is installed]",
)
@click.option(
    "--metrics",
    type=Names(),
    default="",
    metavar="NAME[,NAME]",
    help="kid, fd, precision (with recall, density, coverage), retrieval, nearest, upsampler, classes, bpd (bits "
    "per dimension).  [default: all but bpd that can be computed]",
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Seed of the first image.")
@click.option("--image-size", type=SIDE, metavar="N", help="Resize the images of a folder to N x N.")
@sampling_options
@click.option("--no-load-ema", is_flag=True, help="Use the trained weights although there are averaged ones.")
@click.option("--stop-at-unet", type=click.IntRange(min=1), metavar="N", help="Judge what this U-Net makes.")
@click.option("--batch-size", type=BATCH, metavar="N", default=16, show_default=True, help="Size of a batch.")
@click.option("-o", "--output", type=Place(), default=".", show_default=True, metavar="FOLDER", help="For the results.")
@device_option
@quiet_option
def eval(no_load_ema: bool, **request: Any) -> None:
    """Judge the images of TARGET beside real ones, and print where eval.json and the sheet eval.png are.

    TARGET is a checkpoint, a folder of checkpoints, or a folder of images with captions or without: a table, text files
    beside the images, or PNG files of `imagen sample`. Of a model, captions of the data are drawn first. Without it:
    ./imagen.pt, or the newest checkpoint below this folder.

    Every figure stands beside what real images reach. An extractor that took part in training is refused.

    Of a model of videos that was trained on moving-digits: how many clips for captions of its test split move, and show
    the digit, as they say; without --metrics and --extractor.

    \b
    imagen eval                                      the newest model, on its data
    imagen eval imagen.pt --split pair --limit 400   on captions it has not seen
    imagen eval images/ --data ./photos --metrics kid,precision
    """
    from ._drawing import EvalOptions
    from ._eval import run

    run(EvalOptions(load_ema=not no_load_ema, **request))

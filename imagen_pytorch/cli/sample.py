"""``imagen sample``: images or videos from a trained model."""

from __future__ import annotations

from typing import Any

import click

from ._assignments import SweepAxis, is_axis
from ._options import (
    BATCH,
    FRAMES,
    SEED,
    Caption,
    PerStage,
    Place,
    Positive,
    device_option,
    quiet_option,
    sampling_options,
)

#: the ways in which an image of another shape is fitted to the model
FITS = ("crop", "pad", "stretch")
COUNT = click.IntRange(min=1)
#: what `--load-ema` takes as its value; anything else after it is the caption
_WORDS = {"true", "false", "t", "f", "yes", "no", "y", "n", "on", "off", "1", "0"}


def _with_both_axes(args: list[str], ctx: click.Context) -> list[str]:
    """Write ``--sweep`` before an axis that follows another one as a word of its own."""
    found: list[str] = []
    for word in args:
        if len(found) > 1 and found[-2] == "--sweep" and is_axis(found[-1], ctx) and is_axis(word, ctx):
            found.append("--sweep")
        found.append(word)
    return found


class _Sample(click.Command):
    """The command, whose bare ``--load-ema`` does not take the caption after it for its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the value written to a bare ``--load-ema`` and ``--sweep`` before every axis."""
        end = args.index("--") if "--" in args else len(args)
        for index, word in enumerate(args[:end]):
            following = args[index + 1].lower() if index + 1 < len(args) else ""
            if word.replace("_", "-") == "--load-ema" and following not in _WORDS:
                args = [*args[:index], f"{word}=true", *args[index + 1 :]]
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*_with_both_axes(args[:end], ctx), *args[end:]])


@click.command(cls=_Sample, short_help="Sample from a trained model.")
@click.argument("text", required=False, type=Caption())
@click.option(
    "-m",
    "--model",
    metavar="PATH",
    type=Place(),
    help="A checkpoint, a folder of checkpoints, their address, or a pretrained model: emoji or moving-digits.  "
    "[default: ./imagen.pt, else the newest imagen.pt or checkpoint.<steps>.pt in a folder below this one, else emoji]",
)
@click.option(
    "-n", "--num-images", type=COUNT, metavar="N", default=1, show_default=True, help="Images or videos per caption."
)
@click.option(
    "--seed",
    type=SEED,
    metavar="N",
    help="Seed of the first image of each caption; the next ones use N + 1, N + 2 ...  [default: a random one]",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=Place(),
    help="A file, a folder, or - for standard output. Without it, the caption is the name: ./a_red_heart.png, or .gif. "
    "A video is what the suffix says: .gif, .webp, .png, .avif, .mp4, .webm, or frame-%04d.png for single frames.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    type=Place(),
    help="Captions from a file, one per line, or from standard input with -. Options may follow a caption "
    "(a cat --n rain --d 7 --s 20 --l 3) or stand with it in an object of JSON. Images that exist with the same "
    "settings are not made again.",
)
@click.option(
    "--from-png",
    metavar="FILE",
    type=Place(),
    help="Make the image or video in FILE again from the settings in it; options beside this one change them. Also for "
    "JPEG, WebP, AVIF, GIF, MP4 and WebM.",
)
@click.option(
    "--negative",
    type=Caption(),
    metavar="TEXT",
    help="What the image must not show (needs a --cond-scale other than 1).",
)
@click.option(
    "--init",
    metavar="FILE",
    type=Place(),
    help="Start from this image instead of noise alone, or enlarge it with --start-at-unet.",
)
@click.option(
    "--strength",
    type=PerStage(float, 0, 1),
    help="How far --init is changed: 0 leaves it as it is, 1 ignores it. One number for the first U-Net, or one per "
    "U-Net. The pretrained model keeps shapes at 0.3 and loses them at 0.6.  [default: 0.4]",
)
@click.option(
    "--inpaint",
    metavar="FILE",
    type=Place(),
    help="Paint a part of this image and keep the rest: where --mask is white, else where the image is transparent.",
)
@click.option(
    "--mask",
    metavar="FILE",
    type=Place(),
    help="The part of --inpaint to paint: white in an image of the same size.",
)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default="crop",
    show_default=True,
    help="How a given image of another shape is fitted to the model: cut off what is beyond its middle, add a margin "
    "(white, with --inpaint painted), or change its proportions.",
)
@sampling_options
@click.option(
    "--frames", type=FRAMES, metavar="N", help="Frames of each video.  [default: as in the model's configuration]"
)
@click.option(
    "--fps",
    type=Positive(),
    metavar="X",
    help="Frames a second of the videos, also a condition of the model.  [default: as in the model's configuration]",
)
@click.option("--seconds", type=Positive(), metavar="X", help="Length of each video in seconds, in place of --frames.")
@click.option(
    "--window",
    type=FRAMES,
    metavar="N",
    help="Frames of a long video that are made at once, given those before: less memory.  [default: all frames]",
)
@click.option(
    "--load-ema",
    type=bool,
    is_flag=False,
    flag_value="true",
    default=True,
    show_default=True,
    metavar="[true|false]",
    help="Use the averaged weights if the checkpoint has them. Also --load_ema.",
)
@click.option("--no-load-ema", is_flag=True, help="The same as --load-ema false.")
@click.option(
    "--start-at-unet",
    type=COUNT,
    metavar="N",
    default=1,
    show_default=True,
    help="Begin with this U-Net, which enlarges --init.",
)
@click.option("--stop-at-unet", type=COUNT, metavar="N", help="Stop after this U-Net.")
@click.option("--save-stages", is_flag=True, help="Also write what every U-Net before the last one made.")
@click.option("--grid", is_flag=True, help="Also write all of them with their captions on one sheet.")
@click.option("--no-metadata", is_flag=True, help="Write no settings into the files.")
@click.option("--batch-size", type=BATCH, metavar="N", default=16, show_default=True, help="Size of a batch.")
@click.option(
    "--sweep",
    type=SweepAxis(),
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Instead of single images, write a sheet for each caption and seed in which an option takes these values: "
    "cond_scale, guidance, steps, sampler or cache_interval. A second one is the other axis of the sheet.",
)
@device_option
@quiet_option
@click.pass_context
def sample(context: click.Context, no_load_ema: bool, load_ema: bool, **request: Any) -> None:
    """Make images or videos of TEXT with a trained model and print where they are.

    No file is ever replaced: the next free name is taken (-1, -2 ...). The same seed gives the same image, however
    many are made at once. Processes that torchrun starts share the images; each file then has its seed in its name.
    PNG, JPEG, WebP, AVIF, GIF, MP4 and WebM files hold the settings that they were made with; imagen info shows them.

    \b
    imagen sample "a 3d render of a bear on a white background" -n 4 --grid
    imagen sample --prompts captions.txt --output images/ --cond-scale 3,1
    imagen sample --model moving-digits "the digit 3 moves left" -o three.gif
    imagen sample --prompts captions.txt --sweep cond_scale=1,2,4 steps=8,16
    imagen sample --from-png images/a_red_heart.png --steps 50
    imagen sample --prompts captions.txt --init photo.jpg --strength 0.4
    imagen sample --prompts captions.txt --inpaint photo.png --mask mask.png
    """
    if request["sweep"]:
        from ._sweep import run
    else:
        from ._session import run
    from ._request import Request

    request["load_ema"] = load_ema and not no_load_ema
    if request["from_png"] is not None:
        from ._from_image import completed

        request = completed(request, context)
    run(Request(**request))

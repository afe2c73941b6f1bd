"""``imagen sample``: pictures or videos from a trained model."""

from __future__ import annotations

from typing import Any

import click

from ._options import SEED, Caption, PerStage, device_option, quiet_option

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("text", required=False, type=Caption())
@click.option(
    "-m",
    "--model",
    default="./imagen.pt",
    show_default=True,
    metavar="PATH",
    help="A checkpoint, a folder of checkpoints, or their address.",
)
@click.option(
    "--cond-scale",
    type=PerStage(float, 0),
    default="5",
    show_default=True,
    help="Guidance weight, one or one per U-Net; 1 turns guidance off. Also --cond_scale.",
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
@click.option("--negative", type=Caption(), metavar="TEXT", help="What they shall not show; needs guidance.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="Captions from a file, one per line, or from standard input with -; empty lines and those with # are skipped.",
)
@click.option("-n", "--num-images", type=COUNT, metavar="N", default=1, show_default=True, help="How many per caption.")
@click.option(
    "--frames", type=COUNT, metavar="N", help="Frames of each video.  [default: as in the model's configuration]"
)
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Frames a second of the videos; the model is told, too.  [default: as in the model's configuration]",
)
@click.option(
    "--seed",
    type=SEED,
    metavar="N",
    help="Of the first one of each caption; the next ones have seed + 1 ...",
)
@click.option("--steps", type=PerStage(int, 1), help="Sampling steps, one number or one per U-Net.")
@click.option("--sampler", type=PerStage(str), help="Name of the sampler, one or one per U-Net.")
@click.option("--guidance", default="cfg", show_default=True, metavar="NAME", help="Guidance method.")
@click.option("--stop-at-unet", type=COUNT, metavar="N", help="Stop after this U-Net.")
@click.option("--save-stages", is_flag=True, help="Also write what every U-Net before the last one made.")
@click.option("--grid", is_flag=True, help="Also write all of them with their captions on one sheet.")
@click.option("--batch-size", type=COUNT, metavar="N", default=16, show_default=True, help="How many are made at once.")
@click.option(
    "--precision",
    type=click.Choice(["no", "fp16", "bf16"]),
    default="no",
    show_default=True,
    help="Compute in half precision: faster where the hardware has it. Also --dtype.",
)
@click.option("--compile", is_flag=True, help="Compile the networks first: minutes, worth it for many pictures.")
@click.option(
    "--cache-interval",
    type=PerStage(int, 1),
    default="1",
    show_default=True,
    help="Compute the inner levels of the networks only at every so-many-th call, one number or one per U-Net: faster, "
    "less exact.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="A file, a folder, or - for standard output. Without it, the caption is the name: ./a_red_heart.png, or .gif. "
    "A video is what the suffix says: .gif, .webp, .png, .avif, .mp4, .webm, or frame-%04d.png for single frames.",
)
@device_option
@quiet_option
def sample(no_load_ema: bool, load_ema: bool, **request: Any) -> None:
    """Make pictures or videos of TEXT with a trained model and print where they are.

    No file is ever replaced: the next free name is taken (-1, -2 ...). The same seed gives the same picture, however
    many are made at once. Processes that torchrun starts share the pictures; each file then has its seed in its name.

    \b
    imagen sample "a 3d render of a bear on a white background" -n 4 --grid
    imagen sample --prompts captions.txt --output pictures/ --cond-scale 3,1
    imagen sample "the digit 3 moves left" --frames 16 --fps 8 --output three.mp4
    """
    from ._sampling import Request, run

    run(Request(load_ema=load_ema and not no_load_ema, **request))

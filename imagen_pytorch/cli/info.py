"""``imagen info``: what a model is and what it costs, before anything is allocated."""

from __future__ import annotations

from typing import Any

import click

from ._options import BATCH, FRAMES, Place, Precision


@click.command(short_help="Print parameters, FLOPs and memory of a model.")
@click.argument("target", required=False, type=Place())
@click.option(
    "--batch-size", type=BATCH, metavar="N", help="Images or clips per step.  [default: the configuration's, else 16]"
)
@click.option("--max-batch-size", type=BATCH, metavar="N", help="Images or clips in memory at a time.")
@click.option("--precision", type=Precision(), help="Mixed precision. Also --dtype.")
@click.option("--frames", type=FRAMES, metavar="N", help="Frames of each clip of a video model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs; bytes and FLOPs are not rounded.")
def info(**options: Any) -> None:
    """Print what TARGET is and what it costs: parameters, FLOPs, and the memory for training and for sampling.

    TARGET is a configuration file, the name of a ready-made configuration, or a checkpoint: a .pt or .safetensors file,
    a folder of checkpoints or of shards, or the address of one. Without it: ./imagen.pt, ./imagen_config.json or emoji,
    the first that there is. Of an image or video that imagen sample made, the settings are printed.

    Nothing is allocated, and of a checkpoint nothing but its description is read. k, M, G ... are powers of 1000. The
    encoder of captions is not counted.

    \b
    imagen info paper                            the paper's cascade
    imagen info imagen.pt                        a checkpoint
    imagen info mine.json --batch-size 64 --precision bf16
    imagen info a_red_heart.png                  an image, and how it was made
    """
    from ._info import run

    run(**options)

"""``imagen export``: a trained model as a file to share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ._options import Place, Positive

#: the file that is written where none is named
NAME = "model.safetensors"


@click.command(short_help="Write a trained model to a small file.")
@click.argument("model", required=False, type=Place())
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=Place(),
    default=f"./{NAME}",
    show_default=True,
    help="Where to write it, a path or an address; the suffix .safetensors or .pt chooses the format.",
)
@click.option("--full", is_flag=True, help="Keep single precision; without it weights are stored in half precision.")
@click.option("--no-load-ema", is_flag=True, help="Take the trained weights even if there are averaged ones.")
@click.option(
    "--ema-width",
    type=Positive(),
    metavar="W",
    help="Average the weights over this fraction of the training, for example 0.1. The training must have had "
    '"posthoc_ema": true in the trainer part of its configuration.',
)
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def export(model: str | None, output: str, full: bool, no_load_ema: bool, ema_width: float | None, force: bool) -> None:
    """Write the weights and the description of MODEL without what only training needs, and print the path.

    MODEL is a checkpoint, a folder of checkpoints, or the address of one. Without it: ./imagen.pt, else the newest
    below this folder. Every command that takes a checkpoint takes the file: `imagen sample --model model.safetensors`.

    \b
    imagen export                                    the newest model, in ./model.safetensors
    imagen export runs/demo/imagen.pt -o fox.safetensors
    imagen export --ema-width 0.1                    another average of its weights
    """
    from ..checkpoint import export_model
    from ..training.posthoc import WIDEST
    from ._errors import say
    from ._files import check_place, tell
    from ._models import find_model

    if ema_width is not None and ema_width >= WIDEST:
        raise click.UsageError(f"--ema-width is a fraction of the training below {WIDEST:.4f}, got {ema_width:g}")
    if no_load_ema and ema_width is not None:
        raise click.UsageError("--no-load-ema and --ema-width contradict each other: give one of them")
    if "://" not in output:
        output = os.path.join(output, NAME) if os.path.isdir(output) else output
        if os.path.lexists(output) and not force:
            raise click.UsageError(f"{output} exists already; --force replaces it, --output writes another file")
        check_place(Path(output))
    options = {"half": not full, "averaged": not no_load_ema, "overwrite": force, "ema_width": ema_width}
    for number, average in export_model(find_model(model), output, **options).items():
        say(
            f"U-Net {number}: average of relative width {ema_width:g} from {average.count} snapshots, profile within "
            f"{average.combination.error:.1%}"
        )
    tell(output)

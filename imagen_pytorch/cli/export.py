"""``imagen export``: a trained model as a file to share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ._options import Place, Positive, quiet_option

#: the file that is written where none is named
NAME = "model.safetensors"


@click.command(short_help="Write a trained model to a file to share.")
@click.argument("model", required=False, type=Place())
@click.argument("out", required=False, type=Place())
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=Place(),
    help="Where to write it, as OUT: a path or an address; the suffix .safetensors, .pt or .onnx chooses the format.  "
    f"[default: ./{NAME}]",
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
@click.option("--unet", type=click.IntRange(min=1), metavar="N", help="U-Net of an .onnx file.  [default: 1]")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@quiet_option
def export(**options: Any) -> None:
    """Write the weights and the description of MODEL without what only training needs to OUT, and print the path.

    MODEL is a checkpoint, a folder of checkpoints, or the address of one. Without it: ./imagen.pt, else the newest
    below this folder. Every command that takes a checkpoint takes the file: `imagen sample --model model.safetensors`.
    An .onnx file holds the network of one U-Net in single precision, for batches of any size.

    \b
    imagen export                                 the newest model
    imagen export runs/demo/imagen.pt fox.safetensors
    imagen export emoji upsampler.onnx --unet 2   the second network of a model
    imagen export --ema-width 0.1                 another average of its weights
    """
    from ._errors import say
    from ._files import check_place, tell
    from ._models import find_model

    onnx, output = _checked(**{name: options[name] for name in ("out", "output", "unet", "full")},
                            averages=(options["no_load_ema"], options["ema_width"]))  # fmt: skip
    if "://" not in output:
        output = os.path.join(output, NAME) if os.path.isdir(output) else output
        if os.path.lexists(output) and not options["force"]:
            raise click.UsageError(f"{output} exists already; --force replaces it, --output writes another file")
        check_place(Path(output))
    common = {"averaged": not options["no_load_ema"], "overwrite": options["force"]}
    model = find_model(options["model"])
    if onnx:
        lines = [_to_onnx(model, output, options["unet"] or 1, **common)]
    else:
        lines = _to_checkpoint(model, output, options["ema_width"], half=not options["full"], **common)
    if lines and not options["quiet"]:
        say("\n".join(lines))
    tell(output)


def _checked(
    out: str | None, output: str | None, unet: int | None, full: bool, averages: tuple[bool, float | None]
) -> tuple[bool, str]:
    """Return whether the file is an ONNX file, and its place.

    Raises:
        click.UsageError: options that contradict each other.
    """
    from ..training.posthoc import WIDEST

    raw, width = averages
    if out is not None and output is not None:
        raise click.UsageError(f"the file is named twice, {out} and --output {output}: give one of them")
    if width is not None and width >= WIDEST:
        raise click.UsageError(f"--ema-width is a fraction of the training below {WIDEST:.4f}, got {width:g}")
    if raw and width is not None:
        raise click.UsageError("--no-load-ema and --ema-width contradict each other: give one of them")
    output = out or output or f"./{NAME}"
    onnx = output.lower().endswith(".onnx")
    if onnx and (full or width is not None):
        raise click.UsageError("an .onnx file is always in single precision, of the weights or their usual averages")
    if unet is not None and not onnx:
        raise click.UsageError("--unet is for .onnx files; other files hold all U-Nets")
    return onnx, output


def _to_checkpoint(model: str, output: str, width: float | None, **options: Any) -> list[str]:
    from ..checkpoint import export_model

    return [
        f"U-Net {number}: average of relative width {width:g} from {average.count} snapshots, profile within "
        f"{average.combination.error:.1%}"
        for number, average in export_model(model, output, ema_width=width, **options).items()
    ]


def _to_onnx(model: str, output: str, number: int, **options: Any) -> str:
    from ..export import export_onnx

    difference = export_onnx(model, output, unet_number=number, **options)
    if difference is None:
        return "not compared with torch, because onnxruntime is not installed"
    return f"U-Net {number}: onnxruntime and torch agree within {difference:.1g} of the largest number"

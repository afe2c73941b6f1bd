"""``imagen train``: train a cascade that a configuration describes."""

from __future__ import annotations

from typing import Any

import click

from ._options import (
    BATCH,
    LARGEST_SCALE,
    LATEST,
    SEED,
    USUAL_COND_SCALE,
    Caption,
    Entry,
    Names,
    PerStage,
    Place,
    Precision,
    device_option,
    quiet_option,
)

COUNT, PERIOD = click.IntRange(min=1), click.IntRange(min=0)


class UnetChoice(click.ParamType):
    """A 1-based number, or "all"."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or None for all of them.

        Raises:
            click.BadParameter: neither of the two.
        """
        if value == "all" or not isinstance(value, str):
            return None if value == "all" else value
        if not value.isdigit() or int(value) < 1:
            self.fail(f"U-Nets are numbered from 1: give a number or all, not {value!r}", param, ctx)
        return int(value)


@click.command(short_help="Train on a folder of images or clips.")
@click.option(
    "--config",
    metavar="FILE",
    type=Place(),
    help="Configuration file or name of a ready-made one. Without it: ./imagen_config.json if there is one, else "
    "emoji, a small cascade for the embedded images.",
)
@click.option("--unet", type=UnetChoice(), default="1", show_default=True, help="The U-Net to train; all: one by one.")
@click.option(
    "--epochs",
    type=COUNT,
    metavar="N",
    help="Train for N passes over the data now. Also --epoches.",
)
@click.option("--steps", type=COUNT, metavar="N", help="Train for N steps now.")
@click.option(
    "--max-steps",
    type=COUNT,
    metavar="N",
    help="Train until there have been N steps, those of earlier runs included. Without any of the three: `steps` of "
    "the configuration, counted like this; else what an interrupted run set out for; else 1000 steps now.",
)
@click.option(
    "--text",
    type=Caption(),
    metavar="TEXT",
    multiple=True,
    help="Caption of a sample; may be repeated.  [default: sample_texts]",
)
@click.option(
    "--valid",
    "validate_every",
    type=PERIOD,
    is_flag=False,
    flag_value=50,
    metavar="[N]",
    help="Validate every N steps, 50 without a number, on a held-out part of the data.  [default: validate_at_every]",
)
@click.option(
    "--data",
    metavar="NAME",
    help="emoji64, moving-digits, a folder of images or clips (a path or a URL such as gs://bucket/images), or a "
    "hub data set, in place of dataset_name. Also --dataset. Without a configuration, moving-digits trains the "
    "ready-made model of videos.",
)
@click.option(
    "--batch-size", type=BATCH, metavar="N", help="Images or clips per step, in place of the configuration's."
)
@click.option(
    "--max-batch-size", type=BATCH, metavar="N", help="Images or clips in memory at a time, for the same result."
)
@click.option(
    "--lr",
    type=PerStage(float, 0),
    metavar="RATE[,...]",
    help="Learning rate, one or one per U-Net, also of a model that is trained further.  [default: trainer.lr]",
)
@click.option(
    "--sample-every", type=PERIOD, metavar="N", help="Period of samples; 0: none.  [default: sample_at_every]"
)
@click.option("--sample-at-first", is_flag=True, help="Also draw samples before the first step.")
@click.option(
    "--save-every", type=PERIOD, metavar="N", help="Period of checkpoints; 0: at the end.  [default: save_at_every]"
)
@click.option(
    "--keep",
    type=COUNT,
    metavar="N",
    help="Keep N earlier checkpoints, each with its step in its name, and with --valid the best one.",
)
@click.option("--log-every", type=COUNT, metavar="N", default=50, show_default=True, help="Period of metrics.")
@click.option(
    "--cond-scale",
    type=PerStage(float, 0, LARGEST_SCALE),
    help=f"Guidance of the samples.  [default: the model's own, else {USUAL_COND_SCALE:g}]",
)
@click.option(
    "--seed", type=SEED, metavar="N", help="Seed of all random numbers; the same one gives the same training."
)
@click.option("--precision", type=Precision(), help="Mixed precision; auto: bf16 on GPUs that have it. Also --dtype.")
@click.option(
    "--log-with",
    type=Names(),
    metavar="NAME[,...]",
    help="Also log to a tracker of Accelerate: tensorboard, wandb, trackio, mlflow, aim, comet_ml, clearml, dvclive or "
    "swanlab. Also --report_to.",
)
@click.option("--compile", is_flag=True, help="Compile the networks first: minutes, worth it for long trainings.")
@click.option(
    "--set",
    "entries",
    type=Entry(),
    metavar="PLACE=VALUE",
    multiple=True,
    help="An entry of the configuration, such as 'imagen.noise_schedules=flow(shift=3)'; may be repeated.",
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "ddp", "fsdp2"]),
    help="How several processes share the work: copies of the model (ddp), or its shards (fsdp2).",
)
@click.option(
    "--checkpoint",
    metavar="PATH",
    type=Place(),
    help="Where the model is kept: a path from the current folder, or a URL.  [default: checkpoint_path, in the output "
    "folder]",
)
@click.option(
    "--resume",
    type=Place(),
    is_flag=False,
    flag_value=LATEST,
    metavar="[RUN]",
    help="Go on with a run, named by its folder or one of its checkpoints, and with its configuration; without a name "
    "the newest in or below the output folder. Also --resume_from_checkpoint.",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Start a new model in a folder without one: a free name like that of -o, else runs/DATE-DATA.",
)
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Go on from a checkpoint of a model that differs, with the weights that fit; what differs is said.",
)
@click.option(
    "-o",
    "--output",
    type=Place(),
    default=".",
    show_default=True,
    metavar="FOLDER",
    help="For samples, metrics.jsonl, loss.png, report.html, the configuration, and the checkpoint unless --checkpoint "
    "says where.",
)
@click.option("--force", is_flag=True, help="Train although the memory seems too small for it.")
@device_option
@quiet_option
def train(**request: Any) -> None:
    """Train one U-Net of a cascade, or all of them, and print where the checkpoint is.

    If the checkpoint exists, training goes on from it. It is written now and then, at the end, on Ctrl-C, when the
    terminal closes, and before an error ends the training. The learning rate falls until the last step unless the
    configuration says otherwise. A folder of images without captions trains a model without text.

    \b
    imagen train                               U-Net 1 on the embedded images
    imagen train --unet 2                      its upsampler
    imagen train --data ./images --unet all    images with captions (cat.txt)
    imagen train --data moving-digits          videos of moving digits
    imagen train --config mine.json --max-steps 5000 --sample-every 500
    """
    from ._training import Request, run

    code = run(Request(**request))
    if code:
        raise click.exceptions.Exit(code)

"""Implementation of ``imagen eval`` for models of videos: motion and digits of clips of moving digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._data import caption_of, images_of
from ._drawing import EvalOptions, Model, write_results
from ._errors import say
from ._judge import clip_figures, clip_table
from ._real import chosen_source, recorded_source
from ._sampling import Wanted
from ._sources import data_record, kept_arguments

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

#: the data whose clips can be judged, and the part of them that is never trained on
DIGITS, HELD_OUT = "moving-digits", "test"
#: clips on the sheet
ROWS = 12


def judges_clips(model: str, data: str | None) -> bool:
    """Return whether the data that a model is compared with are clips that can be judged.

    Args:
        model: path of the checkpoint, which tells what it was trained on.
        data: other data to compare with, or None.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    return chosen_source(data, recorded_source(model)).name == DIGITS


def _data(model: Model, request: EvalOptions) -> tuple[Any, dict[str, Any]]:
    """Open the clips to compare with, as many frames as the model makes; also what JSON says about them.

    Raises:
        click.UsageError: the model takes no captions, or an option has no meaning for clips.
    """
    from ..data import open_source

    source = chosen_source(request.data, recorded_source(model.path))
    if model.imagen.unconditional:
        raise click.UsageError(f"{model.path} takes no captions, and clips of {DIGITS} are judged by theirs")
    for name, given in (("--metrics", request.metrics), ("--extractor", request.extractor)):
        if given:
            raise click.UsageError(f"{name} {','.join(given)}: videos are judged by their motion and their digits")
    takes, factor = kept_arguments(DIGITS, ()), model.imagen.temporal_downsample_factor[model.last - 1]
    arguments = {name: value for name, value in source.arguments.items() if name in takes}
    arguments |= {"split": request.split or HELD_OUT, "image_size": model.size, "channels": model.imagen.channels}
    if model.imagen.video_frames:
        arguments |= {"num_frames": model.imagen.video_frames // factor, "frame_stride": factor}
    dataset = open_source(DIGITS, **arguments)
    return dataset, {**data_record(DIGITS, dataset), "split": arguments["split"]}


def _sheet(made: Tensor, real: Tensor, captions: list[str], title: str) -> Image.Image:
    """Frames in a row, of a generated and of a real clip for each of some captions."""
    from ..evaluation.sheets import labelled_grid
    from ..images import to_pil

    count = min(ROWS, len(captions))
    chosen = [place * len(captions) // count for place in range(count)]
    rows = [to_pil(clips[chosen].transpose(2, 3).flatten(3).clamp(0, 1)) for clips in (made, real)]
    labels = [captions[place] for place in chosen]
    return labelled_grid(list(zip(*rows, strict=True)), labels, ["generated", "real"], title=title, scale=2)


def evaluate_videos(model: Model, request: EvalOptions) -> None:
    """Compute, print and write everything.

    Raises:
        click.ClickException: anything that the user can put right.
        ValueError: a setting out of range.
    """
    import torch

    dataset, record = _data(model, request)
    count = min(request.limit, len(dataset))
    items = [dataset[place * len(dataset) // count] for place in range(count)]
    real, captions = torch.stack([images_of(item) for item in items]), [caption_of(item) or "" for item in items]
    if not request.quiet:
        say(f"{model.place}: {count} clips for captions of {DIGITS}, split {record['split']}")
    wanted = [Wanted(caption, request.seed + index) for index, caption in enumerate(captions)]
    made, words = model.sample(wanted, request)
    report = clip_figures(made, real, captions, request.seed)
    if not request.quiet:
        for line in clip_table(report):
            say(f"  {line}")
    facts = {
        "target": model.path,
        "model": model.record(),
        "sampling": words,
        "seeds": [request.seed, request.seed + count - 1],
        "data": record,
        "figures": report,
    }
    write_results(request.output, "eval", facts, _sheet(made, real, captions, f"{model.path}: {words}"))

"""Implementation of ``imagen enlarge``: given images through the upsamplers of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._given import read_image
from ._process import this_process
from ._prompts import Prompt
from ._request import Request, check_request
from ._session import Model, draw, open_model

if TYPE_CHECKING:
    from ..images import Size


def _words(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def sizes_of(model: Model) -> list[Size]:
    """Return the sizes of the images of each U-Net.

    Raises:
        click.UsageError: no U-Net enlarges images.
    """
    if len(model.imagen.unets) == 1 or model.imagen.is_video:
        raise click.UsageError(f"{model.place}: this model has no U-Net that enlarges images")
    return [stage.size for stage in model.imagen.stages]


def begin(sizes: list[Size], size: Size, path: str, fit: str | None) -> int:
    """Return the number of the U-Net that an image of this size is for.

    Raises:
        click.UsageError: none makes an image of this size larger, and no fit is stated.
    """
    inputs = sizes[:-1]
    if size in inputs:
        return len(inputs) + 1 - inputs[::-1].index(size)
    if fit is None:
        known = " or ".join(map(_words, inputs))
        raise click.UsageError(
            f"{path} has {_words(size)} pixels; this model enlarges {known} to {_words(sizes[-1])}: --fit crop, pad or "
            "stretch brings an image to that size first"
        )
    smaller = [number for number, (height, width) in enumerate(inputs, 2) if height <= size[0] and width <= size[1]]
    return max(smaller, default=2)


def _end(sizes: list[Size], start: int, scale: int | None) -> int:
    """Return the number of the U-Net whose images are larger by a factor; the last one without a factor.

    Raises:
        click.UsageError: none makes such images.
    """
    height, width = sizes[start - 2]
    for number in range(len(sizes), start - 1, -1):
        if scale is None or sizes[number - 1] == (scale * height, scale * width):
            return number
    known = " or ".join(_words(size) for size in sizes[start - 1 :])
    raise click.UsageError(f"--scale {scale}: images of {_words((height, width))} are enlarged to {known}")


def run(request: Request, files: tuple[str, ...], scale: int | None, fit: str | None) -> None:
    """Enlarge images and write them.

    Args:
        request: the options of sampling; its text describes all images.
        files: the images.
        scale: factor of the size, or None for that of the last U-Net.
        fit: as in `Request`; None refuses images that do not fit.

    Raises:
        click.ClickException, ValueError: anything that the user can put right.
    """
    process = this_process()
    prompts = [Prompt(request.text, {})]
    check_request(request, process, prompts * len(files))
    images = [read_image(path)[0].size[::-1] for path in files]
    model = open_model(request, process)
    sizes = sizes_of(model)
    sessions = []
    for path, size in zip(files, images, strict=True):
        start = begin(sizes, size, path, fit)
        stop = _end(sizes, start, scale)
        own = {"init": path, "start_at_unet": start, "stop_at_unet": None if stop == len(sizes) else stop}
        name = f"{Path(path).stem}_{_words(sizes[stop - 1])}"
        sessions += model.sessions(replace(request, **own, fit=fit or "crop", name=name), prompts)
    draw(sessions, process)

"""The options of ``imagen sample``, and what can be said of them before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._files import collected, counts_frames, slug
from ._from_image import Source
from ._outputs import Images, check_name, check_video_name
from ._process import Process
from ._prompts import SIDES, Prompt, read_prompts

if TYPE_CHECKING:
    from ._assignments import Axis

#: images on one sheet, at most
MAX_CELLS = 4096
#: the options of the length of videos
LENGTH = ("frames", "fps", "seconds", "window")


@dataclass(frozen=True)
class Request:
    """The options of ``imagen sample``; the command's help says what they mean. ``name`` is the stem of files."""

    output: str | None
    model: str | None
    device: str
    quiet: bool
    precision: str
    compile: bool
    cache_interval: Any
    cond_scale: Any
    guidance: str | None
    sampler: Any
    steps: Any
    seed: int | None
    text: str | None = None
    prompts: str | None = None
    negative: str | None = None
    num_images: int = 1
    frames: int | None = None
    fps: float | None = None
    seconds: float | None = None
    window: int | None = None
    init: str | None = None
    strength: Any = None
    inpaint: str | None = None
    mask: str | None = None
    fit: str = "crop"
    start_at_unet: int = 1
    stop_at_unet: int | None = None
    load_ema: bool = True
    save_stages: bool = False
    grid: bool = False
    batch_size: int = 16
    no_metadata: bool = False
    name: str | None = None
    sweep: tuple[Axis, ...] = ()
    from_png: Source | None = None

    def given_prompts(self, context: click.Context) -> list[Prompt]:
        """All captions that were given, in order.

        Raises:
            click.UsageError: the file cannot be read or holds none, or a line states what the command does not take.
        """
        given = [] if self.text is None else [Prompt(self.text, {})]
        return given if self.prompts is None else given + read_prompts(self.prompts, context)

    def groups(self, prompts: list[Prompt]) -> list[tuple[Request, list[Prompt]]]:
        """Return the request for each run of captions that state the same options beside seeds and numbers.

        Raises:
            click.UsageError: a line contradicts an axis of a sweep.
        """

        def alike(prompt: Prompt) -> tuple[bool, dict[str, Any]]:
            own = {name: value for name, value in prompt.options.items() if name not in ("seed", "num_images", *SIDES)}
            return prompt.caption is None, own

        found = []
        for (_, options), group in groupby(prompts, alike):
            if taken := [axis.name for axis in self.sweep if axis.name in options]:
                raise click.UsageError(f"--sweep {taken[0]}=... and {taken[0]} beside a caption contradict each other")
            found.append((replace(self, **options), list(group)))
        return found or [(self, [])]

    def check_given(self) -> None:
        """Refuse options of given images without the images that they are about.

        Raises:
            click.UsageError: naming them.
        """
        if self.mask is not None and self.inpaint is None:
            raise click.UsageError("--mask says where to paint: give the image with --inpaint FILE")
        if self.start_at_unet > 1 and self.init is None:
            raise click.UsageError(f"--start-at-unet {self.start_at_unet} enlarges an image: give it with --init FILE")
        if self.strength is not None and self.init is None:
            raise click.UsageError("--strength says how far to change an image: give it with --init FILE")
        if self.strength is not None and self.start_at_unet > 1:
            raise click.UsageError("--strength does not go with --start-at-unet: the image is enlarged, not changed")


def count_of(request: Request, prompts: list[Prompt]) -> int:
    """Return the number of images or videos to make; a model without text makes them without a caption."""
    return sum(prompt.options.get("num_images", request.num_images) for prompt in prompts or [Prompt(None, {})])


def target_path(request: Request, caption: str | None, suffix: str) -> Path:
    """Return the file name of a result; the file may exist."""
    given = Path(request.inpaint or request.init or "").stem
    name = f"{slug(request.name or caption or given)}{suffix}"
    if counts_frames(Path(name)):  # a caption about percents
        name = name.replace("%", "_")
    if request.output is None:
        return Path(name)
    given = Path(request.output)
    is_folder = request.output.endswith(("/", "\\")) or given.is_dir() or not given.suffix
    return given / name if is_folder else given


def check_request(request: Request, process: Process, prompts: list[Prompt]) -> None:
    """Refuse, before a model is loaded, what fits no model or not this number of processes."""
    if request.frames is not None and request.seconds is not None:
        raise click.UsageError("--frames and --seconds both say how long a video is: give one of them")
    to_stdout = request.output == "-"
    count = count_of(request, prompts)
    if to_stdout and (count > 1 or request.grid or request.save_stages):
        raise click.UsageError("--output - takes a single image or video; give a folder for several")
    if to_stdout and collected() is not None:
        raise click.UsageError("--json and --output - both take standard output: give one of them")
    if request.grid and count > MAX_CELLS:
        raise click.UsageError(f"a sheet has room for {MAX_CELLS:,} of them: leave out --grid, or make fewer")
    if process.count > 1 and (to_stdout or request.grid):
        raise click.UsageError(f"{process.count} processes write files of their own: leave out --grid and --output -")
    if process.count > 1 and request.seed is None:
        raise click.UsageError(f"{process.count} processes need --seed, so that each of them makes other images")
    if to_stdout:
        return
    path = target_path(request, "name", Images.suffix)
    check_name(path)
    if any(getattr(request, name) is not None for name in LENGTH):
        check_video_name(path)

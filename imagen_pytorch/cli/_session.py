"""``imagen sample``: a loaded model, what is made with it, and the files that this becomes."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..image_metadata import metadata_texts
from ..version import __version__
from ._errors import format_error, say
from ._existing import Existing
from ._files import check_place, tell, write_new
from ._from_image import Position
from ._given import given_images
from ._models import find_model, load, spoken
from ._options import chosen_device
from ._outputs import Images, outputs_of
from ._process import Process, this_process
from ._prompts import Prompt, read_line
from ._request import LENGTH, Request, check_request, count_of, target_path
from ._sampling import Made, Wanted, again, check_arguments, choices, last_unet, results, sample_arguments, settings

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade


@dataclass(frozen=True)
class Session:
    """A loaded model and a request for it.

    Attributes:
        request: the options.
        imagen: the model, on its device.
        outputs: the files that its results become.
        prompts: the captions with seeds and numbers of their own; one of None without a caption.
        stop: the U-Net to stop after, or None.
        place: the model and its device in words.
        arguments: of `Cascade.sample`, the same for everything that is made.
        words: what they choose, in words.
        maker: the same for the settings in files, and the model, its device and versions.
    """

    request: Request
    imagen: Cascade
    outputs: Images
    prompts: list[Prompt]
    stop: int | None
    place: str
    arguments: dict[str, Any]
    words: str
    maker: dict[str, Any]

    def wanted(self) -> Iterator[Wanted]:
        """Yield everything to make: each caption with the seeds of its images."""
        for caption, options in self.prompts:
            for index in range(options.get("num_images", self.request.num_images)):
                yield Wanted(caption, options.get("seed", self.request.seed) + index)

    def settings(self, wanted: Wanted, stage: int) -> dict[str, Any]:
        """Return the settings of a result of a stage (counted from 0), all but its place in a batch."""
        request, imagen = self.request, self.imagen
        height, width = imagen.stages[stage].size
        found = {
            "prompt": wanted.caption,
            "negative_prompt": request.negative,
            "seed": wanted.seed,
            "stop_at_unet": stage + 1 if stage + 1 < len(imagen.unets) else None,
            **{name: getattr(self.outputs, name, None) for name in ("frames", "fps", "window")},
            **{name: getattr(request, name) for name in ("precision", "compile", "cache_interval", "load_ema")},
            "size": [width, height],
            **self.maker,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def count(self) -> int:
        """The number of images or videos to make."""
        return count_of(self.request, self.prompts)

    @property
    def last(self) -> int:
        """The number of the last U-Net that runs."""
        return self.stop or len(self.imagen.unets)

    def path(self, wanted: Wanted, process: Process) -> Path:
        """Return the file name of an image or video; the file may exist."""
        return process.file_name(target_path(self.request, wanted.caption, self.outputs.suffix), wanted.seed)

    def stages(self, made: Made) -> list[tuple[int, Any]]:
        """Return the result of each U-Net with its index in the model."""
        return list(enumerate(made.stages, self.last - len(made.stages)))


@dataclass(frozen=True)
class Model:
    """A model on its device.

    Attributes:
        imagen: the model.
        path: of its checkpoint.
        place: the model and its device in words.
        identity: the entries of settings that name the model, its device and versions.
    """

    imagen: Cascade
    path: str
    place: str
    identity: dict[str, Any]

    def sessions(self, request: Request, prompts: list[Prompt]) -> list[Session]:
        """Check a request and the captions against the model, before anything is made. Errors as for `session`."""
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        found = [self.session(*group) for group in replace(request, seed=seed).groups(prompts)]
        for session in found[1:]:  # the first one is checked before its first step
            check_arguments(self.imagen, session.arguments)
        return found

    def session(self, request: Request, prompts: list[Prompt]) -> Session:
        """Check a request against the model; the output's folder is made.

        Raises:
            click.ClickException, ValueError: anything that the user can put right.
        """
        request.check_given()
        imagen, start = self.imagen, request.start_at_unet
        outputs = outputs_of(imagen, **{name: getattr(request, name) for name in LENGTH})
        path = None if request.output == "-" else target_path(request, "name", outputs.suffix)
        if path is not None:
            outputs.check(path)
        if request.save_stages and getattr(outputs, "window", None):
            raise click.UsageError(f"--save-stages: a video of more than {outputs.window} frames is made in parts")
        prompts = _check_captions(imagen, prompts, request)
        stop = last_unet(imagen, self.path, request.stop_at_unet, start)
        _check_sides(prompts, *imagen.stages[(stop or 0) - 1].size)
        given = given_images(request, imagen)
        if path is not None:
            check_place(path)
        if prompts[0].caption is None and request.cond_scale is None and not imagen.unconditional:
            request = replace(request, guidance="cfg", cond_scale=0.0 if imagen.can_classifier_guidance else 1.0)
        arguments = sample_arguments(request, imagen, stop) | given.arguments
        words = ", ".join(filter(None, (given.words, settings(imagen, arguments))))
        maker = {**_chosen(imagen, arguments), **given.entries, **self.identity}
        if request.from_png:
            request.from_png.compare(maker, spoken(self.path, self.path))
        return Session(request, imagen, outputs, prompts, stop, self.place, arguments, words, maker)


def _check_captions(imagen: Cascade, prompts: list[Prompt], request: Request) -> list[Prompt]:
    """Return the captions, None in place of one where the model or a given image makes it unnecessary.

    Raises:
        click.UsageError: a caption is missing or one too many.
    """
    given = any(prompt.caption is not None for prompt in prompts)
    if imagen.unconditional and (given or request.negative):
        raise click.UsageError("this model was trained without captions; call it without TEXT")
    optional = imagen.unconditional or request.init is not None or request.inpaint is not None
    if not optional and (not prompts or any(prompt.caption is None for prompt in prompts)):
        raise click.UsageError('say what to draw: imagen sample "a red heart", or --prompts FILE')
    if request.negative and not given:
        raise click.UsageError("--negative belongs to a caption: give TEXT")
    return prompts or [Prompt(None, {})]


def _check_sides(prompts: list[Prompt], height: int, width: int) -> None:
    """Refuse a size that a caption states and the model does not make."""
    for options in (prompt.options for prompt in prompts):
        size = (options.get("width", width), options.get("height", height))
        if size != (width, height):
            asked, fits = ("x".join(map(str, sides)) for sides in (size, (width, height)))
            raise click.UsageError(f"a caption asks for {asked} pixels: this model makes images of {fits}")


def _chosen(imagen: Cascade, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a call for the settings in files, one value where all U-Nets have the same."""
    chosen = choices(imagen, arguments)
    alike = {name: values[0] for name, values in chosen.items() if isinstance(values, list) and len(set(values)) == 1}
    return {**chosen, **alike}


def open_model(request: Request, process: Process) -> Model:
    """Load the model of a request.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    import torch

    from ..pretrained import pretrained_name
    from ..training.identity import contents_digest

    path = find_model(request.model)
    device = chosen_device(process.device(request.device))
    imagen = load(path, request.load_ema).to(device)
    name = pretrained_name(path) or re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    identity = {
        "model": {"name": name, "digest": contents_digest({"model": imagen.state_dict()})},
        "device": str(imagen.device),
        "versions": {"imagen_pytorch": __version__, "torch": torch.__version__},
    }
    return Model(imagen, path, f"{spoken(path, request.model)} on {device}", identity)


def open_sessions(request: Request, process: Process) -> list[Session]:
    """Load the model and check the request against it; the output's folder is made.

    Raises:
        click.ClickException, ValueError: anything that the user can put right.
    """
    prompts = request.given_prompts(click.get_current_context())
    check_request(request, process, prompts)
    model = open_model(request, process)
    if not prompts and _asks(model.imagen, request):
        _converse(model, request, process)
        return []
    return model.sessions(request, prompts)


def _texts(session: Session, made: Made, stage: int) -> dict[str, str]:
    """Return the texts in the file of a stage (counted from 0): its settings, and for viewers of PNG the main ones."""
    if session.request.no_metadata:
        return {}
    caption, seed = made.wanted
    viewers = {} if caption is None else {"Description": caption}
    viewers |= {"Comment": f"{session.words}, seed {seed}", "Software": f"imagen-pytorch {__version__}"}
    return viewers | metadata_texts({**session.settings(made.wanted, stage), "batch": made.position._asdict()})


def write(session: Session, made: Made, process: Process) -> list[Path]:
    """Write the files of an image or video.

    Returns:
        where they are: those of the last U-Net first.
    """
    outputs, request = session.outputs, session.request
    name = session.path(made.wanted, process)
    *earlier, (last, result) = session.stages(made)
    written = outputs.write(result, name, last, _texts(session, made, last))
    every = list(written)
    for stage, item in earlier if request.save_stages else ():
        path = outputs.of_stage(written, name, stage + 1)
        every += outputs.write(item, path, stage, _texts(session, made, stage))
    return every


def _write_grid(session: Session, made: list[Made]) -> None:
    request, outputs = session.request, session.outputs
    captions = [item.wanted.caption or f"seed {item.wanted.seed}" for item in made]
    columns = request.num_images if request.num_images > 1 else min(len(made), 4)
    sheet = outputs.grid([item.stages[-1] for item in made], captions, columns)
    name = made[0].wanted.caption
    if request.prompts and len(set(captions)) > 1:  # the sheet is one of the file, not of its first caption
        name = "captions" if request.prompts == "-" else Path(request.prompts).stem
    path = outputs.grid_name(target_path(request, name, outputs.suffix))
    tell(write_new(outputs.encode(sheet, path.suffix, session.stages(made[0])[-1][0]), path))


def _missing(session: Session, every: Iterator[Wanted], process: Process, existing: Existing) -> Iterator[Wanted]:
    """Yield those images of a list of captions that do not exist yet."""
    request, last = session.request, session.last - 1
    if request.prompts is None or request.output == "-" or request.grid or request.no_metadata:
        return every
    return (item for item in every if not existing.has(session.path(item, process), session.settings(item, last)))


def _results(session: Session, every: Iterator[Wanted], position: Position | None) -> Iterator[Made]:
    """Make images or videos, a single one perhaps at its place in a batch."""
    arguments = {**session.arguments, **session.outputs.arguments()}
    if position is not None:
        return again(session.imagen, next(every), position, arguments)
    return results(session.imagen, every, session.request.batch_size, arguments)


def draw(sessions: list[Session], process: Process) -> None:
    """Make and write the images or videos of sessions of the same model.

    Raises:
        click.ClickException, ValueError: anything that the user can put right.
    """
    existing, made, before = Existing(), [], 0
    total = sum(session.count for session in sessions)
    for session in sessions:
        request = session.request
        if not request.quiet and process.rank == 0:
            place = f"{session.place}: " if session is sessions[0] else ""
            say(f"{place}{session.words}, seed {next(session.wanted()).seed}")
        source = request.from_png if max(total, process.count) == 1 and request.prompts is None else None
        position = None if source is None else source.position_for(request.batch_size)
        every = process.items(session.wanted(), before)
        before += session.count
        for item in _results(session, _missing(session, every, process, existing), position):
            if request.output == "-":
                stage, result = session.stages(item)[-1]
                texts = _texts(session, item, stage)
                sys.stdout.buffer.write(session.outputs.encode(result, session.outputs.suffix, stage, texts))
                continue
            for path in write(session, item, process):
                tell(path)
            if request.grid:
                made.append(item)
    if existing.found and not sessions[0].request.quiet:
        say(f"{existing.found} of them existed already, with the same settings")
    if made:
        _write_grid(sessions[0], made)


def run(request: Request) -> None:
    """Make and write the images or videos of a request.

    Raises:
        click.ClickException, ValueError: anything that the user can put right.
    """
    process = this_process()
    draw(open_sessions(request, process), process)


# -- a conversation ---------------------------------------------------------------------------------------------------


def _asks(imagen: Cascade, request: Request) -> bool:
    """Return whether to ask for captions: none is given, one is needed, and this is a terminal."""
    needed = not (imagen.unconditional or request.init or request.inpaint or request.sweep)
    return needed and sys.stdin.isatty() and sys.stdout.isatty()


def _converse(model: Model, request: Request, process: Process) -> None:
    """Ask for captions, and draw each, until an empty line or the end of the input. A mistake is said, and not more."""
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited and repeated
    say(f"{model.place}. A caption, perhaps with options such as --n rain --d 7 --s 20 --l 3; an empty line ends.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            line = ""
        if not line:
            return
        try:
            prompt = read_line(line, "this line", click.get_current_context())
            draw(model.sessions(request, [prompt]), process)
        except click.ClickException as error:
            say(error.format_message())
        except Exception as error:
            say(format_error(error))

"""``imagen sample``: captions in, images or videos out."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..image_metadata import metadata_texts
from ..version import __version__
from ..wording import first_of
from ._errors import USAGE, CommandFailed, say
from ._files import check_place, counts_frames, slug, tell, write_new
from ._from_image import Position, Source
from ._models import find_model, load, spoken
from ._options import chosen_device, guidance_weight
from ._outputs import Images, check_name, check_video_name, outputs_of
from ._process import Process, this_process

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade
    from ._assignments import Axis


#: bytes of the captions of one call
_MAX_PROMPT_BYTES = 1 << 26
#: tokens of a caption that is padded, at most: their number comes from a file
_MAX_TOKENS = 4096
#: images on one sheet, at most
MAX_CELLS = 4096
#: a line of captions that looks like one with options after the caption, or like an object of JSON
_OPTIONS = re.compile(r"(^|\s)--[a-z]{1,16}[ =]\S|^\{.*\}$")


@dataclass(frozen=True)
class Request:
    """The options of ``imagen sample``; the command's help says what they mean."""

    text: str | None
    model: str | None
    cond_scale: Any
    load_ema: bool
    negative: str | None
    prompts: str | None
    num_images: int
    frames: int | None
    fps: float | None
    seed: int | None
    steps: Any
    sampler: Any
    guidance: str | None
    stop_at_unet: int | None
    save_stages: bool
    grid: bool
    batch_size: int
    precision: str
    compile: bool
    cache_interval: Any
    output: str | None
    device: str
    quiet: bool
    sweep: tuple[Axis, ...] = ()
    from_png: Source | None = None
    no_metadata: bool = False

    def captions(self) -> list[str]:
        """All captions that were given, in order.

        Raises:
            click.UsageError: the file cannot be read or holds none.
        """
        given = [] if self.text is None else [self.text]
        return given if self.prompts is None else given + read_captions(self.prompts)


def read_captions(prompts: str) -> list[str]:
    """Return the captions in a file, one per line, or in standard input for "-".

    Raises:
        click.UsageError: it cannot be read or holds none.
    """
    try:
        text = _prompts(prompts)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid UTF-8"
        raise click.UsageError(f"cannot read captions from {prompts}: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise click.UsageError(f"no caption in {prompts}")
    odd = [line for line in found if _OPTIONS.search(line)]
    if odd:
        shown = first_of(odd)
        say(f"warning: options and JSON among captions are not read, the whole line is the caption: {shown}")
    return found


def _prompts(name: str) -> str:
    """The text of a file or, with -, of standard input: UTF-8, with a byte order mark or without.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
        click.UsageError: it is larger than any list of captions.
    """
    if name == "-":
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise click.UsageError(f"{name} is not a list of captions: it has more than {_MAX_PROMPT_BYTES >> 20} MiB")
    return data.decode("utf-8-sig")


class Wanted(NamedTuple):
    """One image or video to make."""

    caption: str | None
    seed: int


class Made(NamedTuple):
    """One image or video: its request, the result of every stage, and its place in the batch."""

    wanted: Wanted
    stages: list[Any]
    position: Position


def check_arguments(imagen: Cascade, arguments: dict[str, Any]) -> None:
    """Refuse arguments of `Cascade.sample` that lie outside of their range, before anything is made.

    Raises:
        ValueError: with what came and what fits.
    """
    import inspect

    from ..cascade.cascade import Cascade
    from ..cascade.options import SampleOptions

    bound = inspect.signature(Cascade.sample).bind(imagen, **arguments)
    bound.apply_defaults()
    SampleOptions.take(bound.arguments).check(len(imagen.unets))


def _check_captions(imagen: Cascade, captions: list[str], negative: str | None) -> list[str | None]:
    if imagen.unconditional:
        if captions or negative:
            raise click.UsageError("this model was trained without captions; call it without TEXT")
        return [None]
    if not captions:
        raise click.UsageError('say what to draw: imagen sample "a red heart", or --prompts FILE')
    return list(captions)


def last_unet(imagen: Cascade, model: str, stop: int | None = None) -> int | None:
    """Return the U-Net to stop after, or None for the whole cascade: the given one, or the last of the trained ones.

    Args:
        imagen: the model.
        model: where it is, for messages.
        stop: the U-Net that an option states.

    Raises:
        click.UsageError: the model has no such U-Net.
        CommandFailed: the first U-Net has not been trained: everything would be noise.
    """
    from ..training.sampling import last_trained, untrained

    count = len(imagen.unets)
    if stop is not None and stop > count:
        raise click.UsageError(f"--stop-at-unet {stop}: the model has {count} U-Nets")
    trained = last_trained(list(imagen.unets), [0] * count)
    if trained == 0:
        others = ", ".join(str(number) for number, unet in enumerate(imagen.unets, 1) if not untrained(unet))
        raise CommandFailed(
            f"U-Net 1 of {model} has not been trained and can only draw noise (trained: {others or 'none'}): run the "
            "command that trained this model once more with --unet 1",
            USAGE,
        )
    if trained < (stop or count):
        after = f"stopping after U-Net {trained}" if stop is None else "what it makes is noise"
        say(f"U-Net {trained + 1} has not been trained yet: {after}")
    return trained if stop is None and trained < count else stop


def sample_arguments(request: Any, imagen: Cascade, stop: int | None) -> dict[str, Any]:
    """Arguments of `Cascade.sample` that are the same for everything that is made.

    Args:
        request: the options of a command, those of `sampling_options` among its attributes.
        imagen: the model.
        stop: the U-Net to stop after, or None.
    """
    return {
        "cond_scale": guidance_weight(imagen, request.cond_scale, request.guidance),
        "steps": request.steps,
        "sampler": request.sampler,
        "guidance": request.guidance,
        "stop_at_unet_number": stop,
        "negative_texts": getattr(request, "negative", None),
        "precision": request.precision,
        "compile": request.compile,
        "cache_interval": request.cache_interval,
        "use_tqdm": not request.quiet and sys.stderr.isatty(),
        "return_all_unet_outputs": True,
    }


def choices(imagen: Cascade, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return guidance, sampler and steps of a call of `Cascade.sample`, one for each U-Net: the given or its own."""
    from ..diffusion.guidance import GUIDANCE
    from ..diffusion.samplers import SAMPLERS
    from ..tensors import per_stage

    count = len(imagen.unets)
    scales, samplers, steps = (per_stage(arguments[name], count, name) for name in ("cond_scale", "sampler", "steps"))
    own = [stage.process for stage in imagen.stages]
    plans = [process.plan(number, name) for process, name, number in zip(own, samplers, steps, strict=True)]
    return {
        "cond_scale": list(scales),
        "guidance": GUIDANCE.spell(GUIDANCE.make(arguments["guidance"] or imagen.guidance or "cfg")),
        "sampler": [SAMPLERS.spell(item) if SAMPLERS.name_of(item) else type(item).__name__ for item, *_ in plans],
        "steps": [len(levels) - 1 for _, levels, _ in plans],
    }


def _listed(values: list[Any]) -> str:
    """One value if all are alike, else all of them."""
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return words[0] if len(set(words)) == 1 else ",".join(words)


def settings(imagen: Cascade, arguments: dict[str, Any]) -> str:
    """Guidance, sampler and steps of a call of `Cascade.sample` in words, of each U-Net where they differ."""
    chosen = choices(imagen, arguments)
    used = arguments["stop_at_unet_number"] or len(imagen.unets)
    scales, samplers, steps = (chosen[name][:used] for name in ("cond_scale", "sampler", "steps"))
    unguided = set(scales) == {1} and not chosen["guidance"].startswith("cfgpp")
    guidance = "no guidance" if unguided else f"guidance {chosen['guidance']} {_listed(scales)}"
    return f"{guidance}, sampler {_listed(samplers)}, {_listed(steps)} steps"


def results(imagen: Cascade, wanted: Iterable[Wanted], batch_size: int, arguments: dict[str, Any]) -> Iterator[Made]:
    """Make images or videos, ``batch_size`` at a time."""
    waiting = iter(wanted)
    while batch := list(islice(waiting, batch_size)):
        captions = [item.caption for item in batch]
        texts = {"batch_size": len(batch)} if None in captions else {"texts": captions}
        stages = imagen.sample(**texts, seed=[item.seed for item in batch], **arguments)
        tokens = imagen.encode(captions).embeds.shape[1] if len(set(captions)) > 1 else 0
        for index, (item, outputs) in enumerate(zip(batch, zip(*stages, strict=True), strict=True)):
            yield Made(item, list(outputs), Position(len(batch), index, tokens))


def _again(imagen: Cascade, wanted: Wanted, position: Position, arguments: dict[str, Any]) -> Iterator[Made]:
    """Make an image or video at its place in a batch of the same size, with captions padded as they were."""
    from torch.nn.functional import pad

    if position.tokens:
        embeds, mask = imagen.encode([wanted.caption or ""] * position.size)
        room = max(min(position.tokens, _MAX_TOKENS) - embeds.shape[1], 0)
        arguments = {**arguments, "text_embeds": pad(embeds, (0, 0, 0, room)), "text_masks": pad(mask, (0, room))}
    every = results(imagen, [wanted] * position.size, position.size, arguments)
    return (item._replace(position=position) for item in islice(every, position.index, position.index + 1))


def target_path(request: Request, caption: str | None, suffix: str) -> Path:
    """Return the file name of a result; the file may exist."""
    name = f"{slug(caption or '')}{suffix}"
    if counts_frames(Path(name)):  # a caption about percents
        name = name.replace("%", "_")
    if request.output is None:
        return Path(name)
    given = Path(request.output)
    is_folder = request.output.endswith(("/", "\\")) or given.is_dir() or not given.suffix
    return given / name if is_folder else given


def _texts(request: Request, session: Session, made: Made, stage: int) -> dict[str, str]:
    """Return the texts in the file of a stage (counted from 0): its settings, and for viewers of PNG the main ones."""
    if request.no_metadata:
        return {}
    imagen, outputs, (caption, seed) = session.imagen, session.outputs, made.wanted
    height, width = imagen.stages[stage].size
    found = {
        "prompt": caption,
        "negative_prompt": request.negative,
        "seed": seed,
        "stop_at_unet": stage + 1 if stage + 1 < len(imagen.unets) else None,
        **{name: getattr(outputs, name, None) for name in ("frames", "fps")},
        **{name: getattr(request, name) for name in ("precision", "compile", "cache_interval", "load_ema")},
        "batch": made.position._asdict(),
        "size": [width, height],
        **session.maker,
    }
    viewers = {} if caption is None else {"Description": caption}
    viewers |= {"Comment": f"{session.words}, seed {seed}", "Software": f"imagen-pytorch {__version__}"}
    return viewers | metadata_texts({name: value for name, value in found.items() if value is not None})


def _write(request: Request, session: Session, made: Made, process: Process) -> None:
    outputs = session.outputs
    name = process.file_name(target_path(request, made.wanted.caption, outputs.suffix), made.wanted.seed)
    last = len(made.stages) - 1
    written = outputs.write(made.stages[last], name, last, _texts(request, session, made, last))
    for path in written:
        tell(path)
    if request.save_stages:
        for stage, item in enumerate(made.stages[:-1]):
            path = outputs.of_stage(written, name, stage + 1)
            for each in outputs.write(item, path, stage, _texts(request, session, made, stage)):
                tell(each)


def _write_grid(request: Request, made: list[Made], outputs: Images) -> None:
    captions = [item.wanted.caption or f"seed {item.wanted.seed}" for item in made]
    columns = request.num_images if request.num_images > 1 else min(len(made), 4)
    sheet = outputs.grid([item.stages[-1] for item in made], captions, columns)
    name = made[0].wanted.caption
    if request.prompts and len(set(captions)) > 1:  # the sheet is one of the file, not of its first caption
        name = "captions" if request.prompts == "-" else Path(request.prompts).stem
    path = outputs.grid_name(target_path(request, name, outputs.suffix))
    tell(write_new(outputs.encode(sheet, path.suffix, len(made[0].stages) - 1), path))


def _check_output(request: Request, process: Process, captions: list[str]) -> None:
    """Refuse, before a model is loaded, what fits no model or not this number of processes."""
    to_stdout = request.output == "-"
    if to_stdout and (len(captions) > 1 or request.num_images > 1 or request.grid or request.save_stages):
        raise click.UsageError("--output - takes a single image or video; give a folder for several")
    if request.grid and max(len(captions), 1) * request.num_images > MAX_CELLS:
        raise click.UsageError(f"a sheet has room for {MAX_CELLS:,} of them: leave out --grid, or make fewer")
    if process.count > 1 and (to_stdout or request.grid):
        raise click.UsageError(f"{process.count} processes write files of their own: leave out --grid and --output -")
    if process.count > 1 and request.seed is None:
        raise click.UsageError(f"{process.count} processes need --seed, so that each of them makes other images")
    if to_stdout:
        return
    path = target_path(request, "name", Images.suffix)
    check_name(path)
    if request.frames is not None or request.fps is not None:
        check_video_name(path)


@dataclass(frozen=True)
class Session:
    """A loaded model and the request for it.

    Attributes:
        imagen: the model, on its device.
        outputs: the files that its results become.
        texts: the captions; one None for a model without text.
        seed: of the first image of each caption.
        stop: the U-Net to stop after, or None.
        place: the model and its device in words.
        arguments: of `Cascade.sample`, the same for everything that is made.
        words: what they choose, in words.
        maker: the same for the settings in files, and the model, its device and versions.
    """

    imagen: Cascade
    outputs: Images
    texts: list[str | None]
    seed: int
    stop: int | None
    place: str
    arguments: dict[str, Any]
    words: str
    maker: dict[str, Any]

    def wanted(self, num_images: int) -> Iterator[Wanted]:
        """Yield everything to make: each caption with ``num_images`` seeds."""
        return (Wanted(caption, self.seed + index) for caption in self.texts for index in range(num_images))


def _maker(imagen: Cascade, arguments: dict[str, Any], model: str) -> dict[str, Any]:
    """Return those settings that are the same in all files: the choices of a call, the model, device and versions."""
    import torch

    from ..pretrained import pretrained_name
    from ..training.identity import contents_digest

    chosen = choices(imagen, arguments)
    alike = {name: values[0] for name, values in chosen.items() if isinstance(values, list) and len(set(values)) == 1}
    name = pretrained_name(model) or re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return {
        **chosen,
        **alike,
        "model": {"name": name, "digest": contents_digest({"model": imagen.state_dict()})},
        "device": str(imagen.device),
        "versions": {"imagen_pytorch": __version__, "torch": torch.__version__},
    }


def open_session(request: Request, process: Process) -> Session:
    """Load the model and check the request against it; the output's folder is made.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    captions = request.captions()
    model = find_model(request.model)
    _check_output(request, process, captions)
    device = chosen_device(process.device(request.device))
    imagen = load(model, request.load_ema).to(device)
    outputs = outputs_of(imagen, request.frames, request.fps)
    named = request.output != "-"
    if named:
        outputs.check(target_path(request, "name", outputs.suffix))
    texts = _check_captions(imagen, captions, request.negative)
    stop = last_unet(imagen, model, request.stop_at_unet)
    if named:
        check_place(target_path(request, "name", outputs.suffix))
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    place, arguments = f"{spoken(model, request.model)} on {device}", sample_arguments(request, imagen, stop)
    words, maker = settings(imagen, arguments), _maker(imagen, arguments, model)
    if request.from_png:
        request.from_png.compare(maker, spoken(model, model))
    return Session(imagen, outputs, texts, seed, stop, place, arguments, words, maker)


def run(request: Request) -> None:
    """Make and write the images or videos of a request.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    process, to_stdout = this_process(), request.output == "-"
    session = open_session(request, process)
    outputs, arguments = session.outputs, {**session.arguments, **session.outputs.arguments()}
    if not request.quiet and process.rank == 0:
        say(f"{session.place}: {session.words}, seed {session.seed}")
    every = process.items(session.wanted(request.num_images))
    if request.from_png and max(len(session.texts), request.num_images, process.count) == 1:
        position = request.from_png.position_for(request.batch_size)
        items = _again(session.imagen, next(every), position, arguments)
    else:
        items = results(session.imagen, every, request.batch_size, arguments)
    made = []
    for item in items:
        if to_stdout:
            stage = len(item.stages) - 1
            texts = _texts(request, session, item, stage)
            sys.stdout.buffer.write(outputs.encode(item.stages[-1], outputs.suffix, stage, texts))
            continue
        _write(request, session, item, process)
        if request.grid:
            made.append(item)
    if request.grid:
        _write_grid(request, made, outputs)

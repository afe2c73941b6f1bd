"""What ``imagen sample`` does: captions in, pictures or videos out."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ._errors import USAGE, CommandFailed, described, exit_code
from ._files import check_place, counts_frames, slug, write_new
from ._options import chosen_device
from ._outputs import Pictures, check_name, check_video_name, outputs_of
from ._shares import Share, this_share

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade


@dataclass(frozen=True)
class Request:
    """The options of ``imagen sample``; the command's help says what they mean."""

    text: str | None
    model: str
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
    guidance: str
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

    def captions(self) -> list[str]:
        """All captions that were given, in order.

        Raises:
            click.UsageError: the file cannot be read or holds none.
        """
        if self.prompts is None:
            return [] if self.text is None else [self.text]
        try:
            text = sys.stdin.read() if self.prompts == "-" else Path(self.prompts).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise click.UsageError(f"cannot read captions from {self.prompts}: {reason}") from error
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise click.UsageError(f"there is no caption in {self.prompts}")
        return ([] if self.text is None else [self.text]) + found


class Wanted(NamedTuple):
    """One picture or video to make."""

    caption: str | None
    seed: int


class Made(NamedTuple):
    """One picture or video: what was asked for, and what every stage made of it."""

    wanted: Wanted
    stages: list[Any]


def find_model(given: str) -> str:
    """The checkpoint to load: the given file or address, or the newest in the given folder.

    Raises:
        CommandFailed: there is none.
    """
    from ..checkpoint import CheckpointStore
    from ..storage.reading import MANIFEST

    folder = Path(given)
    if folder.is_dir():
        if (folder / MANIFEST).is_file():  # shards, which several processes wrote together
            return given
        inside = [str(path) for path in (folder / "imagen.pt",) if path.is_file()] or CheckpointStore(given).paths()
        if not inside:
            raise CommandFailed(f"the folder {given} holds no checkpoint (imagen.pt or checkpoint.<steps>.pt)", USAGE)
        return inside[0]
    if "://" not in given and not folder.is_file():
        raise CommandFailed(
            f"there is no model at {given}: train one with `imagen train` or `imagen demo`, or name one with --model",
            USAGE,
        )
    return given


def _load(model: str, load_ema: bool) -> Cascade:
    """The model in a checkpoint.

    Raises:
        CommandFailed: it is unusable; the message names the checkpoint before it if there is one.
    """
    from ..checkpoint import CheckpointError, load_imagen_from_checkpoint
    from ..storage import CheckpointMisaddressed, CheckpointUnreachable, is_local, kind_of, locate, previous_of

    try:
        return load_imagen_from_checkpoint(model, load_ema_if_available=load_ema)
    except (CheckpointMisaddressed, CheckpointUnreachable):
        raise
    except CheckpointError as error:
        before = previous_of(model)
        fs, place = locate(before)
        if not is_local(fs) or kind_of(fs, place) != "file":
            raise
        hint = f"the one before it: --model {shlex.quote(before)}"
        raise CommandFailed(f"{described(error)}; {hint}", exit_code(error)) from error


def _check_captions(imagen: Cascade, captions: list[str], negative: str | None) -> list[str | None]:
    if imagen.unconditional:
        if captions or negative:
            raise click.UsageError("this model was trained without captions; call it without TEXT")
        return [None]
    if not captions:
        raise click.UsageError('say what to draw: imagen sample "a red heart", or --prompts FILE')
    return list(captions)


def _arguments(request: Request, imagen: Cascade) -> dict[str, Any]:
    """Arguments of `Cascade.sample` that are the same for everything that is made."""
    from ..training.sampling import last_trained

    count = len(imagen.unets)
    stop = request.stop_at_unet
    if stop is not None and stop > count:
        raise click.UsageError(f"--stop-at-unet {stop}: the model has {count} U-Nets")
    trained = last_trained(list(imagen.unets), [0] * count)
    if stop is None and 0 < trained < count:
        click.echo(f"U-Net {trained + 1} has not been trained yet: stopping after U-Net {trained}", err=True)
        stop = trained
    by_default = click.get_current_context().get_parameter_source("cond_scale") == click.core.ParameterSource.DEFAULT
    cannot = imagen.unconditional or not imagen.can_classifier_guidance
    return {
        "cond_scale": 1.0 if cannot and by_default else request.cond_scale,
        "steps": request.steps,
        "sampler": request.sampler,
        "guidance": request.guidance,
        "stop_at_unet_number": stop,
        "negative_texts": request.negative,
        "precision": request.precision,
        "compile": request.compile,
        "cache_interval": request.cache_interval,
        "use_tqdm": not request.quiet and sys.stderr.isatty(),
        "return_all_unet_outputs": True,
    }


def results(imagen: Cascade, wanted: list[Wanted], batch_size: int, arguments: dict[str, Any]) -> Iterator[Made]:
    """Make pictures or videos, ``batch_size`` at a time."""
    for first in range(0, len(wanted), batch_size):
        batch = wanted[first : first + batch_size]
        captions = [item.caption for item in batch]
        texts = {"batch_size": len(batch)} if None in captions else {"texts": captions}
        stages = imagen.sample(**texts, seed=[item.seed for item in batch], **arguments)
        for item, outputs in zip(batch, zip(*stages, strict=True), strict=True):
            yield Made(item, list(outputs))


def _target(request: Request, caption: str | None, suffix: str) -> Path:
    """The file name of a result, were it free."""
    name = f"{slug(caption or '')}{suffix}"
    if counts_frames(Path(name)):  # a caption about percents
        name = name.replace("%", "_")
    if request.output is None:
        return Path(name)
    given = Path(request.output)
    is_folder = request.output.endswith(("/", "\\")) or given.is_dir() or not given.suffix
    return given / name if is_folder else given


def _write(request: Request, made: Made, outputs: Pictures, share: Share) -> None:
    target = share.named(_target(request, made.wanted.caption, outputs.suffix), made.wanted.seed)
    last = len(made.stages) - 1
    written = outputs.write(made.stages[last], target, last)
    for path in written:
        click.echo(path)
    if request.save_stages:
        for number, item in enumerate(made.stages[:-1], start=1):
            for path in outputs.write(item, outputs.of_stage(written, target, number), number - 1):
                click.echo(path)


def _write_grid(request: Request, made: list[Made], outputs: Pictures) -> None:
    captions = [item.wanted.caption or f"seed {item.wanted.seed}" for item in made]
    columns = request.num_images if request.num_images > 1 else min(len(made), 4)
    sheet = outputs.grid([item.stages[-1] for item in made], captions, columns)
    path = outputs.grid_name(_target(request, made[0].wanted.caption, outputs.suffix))
    click.echo(write_new(outputs.encode(sheet, path.suffix, len(made[0].stages) - 1), path))


def _check_output(request: Request, share: Share, captions: list[str]) -> None:
    """Refuse, before a model is loaded, what fits no model or not so many processes."""
    to_stdout = request.output == "-"
    if to_stdout and (len(captions) > 1 or request.num_images > 1 or request.grid or request.save_stages):
        raise click.UsageError("--output - takes a single picture or video; give a folder for several")
    if share.count > 1 and (to_stdout or request.grid):
        raise click.UsageError(f"{share.count} processes write files of their own: leave out --grid and --output -")
    if share.count > 1 and request.seed is None:
        raise click.UsageError(f"{share.count} processes need --seed, so that each of them makes other pictures")
    if to_stdout:
        return
    target = _target(request, "name", Pictures.suffix)
    check_name(target)
    if request.frames is not None or request.fps is not None:
        check_video_name(target)


def run(request: Request) -> None:
    """Make and write what was asked for.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    captions = request.captions()
    model = find_model(request.model)
    share, to_stdout = this_share(), request.output == "-"
    _check_output(request, share, captions)
    device = chosen_device(share.device(request.device))

    imagen = _load(model, request.load_ema).to(device)
    outputs = outputs_of(imagen, request.frames, request.fps)
    if not to_stdout:
        outputs.check(_target(request, "name", outputs.suffix))
    texts = _check_captions(imagen, captions, request.negative)
    if not to_stdout:
        check_place(_target(request, "name", outputs.suffix))
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    if not request.quiet and share.rank == 0:
        click.echo(f"{model} on {device}, seed {seed}", err=True)
    every = [Wanted(caption, seed + index) for caption in texts for index in range(request.num_images)]
    made = []
    arguments = {**_arguments(request, imagen), **outputs.arguments()}
    for item in results(imagen, share.of(every), request.batch_size, arguments):
        if to_stdout:
            stage = len(item.stages) - 1
            click.get_binary_stream("stdout").write(outputs.encode(item.stages[-1], outputs.suffix, stage))
            continue
        _write(request, item, outputs, share)
        made.append(item if request.grid else None)
    if request.grid:
        _write_grid(request, made, outputs)

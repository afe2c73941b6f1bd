"""Calls of `Cascade.sample` for commands: their arguments, the choices in them, and their results one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ._errors import USAGE, CommandFailed, say
from ._from_image import Position
from ._options import guidance_weight

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade

#: tokens of a caption that is padded, at most: their number comes from a file
_MAX_TOKENS = 4096
#: arguments of `Cascade.sample` with a row for each image; a single row is repeated
_ROWS = ("init_images", "inpaint_images", "inpaint_masks", "start_image_or_video")


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


def last_unet(imagen: Cascade, model: str, stop: int | None = None, start: int = 1) -> int | None:
    """Return the U-Net to stop after, or None for the whole cascade: the given one, or the last of the trained ones.

    Args:
        imagen: the model.
        model: where it is, for messages.
        stop: the U-Net that an option states.
        start: the U-Net to begin at.

    Raises:
        click.UsageError: the model has no such U-Nets.
        CommandFailed: the U-Net to begin at has not been trained: everything would be noise.
    """
    from ..training.sampling import last_trained, untrained

    count = len(imagen.unets)
    for name, number in (("stop", stop), ("start", start)):
        if number is not None and number > count:
            raise click.UsageError(f"--{name}-at-unet {number}: the model has {count} U-Nets")
    trained = last_trained(list(imagen.unets), [0] * count, start)
    if trained < start:
        others = ", ".join(str(number) for number, unet in enumerate(imagen.unets, 1) if not untrained(unet))
        raise CommandFailed(
            f"U-Net {start} of {model} has not been trained and can only draw noise (trained: {others or 'none'}): run "
            f"the command that trained this model once more with --unet {start}",
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
    used = slice(arguments.get("start_at_unet_number", 1) - 1, arguments["stop_at_unet_number"] or len(imagen.unets))
    scales, samplers, steps = (chosen[name][used] for name in ("cond_scale", "sampler", "steps"))
    unguided = set(scales) == {1} and not chosen["guidance"].startswith("cfgpp")
    guidance = "no guidance" if unguided else f"guidance {chosen['guidance']} {_listed(scales)}"
    return f"{guidance}, sampler {_listed(samplers)}, {_listed(steps)} steps"


def results(imagen: Cascade, wanted: Iterable[Wanted], batch_size: int, arguments: dict[str, Any]) -> Iterator[Made]:
    """Make images or videos, ``batch_size`` at a time."""
    waiting = iter(wanted)
    while batch := list(islice(waiting, batch_size)):
        captions = [item.caption or "" for item in batch]
        texts = {"batch_size": len(batch)} if imagen.unconditional else {"texts": captions}
        rows = {name: arguments[name].expand(len(batch), -1, -1, -1) for name in _ROWS if name in arguments}
        stages = _stages(imagen, {**texts, **arguments, **rows, "seed": [item.seed for item in batch]})
        tokens = imagen.encode(captions).embeds.shape[1] if len(set(captions)) > 1 else 0
        for index, (item, outputs) in enumerate(zip(batch, zip(*stages, strict=True), strict=True)):
            yield Made(item, list(outputs), Position(len(batch), index, tokens))


def _stages(imagen: Cascade, arguments: dict[str, Any]) -> list[Any]:
    """The results of every U-Net, or those of the last one for videos that are made in parts."""
    if "window" not in arguments:
        return imagen.sample(**arguments)
    return [imagen.sample_long(**{name: arguments[name] for name in arguments if name != "return_all_unet_outputs"})]


def again(imagen: Cascade, wanted: Wanted, position: Position, arguments: dict[str, Any]) -> Iterator[Made]:
    """Make an image or video at its place in a batch of the same size, with captions padded as they were."""
    from torch.nn.functional import pad

    if position.tokens:
        embeds, mask = imagen.encode([wanted.caption or ""] * position.size)
        room = max(min(position.tokens, _MAX_TOKENS) - embeds.shape[1], 0)
        arguments = {**arguments, "text_embeds": pad(embeds, (0, 0, 0, room)), "text_masks": pad(mask, (0, room))}
    every = results(imagen, [wanted] * position.size, position.size, arguments)
    return (item._replace(position=position) for item in islice(every, position.index, position.index + 1))

"""Options that several commands share, and kinds of values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import click.shell_completion

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade

#: of random numbers, as far as torch counts
SEED = click.IntRange(min=0, max=2**63 - 1)
#: images or clips of a batch, and frames of a clip
BATCH, FRAMES = click.IntRange(min=1, max=1_000_000), click.IntRange(min=1, max=100_000)
#: guidance weight of `train`, `sample` and `demo` where neither an option nor the model states one
USUAL_COND_SCALE = 3.0
#: the largest guidance weight, and the most sampling steps
LARGEST_SCALE, MAX_STEPS = 1e6, 100_000
#: what `--resume` and its relatives in other programs call the newest run
LATEST = "latest"
#: other names of kinds of precision
_PRECISIONS = {"no": "fp32", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class Positive(click.ParamType):
    """A finite number above zero."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none.
        """
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return number


def split_values(text: str) -> list[str]:
    """Split a text at its commas, except for those in brackets: "ddim, edm(S_churn=4, S_noise=1)" has two parts."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


class PerStage(click.ParamType):
    """One value, or one per U-Net with commas between them.

    Args:
        kind: what a value is; made from its text.
        least, most: the smallest and the largest one allowed, or None.
    """

    def __init__(self, kind: type, least: float | None = None, most: float | None = None) -> None:
        self.kind, self.least, self.most = kind, least, most
        self.name = f"{kind.__name__}[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A single value, or a list of them.

        Raises:
            click.BadParameter: one of them is none of this kind, or too small.
        """
        if not isinstance(value, str):
            return value
        try:
            values = [self.kind(item) for item in split_values(value)]
        except ValueError:
            self.fail(f"{value!r} is not one {self.kind.__name__} or several with commas between them", param, ctx)
        if self.kind is float and not all(map(math.isfinite, values)):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        if self.least is not None and min(values) < self.least:
            self.fail(f"{value!r} is below {self.least}", param, ctx)
        if self.most is not None and max(values) > self.most:
            self.fail(f"{value!r} is above {self.most:,}", param, ctx)
        return values[0] if len(values) == 1 else values


class Place(click.ParamType):
    """A path, an address or "-"; "~" is the home folder wherever it comes from, not only where a shell expands it."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path with the home folder in it.

        Raises:
            click.BadParameter: it is empty, or begins with "~" and the name of no user.
        """
        if not value.strip() or "\0" in value:
            self.fail("a path must not be empty or hold a NUL character", param, ctx)
        path = os.path.expanduser(value)
        if path.startswith("~"):
            self.fail(f'{value}: this user does not exist; a name that begins so is "./{value}"', param, ctx)
        return path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Let the shell complete the names of files."""
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


class Caption(click.ParamType):
    """Any text; an argument with bytes of another encoding is none."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is.

        Raises:
            click.BadParameter: it is not valid UTF-8.
        """
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not valid UTF-8", param, ctx)
        return value


class Names(click.ParamType):
    """Several names with commas between them; the command looks them up."""

    name = "str[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names, each once.

        Raises:
            click.BadParameter: a name is empty.
        """
        if isinstance(value, tuple) or not value.strip():
            return value or () if isinstance(value, tuple) else ()
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            self.fail(f"{value!r} is not one name or several with commas between them", param, ctx)
        return tuple(dict.fromkeys(names))


class Entry(click.ParamType):
    """``place=value``: an entry of a configuration, at a place such as ``imagen.unets.0.dim``."""

    name = "place=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[list[str], Any]:
        """Return the parts of the place, and the value: as JSON if it is valid JSON, else as text.

        Raises:
            click.BadParameter: another form.
        """
        if isinstance(value, tuple):
            return value
        place, equals, text = value.partition("=")
        parts = [part.strip() for part in place.split(".")]
        if not equals or not all(parts):
            self.fail(f"{value!r} is not of the form imagen.sampler=ddim", param, ctx)
        try:
            return parts, json.loads(text)
        except (ValueError, RecursionError):
            return parts, text


class Precision(click.Choice):
    """A precision to compute in; other spellings are taken, too. "auto" takes what suits the device."""

    def __init__(self) -> None:
        super().__init__(["fp32", "bf16", "fp16", "auto"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One of no (fp32), fp16 and bf16.

        Raises:
            click.BadParameter: it is none of them.
        """
        name = super().convert(_PRECISIONS.get(value, value), param, ctx)
        if name == "auto":
            from ..cascade.module_state import fast_precision

            given = None if ctx is None else ctx.params.get("device")  # which is processed first
            return fast_precision(chosen_device(given or "auto"))
        return "no" if name == "fp32" else name


device_option = click.option(
    "--device",
    is_eager=True,
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where to compute; auto takes the fastest there is.",
)

cond_scale_option = click.option(
    "--cond-scale",
    type=PerStage(float, 0, LARGEST_SCALE),
    help="Guidance weight, one or one per U-Net; 1 turns guidance off. Also --cond_scale.  [default: the model's own, "
    "else 3]",
)

guidance_option = click.option(
    "--guidance",
    metavar="NAME",
    help="Guidance method: cfg, interval (only at middle noise levels), rescale (keeps the contrast), apg (large "
    "weights without oversaturation), cfgpp (weights of 0 to 1).  [default: the model's own, else cfg]",
)

steps_option = click.option(
    "--steps",
    type=PerStage(int, 1, MAX_STEPS),
    help="Sampling steps, one number or one per U-Net.  [default: the model's own, or the sampler's if one is given]",
)

sampler_option = click.option(
    "--sampler",
    type=PerStage(str),
    help="Sampler, one or one per U-Net: ddpm, ddim, heun, edm, ab2, ab3, pc2, pc3, dpmpp_2m, dpmpp_2s, dpmpp_2m_sde, "
    "dpmpp_2m_sde_heun, lms4. Parameters, also of guidance, in brackets: 'ddpm(eta=0.5)'.  [default: the model's own]",
)

precision_option = click.option(
    "--precision",
    type=Precision(),
    default="fp32",
    show_default=True,
    help="Half precision is faster where the hardware has it; auto: bf16 on GPUs that have it. Also --dtype.",
)

compile_option = click.option(
    "--compile", is_flag=True, help="Compile the networks first: minutes, worth it for many images."
)

cache_interval_option = click.option(
    "--cache-interval",
    type=PerStage(int, 1, MAX_STEPS),
    default="1",
    show_default=True,
    help="Compute the inner levels of the networks only at every Nth call, one number or one per U-Net: faster, less "
    "exact.",
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of sampling: guidance, steps, sampler, precision and what makes it faster."""
    options = (
        cond_scale_option,
        guidance_option,
        steps_option,
        sampler_option,
        precision_option,
        compile_option,
        cache_interval_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")


def guidance_weight(imagen: Cascade, given: Any = None, guidance: str | None = None) -> Any:
    """The guidance weight to sample with: the given one, the model's own, or `USUAL_COND_SCALE`; one, or one per U-Net.

    A model without captions, or one trained without dropping them, cannot be guided: 1 unless a weight is given. No
    weight but a given one is above the largest that the guidance method takes.

    Args:
        imagen: the model.
        given: the weight that an option states, or None.
        guidance: the method that an option states; None: the model's own.

    Raises:
        ValueError: no such method.
    """
    from ..diffusion.guidance import GUIDANCE

    method = GUIDANCE.make((imagen.guidance or "cfg") if guidance is None else guidance)
    if given is not None:
        return given
    if imagen.unconditional or not imagen.can_classifier_guidance:
        return 1.0
    scales = [min(USUAL_COND_SCALE if scale is None else scale, method.largest_scale) for scale in imagen.cond_scale]
    return scales[0] if len(set(scales)) == 1 else scales


def chosen_device(name: str) -> Any:
    """The torch device of that name.

    Raises:
        click.UsageError: this machine has no such device.
    """
    import torch

    if name == "auto":
        there = torch.accelerator.is_available()
        return torch.device(torch.accelerator.current_accelerator().type if there else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.UsageError(f'no device "{name}"; write auto, cpu, cuda, cuda:1 or mps') from error
    there = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
        "xpu": lambda: torch.xpu.is_available() and (device.index or 0) < torch.xpu.device_count(),
    }
    if device.type not in there:
        raise click.UsageError(f'"{name}" is not a device to compute on; write auto, cpu, cuda, cuda:1 or mps')
    if not there[device.type]():
        raise click.UsageError(f'the device "{name}" is not available on this machine; --device cpu always is')
    return device

"""A configuration for a folder of images and this machine: the recipe of the ready-made one, sized and timed."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..signatures import parse, read_config
from ._demo import evenly_spaced
from ._errors import DATA, CommandFailed
from ._memory import MemoryCheck
from ._options import chosen_device
from ._presets import READY_MADE, preset_path

if TYPE_CHECKING:
    import torch

    from ..configs import TrainingConfig

#: images whose size is looked at, and captions of the samples
_LOOKED_AT, _CAPTIONS = 24, 8
#: how often the base network sees each image, within these numbers of steps; an upsampler takes a third of its steps
_PASSES, _LEAST, _MOST = 200, 1000, 20_000
#: by the kind of device: largest image of the base network, width of the networks, images of a batch
_CPU, _GPU = (32, 32, 32), (64, 128, 64)
#: how much faster bfloat16 must multiply matrices to be worth its rounding
_WORTH = 1.2


class Images(NamedTuple):
    """The contents of a folder.

    Attributes:
        count: usable images.
        left_out: fraction of the images that cannot be used.
        captions: of the samples; none if the images have no captions.
        shortest: the shorter sides of some of the images, in ascending order.
    """

    count: int
    left_out: float
    captions: list[str]
    shortest: list[int]


class Recipe(NamedTuple):
    """A configuration that was made.

    Attributes:
        values: its entries, as a file holds them.
        facts: what was found and what the training takes, for programs.
        lines: the same in sentences.
    """

    values: dict[str, Any]
    facts: dict[str, Any]
    lines: list[str]


def look_at(folder: str, size: int) -> Images:
    """Count the images and captions of a folder and look at the sizes of some.

    Raises:
        CommandFailed: it holds clips, or captions of another form than is read.
        DataError: it holds no readable image.
    """
    from ..data import open_source

    dataset: Any = open_source(folder, image_size=size)
    if not hasattr(dataset, "captions_at"):
        raise CommandFailed(f"{folder} is not a folder of images", DATA)
    places = evenly_spaced(len(dataset), _LOOKED_AT)
    captions = [text for place in places for text in dataset.captions_at(place)[:1]]
    unread = getattr(dataset, "near_misses", ())
    if not captions and unread:
        raise CommandFailed(f"the images of {folder} have no captions: {'; '.join(unread)}", DATA)
    shortest = sorted(min(dataset.read(place)[0].size) for place in places)
    left_out = 1 - len(dataset) / dataset.found
    return Images(len(dataset), left_out, list(dict.fromkeys(captions))[:_CAPTIONS], shortest)


def stage_sizes(size: int, top: int) -> list[int]:
    """Return the sizes of the stages: each four times the one before, the first at most ``top``."""
    return [size] if size <= top else [*stage_sizes(size // 4, top), size]


def _model(size: int, top: int, width: int, captions: bool) -> dict[str, Any]:
    """The model of the ready-made configuration with other stages: its second stage serves as every upsampler."""
    model = copy.deepcopy(read_config(preset_path(READY_MADE))["imagen"])
    sizes = stage_sizes(size, top)
    for key, value in model.items():
        if isinstance(value, list) and len(value) == 2:
            model[key] = [copy.deepcopy(value[min(index, 1)]) for index in range(len(sizes))]
    model["image_sizes"] = sizes
    crops = [None, *(side // 2 if side >= 64 else None for side in sizes[1:])]
    model |= {"random_crop_sizes": crops, "crop_coordinates": [crop is not None for crop in crops]}
    for unet in model["unets"]:
        unet["dim"] = width
    if not captions:
        for key in ("text_encoder_name", "cond_drop_prob", "cond_scale"):
            del model[key]
        model["condition_on_text"] = False
    return model


def _steps(count: int, batch: int, stages: int) -> list[int]:
    base = min(max(_PASSES * count // batch, _LEAST), _MOST)
    base = round(base, 2 - len(str(base)))  # two digits
    return [base, *[base // 3] * (stages - 1)]


def _fitting(values: dict[str, Any], count: int, device: torch.device) -> tuple[dict[str, Any], TrainingConfig]:
    """The configuration with as many images in memory at once as fit, and the same checked.

    Raises:
        CommandFailed: not even one fits.
    """
    from ..configs import TrainingConfig

    at_once = batch = values["dataset"]["batch_size"]
    while True:
        tried = values if at_once == batch else {**values, "max_batch_size": at_once}
        config = parse(TrainingConfig, tried)
        check = MemoryCheck(config, range(1, len(config.imagen.unets) + 1), device, force=None)
        try:
            check.before_training(count)
            return tried, config
        except CommandFailed:
            if at_once == 1:
                raise
            at_once //= 2


def _seconds(config: TrainingConfig) -> list[float]:
    """The seconds of a training step of each U-Net with random images: one is taken, after another that warms up."""
    from ..profiling.steps import training_step

    trainer, found = config.create(verbose=False), []
    for number in range(1, len(config.imagen.unets) + 1):
        step = training_step(trainer, number, config.dataset["batch_size"], None, config.max_batch_size)
        for _ in range(2):
            began = time.perf_counter()
            step()
            if trainer.device.type == "cuda":
                import torch

                torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def duration(seconds: float) -> str:
    """Return a time in words: "40 seconds", "12 minutes", "3.5 hours", "2.1 days"."""
    for unit, most in (("seconds", 90), ("minutes", 90 * 60), ("hours", 48 * 3600)):
        if seconds < most:
            value = seconds / {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
            return f"{value:.0f} {unit}" if unit != "hours" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def recipe(folder: str, size: int) -> Recipe:
    """Look at the images and the machine, and return a configuration that trains a cascade of them.

    Args:
        folder: of the images, a path or a URL.
        size: height and width of the generated images.

    Raises:
        click.ClickException: images or a machine that no cascade can be trained with.
    """
    import torch

    from ._doctor import product_seconds

    device = chosen_device("auto")
    top, width, batch = _GPU if device.type == "cuda" else _CPU
    if size > top and size % 16:
        raise click.UsageError(f"--size {size}: above {top} it is a multiple of 16, for the stages before the last")
    images = look_at(folder, size)
    batch = min(batch, images.count)
    model = _model(size, top, width, bool(images.captions))
    stages = model["image_sizes"]
    steps = _steps(images.count, batch, len(stages))
    trainer: dict[str, Any] = {
        "optimizer": "muon",
        "lr": [1.5e-3] * len(stages),
        "warmup_steps": 100,
        "max_grad_norm": 1.0,
        "ema_beta": 0.995 if steps[0] < 5000 else 0.999,
        "ema_update_every": 1,
    }
    half, single = (product_seconds(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    if device.type != "mps" and _WORTH * half < single:
        trainer["precision"] = "bf16"
    values = {
        "type": "elucidated",
        "imagen": model,
        "trainer": trainer,
        "dataset_name": folder,
        "dataset": {"batch_size": batch, "shuffle": True, "drop_last": True},
        "checkpoint_path": "./imagen.pt",
        "steps": steps,
        "sample_at_every": max(steps[0] // 10, 1),
        "save_at_every": 500,
        "sample_texts": images.captions,
    }
    if images.left_out > 0.05:
        values["max_skipped_share"] = round(images.left_out + 0.01, 2)
    values, config = _fitting(values, images.count, device)
    seconds = _seconds(config)
    first = values["sample_at_every"] * seconds[0]
    whole = sum(each * count for each, count in zip(seconds, steps, strict=True))
    facts = {
        "images": images.count,
        "captions": bool(images.captions),
        "image_sizes": stages,
        "steps": steps,
        "batch_size": batch,
        "device": device.type,
        "step_seconds": seconds,
        "first_sheet_seconds": first,
        "total_seconds": whole,
    }
    return Recipe(values, facts, _lines(folder, size, images, values, facts))


def _lines(folder: str, size: int, images: Images, values: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    lost = f", {images.left_out:.0%} of all cannot be used" if images.left_out else ""
    with_captions = "with captions" if images.captions else "without captions, so the model takes no text"
    sides = f"shorter sides {images.shortest[0]} to {images.shortest[-1]} pixels"
    found = [f"{folder}: {images.count} image{'s' * (images.count != 1)} {with_captions}{lost}; {sides}"]
    small = sum(side < size for side in images.shortest)
    if small:
        found.append(f"{small} of {len(images.shortest)} images that were looked at are smaller than {size}x{size}")
    stages = " -> ".join(f"{side}x{side}" for side in facts["image_sizes"])
    steps = " and ".join(f"{count:,}" for count in facts["steps"])
    precision = values["trainer"].get("precision", "fp32")
    found.append(f"{stages} on {facts['device']} in {precision}: {steps} steps of {facts['batch_size']} images")
    each = ", ".join(f"{value:.2g} s" for value in facts["step_seconds"])
    first, whole = duration(facts["first_sheet_seconds"]), duration(facts["total_seconds"])
    found.append(f"a step takes {each} here (one step measured for each stage): the first sheet after {first}, the end "
                 f"after {whole}, without reading and sampling")  # fmt: skip
    return found

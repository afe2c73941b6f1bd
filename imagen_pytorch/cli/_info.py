"""``imagen info``: find out what the target is, estimate, and show it as tables or JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..image_metadata import NotAnImage, may_hold_settings, read_settings
from ..signatures import ConfigError, errors_in_file, parse, read_config
from ..wording import excerpt
from ._memory import plan_of
from ._models import MODEL, checkpoint_in
from ._presets import find_config, preset_names

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade
    from ..checkpoints import CheckpointInfo
    from ..profiling.advice import Machine
    from ..profiling.estimates import Plan, StageEstimate

#: characters of a version, at most
_VERSION = 40
#: suffixes of files that are meant as checkpoints, whatever they hold
_CHECKPOINTS = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


@dataclass(frozen=True)
class Found:
    """A target: its place, its model on the meta device if it describes one, its training options, and its file."""

    path: str
    cascade: Cascade | None
    plan: Plan
    info: CheckpointInfo | None = None


# -- what the target is -----------------------------------------------------------------------------------------------


def _looks_like_checkpoint(path: Path) -> bool:
    """Return whether a file is or should be a checkpoint instead of a configuration."""
    with open(path, "rb") as file:
        start = file.read(9)
    return path.suffix.lower() in _CHECKPOINTS or start.startswith((b"PK", b"\x80")) or start[8:9] == b"{"


def _checkpoint_of(target: str | None) -> str | None:
    """The checkpoint that is meant, or None if it is a configuration.

    Raises:
        click.UsageError: it is nothing that exists.
    """
    if target is None:
        return MODEL if Path(MODEL).is_file() else None
    if "://" in target:
        from ..io.files import kind_of, locate

        return checkpoint_in(target) if kind_of(*locate(target)) == "directory" else target
    path = Path(target)
    if path.is_dir():
        return checkpoint_in(target)
    if path.is_file():
        return target if _looks_like_checkpoint(path) else None
    if target not in preset_names():
        raise click.UsageError(
            f"{target} does not exist: name a configuration file, a checkpoint, or a ready-made configuration "
            f"({', '.join(preset_names())})"
        )
    return None


def _values(path: Path) -> Any:
    """The contents of a configuration file.

    Raises:
        click.UsageError: it is not such a file, and was hardly meant as one.
        ConfigError: it is a broken one.
    """
    try:
        return read_config(path)
    except ConfigError as error:
        if path.suffix.lower() in (".json", ".toml", ".yaml", ".yml"):
            raise
        raise click.UsageError(f"{path} is neither a checkpoint nor a configuration in JSON, TOML or YAML") from error


def _from_config(target: str | None) -> Found:
    path = find_config(target).path
    from ..configs import TrainingConfig
    from ..construction import build_on_meta

    values = _values(path)
    with errors_in_file(path):
        config = parse(TrainingConfig, values)
        cascade = build_on_meta(config.imagen._make)
    return Found(str(path), cascade, plan_of(config, cascade))


def _from_checkpoint(path: str) -> Found:
    import torch

    from ..checkpoints import describe_checkpoint
    from ..checkpoints.model import described_model
    from ..profiling.estimates import Plan

    info = describe_checkpoint(path, ("steps",))
    plan, cascade = Plan(averages="ema" in info.contents), None
    if isinstance(info.contents.get("imagen_params"), dict):
        with torch.device("meta"):
            cascade = described_model(info.contents, path)
    return Found(path, cascade, plan, info)


# -- as data ----------------------------------------------------------------------------------------------------------


def _steps(info: CheckpointInfo) -> list[int]:
    steps = info.contents.get("steps", ())
    values = steps.tolist() if hasattr(steps, "tolist") and not getattr(steps, "is_meta", False) else steps
    counts = isinstance(values, list | tuple) and all(_is_count(value) for value in values)
    return [int(value) for value in values] if counts else []


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**63


def _holds_state(optimizer: Any) -> bool:
    """Return whether the state of an optimizer in a file has any moments: it has none before its first step."""
    return isinstance(optimizer, Mapping) and bool(optimizer.get("state"))


def file_facts(info: CheckpointInfo) -> dict[str, Any]:
    """Read what a checkpoint states about itself and about its training."""
    contents, numbers = info.contents, set()
    weights = contents.get("model")
    counts: dict[str, int] = {}
    for name, item in (weights if isinstance(weights, Mapping) else {}).items():
        head, _, rest = str(name).partition(".")
        place = rest.split(".", 1)[0] if head == "unets" else ""
        counts[place] = counts.get(place, 0) + (item.numel() if hasattr(item, "numel") else 0)
        if re.fullmatch(r"0|[1-9][0-9]{0,3}", place):  # anything else does not number a U-Net
            numbers.add(int(place) + 1)
    steps = _steps(info)
    return {
        "format": info.format,
        "bytes": info.size,
        "version": None if contents.get("version") is None else excerpt(contents["version"], _VERSION),
        "describes_model": isinstance(contents.get("imagen_params"), dict),
        "averages": "ema" in contents,
        "unets": [
            {
                "number": number,
                "steps": steps[number - 1] if number <= len(steps) else None,
                "numbers": counts[str(number - 1)],
                "optimizer": _holds_state(contents.get(f"optim{number - 1}")),
            }
            for number in sorted(numbers)
        ],
        "numbers": sum(counts.values()),
    }


def model_facts(cascade: Cascade) -> dict[str, Any]:
    """Describe a model."""
    text = cascade.condition_on_text
    return {
        "type": type(cascade).__name__,
        "video": cascade.is_video,
        "channels": cascade.channels,
        "image_sizes": [stage.size for stage in cascade.stages],
        "text_encoder": excerpt(cascade.text_encoder_name) if text else None,
        "text_embed_dim": cascade.text_embed_dim if text else None,
        "max_text_len": max(getattr(unet, "max_text_len", 0) for unet in cascade.unets) if text else None,
    }


def collected(found: Found, stages: list[StageEstimate], machine: Machine, warnings: list[str]) -> dict[str, Any]:
    """Everything as plain containers."""
    plan = {name: value for name, value in asdict(found.plan).items() if name not in ("device", "enough")}
    facts: dict[str, Any] = {"target": found.path, "kind": "configuration" if found.info is None else "checkpoint"}
    if found.info is not None:
        facts["checkpoint"] = file_facts(found.info)
    if found.cascade is None:
        return facts
    return facts | {
        "model": model_facts(found.cascade),
        "plan": plan,
        "unets": [asdict(stage) for stage in stages],
        "total": {
            "parameters": sum(stage.parameters for stage in stages),
            "weight_bytes": sum(stage.weight_bytes for stage in stages),
            "sampling_flops": sum(stage.sampling.flops for stage in stages),
        },
        "machine": {"device": machine.device, "name": machine.name, "memory": machine.memory},
        "warnings": warnings,
    }


def _is_image(target: str | None) -> bool:
    if target is None or not os.path.isfile(target):
        return False
    with open(target, "rb") as file:
        return may_hold_settings(file.read(12))


def _print_settings(path: str, as_json: bool) -> None:
    """Print the settings in an image or video."""
    settings = read_settings(path)
    if as_json:
        click.echo(json.dumps({"target": path, "kind": "image", "settings": settings}, indent=2, allow_nan=False))
        return
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{excerpt(name):16}  {excerpt(text, 2000)}")


def run(target: str | None, as_json: bool, **options: Any) -> None:
    """Print what the target is and costs. The options take the place of those that it has, unless they are None.

    Raises:
        click.ClickException: anything that the user can put right.
    """
    if _is_image(target):
        with suppress(NotAnImage):
            return _print_settings(target, as_json)
    checkpoint = _checkpoint_of(target)
    found = _from_config(target) if checkpoint is None else _from_checkpoint(checkpoint)
    given = {name: value for name, value in options.items() if value is not None}

    from ..profiling.advice import advice, this_machine
    from ..profiling.estimates import estimate

    if "frames" in given and found.cascade is not None and not found.cascade.is_video:
        raise click.UsageError("--frames is for models of videos, and this is one of images")
    machine = this_machine()
    plan = replace(found.plan, **given, device=machine.device, enough=machine.memory)
    found = replace(found, plan=plan)
    stages = [] if found.cascade is None else estimate(found.cascade, plan)
    warnings = advice(stages, plan, machine)
    facts = collected(found, stages, machine, warnings)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    from ._info_tables import lines

    click.echo("\n".join(lines(facts)))
    for sentence in warnings:
        click.echo(f"warning: {sentence}", err=True)

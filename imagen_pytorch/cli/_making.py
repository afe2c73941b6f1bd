"""The trainer of a run, made from its configuration and the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..registry import suggestion
from ._options import chosen_device
from ._settings import Request, placed_checkpoint

if TYPE_CHECKING:
    from ..configs import TrainingConfig
    from ..trainer import ImagenTrainer


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that Accelerate does not know, or whose package is missing.

    Raises:
        click.UsageError: naming them.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = tuple(str(name) for name in LoggerType if str(name) != "all")
    for name in names:
        if name not in known:
            raise click.UsageError(f'no tracker "{name}"; known: {", ".join(known)}{suggestion(name, known)}')
    missing = [name for name in names if name not in map(str, get_available_trackers())]
    if missing:
        raise click.UsageError(
            f"the package of the tracker {' and '.join(missing)} is not installed: pip install {' '.join(missing)}"
        )


def make_trainer(config: TrainingConfig, request: Request) -> ImagenTrainer:
    """Return a trainer with a new model, on the device and with the trackers that are asked for.

    Raises:
        click.UsageError: the training cannot use this device, or the package of a tracker is missing.
    """
    import torch

    from ..training.snapshots import snapshots_beside

    device = chosen_device(request.device)
    options: dict[str, Any] = {"verbose": False}  # standard output is for results
    if device.type == "cpu" and chosen_device("auto").type != "cpu":
        options["accelerate_cpu"] = True
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    seed = config.trainer.seed if request.seed is None else request.seed
    if seed is not None:
        torch.manual_seed(seed)  # of the new weights; the trainer's is that of everything else
        options["seed"] = seed
    if posthoc := config.trainer.posthoc_ema:
        posthoc = dict(posthoc) if isinstance(posthoc, Mapping) else {}
        options["posthoc_ema"] = {"folder": snapshots_beside(placed_checkpoint(config, request)), **posthoc}
    if config.validate_at_every:
        options["split_valid_from_train"] = True
    given = config.trainer.given()
    if trackers := given.get("accelerate_log_with"):
        _check_trackers([trackers] if isinstance(trackers, str) else trackers)
        options["accelerate_project_dir"] = given.get("accelerate_project_dir", str(request.folder))
    trainer = config.create(**options)
    if request.device != "auto" and trainer.device.type != device.type:
        raise click.UsageError(f'--device {request.device}: training on this machine uses "{trainer.device.type}"')
    return trainer

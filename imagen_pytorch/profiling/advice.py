"""Whether what is planned fits into a machine, and what helps if it does not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ..training.rehearsal import main_memory
from .estimates import Plan, StageEstimate

#: share of a memory that a suggestion fills
_FILLED = 0.9
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_CGROUP = Path("/sys/fs/cgroup/memory.max")


class Machine(NamedTuple):
    """Where a model would be computed: "cpu" or "cuda", what people call it, and the bytes of its memory."""

    device: str
    name: str
    memory: int


def this_machine() -> Machine:
    """The first GPU, or else the CPU and what this process may take of the main memory."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Machine("cuda", found.name, found.total_memory)
    allowed = _CGROUP.read_text().strip() if _CGROUP.is_file() else ""
    memory = main_memory()
    return Machine("cpu", "this machine", min(memory, int(allowed)) if allowed.isdigit() else memory)


def scaled(value: float, unit: str = "") -> str:
    """A number with three digits and the prefix of its power of 1000: ``12.4 GB``."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_PREFIXES[power]}{unit}".rstrip()


def largest_batch(stage: StageEstimate, plan: Plan, room: int) -> int:
    """The largest power of two of pictures in memory at once with which a training step fits; 0 for none."""
    fixed = stage.training.total - stage.training.activations
    each = max(stage.training.activations / plan.rows, 1)
    fits = int((_FILLED * room - fixed) // each)
    return 1 << (fits.bit_length() - 1) if fits > 0 else 0


def training_advice(stage: StageEstimate, plan: Plan, machine: Machine) -> str | None:
    """Why a training step of this U-Net does not fit and what to do about it, in one sentence; None if it fits."""
    need, room = stage.training, machine.memory
    if need.total <= room:
        return None
    fixed = need.total - need.activations
    savers = [] if stage.gradient_checkpointing else ['"gradient_checkpointing": true in its U-Net']
    savers += ["--precision bf16"] if plan.precision == "no" else []
    much = f"training U-Net {stage.number} needs {scaled(need.total, 'B')}, {machine.name} has {scaled(room, 'B')}"
    batch = largest_batch(stage, plan, room)
    if batch:
        each = fixed + need.activations / plan.rows * batch
        others = f"; {' and '.join(savers)} make room for more" if savers else ""
        return f"{much}: --max-batch-size {batch} needs {scaled(each, 'B')}{others}"
    smaller = "a smaller preset (--config emoji), or --strategy fsdp2 on several GPUs"
    if fixed > _FILLED * room:
        return f"{much}, and {scaled(fixed, 'B')} are needed before the first picture: take {smaller}"
    tried = f"try --max-batch-size 1 with {' and '.join(savers)}, or " if savers else ""
    return f"{much}, and not even one picture at a time fits: {tried}{smaller}"


def sampling_advice(stage: StageEstimate, machine: Machine) -> str | None:
    """Why one picture of this U-Net cannot be made, in one sentence; None if it can."""
    need, room = stage.sampling.total, machine.memory
    if need <= room:
        return None
    much = f"sampling with U-Net {stage.number} needs {scaled(need, 'B')}, {machine.name} has {scaled(room, 'B')}"
    return f"{much}: take a smaller preset (--config emoji), or stop before it (--stop-at-unet)"


def advice(stages: list[StageEstimate], plan: Plan, machine: Machine) -> list[str]:
    """A sentence for everything that does not fit."""
    found = [training_advice(stage, plan, machine) for stage in stages]
    found += [sampling_advice(stage, machine) for stage in stages]
    return [sentence for sentence in found if sentence is not None]

"""Checks that a plan fits into the memory of a machine, and advice if it does not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ..construction import main_memory
from ..data.cache import available_memory
from .estimates import Plan, StageEstimate, Training

#: fraction of a memory that a suggestion fills
_FILLED = 0.9
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
#: files that state the memory limits of containers
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Machine(NamedTuple):
    """The machine on which a model is to be computed.

    Attributes:
        device: "cpu" or "cuda".
        name: its name for messages.
        memory: bytes of memory, or of those that this process may use.
        taken: bytes of these that are in use already.
    """

    device: str
    name: str
    memory: int
    taken: int = 0

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return max(self.memory - self.taken, 0)


def _limits() -> list[int]:
    """Return the limits of main memory by containers and ``ulimit -v``, in bytes."""
    found = [path.read_text(encoding="utf-8").strip() for path in _CGROUPS if path.is_file()]
    limits = [int(text) for text in found if text.isdigit()]
    try:
        import resource
    except ImportError:  # Windows has none
        return limits
    addresses, statm = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm")
    if addresses == resource.RLIM_INFINITY:
        return limits
    mapped = int(statm.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() if statm.is_file() else 0
    return [*limits, max(addresses - mapped, 0)]


def this_machine(device: torch.device | None = None, free: bool = False) -> Machine:
    """Return the given device, or else the first GPU, or else the CPU, with its memory.

    Main memory counts as far as this process may use it: a container or ``ulimit -v`` may set a limit.

    Args:
        device: the device of the model. Devices that share the main memory count as the CPU.
        free: also determine how much of the memory is in use.
    """
    if device.type == "cuda" if device is not None else torch.cuda.is_available():
        found = torch.cuda.get_device_properties(device or 0)
        taken = found.total_memory - torch.cuda.mem_get_info(device or 0)[0] if free else 0
        return Machine("cuda", found.name, found.total_memory, taken)
    memory = main_memory()
    allowed = min([memory, *_limits()])
    known = free and Path("/proc/meminfo").is_file()  # unknown on other systems
    taken = max(allowed - available_memory(), 0) if known else 0
    return Machine("cpu", "this machine", allowed, taken)


def scaled(value: float, unit: str = "") -> str:
    """Format a number with three digits and the prefix of its power of 1000: ``12.4 GB``."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_PREFIXES[power]}{unit}".rstrip()


def largest_batch(need: Training, plan: Plan, room: int) -> int:
    """Return the largest power of two of images in memory at once with which a training step fits; 0 for none."""
    fixed = need.total - need.activations
    each = max(need.activations / plan.rows, 1)
    fits = int((_FILLED * room - fixed) // each)
    return 1 << (fits.bit_length() - 1) if fits > 0 else 0


def _has(machine: Machine) -> str:
    """Return a sentence about the memory of a machine."""
    if not machine.taken:
        return f"{machine.name} has {scaled(machine.memory, 'B')}"
    return f"{machine.name} has {scaled(machine.room, 'B')} free of {scaled(machine.memory, 'B')}"


def training_advice(number: int, need: Training, plan: Plan, machine: Machine, checkpointing: bool) -> str | None:
    """Return one sentence on why a training step of a U-Net does not fit and what to do, or None if it fits.

    Args:
        number: of the U-Net, 1-based.
        need: memory of a step.
        plan: plan of the training.
        machine: the machine.
        checkpointing: gradient checkpointing is on already.
    """
    room = machine.room
    if need.total <= room:
        return None
    fixed = need.total - need.activations
    savers = [] if checkpointing else ['"gradient_checkpointing": true in its U-Net']
    savers += ["--precision bf16"] if plan.precision == "no" else []
    much = f"training U-Net {number} needs {scaled(need.total, 'B')}, {_has(machine)}"
    smaller = "a smaller preset (--config emoji), or --strategy fsdp2 on several GPUs"
    if not need.activations:
        return f"{much}: its weights, averages, gradients and moments alone are too large; take {smaller}"
    batch = largest_batch(need, plan, room)
    if batch:
        each = fixed + need.activations / plan.rows * batch
        others = f"; {' and '.join(savers)} make room for more" if savers else ""
        return f"{much}: --max-batch-size {batch} needs {scaled(each, 'B')}{others}"
    if fixed > _FILLED * room:
        return f"{much}, and {scaled(fixed, 'B')} are needed before the first image: take {smaller}"
    tried = f"try --max-batch-size 1 with {' and '.join(savers)}, or " if savers else ""
    return f"{much}, and not even one image at a time fits: {tried}{smaller}"


def sampling_advice(stage: StageEstimate, machine: Machine) -> str | None:
    """Return one sentence on why one image of this U-Net cannot be generated, or None if it can."""
    need = stage.sampling.total
    if need <= machine.room:
        return None
    much = f"sampling with U-Net {stage.number} needs {scaled(need, 'B')}, {_has(machine)}"
    return f"{much}: take a smaller preset (--config emoji), or stop before it (--stop-at-unet)"


def advice(stages: list[StageEstimate], plan: Plan, machine: Machine) -> list[str]:
    """Return a sentence for everything that does not fit."""
    found = [
        training_advice(stage.number, stage.training, plan, machine, stage.gradient_checkpointing) for stage in stages
    ]
    found += [sampling_advice(stage, machine) for stage in stages]
    return [sentence for sentence in found if sentence is not None]

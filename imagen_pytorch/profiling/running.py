"""Where the time of a few real steps goes: by part of the network and by operator, from what torch's profiler saw."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .spans import PREFIX

#: the span around a step, and the part of what is in no other span
STEP = "step"
#: an operator that asks for a value, and calls in which the host waits for a GPU
_READ, _WAITS = "aten::item", ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
#: operators whose counters are on the CPU wherever the weights are
_OWN_COUNTERS = "aten::_fused_"
#: kinds of events: functions, and nodes of the backward pass
_FORWARD, _BACKWARD = 0, 1


@dataclass
class Spent:
    """Microseconds of the host and of the GPU, and the number of calls."""

    host: float = 0.0
    gpu: float = 0.0
    calls: int = 0

    def add(self, event: Any) -> None:
        """Count the time of an event without that of those inside of it."""
        self.host += event.self_cpu_time_total
        self.gpu += event.self_device_time_total


@dataclass
class Profile:
    """Where time went.

    Attributes:
        forward, backward: by part.
        operators: by name.
        reads: values that the host asked for, by part.
        waits: calls in which the host waited for a GPU, by name.
        steps: how many there were.
        seconds: of all of them.
    """

    forward: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    backward: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    operators: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    reads: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    steps: int = 1
    seconds: float = 0.0


def _ancestors(event: Any) -> Iterable[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _span(event: Any) -> str | None:
    """The name of the innermost span that an event is in."""
    names = (item.name for item in _ancestors(event) if item.name.startswith(PREFIX))
    return next((name.removeprefix(PREFIX) for name in names), None)


def _origins(events: Iterable[Any]) -> dict[int, str]:
    """The part in which each node of the backward pass was made, by the number that torch gives it."""
    found: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and event.scope == _FORWARD and not event.name.startswith("autograd::"):
            part = _span(event)
            if part is not None:
                found[event.sequence_nr] = part  # those before the last one of a number made no node
    return found


def _backward_part(event: Any, origins: dict[int, str]) -> str | None:
    """The part whose gradient an event computes, or None if it computes none.

    What is computed once more in the backward pass is in a span of its own and belongs to that.
    """
    for item in _ancestors(event):
        if item.name.startswith(PREFIX):
            return None if item.name != f"{PREFIX}backward" else "backward"
        if item.scope == _BACKWARD and item.sequence_nr in origins:
            return origins[item.sequence_nr]
    return None


def attributed(events: Iterable[Any]) -> Profile:
    """The time of all events, each to the part that it belongs to.

    Args:
        events: of ``torch.profiler.profile``, in which `Spans` were named.
    """
    events, made = list(events), Profile()
    origins = _origins(events)
    for event in events:
        if event.name in _WAITS:
            made.waits[event.name] += 1
        part = _backward_part(event, origins)
        spent = made.backward if part is not None else made.forward
        part = part or _span(event) or STEP
        spent[part].add(event)
        spent[part].calls += event.name == PREFIX + part
        if not event.name.startswith(PREFIX):
            made.operators[event.name].add(event)
            made.operators[event.name].calls += 1
        counted = event.cpu_parent is None or not event.cpu_parent.name.startswith(_OWN_COUNTERS)
        if event.name == _READ and counted:
            made.reads[part] += 1
    return made


def profiled(work: Callable[[], object], repeats: int, device: torch.device, trace: Path) -> Profile:
    """Run some work a few times under torch's profiler and write its trace, for ``chrome://tracing`` or Perfetto.

    Args:
        work: one step, in which `Spans` were named.
        repeats: how often.
        device: where it computes.
        trace: the file to write.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(repeats):
            with record_function(PREFIX + STEP):
                work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    profiler.export_chrome_trace(str(trace))
    found = attributed(profiler.events())
    found.steps, found.seconds = repeats, seconds
    return found

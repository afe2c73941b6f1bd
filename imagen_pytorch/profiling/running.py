"""The time of a few real steps by part of the network and by operator, from torch's profiler."""

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

#: the span around a step, and the part of everything that is in no other span
STEP = "step"
#: the operator that reads a value, and calls in which the host waits for a GPU
_READ, _WAITS = "aten::item", ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
#: operators whose counters are on the CPU, independent of the weights
_OWN_COUNTERS = "aten::_fused_"
#: kinds of events: functions, and nodes of the backward pass
_FORWARD, _BACKWARD = 0, 1


@dataclass
class Time:
    """Microseconds of the host and of the GPU, and the number of calls."""

    host: float = 0.0
    gpu: float = 0.0
    calls: int = 0

    def add(self, event: Any) -> None:
        """Add the time of an event without that of the events inside it."""
        self.host += event.self_cpu_time_total
        self.gpu += event.self_device_time_total


@dataclass
class Profile:
    """The result of a profiler run.

    Attributes:
        forward, backward: times by part.
        operators: times by name.
        reads: values that the host read, by part.
        waits: calls in which the host waited for a GPU, by name.
        steps: number of steps.
        seconds: of all of them.
    """

    forward: dict[str, Time] = field(default_factory=lambda: defaultdict(Time))
    backward: dict[str, Time] = field(default_factory=lambda: defaultdict(Time))
    operators: dict[str, Time] = field(default_factory=lambda: defaultdict(Time))
    reads: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    steps: int = 1
    seconds: float = 0.0


def _ancestors(event: Any) -> Iterable[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _span(event: Any) -> str | None:
    """Return the name of the innermost span of an event."""
    names = (item.name for item in _ancestors(event) if item.name.startswith(PREFIX))
    return next((name.removeprefix(PREFIX) for name in names), None)


def _origins(events: Iterable[Any]) -> dict[int, str]:
    """Return the part in which each node of the backward pass was created, by torch's sequence number."""
    found: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and event.scope == _FORWARD and not event.name.startswith("autograd::"):
            part = _span(event)
            if part is not None:
                found[event.sequence_nr] = part  # earlier events of the same number created no node
    return found


def _backward_part(event: Any, origins: dict[int, str]) -> str | None:
    """Return the part whose gradient an event computes, or None if it computes none.

    Recomputations in the backward pass have a span of their own and belong to it.
    """
    for item in _ancestors(event):
        if item.name.startswith(PREFIX):
            return None if item.name != f"{PREFIX}backward" else "backward"
        if item.scope == _BACKWARD and item.sequence_nr in origins:
            return origins[item.sequence_nr]
    return None


def attributed(events: Iterable[Any]) -> Profile:
    """Return the time of all events, by the part to which each belongs.

    Args:
        events: of ``torch.profiler.profile``, with the names of `Spans`.
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
        work: one step, with the names of `Spans`.
        repeats: number of steps.
        device: device of the computation.
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

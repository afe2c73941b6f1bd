"""The one place that touches Accelerate: where this process runs, what it is among others, what they agree upon."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from ..cascade.batch import TrainingBatch
from ..tensors import BatchShard
from .heartbeat import SENTENCE, heartbeat, lost_processes

Value = TypeVar("Value")

#: what a broken connection to another process is called by torch's back ends
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket timeout", "nccl", "gloo")

#: what can be asked for
STRATEGIES = ("auto", "ddp", "fsdp2")
#: how long a process may wait for the others: one may sample, save or read for hours. That one is lost is noticed by
#: its silence, see `training.heartbeat`
PATIENCE = timedelta(hours=6)


class ProcessLost(RuntimeError):
    """Another process of the run has ended or does not answer; this one cannot go on without it."""


class ProcessesDiffer(ValueError):
    """The processes of a run do not have the same model, data or checkpoint."""


def rows_of(total: int, rank: int, count: int) -> slice:
    """Return the items of a batch that belong to a process; in order, none twice, as even as possible."""
    return slice(total * rank // count, total * (rank + 1) // count)


def resolved_strategy(asked: str, count: int, made: str) -> str:
    """Return the way in which processes share the work: "one process", "ddp" or "fsdp2".

    ``made`` is what Accelerate calls this run, such as MULTI_GPU or FSDP. A ValueError for an unknown name, or
    something else than this run can be.
    """
    if asked not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {asked!r}")
    if count == 1:
        if asked != "auto":
            raise ValueError(
                f"strategy {asked} needs several processes, this run has one: start it with torchrun or accelerate "
                "launch"
            )
        return "one process"
    if made in ("DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(f"this run was launched for {made}, which is not supported; choose MULTI_GPU or FSDP")
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if (wanted or made == "FSDP") and asked == "ddp":
        raise ValueError("strategy is ddp, but the run was launched for FSDP; change one of the two")
    if wanted and made != "FSDP" and asked == "auto":
        raise ValueError(
            f"the run was launched for FSDP, but Accelerate made it {made}; use strategy fsdp2 to shard the weights "
            "all the same, or launch it without FSDP"
        )
    return "fsdp2" if asked == "fsdp2" or made == "FSDP" else "ddp"


@contextmanager
def lost_connections_named() -> Iterator[None]:
    """Turn the back end's message about a broken connection into a `ProcessLost` with a sentence; raise it at once
    where another process has been silent for too long."""
    if silent := lost_processes():
        raise ProcessLost(f"{SENTENCE} (no sign of life from process {', '.join(map(str, silent))})")
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, torch.distributed.DistError) or any(words in text for words in _LOST):
            raise ProcessLost(f"{SENTENCE} ({str(error).splitlines()[0][:200]})") from error
        raise


class Distributed:
    """The distributed run: the place of this process in it, and the operations that processes do together.

    Args:
        options: keywords of ``accelerate.Accelerator``.
        strategy: "ddp": each process has the whole model; "fsdp2": each has a part of its weights, averages and
            moments; "auto": what the launcher's configuration says.

    Attributes:
        accelerator: Accelerate's own object.
        device: of this process.
        rank: number of this process.
        is_main: whether this process writes files and messages; its number is 0.
        count: number of processes.
        strategy: in which they share the work: "one process", "ddp" or "fsdp2".
        sharded: whether each process has only a part of the weights.
        precision: that the launcher or its configuration asks for: "no", "fp16" or "bf16".
        accumulated: number of batches whose mean gradient makes one update.

    Raises:
        RuntimeError: several processes were launched that do not know of each other.
        ValueError: an unknown strategy, or one that this run does not have.
    """

    def __init__(self, options: Mapping[str, Any], strategy: str = "auto") -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1 and not (torch.cuda.is_available() or torch.xpu.is_available()):
            options = {"cpu": True, **options}  # without it Accelerate would leave every process alone
        handlers = list(options.get("kwargs_handlers") or ())
        if launched > 1 and not any(isinstance(one, InitProcessGroupKwargs) for one in handlers):
            options = {**options, "kwargs_handlers": [*handlers, InitProcessGroupKwargs(timeout=PATIENCE)]}
        self.accelerator = Accelerator(**options)
        self.device: torch.device = self.accelerator.device
        self.precision: str = self.accelerator.mixed_precision
        self.accumulated: int = self.accelerator.gradient_accumulation_steps  # read here: Accelerators share it
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_main = self.rank == 0
        if self.count != launched:
            raise RuntimeError(
                f"{launched} processes were launched, but Accelerate sees {self.count}: each would train alone and "
                "overwrite the others; start them with torchrun or accelerate launch"
            )
        self.strategy = resolved_strategy(strategy, self.count, self.accelerator.distributed_type.name)
        self.sharded = self.strategy == "fsdp2"
        self._stop_named = False
        if self.count > 1:
            heartbeat(self.rank, self.count)

    def __deepcopy__(self, _: dict[int, Any]) -> Distributed:
        """Itself: what is copied stays in the same process."""
        return self

    def shard(self, count: int) -> BatchShard:
        """Return the place of ``count`` items in a batch of which each process has as many."""
        return BatchShard.of([count] * self.count, self.rank)

    def microbatches(
        self, batch: TrainingBatch, max_batch_size: int | None, largest: int
    ) -> list[tuple[TrainingBatch, float]]:
        """Split a batch of this process; each microbatch comes with its fraction of the mean.

        Where the weights are sharded, every pass is one of all processes: each has as many microbatches as the process
        with the most items, of which it has ``largest``, if need be some that count nothing.
        """
        found = [(part, len(part) / len(batch)) for part in batch.split(max_batch_size)]
        if self.sharded and max_batch_size is not None:
            number = math.ceil(largest / max_batch_size)
            found += [(batch.rows(slice(0, 1)), 0.0)] * (number - len(found))
        return found

    # -- agreeing -----------------------------------------------------------------------------------------------------

    def broadcast(self, value: Value, rank: int = 0) -> Value:
        """Return the value of one process, by default of the main one, on every process; all of them call this."""
        if self.count == 1:
            return value
        held = [value]
        with lost_connections_named():
            torch.distributed.broadcast_object_list(held, src=rank, device=self._talk_device())
        return held[0]

    def all_gather(self, value: Value) -> list[Value]:
        """Return the numbers of all processes, in the order of these; all of them call this. Faster than `gather`."""
        if self.count == 1:
            return [value]
        kind = torch.float64 if isinstance(value, float) else torch.int64
        held = torch.zeros(self.count, dtype=kind, device=self._talk_device())
        held[self.rank] = value
        with lost_connections_named():
            torch.distributed.all_reduce(held)
        return held.tolist()

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of their numbers; all of them call this."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with lost_connections_named():
            torch.distributed.all_gather_object(found, value)
        return found

    def check_same(self, what: str, facts: Mapping[str, object], advice: str) -> None:
        """See that short facts, such as counts and digests by name, are the same on every process; all of them call
        this. A `ProcessesDiffer` on every process names the first that differs, two processes, ``what`` it is and, as
        advice, what to do."""
        if self.count == 1:
            return
        every = self.gather(dict(facts))
        for name in dict.fromkeys(name for one in every for name in one):
            values = [one.get(name) for one in every]
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise ProcessesDiffer(
                    f"the processes of this run differ in {what}: {name} is {values[0]} on process 0 and "
                    f"{values[other]} on process {other}; {advice}"
                )

    def on_main(self, function: Callable[[], Value]) -> Value:
        """Call ``function`` on the main process; return its value, or raise its error, on every process."""
        value: Any = None
        problem: Exception | None = None
        if self.is_main:
            try:
                value = function()
            except Exception as error:
                if self.count == 1:
                    raise
                problem = error
        value, problem = self.broadcast((value, problem))
        if problem is not None:
            raise problem
        return value

    def all_true(self, value: bool) -> bool:
        """Return whether a condition holds on every process; all of them call this."""
        return self.mean(float(value)) == 1.0

    def mean(self, value: float) -> float:
        """Return the mean over processes; all of them call this."""
        return sum(self.all_gather(float(value))) / self.count

    def _talk_device(self) -> torch.device:
        return torch.device("cpu") if torch.distributed.get_backend() == "gloo" else self.device

    def broadcast_parameters(self, module: nn.Module) -> None:
        """Give every process the main process's weights and buffers."""
        if self.count == 1:
            return
        with torch.no_grad(), lost_connections_named():
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)

    # -- gradients ----------------------------------------------------------------------------------------------------

    def wrap(self, unet: nn.Module) -> nn.Module:
        """Return a network whose backward pass averages gradients over processes; with one process, itself.

        It is torch's ``DistributedDataParallel``, with the options of Accelerate's handler.

        A video network leaves its temporal layers out for images, so that some parameters may have no gradient; an
        image network uses all of them at every step.
        """
        if self.count == 1 or self.sharded:
            return unet
        from torch.nn.parallel import DistributedDataParallel

        handler = self.accelerator.ddp_handler
        options = {"find_unused_parameters": bool(getattr(unet, "is_video", False)), "gradient_as_bucket_view": True}
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
            options["forward_sync_buffers"] = False  # constants, in these networks
        options |= {} if handler is None else handler.to_kwargs()
        if self.device.type != "cpu":
            options |= {"device_ids": [self.device.index], "output_device": self.device.index}
        with lost_connections_named():
            return DistributedDataParallel(unet, **options)

    # -- stopping together --------------------------------------------------------------------------------------------

    def stop_after(self, step: int, signal: int | None) -> int | None:
        """Return the signal for which all processes stop after this step, or None; called by each after every step.

        A process that has got a signal names the next step, and the first to name one decides. No other can be further:
        the gradients of the next step need all of them. It costs a look into the launcher's key-value store.
        """
        if self.count == 1:
            return signal
        store = torch.distributed.distributed_c10d._get_default_store()
        key = "imagen_pytorch/stop"
        with lost_connections_named():
            if signal is not None and not self._stop_named:
                store.compare_set(key, "", f"{step + 1} {signal}")
                self._stop_named = True
            if not store.check([key]):
                return None
            last, number = map(int, store.get(key).split())
        return number if step >= last else None

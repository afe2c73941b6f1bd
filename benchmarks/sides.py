"""One side of one case of `compare.py`, in a process of its own: says what it is, then measures whenever it is told.

    python benchmarks/sides.py SIDE CASE DEVICE

Standard input: one line per measurement. Standard output: one JSON object per line; first what the side is, then
``{"wall": seconds, "cpu": seconds}`` of one unit of work each time, or ``{"error": sentence}``. ``memory`` is the most
that the work took beyond what the imports had taken, in MB.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path


def _memory(what: str) -> float:
    """MB of this process: "VmRSS" now, "VmHWM" at most."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 1024
    return float("nan")


def _measured(name: str, side: str, device: str) -> None:
    import torch
    from cases import CASES, CURVES
    from models import package

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    out, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def answer(**values: object) -> None:
        print(json.dumps(values), file=out, flush=True)

    try:
        if side in ("diffusers", "transformers"):
            importlib.import_module(side)
        else:
            made = package("ours" if side == "bare" else side)
            made.Imagen, made.ImagenTrainer  # noqa: B018 - names that are imported when they are asked for
        before = _memory("VmRSS")
        work, units = {**CASES, **CURVES}[name].make(side, device)
        work()
        wait()
        versions = {"torch": torch.__version__}
        if side not in ("ours", "bare"):
            versions[side] = importlib.metadata.version(side)
        answer(versions=versions)
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wait()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _memory("VmHWM") - before
            answer(**{clock: seconds / units for clock, seconds in taken.items()}, memory=round(peak))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0][:200])


if __name__ == "__main__":
    _measured(sys.argv[2], sys.argv[1], sys.argv[3])

"""What `ImagenTrainer` adds to the loss and the gradient of a step: draws, checks, Adam, averages.

    python benchmarks/trainer_overhead.py            # prints the table
    python benchmarks/trainer_overhead.py --save     # and writes it, dated, to benchmarks/results

Two equal networks (the first example of the README of imagen-pytorch, 64x64, 4 pictures) in one process: one takes loss
and gradient alone, the other a step of the trainer with averages at every update, in turns. CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import inputs, machine, model, package

ROUNDS, BATCH = 8, 4
RESULT = Path(__file__).parent / "results" / "trainer_overhead.json"


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bare, made = (model("ours", "readme", (64,), 100, "cpu") for _ in range(2))
    trainer = package("ours").ImagenTrainer(made, verbose=False, ema_update_every=1, ema_update_after_step=0)
    given = inputs(BATCH, 64, "cpu")
    average = trainer.ema_unets[0]
    taken: list[float] = []
    update = average.update
    average.update = lambda: taken.append(spent(update))

    def alone() -> None:
        bare(**given, unet_number=1).backward()
        bare.zero_grad()

    rows: list[dict[str, float]] = []
    for _ in range(ROUNDS + 2):  # the first two warm up
        base = spent(alone)
        forward = spent(lambda: trainer(**given, unet_number=1))
        after = spent(lambda: trainer.update(1))
        rows.append({"seconds": base, "whole": (forward + after) / base - 1, "update": after / base,
                     "averages": taken[-1] / base})  # fmt: skip
    found = {name: [row[name] for row in rows[2:]] for name in rows[0]}
    result = {
        name: {"median": statistics.median(each), "range": [min(each), max(each)]} for name, each in found.items()
    }
    for name, each in result.items():
        print(f"{name:10}{each['median']:8.3f}  {each['range'][0]:.3f} to {each['range'][1]:.3f}")
    if options.save:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "threads": 1}
        RESULT.write_text(json.dumps({**about, "torch": torch.__version__, "rows": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()

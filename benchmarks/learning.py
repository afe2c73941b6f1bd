"""Steps until images are good, beside imagen-pytorch with the same data, batches, network arguments and learning rate.

    benchmarks/peers.sh /tmp/peers                                       # once
    python benchmarks/learning.py --peers /tmp/peers/bin/python --save   # hours of one core

A network for 16x16 pixels learns captioned images of emoji64 in both packages, each with its defaults for what the
network arguments do not say. At some steps the averaged weights draw the captions of the training data: imagen-pytorch
with 250 ancestral steps, this package with 20. The kernel distance (KID) to the real images is over an extractor that
took no part in training; R@1 says how often a judge that learned the real images finds the right caption first.
"Steps to reach" is where the KID falls to a threshold, by linear interpolation. Differences are paired over seeds, with
95 % intervals.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from compare import environment
from models import machine
from torch import Tensor

from imagen_pytorch.cli._demo import evenly_spaced, stack_items
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.distances import kid
from imagen_pytorch.evaluation.features import feature_extractor
from imagen_pytorch.evaluation.intervals import paired_interval
from imagen_pytorch.evaluation.retrieval import caption_retrieval, train_probe
from imagen_pytorch.text import text_encoder

HERE = Path(__file__).parent
RESULT = HERE / "results" / "learning.json"
SIDES = ("ours", "imagen-pytorch")
SIZE = 16


def reached(curve: dict[int, float], threshold: float) -> float:
    """Return the step at which a falling curve reaches a threshold, or infinity."""
    before = None
    for step, value in sorted(curve.items()):
        if value <= threshold:
            if before is None:
                return float(step)
            fraction = (before[1] - threshold) / (before[1] - value)
            return before[0] + fraction * (step - before[0])
        before = step, value
    return float("inf")


def learned(side: str, seed: int, python: str, data: Path, folder: Path) -> dict[str, Any]:
    """Train one side with one seed in a process of its own; return its images by step, and CPU seconds of training."""
    output = folder / f"{side}-{seed}.pt"
    command = [python, str(HERE / "learning_side.py"), side, str(seed), str(data), str(output)]
    subprocess.run(command, check=True, env=environment(side, 1), stdout=subprocess.DEVNULL)
    return torch.load(output, weights_only=True)


def main() -> None:
    """Train both sides with every seed, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="the Python of benchmarks/peers.sh; without it this package alone is measured")
    parser.add_argument("--steps", type=int, nargs="+", default=[150, 300, 450, 600, 800, 1000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--count", type=int, default=145, help="captions that are drawn")
    parser.add_argument("--cond-scale", type=float, default=1.5)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.6, 0.4, 0.3])
    parser.add_argument("--save", action="store_true", help="write the result, dated, to benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)

    source = open_source("emoji64", image_size=SIZE, split="train", styles=["flat", "3d"], groups=["animals-nature"])
    images, captions = stack_items(source, range(len(source)))
    encoder = text_encoder("builtin:minilm-static")
    embeds, masks = encoder.encode(captions)
    asked = evenly_spaced(len(images), options.count)
    texts = [captions[row] for row in asked]
    extractor = feature_extractor()
    probe = train_probe(images, captions, extractor=extractor, encoder=text_encoder("builtin:words"), augment=True)
    real = extractor(images)

    def judged(drawn: Tensor) -> dict[str, float]:
        found = caption_retrieval(probe, drawn, texts, candidates=captions)["generated"]["R@1"]
        return {"KID": kid(extractor(drawn), real).value, "R@1": found}

    settings = {
        "size": SIZE, "steps": options.steps, "batch_size": options.batch_size, "lr": options.lr,
        "cond_scale": options.cond_scale, "sampling_steps": {"ours": 20, "imagen-pytorch": 250},
    }  # fmt: skip
    pythons = {"ours": sys.executable, **({"imagen-pytorch": options.peers} if options.peers else {})}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.pt"
        given = {"images": images, "text_embeds": embeds, "text_masks": masks, "asked": torch.tensor(asked)}
        torch.save({**given, "settings": settings}, data)
        for seed in range(options.seeds):
            for side, python in pythons.items():
                result = learned(side, seed, python, data, folder)
                curve = {step: judged(drawn) for step, drawn in result["drawn"].items()}
                distances = {step: row["KID"] for step, row in curve.items()}
                steps_to = {f"{x:g}": reached(distances, x) for x in options.thresholds}
                about = {"side": side, "seed": seed, "seconds": round(result["seconds"], 1), "steps to KID": steps_to}
                rows.append({**about, "curve": curve})
                print(json.dumps(rows[-1]), flush=True)
    differences = {}
    if len(pythons) > 1 and options.seeds > 1:
        for step in options.steps:
            for figure in ("KID", "R@1"):
                pair = [
                    torch.tensor([row["curve"][step][figure] for row in rows if row["side"] == side]) for side in SIDES
                ]
                differences[f"{figure} after {step} steps"] = str(paired_interval(*pair))
        for name, value in differences.items():
            print(f"{name}: {value} (ours - imagen-pytorch)")
    if options.save:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "torch": torch.__version__}
        settings |= {"extractor": extractor.name, "images": len(images), "captions": len(texts)}
        result = {**about, **settings, "rows": rows, "differences": differences}
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

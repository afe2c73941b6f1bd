"""Costs that no step of a training shows: opening models and folders, bookkeeping per item, draws, cached captions.

    python benchmarks/hidden_costs.py                                     # this checkout
    git worktree add /tmp/before COMMIT
    python benchmarks/hidden_costs.py --beside /tmp/before --save         # an earlier one beside it, in turns

Every measurement runs in a process of its own, on one thread; times are CPU time, the numbers medians. ``--save``
writes them, dated, to benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from models import machine

HERE = Path(__file__).parent
RESULT = HERE / "results" / "hidden_costs.json"
#: images in the folder that is opened
IMAGES = 12_000

START = "import sys, time, torch\ntorch.set_num_threads(1)\n"
#: a program for each measurement: it prints one number
PROGRAMS = {
    "open a pretrained model, s": """
start = time.process_time()
from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
load_imagen_from_checkpoint(sys.argv[2])
print(time.process_time() - start)
""",
    f"open a folder of {IMAGES} images, us per image": """
from imagen_pytorch.data import Dataset
start = time.process_time()
data = Dataset(sys.argv[1], 16)
print(1e6 * (time.process_time() - start) / len(data))
""",
    "bookkeeping of an item in batches of 16, us": """
from imagen_pytorch.training.loaders import make_loader
def seconds(items):
    start = time.process_time()
    for _ in items:
        pass
    return time.process_time() - start
loaders = [make_loader(range(8000), 16, seed=1, shuffle=True, collate_fn=list) for _ in range(2)]
taken = [seconds(loader) for loader in loaders][1]
print(1e6 * (taken - seconds(range(8000))) / 8000)
""",
    "bytes of an image of 256x256 from a folder, for a training": """
from imagen_pytorch.data import Dataset
data = Dataset(sys.argv[1], 256)
data.as_uint8 = True
print(data[0].nbytes)
""",
    "the same image from the cache, us": """
from imagen_pytorch.data import Dataset
data = Dataset(sys.argv[1], 256)
data.as_uint8 = True
for turn in range(2):
    start = time.process_time()
    for index in range(100):
        data[index]
print(1e6 * (time.process_time() - start) / 100)
""",
    "noise of a rank for 8 images of 64x64, of 8 ranks, ms": """
from dataclasses import replace
from imagen_pytorch.tensors import BatchShard, randn
shard = replace(BatchShard.of([8] * 8, 3), generator=torch.Generator().manual_seed(0))
randn((8, 3, 64, 64), shard)
start = time.process_time()
for _ in range(50):
    randn((8, 3, 64, 64), shard)
print(1e3 * (time.process_time() - start) / 50)
""",
    "cached token of width 1,000 in bfloat16, bytes": """
from imagen_pytorch.text import TextEncoder
class Half(TextEncoder):
    dim = 1000
    def states(self, captions, device):
        return [torch.zeros(1, 1000, dtype=torch.bfloat16) for _ in captions]
encoder = Half("half")
encoder.encode(["a cat"])
print(encoder.memory.used)
""",
}


def folder_of_images(path: Path) -> None:
    """Write many small images."""
    from PIL import Image

    image = path / "0.png"
    Image.new("RGB", (16, 16), (200, 30, 30)).save(image)
    contents = image.read_bytes()
    for number in range(1, IMAGES):
        (path / f"{number}.png").write_bytes(contents)


def measured(program: str, checkout: Path, folder: str) -> float:
    """Return the number that a program prints with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    model = HERE.parent / "imagen_pytorch" / "pretrained_models" / "moving-digits" / "model.safetensors"
    command = [sys.executable, "-c", START + program, folder, str(model)]
    done = subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the result, dated, to benchmarks/results")
    options = parser.parse_args()
    checkouts = {"before": options.beside.resolve()} if options.beside else {}
    checkouts["now"] = HERE.parent.resolve()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        folder_of_images(Path(folder))
        for name, program in PROGRAMS.items():
            turns = [
                {side: measured(program, path, folder) for side, path in checkouts.items()}
                for _ in range(options.repeats)
            ]
            rows[name] = {side: round(statistics.median(turn[side] for turn in turns), 3) for side in checkouts}
            print(f"{name:60}" + "".join(f"{side} {value:<12g}" for side, value in rows[name].items()), flush=True)
    if options.save:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "repeats": options.repeats}
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

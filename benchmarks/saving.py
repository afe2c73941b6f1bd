"""How much a checkpoint costs the training step that follows it, in the background and not.

python benchmarks/saving.py            # prints the table
python benchmarks/saving.py --save     # and writes it, dated, to benchmarks/results/saving.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

# waiting threads sleep, as under the command line: the writer needs a core too
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from models import machine

from imagen_pytorch import Imagen, ImagenTrainer, Unet

RESULT = Path(__file__).parent / "results" / "saving.json"
STEPS, EVERY = 112, 16  # most steps between two saves are then undisturbed, and so is their median


def measure(background: bool, dim: int) -> dict[str, float]:
    """Seconds of the steps that follow a save and of all others, over one training."""
    torch.manual_seed(0)
    unet = Unet(dim=dim, dim_mults=(1, 2, 4), layer_attns=(False, False, True), num_resnet_blocks=2)
    imagen = Imagen(unet, image_sizes=32, text_encoder_name="builtin:words")
    trainer = ImagenTrainer(imagen, verbose=False, seed=0)
    images, texts = torch.rand(4, 3, 32, 32), ["a red heart"] * 4
    after, others, saves = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagen.pt"
        for step in range(STEPS):
            began = time.perf_counter()
            trainer(images, texts=texts)
            trainer.update()
            if step >= EVERY:  # the first ones are slower
                (after if step % EVERY == 0 else others).append(time.perf_counter() - began)
            if (step + 1) % EVERY == 0:
                began = time.perf_counter()
                trainer.save(path, background=background)
                saves.append(time.perf_counter() - began)
        trainer.wait_for_saves()
        size = path.stat().st_size
    weights = sum(item.numel() * item.element_size() for item in unet.parameters())
    median = statistics.median(others)
    return {
        "step": median,
        "step after a save": statistics.median(after),
        "save call": statistics.median(saves),
        "ratio of the step after a save": statistics.median(after) / median,
        "ratio with the save call": (statistics.median(after) + statistics.median(saves)) / median,
        "file in weights": size / weights,
        "MB": size / 1e6,
    }


def main() -> None:
    """Measure both ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    parser.add_argument("--dim", type=int, default=32, help="width of the network")
    options = parser.parse_args()
    rows = {name: measure(later, options.dim) for name, later in (("in the background", True), ("at once", False))}
    print("| save | " + " | ".join(rows["at once"]) + " |")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    if options.save:
        about = {"machine": machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        result = {"date": datetime.date.today().isoformat(), **about, "rows": rows}
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

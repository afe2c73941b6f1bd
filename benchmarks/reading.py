"""What it costs a training to read large photographs: beside the same images, resized beforehand.

python benchmarks/reading.py            # prints the table
python benchmarks/reading.py --save     # and writes it, dated, to benchmarks/results/reading.json

A folder of 12-megapixel JPEGs, made by this script of gradients and noise, and a folder of the same images at the size
of the model. A network trains on each of them in turns, an epoch at a time, as ``ImagenTrainer`` does where nothing is
stated about workers or caches; a third one reads every image anew in the training process. Images per second of wall
clock, and per second of CPU time, worker processes included, which a busy machine does not spoil.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from models import machine
from PIL import Image

from imagen_pytorch import Imagen, ImagenTrainer, Unet
from imagen_pytorch.data import Dataset
from imagen_pytorch.training.workers import usual_workers

RESULT = Path(__file__).parent / "results" / "reading.json"
LARGE, SIDE, BATCH = (4000, 3000), 32, 4


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def photograph(seed: int) -> Image.Image:
    """Smooth colours with texture of several sizes over them."""
    dice = np.random.default_rng(seed)

    def layer(cells: int) -> Image.Image:
        coarse = dice.integers(256, size=(cells, cells, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(LARGE, Image.Resampling.BILINEAR)

    grain = Image.effect_noise(LARGE, 20).convert("RGB")
    return Image.blend(Image.blend(layer(4), layer(60), 0.4), Image.blend(layer(800), grain, 0.5), 0.3)


def make_folders(folder: Path, count: int) -> tuple[Path, Path]:
    """The photographs, and the same images as the data set makes them."""
    large, small = folder / "large", folder / "small"
    large.mkdir()
    small.mkdir()
    for number in range(count):
        photograph(number).save(large / f"{number:03}.jpg", quality=90)
    for number, image in enumerate(Dataset(large, SIDE, random_flip=False)):
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(small / f"{number:03}.png")
        if number + 1 == count:
            break
    return large, small


class Speed(NamedTuple):
    """Images per second of the clock, and of CPU time."""

    clock: float
    cpu: float


class Training:
    """A network that trains on a folder."""

    def __init__(self, folder: Path, dim: int, **options: float) -> None:
        torch.manual_seed(0)
        unet = Unet(dim=dim, dim_mults=(1, 2, 4), layer_attns=(False, False, True), cond_on_text=False)
        imagen = Imagen(unet, image_sizes=SIDE, condition_on_text=False)
        self.trainer = ImagenTrainer(imagen, verbose=False, seed=0)
        self.data = Dataset(folder, SIDE, **options)
        workers = {"num_workers": 0} if options else {}
        self.trainer.add_train_dataset(self.data, batch_size=BATCH, shuffle=True, **workers)

    def warm_up(self) -> None:
        """Steps without a loader: the first ones are slower."""
        for _ in range(3):
            self.trainer(torch.rand(BATCH, 3, SIDE, SIDE))
            self.trainer.update()

    def epoch(self) -> Speed:
        """One pass over the folder."""
        began, used = time.perf_counter(), cpu_seconds()
        for _ in range(len(self.trainer.train_dl)):
            self.trainer.train_step()
        self.trainer.train_dl_iter.restart()  # ends worker processes, so that their time is known
        return Speed(len(self.data) / (time.perf_counter() - began), len(self.data) / (cpu_seconds() - used))


def first_epoch(large: Path, dim: int) -> Speed:
    """A pass where nothing has been read yet."""
    made = Training(large, dim)
    made.warm_up()
    return made.epoch()


def measure(count: int, rounds: int, dim: int) -> dict[str, dict[str, Any]]:
    """Speeds, the turns interleaved, and their ratios turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = make_folders(Path(folder), count)
        made = {
            "resized beforehand": Training(small, dim),
            "photographs, later epochs": Training(large, dim),
            "photographs, read anew": Training(large, dim, cache_memory_share=0.0),
        }
        speeds: dict[str, list[Speed]] = {name: [] for name in ("photographs, first epoch", *made)}
        for training in made.values():
            training.warm_up()
            training.epoch()
        for _ in range(rounds):
            speeds["photographs, first epoch"].append(first_epoch(large, dim))
            for name, training in made.items():
                speeds[name].append(training.epoch())
    base = speeds["resized beforehand"]
    rows: dict[str, dict[str, Any]] = {}
    for name, each in speeds.items():
        rows[name] = {}
        for kind in Speed._fields:
            ratios = [getattr(one, kind) / getattr(other, kind) for one, other in zip(each, base, strict=True)]
            rows[name][kind] = {
                "images per second": statistics.median(getattr(one, kind) for one in each),
                "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    parser.add_argument("--images", type=int, default=24, help="photographs in the folder")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind that are measured")
    parser.add_argument("--dim", type=int, default=32, help="width of the network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.images, options.rounds, options.dim)
    for name, row in rows.items():
        for kind, found in row.items():
            low, high = found["range"]
            speed = f"{found['images per second']:8.1f} images/s of {kind:5}"
            print(f"{name:28}{speed} {found['ratio']:6.2f} ({low:.2f} to {high:.2f})")
    if options.save:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "workers": usual_workers(),
            "photographs": f"{options.images} JPEGs of {LARGE[0]}x{LARGE[1]}",
            "epochs of each": options.rounds,
            "model": f"Unet(dim={options.dim}) at {SIDE}x{SIDE}, batches of {BATCH}",
        }
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

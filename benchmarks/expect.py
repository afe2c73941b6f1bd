"""What to expect of a training: number of images x minutes, with figures and a small sheet for each pair.

    python benchmarks/expect.py --save    # the longest time, once for each number of images

Images of emoji64, evenly spread over all eight styles, train configs/emoji.json: three quarters of the time the base
network for 16x16, one quarter the upsampler to 64x64. Only training counts, with the threads that torch takes by
itself. At each time the averaged weights draw captions that they have learned. R@1 says how often a judge that learned
the real images finds the right caption first: of 16x16, where it sees colours and coarse shapes, and of 64x64.
``--save`` writes docs/expect.png, and the table of docs/expect.md between its two markers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
from models import machine
from torch import Tensor

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.cli._demo import evenly_spaced, stack_items
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.features import feature_extractor
from imagen_pytorch.evaluation.retrieval import caption_retrieval, train_probe
from imagen_pytorch.evaluation.sheets import labelled_grid
from imagen_pytorch.signatures import parse
from imagen_pytorch.text import text_encoder

ROOT = Path(__file__).parents[1]
CONFIG, PAGE, SHEET = ROOT / "configs" / "emoji.json", ROOT / "docs" / "expect.md", ROOT / "docs" / "expect.png"
START, END = "<!-- table: benchmarks/expect.py -->", "<!-- end of the table -->"
#: fraction of the time for each U-Net, images per side of a sheet, captions that are judged, and candidates at most
FRACTIONS, SIDE, JUDGED, CANDIDATES = (0.75, 0.25), 3, 48, 290


class Learner:
    """A training on a number of images that can be prolonged, and the judge of its images."""

    def __init__(self, count: int | None, seed: int) -> None:
        values = json.loads(CONFIG.read_text())
        size = values["imagen"]["image_sizes"][-1]
        self.data = open_source("emoji64", image_size=size, split="train", limit=count)
        config = parse(TrainingConfig, values)
        self.trainer = ImagenTrainer(config.imagen.create(), **config.trainer.given(), seed=seed, verbose=False)
        batch = min(values["dataset"]["batch_size"], len(self.data))
        self.trainer.add_train_dataset(self.data, batch_size=batch, shuffle=True, drop_last=True)
        self.seconds = [0.0] * len(FRACTIONS)
        images, self.candidates = stack_items(self.data, evenly_spaced(len(self.data), CANDIDATES))
        self.asked = evenly_spaced(len(images), JUDGED)
        extractor, encoder = feature_extractor("emoji64-probe"), text_encoder("builtin:words")
        self.probe = train_probe(images, self.candidates, extractor=extractor, encoder=encoder, augment=True)
        self.real = images[self.asked]

    def train(self, minutes: float) -> None:
        """Train until every U-Net has had its fraction of this time."""
        for index, fraction in enumerate(FRACTIONS):
            while self.seconds[index] < 60 * minutes * fraction:
                start = time.monotonic()
                self.trainer.train_step(unet_number=index + 1)
                self.seconds[index] += time.monotonic() - start

    def drawn(self) -> list[Tensor]:
        """Return images of each stage for captions that were learned."""
        texts = [self.candidates[row] for row in self.asked]
        return self.trainer.sample(
            texts=texts, seed=list(range(len(texts))), max_batch_size=16, return_all_unet_outputs=True, use_tqdm=False
        )

    def found(self, images: Tensor) -> float:
        """Return R@1 of images of the judged captions."""
        texts = [self.candidates[row] for row in self.asked]
        return caption_retrieval(self.probe, images, texts, candidates=self.candidates)["generated"]["R@1"]


def cell(images: Tensor) -> Tensor:
    """Arrange the first images in a square: ``(c, SIDE h, SIDE w)``."""
    rows = images[: SIDE * SIDE].unflatten(0, (SIDE, SIDE))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def table(rows: list[dict[str, Any]], minutes: list[float]) -> str:
    """Return the figures as Markdown: a row for each number of images, a column for each time."""
    head = [f"{each:g} min" for each in minutes]
    lines = [f"| images | {' | '.join(head)} | real |", "| --- " * (len(minutes) + 2) + "|"]
    for row in rows:
        cells = [f"{100 * each['R@1'][0]:.0f}, {100 * each['R@1'][1]:.0f} %" for each in row["times"]]
        lines.append(f"| {row['images']} | {' | '.join(cells)} | {100 * row['real']:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    """Train, draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 300, 2000, 0], help="images; 0: all of them")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10, 30])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the sheet and the table into docs")
    options = parser.parse_args()
    times, rows, sheet = sorted(options.minutes), [], []
    for count in options.counts:
        learner = Learner(count or None, options.seed)
        cells = []
        row: dict[str, Any] = {"images": len(learner.data), "real": learner.found(learner.real), "times": []}
        for minutes in times:
            learner.train(minutes)
            stages = learner.drawn()
            steps = [learner.trainer.num_steps_taken(number) for number in (1, 2)]
            row["times"].append({"minutes": minutes, "steps": steps, "R@1": [learner.found(each) for each in stages]})
            cells.append(cell(stages[-1]))
            print(json.dumps({"images": row["images"], "real": row["real"], **row["times"][-1]}), flush=True)
        rows.append(row)
        sheet.append(torch.stack(cells))
    if options.save:
        about = f"{datetime.date.today().isoformat()}, {machine()}, {torch.get_num_threads()} threads"
        names, columns = [f"{row['images']} images" for row in rows], [f"{each:g} minutes" for each in times]
        labelled_grid(sheet, names, columns, title=f"Captions that were learned, 64 x 64 ({about})").save(SHEET)
        before, after = PAGE.read_text().partition(START)[0], PAGE.read_text().partition(END)[2]
        PAGE.write_text(f"{before}{START}\n{about}, one seed.\n\n{table(rows, times)}\n{END}{after}")


if __name__ == "__main__":
    main()

"""What a training option does to the second stage of configs/emoji.json in equal CPU time, with and without it.

    python benchmarks/screen.py spectral_loss=sharp 'perceptual_loss={"features": "efficientnet-lite0"}'
    python benchmarks/screen.py 'crop_coordinates=true;unet.dim=24' trainer.lr=1e-3 --minutes 4 --seeds 5 --save

Every argument is one arm: assignments separated by ";", whose values are JSON or plain strings. A bare name is an
option of the model and stated for the second U-Net, "unet.NAME" is an argument of that network, "trainer.NAME" one of
the trainer.
The arm "-" without changes comes first. The arms of one seed take turns, ten steps at a time, until each has used its
CPU time, so that a change of the machine's speed meets all of them.

The averaged networks then enlarge real images of 16 pixels. A row says the root mean squared error of trained and of
held-out images, by how much white is off, and how often the caption of a trained image is found (R@1). The judge
learned augmented images too, through an extractor of which no relative took part in the training. Below stand the
differences from the first arm with the same seed, with 95 % intervals over seeds. What bicubic enlargement reaches is
said first.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import machine
from torch import Tensor
from torch.utils.data import TensorDataset

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.cli._demo import evenly_spaced, stack_items
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.augmentation import reduced
from imagen_pytorch.evaluation.intervals import paired_interval
from imagen_pytorch.evaluation.report import judging_extractors, learned_extractors
from imagen_pytorch.evaluation.retrieval import CaptionProbe, caption_retrieval, train_probe
from imagen_pytorch.images import resize
from imagen_pytorch.signatures import parse

CONFIG = Path(__file__).parents[1] / "configs" / "emoji.json"
RESULTS = Path(__file__).parent / "results"
TURN = 10
PLAIN = "-"


def with_arm(values: dict[str, Any], arm: str) -> dict[str, Any]:
    """The configuration with the assignments of an arm."""
    values = copy.deepcopy(values)
    for assignment in arm.split(";") if arm != PLAIN else ():
        name, _, text = assignment.strip().partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        place, _, key = name.rpartition(".")
        if place == "unet":
            values["imagen"]["unets"][1][key] = value
        elif place == "trainer":
            values["trainer"][key] = value
        else:
            values["imagen"][name] = [None, value]
    return values


class Arm:
    """One arm with one seed: a trainer and the CPU time that it has used."""

    def __init__(self, values: dict[str, Any], data: TensorDataset, seed: int) -> None:
        torch.manual_seed(seed)
        config = parse(TrainingConfig, values)
        names = ("images", "text_embeds", "text_masks")
        self.trainer = ImagenTrainer(
            config.imagen.create(), **config.trainer.given(), seed=seed, verbose=False,
            dl_tuple_output_keywords_names=names,
        )  # fmt: skip
        self.trainer.add_train_dataset(data, batch_size=values["dataset"]["batch_size"], shuffle=True, drop_last=True)
        self.seconds = 0.0

    def turn(self) -> None:
        """A few steps."""
        start = time.process_time()
        for _ in range(TURN):
            self.trainer.train_step(unet_number=2)
        self.seconds += time.process_time() - start

    def enlarged(self, small: Tensor, embeds: Tensor, masks: Tensor) -> Tensor:
        """What the averaged network makes of small images."""
        return self.trainer.sample(
            text_embeds=embeds, text_masks=masks, start_at_unet_number=2, start_image_or_video=small, seed=0,
            use_tqdm=False,
        )  # fmt: skip


def errors(made: Tensor, real: Tensor) -> dict[str, float]:
    """Root mean squared error, and by how much pixels that should be white are darker."""
    white = real.amin(1, keepdim=True).expand_as(real) > 0.999
    return {"RMSE": float((made - real).square().mean().sqrt()), "white off": float(1 - made[white].mean())}


class Judge:
    """A probe of augmented images and the real images that are enlarged: trained ones, then held-out ones."""

    def __init__(self, probe: CaptionProbe, real: Sequence[Tensor], texts: list[str], candidates: list[str]) -> None:
        self.probe, self.real, self.texts, self.candidates = probe, real, texts, candidates

    def __call__(self, made: Sequence[Tensor]) -> dict[str, float]:
        """All figures of enlarged images."""
        found = caption_retrieval(self.probe, made[0], self.texts, candidates=self.candidates)["generated"]["R@1"]
        held_out = errors(made[1], self.real[1])["RMSE"]
        return {**errors(made[0], self.real[0]), "held-out RMSE": held_out, "R@1": found}


def printed(name: str, row: dict[str, float]) -> None:
    """One line of figures."""
    print(f"{name:50}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)


def main() -> None:
    """Train in turns, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", help='such as spectral_loss=sharp, or "a=1;unet.dim=24"')
    parser.add_argument("--minutes", type=float, default=3.0, help="of CPU time for each arm and seed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--judge", type=int, default=97, help="trained images that are enlarged, and held-out ones")
    parser.add_argument("--judge-learns", type=int, default=290, help="images that the judge learns from")
    parser.add_argument("--extractor", help="of the judge; by default the first one that may judge")
    parser.add_argument("--save", action="store_true", help="write the result, dated, to benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)

    values = json.loads(CONFIG.read_text())
    chosen = {name: values["dataset"][name] for name in ("styles", "groups")}
    small_size, size = values["imagen"]["image_sizes"]
    train, other = (open_source("emoji64", image_size=size, split=split, **chosen) for split in ("train", "pair"))
    images, captions = stack_items(train, range(len(train)))
    encoder = parse(TrainingConfig, values).imagen.create().text_encoder
    data = TensorDataset(images, *encoder.encode(captions))
    parts = [stack_items(source, evenly_spaced(len(source), options.judge)) for source in (train, other)]
    real, coded = [part[0] for part in parts], [encoder.encode(part[1]) for part in parts]
    rows_of_judge = evenly_spaced(len(images), options.judge_learns)
    learned = [captions[row] for row in rows_of_judge]
    names = [PLAIN, *options.arms]
    used = [name for arm in names for name in learned_extractors(with_arm(values, arm)["imagen"])]
    extractor = judging_extractors([options.extractor] if options.extractor else [], used)[0]
    print(f"judged through {extractor.name}")
    probe = train_probe(images[rows_of_judge], learned, extractor=extractor, encoder=encoder, augment=True)
    judge = Judge(probe, real, parts[0][1], [*parts[0][1], *learned])
    printed("bicubic", judge([reduced(each, small_size) for each in real]))
    printed("real images", judge(real))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        arms = {name: Arm(with_arm(values, name), data, seed) for name in names}
        while (arm := min(arms.values(), key=lambda each: each.seconds)).seconds < 60 * options.minutes:
            arm.turn()
        for name, arm in arms.items():
            made = [arm.enlarged(resize(part, small_size), *code) for part, code in zip(real, coded, strict=True)]
            steps = float(arm.trainer.num_steps_taken(2))
            rows[name].append({**judge(made), "steps": steps})
            printed(f"{name} (seed {seed})", rows[name][-1])
    for name in names[1:]:
        for key in rows[name][0]:
            pair = [torch.tensor([row[key] for row in rows[each]]) for each in (name, PLAIN)]
            print(f"{name}: {key} {paired_interval(*pair)} compared with {PLAIN}")
    if options.save:
        today = datetime.date.today().isoformat()
        about = {"date": today, "machine": machine(), "torch": torch.__version__, **vars(options)}
        about["extractor"] = extractor.name
        (RESULTS / "screen.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

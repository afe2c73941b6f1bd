"""Train the embedded judge of emoji64, `imagen_pytorch.evaluation.probe`, from scratch; half an hour of one core.

    python scripts/train_emoji64_probe.py runs/probe                  # goes on where it stopped
    python scripts/train_emoji64_probe.py runs/probe --embed          # and puts the result into the package

It learns the train split in all styles. Every step draws images, composes them over random backgrounds with a random
shift and scale, augments them, and words their captions anew. The splits "pair" (a known concept in a style in which it
was not learned) and "concept" (an unknown concept) are looked at when training is over, and decide nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pytorch.data.emoji import Emoji64, atlas_looks, index, repainted, tile_of
from imagen_pytorch.data.emoji_captions import (
    BACKGROUNDS,
    STYLES,
    Scene,
    backgrounds,
    bare,
    dense,
    plain,
    short,
    varied,
)
from imagen_pytorch.evaluation.augmentation import Augmentation
from imagen_pytorch.evaluation.probe import FOLDER, DualEncoder, Emoji64Probe, load_weights, save_weights
from imagen_pytorch.evaluation.retrieval import reference_rows

#: that it learns first
FIRST_STYLES = ("noto", "twemoji", "flat", "3d", "mono")
#: stronger than what a judge meets, and on fewer images than it meets
AUGMENTATION = Augmentation(probability=0.35, noise=0.08)
#: of the base stage of the shipped configurations, which the reference rows shrink to
SMALL = 16
LOG_EVERY, SAVE_EVERY = 50, 100


class Settings(NamedTuple):
    """What a run depends on, beside the data."""

    steps: int = 900
    #: the first steps, with some styles, plain and varied captions, and the original colours only
    simple_steps: int = 500
    batch_size: int = 256
    other_captions: int = 512
    lr: float = 3e-3
    weight_decay: float = 0.05
    white: float = 0.5
    recoloured: float = 0.2
    seed: int = 0


class Drawn(NamedTuple):
    """Images of a batch with their captions, and captions of other images."""

    images: Tensor
    captions: list[str]
    others: list[str]


class Material:
    """The images of the train split as RGBA, a recoloured version of many, and what their captions are made from."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        later = [style for style in STYLES if style not in FIRST_STYLES]
        data = [Emoji64("train", styles, recolour=1.0, seed=settings.seed) for styles in (FIRST_STYLES, later)]
        originals = [key for part in data for key in part.keys]
        painted = [
            (key, variant.colour)
            for part in data
            for key, variant in zip(part.keys, part.variants, strict=True)
            if variant.colour
        ]
        self.first, self.originals = len(data[0]), len(originals)
        self.keys = [*originals, *(key for key, _ in painted)]
        self.colours: list[str | None] = [*([None] * len(originals)), *(colour for _, colour in painted)]
        self.looks = [
            *(atlas_looks(key.style)[key.place] for key in originals),
            *(repainted(*each) for each in painted),
        ]
        self.tiles = torch.stack([tile_of(*each) for each in [*((key, "") for key in originals), *painted]])

    def draw(self, step: int) -> Drawn:
        """The batch of a step; a function of seed and step alone."""
        settings = self.settings
        chance = random.Random(f"{settings.seed}/{step}")
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        wanted, simple = settings.batch_size + settings.other_captions, step < settings.simple_steps
        if simple:
            chosen = chance.sample(range(self.first), wanted)
        else:
            painted = round(wanted * settings.recoloured)
            chosen = chance.sample(range(self.originals, len(self.keys)), painted)
            chosen += chance.sample(range(self.originals), wanted - painted)
            chance.shuffle(chosen)
        grounds = [self._ground(item, chance) for item in chosen]
        word = self._simple_caption if simple else self._caption
        captions = [word(*pair, chance) for pair in zip(chosen, grounds, strict=True)]
        count = settings.batch_size
        images = composed(self.tiles[chosen[:count]], grounds[:count], generator)
        return Drawn(AUGMENTATION(images, generator), captions[:count], captions[count:])

    def _ground(self, item: int, chance: random.Random) -> str:
        if chance.random() < self.settings.white:
            return "white"
        return chance.choice([name for name in backgrounds(self.keys[item].style) if name != self.colours[item]])

    def _simple_caption(self, item: int, ground: str, chance: random.Random) -> str:
        key, fate = self.keys[item], chance.random()
        word = plain if fate < 0.65 else varied if fate < 0.95 else bare
        return word(Scene(index().entries[key.code], key.style, ground, str(chance.random())))

    def _caption(self, item: int, ground: str, chance: random.Random) -> str:
        key, fate = self.keys[item], chance.random()
        kinds = ((0.4, plain), (0.6, varied), (0.8, short), (0.95, dense), (1.0, bare))
        word = next(word for limit, word in kinds if fate < limit)
        look = None if key.style == "mono" else self.looks[item]
        seed, colour = str(chance.random()), self.colours[item]
        return word(Scene(index().entries[key.code], key.style, ground, seed, colour, look))


def composed(tiles: Tensor, grounds: list[str], generator: torch.Generator) -> Tensor:
    """RGBA images over backgrounds, each shifted by up to a tenth, turned by up to 6 degrees and scaled a little."""
    count = len(tiles)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    scale, angle = between(0.9, 1.15), between(-0.1, 0.1)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos() * scale
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin() * scale, angle.sin() * scale
    matrix[:, 0, 2], matrix[:, 1, 2] = between(-0.1, 0.1), between(-0.1, 0.1)
    pixels = tiles.float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
    moved = F.grid_sample(pixels, F.affine_grid(matrix, list(tiles.shape), align_corners=False), align_corners=False)
    untouched = torch.rand(count, generator=generator) < 0.25
    pixels = torch.where(untouched[:, None, None, None], pixels, moved)
    colours = torch.tensor([BACKGROUNDS[name] for name in grounds]).float()[..., None, None] / 255
    return (pixels[:, :3] + colours * (1 - pixels[:, 3:])).clamp(0, 1)


def loss_of(model: DualEncoder, scale: Tensor, drawn: Drawn) -> Tensor:
    """Symmetric contrastive loss; images also have to reject the captions of others."""
    texts = [*drawn.captions, *drawn.others]
    labels = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    truth = torch.tensor([labels[text] for text in texts])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.image_tower(drawn.images)
    logits = model.vectors(features.float()) @ model.texts(texts).T * scale.exp().clamp(max=100)
    same = (truth[: len(drawn.captions), None] == truth).float()
    across = logits[:, : len(drawn.captions)]
    back = same[:, : len(drawn.captions)]
    return (
        F.cross_entropy(logits, same / same.sum(1, keepdim=True))
        + F.cross_entropy(across.T, back / back.sum(1, keepdim=True))
    ) / 2


def rate(step: int, steps: int) -> float:
    """Learning rate of a step, as a fraction: 100 steps of warm-up, constant, then 30 % of the steps down to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


class Training:
    """A run that goes on where it stopped.

    Args:
        folder: of ``state.pt`` and ``log.jsonl``.
        settings: of the run.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings, self.step = folder, settings, 0
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.model = DualEncoder()
        self.scale = nn.Parameter(torch.tensor(20.0).log())
        decayed = [weight for weight in self.model.parameters() if weight.ndim > 1]
        free = [weight for weight in self.model.parameters() if weight.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": [*free, self.scale], "weight_decay": 0.0}],
            lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.log: list[dict[str, float]] = []
        self.seconds = 0.0
        if (folder / "state.pt").exists():
            self._load()

    def run(self) -> None:
        """Train to the end."""
        material = Material(self.settings)
        self.model.train()
        began, recent = time.process_time() - self.seconds, []
        while self.step < self.settings.steps:
            torch.manual_seed(self.settings.seed + 7919 * (self.step + 1))  # dropout
            loss = loss_of(self.model, self.scale, material.draw(self.step))
            self.optimizer.zero_grad()
            loss.backward()
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * rate(self.step, self.settings.steps)
            self.optimizer.step()
            self.step += 1
            recent.append(loss.item())
            self.seconds = time.process_time() - began
            if self.step % LOG_EVERY == 0:
                row = {"step": self.step, "loss": round(sum(recent) / len(recent), 4), "seconds": round(self.seconds)}
                self.log.append(row)
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                recent.clear()
            if self.step % SAVE_EVERY == 0 or self.step == self.settings.steps:
                self._save()
        self.model.eval()

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        counted = {"step": self.step, "log": self.log, "seconds": self.seconds, "scale": self.scale.detach()}
        torch.save({**state, **counted, "settings": self.settings._asdict()}, self.folder / "new.pt")
        (self.folder / "new.pt").replace(self.folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        before, now = state["settings"], self.settings._asdict()
        shortest = min(before["steps"], now["steps"])
        falling = before["steps"] != now["steps"] and rate(state["step"], shortest) < 1
        if falling or {**before, "steps": now["steps"]} != now:  # while the rate is constant, steps may change
            raise SystemExit(f"{self.folder} holds a run with other settings: {before}")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.scale.data.copy_(state["scale"])
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]


def figures(judge: Emoji64Probe, limit: int = 400) -> dict[str, Any]:
    """Caption retrieval of real images and of degraded ones, by split and kind of data."""
    kinds = {
        "white background": {},
        "random backgrounds": {"background": "random"},
        "mixed captions": {"background": "random", "wording": "mixed"},
        "other colours": {"recolour": 1.0},
    }
    found = {}
    for split in ("train", "pair", "concept"):
        for kind, options in kinds.items():
            data = Emoji64(split, limit=limit, **options)
            images = torch.stack([data[number][0] for number in range(len(data))])
            rows = reference_rows(judge, images, data.captions, candidates=data.captions, small_size=SMALL)
            rounded = {name: {k: round(value, 4) for k, value in row.items()} for name, row in rows.items()}
            found[f"{split}, {kind}"] = {"images": len(data), "captions": len(set(data.captions)), **rounded}
    return found


def main() -> None:
    """Train, measure, and embed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--batch-size", type=int, default=Settings().batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--embed", action="store_true", help="write into the package")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(steps=options.steps, batch_size=options.batch_size, seed=options.seed)
    training = Training(options.folder, settings)
    training.run()
    folder = FOLDER if options.embed else options.folder
    folder.mkdir(exist_ok=True)
    weights = folder / "weights.safetensors"
    digest = save_weights(training.model, weights)
    record = {
        "sha256": digest,
        "settings": settings._asdict(),
        "augmentation": AUGMENTATION.__dict__,
        "styles": list(STYLES),
        "images": len(Emoji64("train")),
        "parameters": sum(weight.numel() for weight in training.model.parameters()),
        "torch": torch.__version__,
        "cpu_seconds": round(training.seconds),
        "log": training.log,
        "figures": figures(Emoji64Probe(load_weights(weights, digest))),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

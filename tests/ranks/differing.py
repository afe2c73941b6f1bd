"""Started by `launching.launch` on two processes that differ in something: each writes down what it is told about that.

torchrun --standalone --nproc_per_node 2 tests/ranks/differing.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from torch.utils.data import DataLoader
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.data import Dataset
from imagen_pytorch.training.distributed import ProcessesDiffer

RANK = int(os.environ["RANK"])


def items(count: int) -> list[torch.Tensor]:
    return list(torch.zeros(count, 3, 4, 4))


def trainer(seed: int | None = 5, options: dict[str, Any] | None = None, **model: object) -> ImagenTrainer:
    torch.manual_seed(RANK)
    made = small_imagen((4,), condition_on_text=False, **model)
    return ImagenTrainer(made, seed=seed, verbose=False, **(options or {}))


def folder(place: Path, *names: str) -> Dataset:
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(place / name)
    return Dataset(place, 4)


def checkpoint(place: Path, steps: int) -> Path:
    """One of this process alone: the other knows nothing of it."""
    made = trainer()
    made.add_train_dataset(items(4), batch_size=2)
    for _ in range(2):
        made.train_step()
    contents = made.state.state_dict()
    contents["steps"] = torch.tensor([steps])
    from imagen_pytorch.checkpoints import write_checkpoint

    write_checkpoint(contents, place)
    return place


def main() -> None:
    torch.set_num_threads(1)
    place = Path(sys.argv[1]) / str(RANK)
    told: dict[str, str | None] = {}

    def check(name: str, work: Callable[[], object]) -> None:
        try:
            work()
            told[name] = None
        except ProcessesDiffer as error:
            told[name] = str(error)

    def loader(count: int, size: int) -> DataLoader:
        return DataLoader(items(count), batch_size=size)

    names = ("a.png", "b.png") if RANK else ("a.png", "c.png")
    path = checkpoint(place / "own.pt", 2 + RANK)
    same = checkpoint(place / "same.pt", 2)
    check("equal data", lambda: trainer().add_train_dataset(items(10), batch_size=4, shuffle=True))
    check("equal folders", lambda: trainer().add_train_dataset(folder(place / "equal", "a.png", "b.png")))
    check("count", lambda: trainer().add_train_dataset(items(10 + 3 * RANK), batch_size=4))
    check("batch size", lambda: trainer().add_train_dataset(items(10), batch_size=2 + 2 * RANK))
    check("shuffle", lambda: trainer().add_train_dataset(items(10), batch_size=2, shuffle=bool(RANK)))
    check("names", lambda: trainer().add_train_dataset(folder(place / "other", *names), batch_size=2))
    check("validation", lambda: trainer().add_valid_dataset(items(10 + RANK), batch_size=2))
    check("loader", lambda: trainer().add_train_dataloader(loader(10 + RANK, 2)))
    check("loader's batches", lambda: trainer().add_train_dataloader(loader(10, 2 + RANK)))
    check("seed", lambda: trainer(seed=RANK))
    check("width", lambda: trainer(unet={"dim": 8 + 8 * RANK}))
    check("settings", lambda: trainer(timesteps=4 + RANK))
    check("rate", lambda: trainer(options={"lr": 1e-4 * (1 + RANK)}))
    check("averages", lambda: trainer(options={"ema_beta": 0.9 + RANK / 100}))
    check("norm", lambda: trainer(options={"max_grad_norm": 1.0} if RANK else {}))
    check("equal checkpoints", lambda: trainer().load(same))
    check("checkpoint", lambda: trainer().load(path))
    Path(sys.argv[1], f"{RANK}.json").write_text(json.dumps(told))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Started by `launching.launch` on some processes: trains a toy in many ways and writes down what each process saw.

Usage: torchrun --nproc_per_node N shared_run.py OUTPUT_FOLDER CHECK...
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoints.contents import local_part

OFTEN = {"ema_update_after_step": 0, "ema_update_every": 1, "ema_beta": 0.9}


class Items(torch.utils.data.Dataset):
    """Ten captioned pictures, each with noise of its own; notes which were read."""

    def __init__(self, count: int = 10) -> None:
        self.pictures = pictures(count)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        self.read.append(index)
        return self.pictures[index].lerp(torch.rand(3, 8, 8), 0.1), CAPTIONS[index % 4]


def trainer(seed: int | None = 5, model: dict | None = None, **options) -> ImagenTrainer:
    """A trainer whose fresh weights differ between processes, as they do where nobody seeds."""
    torch.manual_seed(100 + int(os.environ.get("RANK", "0")))
    imagen = small_imagen((8,), **(model or {}))
    return ImagenTrainer(imagen, **{"lr": 1e-2, "verbose": False, "seed": seed, **OFTEN} | options)


def weights(made: ImagenTrainer) -> list[float]:
    return [float(item.detach().double().sum()) for item in made.imagen.unets[0].parameters()]


def averages(made: ImagenTrainer) -> list[float]:
    return [float(item.detach().double().sum()) for item in made.get_ema_unet(1).parameters()]


def train(made: ImagenTrainer, steps: int, **options) -> list[float]:
    return [made.train_step(**options) for _ in range(steps)]


def uneven(**options) -> dict:
    """Ten items in batches of four: the last one of an epoch has two; of three it has one."""
    made, items = trainer(**options), Items()
    made.add_train_dataset(items, batch_size=3, shuffle=True)
    made.add_valid_dataset(Items(5), batch_size=2)
    losses = train(made, 4)
    read = list(items.read)
    losses += train(made, 3, max_batch_size=1)
    valid = [made.valid_step() for _ in range(3)]
    return {"losses": losses, "valid": valid, "weights": weights(made), "averages": averages(made), "read": read}


class Readable:
    """A ``collate_fn`` that leaves out the pictures of some numbers; a batch of nothing else is None."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, items: list) -> dict | None:
        left = [(picture, text) for picture, text, number in items if number not in self.bad]
        return (
            {"images": torch.stack([item[0] for item in left]), "texts": [item[1] for item in left]} if left else None
        )


def numbered(count: int = 10) -> list[tuple[torch.Tensor, str, int]]:
    """Captioned pictures with their numbers."""
    return [(picture, CAPTIONS[index % 4], index) for index, picture in enumerate(pictures(count))]


class Streamed(torch.utils.data.IterableDataset):
    """The same, without an order that anybody else could know."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str, int]]:
        return iter(numbered())


def unreadable(**options) -> dict:
    """Of the first batch the whole share of one process cannot be read, of the second a part of the other's, of the
    third nothing, as happens again in the next epoch; and the same with processes and batches the other way round.
    """
    found = {"losses": [], "weights": [], "places": []}
    for bad, pieces in (((0, 1, 6, 8, 9), None), ((2, 3, 4, 8, 9), 1)):
        made = trainer(**options)
        made.add_train_dataset(numbered(), batch_size=4, collate_fn=Readable(*bad))
        found["losses"] += train(made, 4, max_batch_size=pieces)
        found["weights"] += weights(made)
        stream = made.train_dl_iter
        found["places"].append([stream.epoch, stream.position, stream.seen])
    return found


def unreadable_streams(**options) -> dict:
    """A stream of rows of which each process reads all, and a loader that its sampler shares out."""
    made, other = trainer(**options), trainer(**options)
    made.add_train_dataloader(torch.utils.data.DataLoader(Streamed(), batch_size=4, collate_fn=Readable(4, 5, 6, 7, 8)))
    count, rank = made.processes.count, made.processes.rank
    items, collate = numbered(8), Readable(0, 2, 5)
    sampler = torch.utils.data.DistributedSampler(items, count, rank, shuffle=False)
    other.add_train_dataloader(
        torch.utils.data.DataLoader(items, batch_size=4 // count, sampler=sampler, collate_fn=collate)
    )
    return {"losses": train(made, 3) + train(other, 3), "weights": weights(made) + weights(other)}


def sharded_unreadable(**options) -> dict:
    """The first steps of the second half of `unreadable`: all processes make as many passes."""
    made = trainer(strategy="fsdp2", **options)
    made.add_train_dataset(numbered(), batch_size=4, collate_fn=Readable(2, 3, 4, 8, 9))
    return {"losses": train(made, 2, max_batch_size=1)}


def even(**options) -> dict:
    made, items = trainer(**options), Items(8)
    made.add_train_dataset(items, batch_size=4, shuffle=True)
    return {"losses": train(made, 5, max_batch_size=1), "weights": weights(made), "averages": averages(made)}


def per_process(**options) -> dict:
    """Batches of two for each process."""
    made, items = trainer(split_batches=False, **options), Items(8)
    made.add_train_dataset(items, batch_size=4 // made.processes.count, shuffle=True)
    return {"losses": train(made, 3), "weights": weights(made)}


def loader_of_ones_own(**options) -> dict:
    made, items = trainer(**options), Items(9)
    loader = torch.utils.data.DataLoader(items, batch_size=4, shuffle=True)
    made.add_train_dataloader(loader)
    train(made, 3)
    read = list(items.read)
    stream = [{"images": pictures(4, seed=n), "texts": CAPTIONS} for n in range(3)]
    other = trainer(**options)
    other.add_train_dataloader(stream)
    return {"read": read, "losses": train(other, 3), "weights": weights(other)}


def gradient(**options) -> dict:
    """The gradient of one batch by the plain call, and how often processes talked about it."""
    made = trainer(model={"spectral_loss": "sharp", "augment": {"probability": 0.5}}, **options)
    count, rank = made.processes.count, made.processes.rank
    rows = slice(rank * 4 // count, (rank + 1) * 4 // count)
    whole = pictures(4)
    made(whole[rows], texts=CAPTIONS[rows])
    made.update()  # the first update also builds what exchanges gradients
    talks: list[str] = []
    with _talks_noted(talks) if count > 1 else contextlib.nullcontext():
        made(whole[rows], texts=CAPTIONS[rows], max_batch_size=1)
        found = torch.cat([item.grad.flatten() for item in made.imagen.unets[0].parameters()])
        made.update()
    return {"gradient": found.tolist(), "talks": sum("gloo" in name for name in talks), "names": sorted(set(talks))}


@contextlib.contextmanager
def _talks_noted(names: list[str]) -> Iterator[None]:
    """Whatever processes tell each other inside the block, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    names += [event.name for event in profile.events() if "all_reduce" in event.name.lower()]


def not_finite(**options) -> dict:
    """A picture of one process is NaN, once: all skip that update alike."""
    made = trainer(**options)
    rank = made.processes.rank
    taken = []
    for bad in (False, True, False):
        images = pictures(2)
        if bad and rank == made.processes.count - 1:
            images[0, 0, 0, 0] = torch.nan
        made(images, texts=CAPTIONS[:2])
        taken.append(made.update())
    return {"taken": taken, "skipped": made.skipped_steps, "weights": weights(made), "averages": averages(made)}


def alike(**options) -> dict:
    """Nobody seeds, and every process makes weights of its own: the main one's count."""
    made, items = trainer(seed=None, **options), Items(8)
    made.add_train_dataset(items, batch_size=4, shuffle=True)
    return {"losses": train(made, 2), "weights": weights(made), "averages": averages(made)}


def only_main(folder: Path, **options) -> dict:
    """Saving and sampling by the main process alone, and a folder that saves by itself."""
    made, items = trainer(checkpoint_path=str(folder / "run"), checkpoint_every=2, **options), Items(8)
    made.add_train_dataset(items, batch_size=4, shuffle=True)
    train(made, 3)
    read = items.read[-len(items.read) // 3 :]
    if made.is_main:
        made.save(folder / "main.pt")
        made.sample(texts=CAPTIONS[:1], use_tqdm=False)
    made.save(folder / "all.pt")
    losses = train(made, 2)
    files = sorted(item.name for item in folder.iterdir())
    return {"losses": losses, "weights": weights(made), "files": files, "read": read}


def resumed(folder: Path, **options) -> dict:
    """Goes on from what `only_main` left, on as many processes as there are now."""
    made, items, said = trainer(seed=77, verbose=True, **options), Items(8), io.StringIO()
    made.add_train_dataset(items, batch_size=4, shuffle=True)
    with contextlib.redirect_stdout(said):
        made.load(folder / "all.pt")
    losses = train(made, 2)
    again = trainer(seed=78, checkpoint_path=str(folder / "run"), checkpoint_every=100, **options)
    return {
        "losses": losses,
        "weights": weights(made),
        "read": items.read,
        "steps": again.steps.tolist(),
        "lr": again.get_lr(1),
        "folder": weights(again),
        "said": said.getvalue(),
    }


resumed_other = resumed


def sharded(folder: Path, **options) -> dict:
    """Weights, averages and moments in parts; the folder's checkpoints are folders of shards."""
    asked = {"strategy": "fsdp2"} if "WORLD_SIZE" in os.environ else {}
    place = {"checkpoint_path": str(folder / "run"), "checkpoint_every": 3}
    made, items, said = trainer(verbose=True, **asked, **place, **options), Items(8), io.StringIO()
    before = made.steps.tolist()
    made.add_train_dataset(items, batch_size=4, shuffle=True)
    losses = train(made, 3, max_batch_size=1)
    made.save(folder / "file.pt")
    read = list(items.read)
    made.store.unlock()
    with contextlib.redirect_stdout(said):
        again = trainer(seed=9, verbose=True, **asked, **place, **options)
        other = trainer(seed=9, **asked, **options)
        other.load(folder / "file.pt")
    for one in (again, other):
        one.add_train_dataset(Items(8), batch_size=4, shuffle=True)
    later = [train(one, 2) for one in (again, other)]
    again.store.unlock()
    later.append(train(made, 2))
    alike = all(
        torch.equal(mine, theirs) for one in (again, other) for mine, theirs in zip(held(made), held(one), strict=True)
    )
    pictures = made.sample(texts=CAPTIONS[:1], seed=1, use_tqdm=False)
    return {
        "losses": losses,
        "later": later,
        "alike": alike,
        "before": before,
        "share": sum(item.numel() for item in held(made)) / sum(item.numel() for item in made.imagen.parameters()),
        "files": sorted(item.name for item in (folder / "run").iterdir()),
        "said": said.getvalue(),
        "read": read,
        "sample": pictures.flatten().tolist(),
    }


def sharded_uneven(**options) -> dict:
    """Of three pictures one process has one and the other two, in pieces of one."""
    asked = {"strategy": "fsdp2"} if "WORLD_SIZE" in os.environ else {}
    made = trainer(**asked, **options)
    made.add_train_dataset(Items(), batch_size=3, shuffle=True)
    return {"losses": train(made, 4, max_batch_size=1)}


def sharded_resumed(folder: Path, **options) -> dict:
    """Goes on from the folder that `sharded` left, without shards where there is one process."""
    asked = {"strategy": "fsdp2"} if "WORLD_SIZE" in os.environ else {}
    made = trainer(seed=9, checkpoint_path=str(folder / "run"), checkpoint_every=100, **asked, **options)
    made.add_train_dataset(Items(8), batch_size=4, shuffle=True)
    return {"steps": made.steps.tolist(), "losses": train(made, 2)}


def held(made: ImagenTrainer) -> list[torch.Tensor]:
    """What this process has of weights, averages and moments."""
    moments = (item for state in made.optim0.state.values() for name, item in state.items() if name != "step")
    every = (*made.imagen.unets[0].parameters(), *made.ema_unets[0].ema_model.parameters(), *moments)
    return [local_part(item.detach())[0] for item in every]


def main() -> None:
    folder, checks = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    results = {}
    for check in checks:
        name, _, place = check.partition(":")
        results[name] = globals()[name](**({"folder": folder / place} if place else {}))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

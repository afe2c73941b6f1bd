"""A run that was saved and begun anew is, bit for bit, the run that was never interrupted."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer
from imagen_pytorch.training.batch_sampler import SeededDataset
from imagen_pytorch.training.loaders import BatchStream, make_loader

BEFORE, AFTER = 4, 4


class Drawn(torch.utils.data.Dataset):
    """Captioned pictures that draw from every global random state, as data sets of users do."""

    def __init__(self, count: int = 10) -> None:
        self.pictures = pictures(count)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        share = (random.random() + np.random.random() + float(torch.rand(()))) / 30  # noqa: NPY002
        return self.pictures[index].lerp(torch.ones(3, 8, 8), share), CAPTIONS[index % 4]


def everything(made):
    """All that a training consists of, as tensors by name."""
    found = {name: item.clone() for name, item in made.state_dict().items()} | {"steps": made.steps.clone()}
    for number, unet_trainer in enumerate(made.unet_trainers, start=1):
        found[f"lr{number}"] = torch.tensor(made.get_lr(number), dtype=torch.float64)
        found[f"skipped{number}"] = torch.tensor([unet_trainer.skipped, unet_trainer.skipped_in_a_row])
        for index, moments in unet_trainer.optimizer.state_dict()["state"].items():
            found |= {f"{number}.{index}.{name}": torch.as_tensor(item).clone() for name, item in moments.items()}
    return found


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def new(kind=Imagen, sizes=(8,), loader=None, model=None, **options):
    torch.manual_seed(3)
    made = ImagenTrainer(
        small_imagen(sizes, kind, **(model or {})),
        **{"lr": 1e-2, "verbose": False, "ema_update_after_step": 1, "ema_update_every": 2, **options},
    )
    made.add_train_dataset(Drawn(), **{"batch_size": 4, "shuffle": True, **(loader or {})})
    return made


CASES = {
    "plain": {},
    "in order": {"loader": {"shuffle": False}},
    "workers": {"loader": {"num_workers": 2}},
    "last batch dropped": {"loader": {"drop_last": True}},
    "elucidated": {"kind": ElucidatedImagen},
    "rates": {"warmup_steps": 3, "cosine_decay_max_steps": 7, "max_grad_norm": 0.1},
    "cool-down": {"cosine_decay_max_steps": 7, "cooldown_steps": 4},
    "decay": {"weight_decay": 0.1},
    "dropout": {"model": {"unet": {"dropout": 0.2}}},
    "self-conditioning": {"model": {"self_cond": True}},
    "half precision": {"precision": "bf16"},
    "loss scaling": {"precision": "fp16"},
}


@pytest.mark.parametrize(("name", "seed"), [*((name, 5) for name in CASES), ("plain", None), ("workers", None)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name, seed):
    """In the middle of an epoch: four batches of ten pictures in fours are one epoch and a third."""
    pieces = {"max_batch_size": 3}
    whole = new(seed=seed, **CASES[name])
    torch.manual_seed(11)
    for _ in range(BEFORE):
        whole.train_step(**pieces)
    whole.save(tmp_path / "a.pt")
    losses = [whole.train_step(**pieces) for _ in range(AFTER)]
    torch.manual_seed(12)
    other = new(seed=None if seed is None else 99, **CASES[name])
    other.load(tmp_path / "a.pt")
    assert [other.train_step(**pieces) for _ in range(AFTER)] == losses
    assert not differing(everything(whole), everything(other))


def test_nothing_beside_the_training_disturbs_it(tmp_path):
    """Saving, loading, validating, sampling, drawing random numbers; saving what was loaded once more."""
    options = {"seed": 5, "split_valid_from_train": True, "split_valid_fraction": 0.3}
    whole, other = new(**options), new(**options)
    losses = [whole.train_step() for _ in range(6)]
    found = []
    for step in range(6):
        found.append(other.train_step())
        torch.rand(3)
        other.valid_step()
        other.save(tmp_path / f"{step}.pt")
        if step == 2:
            other.sample(texts=CAPTIONS[:1], use_tqdm=False)
            other = new(**options)
            other.load(tmp_path / f"{step}.pt")
            other.save(tmp_path / "again.pt")
            other = new(**options)
            other.load(tmp_path / "again.pt")
    assert found == losses and not differing(everything(whole), everything(other))


def test_the_second_unet_after_the_first(tmp_path):
    def run(made, numbers):
        return [made.train_step(number) for number in numbers]

    def both():
        return new(sizes=(4, 8), seed=5, warmup_steps=(2, 3))

    whole = both()
    run(whole, (1, 1, 2))
    whole.save(tmp_path / "a.pt")
    losses = run(whole, (2, 1, 2))
    other = both()
    other.load(tmp_path / "a.pt")
    assert run(other, (2, 1, 2)) == losses and not differing(everything(whole), everything(other))


@pytest.mark.parametrize("remote", [False, True])
def test_gradients_that_wait_for_an_update_are_kept(tmp_path, remote):
    """Saved between the two halves of an accumulated batch, from the call and from the folder."""

    def half(made, index):
        made(pictures(4, seed=index), texts=CAPTIONS, max_batch_size=2)

    def rest(made):
        half(made, 2)
        made.update()
        half(made, 3)
        made.update()
        return everything(made)

    whole = new(seed=5)
    half(whole, 0)
    whole.update()
    half(whole, 1)
    path = f"memory://{tmp_path.name}/a.pt" if remote else tmp_path / "a.pt"
    whole.save(path)
    other = new(seed=6)
    half(other, 9)  # of another run: gives way
    other.load(path)
    assert not differing(rest(whole), rest(other))


def test_skipped_updates_are_counted_on(tmp_path):
    def run(made, bad):
        images = pictures(2)
        images[0] = torch.nan if bad else images[0]
        made(images, texts=CAPTIONS[:2])
        return made.update()

    whole = new(seed=5)
    with pytest.warns(UserWarning, match="is not finite"):
        assert [run(whole, bad) for bad in (False, True, True)] == [True, False, False]
    whole.save(tmp_path / "a.pt")
    other = new(seed=6)
    other.load(tmp_path / "a.pt")
    assert other.skipped_steps == [2] and not differing(everything(whole), everything(other))


# -- the order of data ------------------------------------------------------------------------------------------------


class Noted(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count, self.read = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


@pytest.mark.parametrize("seen", [1, 2, 3, 5])
def test_what_was_seen_is_not_read_again(seen):
    items, rest = Noted(10), Noted(10)
    first = BatchStream(make_loader(items, 3, seed=1, shuffle=True), seed=1)
    for _ in range(seen):
        next(first)
    second = BatchStream(make_loader(rest, 3, seed=2, shuffle=True), seed=2)
    second.load_state_dict(first.state_dict())
    in_epoch = items.read[10 * (seen // 4) :]
    while second.epoch == seen // 4:
        next(second)
    ahead = rest.read[: 10 - len(in_epoch)]
    assert sorted(in_epoch + ahead) == list(range(10))


def test_another_batch_size_goes_on_with_what_is_left():
    items, rest = Noted(10), Noted(10)
    first = BatchStream(make_loader(items, 3, seed=1, shuffle=True), seed=1)
    next(first)
    second = BatchStream(make_loader(rest, 2, seed=1, shuffle=True), seed=1)
    second.load_state_dict(first.state_dict())
    for _ in range(4):  # seven are left: 2, 2, 2 and 1
        next(second)
    assert second.epoch == 0 and sorted(items.read + rest.read) == list(range(10))


def test_draws_of_an_item_do_not_depend_on_who_reads_it():
    def draws(**options):
        stream = BatchStream(make_loader(Drawn(), seed=1, shuffle=True, **options), seed=1)
        batches = [next(stream)[0] for _ in range(-(-10 // options["batch_size"]))]
        return torch.cat(batches)

    alone = draws(batch_size=4)
    assert torch.equal(alone, draws(batch_size=4, num_workers=2))
    assert torch.equal(alone, draws(batch_size=5))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    draws(batch_size=4)
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())


def test_items_of_a_batch_are_those_read_alone_and_a_failure_restores_the_states():
    data = SeededDataset(Drawn())
    places = [(2**62 + 3, 4), (7, 0), (7, 4)]
    batch = data.__getitems__(places)
    assert all(torch.equal(item[0], data[place][0]) for item, place in zip(batch, places, strict=True))
    assert not torch.equal(batch[0][0], batch[2][0])
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(IndexError):
        data.__getitems__([(1, 2), (3, 99)])
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())


# -- passes over the loader itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_over_a_shuffled_loader_has_another_order(workers):
    """The same for the same seed, whoever reads; and the training's own order is not touched."""

    def loader():
        return make_loader(list(range(10)), 3, seed=1, shuffle=True, num_workers=workers)

    def items(made):
        return torch.cat(list(made)).tolist()

    made, other = loader(), loader()
    passes = [items(made) for _ in range(3)]
    assert all(sorted(one) == list(range(10)) for one in passes) and len(set(map(tuple, passes))) == 3
    assert [items(other) for _ in range(3)] == passes
    plain, stream = BatchStream(loader(), seed=1), BatchStream(made, seed=1)
    expected = [next(plain).tolist() for _ in range(9)]
    found = [next(stream).tolist() for _ in range(2)]
    assert sorted(items(made)) == list(range(10))  # in the middle of an epoch it is a pass over everything
    assert found + [next(stream).tolist() for _ in range(7)] == expected

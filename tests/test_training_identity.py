"""Which data, model and checkpoint these are: processes of a run have the same, and a position belongs to its data."""

from __future__ import annotations

import copy
import json
import re
import warnings

import pytest
import torch
from launching import run
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.data import Dataset, Emoji64, MovingDigits, TableDataset
from imagen_pytorch.training.identity import contents_digest, data_digest
from imagen_pytorch.training.loaders import BatchStream, make_loader


class Named(torch.utils.data.Dataset):
    """Items by their names; the item is the number in the name."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def identity(self):
        return map(str, self.numbers)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.numbers[index]


def stream(data, **options):
    return BatchStream(make_loader(data, 4, seed=1, shuffle=True, **options), seed=1)


def epoch(made):
    """The items of what is left of this epoch."""
    found, number = [], made.epoch
    while made.epoch == number and (made.seen < made._order.count):
        found += next(made).tolist()
    return found


# -- a position belongs to its data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        (range(21), "20 items then, 21 items now"),
        (range(19), "20 items then, 19 items now"),
        ([*range(19), 99], "(20 items, but other ones)"),
    ],
)
def test_with_other_data_the_epoch_begins_anew(numbers, what):
    """In it every item comes once, as in the epoch of a run that began with these data."""
    first = stream(Named(*range(20)))
    for _ in range(8):  # three batches of the second epoch
        next(first)
    second, fresh = stream(Named(*numbers)), stream(Named(*numbers))
    note = second.load_state_dict(first.state_dict())
    assert what in note and "epoch 2 begins anew" in note
    epoch(fresh)
    found = epoch(second)
    assert sorted(found) == sorted(numbers) and found == next(fresh).tolist() + epoch(fresh)


@pytest.mark.parametrize("batches", [0, 3, 5])
def test_with_the_same_data_nothing_is_said(batches):
    first, second = stream(Named(*range(20))), stream(Named(*range(20)))
    seen = [item for _ in range(batches) for item in next(first).tolist()]
    assert second.load_state_dict(copy.deepcopy(first.state_dict())) is None
    assert sorted(seen + epoch(second)) == sorted(range(20)) if batches < 5 else epoch(second) != seen


def test_a_state_that_does_not_tell_its_data_is_taken_as_before():
    first = stream(Named(*range(20)))
    next(first)
    state = {name: value for name, value in first.state_dict().items() if name not in ("items", "names")}
    second = stream(Named(*range(20)))
    assert second.load_state_dict(state) is None and second.seen == 4


def test_the_trainer_says_it(tmp_path):
    def made(count):
        trainer = ImagenTrainer(small_imagen((4,), condition_on_text=False), seed=2, verbose=False)
        trainer.add_train_dataset(list(torch.zeros(count, 3, 4, 4)), batch_size=2, shuffle=True)
        return trainer

    first = made(6)
    first.train_step()
    first.save(tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"not those of the checkpoint \(6 items then, 8 items now\): epoch 1 begins"):
        made(8).load(tmp_path / "a.pt")
    late = ImagenTrainer(small_imagen((4,), condition_on_text=False), seed=2, verbose=False)
    late.load(tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="6 items then, 8 items now"):
        late.add_train_dataset(list(torch.zeros(8, 3, 4, 4)), batch_size=2, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(6).load(tmp_path / "a.pt")


# -- digests ----------------------------------------------------------------------------------------------------------


def folder(place, *names):
    place.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(place / name)
    return place


def test_names_decide_and_not_where_they_are_or_how_large(tmp_path):
    one, other = folder(tmp_path / "1", "a.png", "b.png"), folder(tmp_path / "2", "a.png", "b.png")
    assert data_digest(Dataset(one, 4)) == data_digest(Dataset(other, 8))
    assert data_digest(Dataset(one, 4)) != data_digest(Dataset(folder(other, "c.png"), 4))
    rows = [{"image": Image.new("RGB", (4, 4))}] * 3
    assert data_digest(TableDataset(rows, 4)) != data_digest(TableDataset(rows[:2], 4))
    assert data_digest(Emoji64(limit=3)) == data_digest(Emoji64(limit=3, image_size=16))
    assert data_digest(Emoji64(limit=3)) != data_digest(Emoji64(limit=3, split="concept"))
    assert data_digest(MovingDigits(length=3)) != data_digest(MovingDigits(length=3, seed=1))


def test_wrappers_count():
    data = Named(1, 2, 3)
    assert data_digest(Subset(data, [0, 1])) == data_digest(Subset(Named(1, 2, 3), [0, 1]))
    assert len({data_digest(item) for item in (data, Subset(data, [0, 1]), Subset(data, [1, 0]), Named(1, 2))}) == 4
    assert data_digest(ConcatDataset([data, data])) not in (None, data_digest(data))
    assert data_digest([1, 2]) is None and data_digest(ConcatDataset([data, [1]])) is None


def test_the_digest_of_a_checkpoint_sees_every_entry():
    contents = {"steps": torch.tensor([3]), "model": {"a": torch.zeros(9000), "b": torch.zeros(())}, "version": "1"}
    first = contents_digest(contents)
    assert first == contents_digest(copy.deepcopy(contents))
    changed = [
        {**contents, "steps": torch.tensor([4])},
        {**contents, "version": "2"},
        {**contents, "model": {"a": torch.ones(9000), "b": torch.zeros(())}},
        {**contents, "model": {"a": torch.zeros(9000), "b": torch.ones(())}},
        {**contents, "model": {"a": torch.zeros(9000)}},
        {**contents, "model": {"a": torch.zeros(90, 100), "b": torch.zeros(())}},
        {**contents, "model": {"a": torch.zeros(9000, dtype=torch.bfloat16), "b": torch.zeros(())}},
    ]
    assert len({contents_digest(item) for item in (contents, *changed)}) == 1 + len(changed)


# -- what cannot be split ---------------------------------------------------------------------------------------------


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(4, 3, 4, 4))


class Lengthless:
    def __getitem__(self, index):
        return torch.zeros(3, 4, 4)


def splitting():
    model = small_imagen((4,), condition_on_text=False)
    return ImagenTrainer(model, split_valid_from_train=True, split_valid_fraction=0.5, verbose=False)


@pytest.mark.parametrize("data", [Streamed(), Lengthless()])
def test_data_without_a_length_cannot_be_split(data):
    with pytest.raises(ValueError, match="split_valid_from_train needs a data set with a length, .* has none: add"):
        splitting().add_train_dataset(data, batch_size=2)


def test_a_loader_cannot_be_split():
    data = list(torch.zeros(4, 3, 4, 4))
    with pytest.warns(UserWarning, match="splits data sets, not loaders, so nothing is set aside"):
        splitting().add_train_dataloader(DataLoader(data, batch_size=2))
    made = splitting()
    made.add_valid_dataloader(DataLoader(data, batch_size=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.add_train_dataloader(DataLoader(data, batch_size=2))


# -- several processes ------------------------------------------------------------------------------------------------


def test_processes_that_differ_are_all_told_in_what(tmp_path):
    """Before the first step, on every one of them; equal ones are not."""
    run(2, "differing.py", tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    cut = [{name: text and re.sub(r"/[01]/", "/", text) for name, text in one.items()} for one in told]
    assert cut[0] == cut[1]
    expected = {
        "count": "train data: the number of items is 10 on process 0 and 13 on process 1; give every process the same",
        "batch size": "train data: batch_size is 2 on process 0 and 4 on process 1",
        "shuffle": "train data: shuffle is False on process 0 and True on process 1",
        "names": "train data: the digest of their names is",
        "validation": "valid data: the number of items is 10 on process 0 and 11 on process 1",
        "loader": "train data: the number of items is 10 on process 0 and 11 on process 1",
        "loader's batches": "train data: batch_size is 2 on process 0 and 3 on process 1",
        "seed": "model: the seed is 0 on process 0 and 1 on process 1",
        "width": "model: the digest of its weights' names and shapes is",
        "settings": "model: the digest of its construction is",
        "rate": "arguments of their trainer: lr of U-Net 1 is 0.0001 on process 0 and 0.0002 on process 1; give every",
        "averages": "arguments of their trainer: ema_beta is 0.9 on process 0 and 0.91 on process 1",
        "norm": "arguments of their trainer: max_grad_norm is None on process 0 and 1.0 on process 1",
        "checkpoint": "own.pt: the number of its steps is [2] on process 0 and [3] on process 1; put the same file",
    }
    assert {name for name, text in told[0].items() if text is None} == {"equal data", "equal folders"} | {
        "equal checkpoints"
    }
    assert all(words in told[0][name] for name, words in expected.items()), told[0]
    assert told[0].keys() == expected.keys() | {"equal data", "equal folders", "equal checkpoints"}

"""Processes that read: started where they help, replaced where they are lost; the data are the same in every case."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.data import ImageDataset
from imagen_pytorch.training import workers
from imagen_pytorch.training.loaders import BatchStream, make_loader
from imagen_pytorch.training.workers import WorkersLost, usual_workers

COUNT = 12


class Slow(ImageDataset):
    """Grey images of their number, slowly read; a file per process tells who read what."""

    any_process = True

    def __init__(self, folder, pause=0.02, **options):
        super().__init__(COUNT, 4, 3, False, **options)
        self.folder, self.pause = folder, pause

    def name(self, index):
        return f"image {index}"

    def read(self, index):
        time.sleep(self.pause)
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{index}\n")
        return Image.new("RGB", (8, 8), (20 * index,) * 3), ()

    def captions_at(self, index):
        return ()


class Wrapped(torch.utils.data.Dataset):
    """A user's own: nobody knows whether it can be forked."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


def readers(folder):
    """What each process has read."""
    return {int(path.name): list(map(int, path.read_text().split())) for path in folder.iterdir()}


def numbers(stream, batches):
    """The items of some batches by their brightness."""
    return [(batch[:, 0, 0, 0] * 255 / 20).round().int().tolist() for batch in (next(stream) for _ in range(batches))]


def streamed(data, **options):
    return BatchStream(make_loader(data, 2, seed=4, shuffle=True), seed=4, **options)


@pytest.fixture
def eager(monkeypatch):
    """Workers are worth while soon."""
    monkeypatch.setattr(workers, "WORTH_STARTING", 0.05)
    monkeypatch.setattr(workers, "MEASURED", 2)


NEEDS_FORK = pytest.mark.skipif(not usual_workers(), reason="processes are forked on Linux")


# -- chosen by default ------------------------------------------------------------------------------------------------


@NEEDS_FORK
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_workers_read_while_images_are_left_that_have_to_be_read(share, eager, tmp_path):
    """The order is that of one process; with everything in the cache none is started, without a cache ever again."""
    plain = numbers(streamed(Slow(tmp_path, 0)), 18)
    for path in tmp_path.iterdir():
        path.unlink()
    stream = streamed(Slow(tmp_path, cache_memory_share=share), choose_workers=True)
    assert numbers(stream, 6) == plain[:6]
    by = readers(tmp_path)
    assert len(by) >= 2 and len(by.pop(os.getpid())) == 2  # the first batch was measured
    assert sum(map(len, by.values())) >= COUNT - 2
    before = readers(tmp_path).keys()
    assert numbers(stream, 12) == plain[6:]
    if share:
        assert readers(tmp_path).keys() == before and sorted(sum(readers(tmp_path).values(), [])) == list(range(COUNT))
        assert not multiprocessing.active_children()
    else:
        assert len(readers(tmp_path)) > len(before) and len(readers(tmp_path)[os.getpid()]) == 2


@NEEDS_FORK
@pytest.mark.parametrize("case", ["stated", "quick", "elsewhere", "kept", "own source", "own wrapper", "own collate"])
def test_no_workers_where_they_are_not_wanted(case, eager, tmp_path, monkeypatch):
    if case == "quick":  # by a measure that a busy machine meets too
        monkeypatch.setattr(workers, "WORTH_STARTING", 2.0)
    data = Slow(tmp_path, 0 if case == "quick" else 0.02, cache_memory_share=0.25)
    if case == "kept":
        for index in range(COUNT):
            data[index]
    items = {"elsewhere": [data[index] for index in range(COUNT)], "own wrapper": Wrapped(data)}.get(case, data)
    data.any_process = case != "own source"
    options = {"collate_fn": lambda items: torch.stack(items)} if case == "own collate" else {}
    loader = make_loader(items, 2, seed=4, shuffle=True, **options)
    assert len(numbers(BatchStream(loader, seed=4, choose_workers=case != "stated"), 8)) == 8
    assert readers(tmp_path).keys() == {os.getpid()}


@NEEDS_FORK
def test_the_trainer_chooses_where_nobody_stated_a_number(eager, tmp_path):
    losses = []
    for number, stated in enumerate(({}, {"num_workers": 0})):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.manual_seed(1)
        trainer = ImagenTrainer(small_imagen((4,), condition_on_text=False), seed=3, verbose=False)
        trainer.add_train_dataset(Subset(Slow(folder, cache_memory_share=0.25), range(COUNT)), batch_size=2, **stated)
        losses.append([trainer.train_step() for _ in range(7)])
        assert len(readers(folder)) == 1 if stated else len(readers(folder)) > 1
    assert losses[0] == losses[1]


@NEEDS_FORK
def test_where_no_process_can_be_started_the_training_process_reads(eager, tmp_path, monkeypatch):
    plain = numbers(streamed(Slow(tmp_path, 0)), 8)

    def refused(*_, **__):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", refused)
    assert numbers(streamed(Slow(tmp_path), choose_workers=True), 8) == plain


def test_how_many(monkeypatch):
    if not usual_workers():
        return
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert usual_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert usual_workers() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "128")
    assert usual_workers() == 1


# -- lost ones --------------------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    """Lost workers are looked for more often than every five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.parametrize("persistent", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("own_order", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_is_replaced(own_order, persistent, soon, tmp_path):
    """No item is lost or comes twice, also where the loader's order is not ours."""

    def made(count):
        data, options = Slow(tmp_path, 0), {"num_workers": count, "persistent_workers": persistent and count > 0}
        if own_order:
            generator = torch.Generator().manual_seed(1)
            return BatchStream(DataLoader(data, 2, shuffle=True, generator=generator, **options), seed=4)
        return BatchStream(make_loader(data, 2, seed=4, shuffle=True, **options), seed=4)

    # torch draws from a generator of one's own once more where workers persist
    plain, stream = numbers(made(2 if persistent else 0), 9), made(2)
    list(DataLoader([1, 2], num_workers=1))  # torch's handler of SIGCHLD may be there already
    found = numbers(stream, 2)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.3)  # nothing interrupts the training itself
    with pytest.warns(UserWarning, match=r"lost .*memory.*new ones are started at the same place \(1 of 3 times\)"):
        found += numbers(stream, 7)
    assert found == plain


class Dying(Slow):
    """Ends every process but one that reads a certain image."""

    def read(self, index):
        if index == 5 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.mark.slow
def test_what_kills_every_worker_ends_with_advice(soon, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RESTARTS", 1)
    data = Dying(tmp_path, 0)
    stream = BatchStream(make_loader(data, 2, seed=4, num_workers=1), seed=4)
    assert numbers(stream, 2) == [[0, 1], [2, 3]]
    with pytest.warns(UserWarning, match="1 of 1 times"), pytest.raises(WorkersLost, match="set a smaller num_workers"):
        next(stream)
    assert (stream.position, stream.seen) == (2, 4)
    later = BatchStream(make_loader(data, 2, seed=4), seed=4)
    later.load_state_dict(stream.state_dict())
    assert numbers(later, 4) == [[4, 5], [6, 7], [8, 9], [10, 11]]


class Full(Slow):
    """Worker processes find no shared memory, as in a container with a small /dev/shm."""

    def read(self, index):
        if multiprocessing.parent_process() is not None:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"
            )
        return super().read(index)


@pytest.mark.slow
def test_workers_without_shared_memory_end_with_advice(tmp_path):
    stream = BatchStream(make_loader(Full(tmp_path, 0), 2, seed=4, num_workers=1), seed=4)
    advice = r"unable to allocate shared memory.*4 times in all: set a smaller num_workers"
    with pytest.warns(UserWarning, match="3 of 3 times"), pytest.raises(WorkersLost, match=advice):
        next(stream)


def test_other_handlers_of_child_signals_stay(tmp_path):
    def own(*_):
        pass

    before = signal.signal(signal.SIGCHLD, own)
    try:
        numbers(BatchStream(make_loader(Slow(tmp_path, 0), 2, seed=4, num_workers=1), seed=4), 1)
        assert signal.getsignal(signal.SIGCHLD) is own
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


@NEEDS_FORK
@pytest.mark.slow
def test_workers_that_we_chose_never_end_a_training(eager, soon, tmp_path):
    stream = streamed(Dying(tmp_path, cache_memory_share=0.25), choose_workers=True)
    plain = numbers(streamed(Slow(tmp_path, 0)), 12)
    with pytest.warns(UserWarning, match="the training process reads the data itself from now on"):
        assert numbers(stream, 12) == plain


def test_other_errors_of_workers_stay_what_they_are(soon):
    class Bad(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise RuntimeError("of one's own")

    with pytest.raises(RuntimeError, match="of one's own"):
        next(BatchStream(make_loader(Bad(), 2, seed=1, num_workers=1), seed=1))


# -- how much time it takes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_share_of_waiting(tmp_path):
    """It takes 40 ms to read and 10 ms to work, and a pause in between does not count."""
    stream = streamed(Slow(tmp_path, 0.02))
    shares = []
    for step in range(12):
        next(stream)
        shares.append(stream.reading_share)
        time.sleep(0.5 if step == 6 else 0.01)
    assert shares[:3] == [None] * 3 and 0.5 < shares[-1] < 0.97
    trainer = ImagenTrainer(small_imagen((4,), condition_on_text=False), verbose=False)
    assert trainer.reading_share is None
    trainer.add_train_dataset(Slow(tmp_path, 0), batch_size=2)
    for _ in range(5):
        trainer.train_step()
    assert 0 < trainer.reading_share < 0.5

"""Writing in the background: whole, in order, noticed when it fails, and waited for at the end."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time

import pytest
import torch
from storage_toys import contents, step_of
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.checkpoints import (
    BackgroundWriter,
    CheckpointNotWritten,
    background,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)


def test_writes_come_one_after_another(tmp_path):
    writer, running, most = BackgroundWriter(), [], []

    def write(step):
        running.append(step)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(step)

    for step in range(4):
        writer.submit(lambda step=step: write(step))
    writer.wait()
    assert most == [1] * 4 and running == []


def test_a_writer_rests_until_somebody_waits_for_it(monkeypatch):
    """It would rest for years; whoever is not a writer never does."""
    monkeypatch.setattr(background, "WORK", 0.0)
    monkeypatch.setattr(background, "REST", 1e9)
    writer, began, done = BackgroundWriter(), threading.Event(), []

    def write():
        for piece in range(3):
            began.set()
            background.pause()
            done.append(piece)

    for _ in range(2):  # the second one rests again
        began.clear()
        done.clear()
        writer.submit(write)
        began.wait()
        assert done == []
        background.pause()
        writer.wait()
        assert done == [0, 1, 2]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_every_write_rests_between_its_pieces(tmp_path, monkeypatch, ending):
    rests = []
    monkeypatch.setattr("imagen_pytorch.checkpoints.files.pause", lambda: rests.append(1))
    write_checkpoint(contents(3, 8), tmp_path / f"a.{ending}")
    assert len(rests) >= 4  # two tensors are written, and read back
    assert step_of(read_checkpoint(tmp_path / f"a.{ending}")) == 3


def test_a_snapshot_written_later_is_of_one_moment(tmp_path):
    live, go = contents(1), threading.Event()
    held = snapshot(live)

    def write():
        go.wait()
        write_checkpoint(held, tmp_path / "a.pt")

    writer = BackgroundWriter()
    writer.submit(write)
    for tensor in live["model"].values():
        tensor.fill_(2)
    live["state"]["step"] = 2
    go.set()
    assert step_of(read_checkpoint(tmp_path / "a.pt")) == 1  # reading waits for what is being written


def test_a_store_is_looked_at_after_the_write(tmp_path):
    store, writer = CheckpointStore(tmp_path, keep=2), BackgroundWriter()
    for step in (1, 2, 3):
        writer.submit(lambda step=step: (time.sleep(0.05), store.write(step, contents(step))))
    assert store.steps() == [3, 2] and step_of(CheckpointStore(tmp_path).read()[1]) == 3


def test_an_error_is_raised_once_and_not_by_readers(tmp_path):
    (tmp_path / "file").write_text("")
    store, writer = CheckpointStore(tmp_path / "run"), BackgroundWriter()
    writer.submit(lambda: write_checkpoint(contents(), tmp_path / "file" / "a.pt"))
    assert store.steps() == [] and store.read() is None and writer.failed()
    started = []
    with pytest.raises(CheckpointNotWritten, match="cannot make the checkpoint folder"):
        writer.submit(lambda: started.append(1))
    assert not writer.failed() and not started
    writer.submit(lambda: started.append(2))
    writer.wait()
    writer.wait()
    assert started == [2]


def test_an_error_belongs_to_the_owner_of_its_writer():
    def fail():
        raise OSError("no room")

    mine, other, done = BackgroundWriter(), BackgroundWriter(), []
    mine.submit(fail)
    background.settle()
    assert mine.failed() and not other.failed()
    other.submit(lambda: done.append(1))
    other.wait()
    copied = copy.deepcopy(mine)
    copied.wait()
    with pytest.raises(OSError, match="no room"):
        mine.wait()
    assert done == [1]


def test_a_trainer_never_raises_the_error_of_another(tmp_path):
    (tmp_path / "file").write_text("")
    first, second = (ImagenTrainer(small_imagen(condition_on_text=False)) for _ in range(2))
    first.save(tmp_path / "file" / "a.pt", background=True)
    background.settle()
    second.save(tmp_path / "b.pt", background=True)
    second.wait_for_saves()
    assert read_checkpoint(tmp_path / "b.pt")["steps"].tolist() == [0]
    with pytest.raises(CheckpointNotWritten, match="cannot make the checkpoint folder"):
        first.wait_for_saves()


def test_a_write_that_looks_at_a_folder_does_not_wait_for_other_writes(tmp_path):
    """Else two of them would wait for each other for ever."""
    store, ready = CheckpointStore(tmp_path), threading.Barrier(2, timeout=20)
    writers = [BackgroundWriter() for _ in range(2)]
    for writer in writers:
        writer.submit(lambda: (ready.wait(), store.steps(), ready.wait()))
    for writer in writers:
        writer.wait()


PROGRAM = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
from imagen_pytorch.checkpoints import BackgroundWriter, write_checkpoint

def write(path):
    time.sleep(0.5)  # the main program has ended by now
    with ThreadPoolExecutor(1) as pool:  # as uploads do
        pool.submit(write_checkpoint, {"a": torch.ones(3)}, path).result()

BackgroundWriter().submit(lambda: write(sys.argv[1]))
raise SystemExit(3) if sys.argv[2] == "exit" else ValueError("the training failed")
"""


@pytest.mark.parametrize("ending", ["exit", pytest.param("error", marks=pytest.mark.slow)])
def test_the_interpreter_waits_for_a_write(tmp_path, ending):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "a.pt", ending], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == (3 if ending == "exit" else 1), done.stderr
    assert "cannot schedule" not in done.stderr
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.ones(3))


@pytest.mark.slow
def test_training_goes_on_while_a_large_file_is_written(tmp_path):
    """No other thread waits long for the interpreter's lock; the reference is 0.25 s for torch.save to a path."""
    large = {"a": [torch.zeros(25_000_000) for _ in range(5)]}
    writer = BackgroundWriter()
    writer.submit(lambda: write_checkpoint(large, tmp_path / "a.pt"))
    gaps, last = [], time.perf_counter()
    while not writer._last.done():
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    writer.wait()
    assert sorted(gaps)[-3] < 0.1 and len(gaps) > 10_000

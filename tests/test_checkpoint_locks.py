"""One run at a time saves to a place."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal

import pytest
from storage_toys import NEEDS_FORK, child, contents, filled, in_child, outcome, step_of

from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.storage import (
    CheckpointLocked,
    CheckpointNotWritten,
    lock_of,
    locks,
)


def test_a_local_folder_is_locked_for_others(tmp_path):
    first, second = filled(tmp_path, 1), CheckpointStore(tmp_path)
    first.lock()
    first.lock()
    message = rf"another run \(pid {os.getpid()}, host .+, since 20.+\) is saving into {tmp_path}; choose another"
    with pytest.raises(CheckpointLocked, match=message):
        second.lock()
    assert step_of(second.read()[1]) == 1  # reading needs no lock
    first.unlock()
    first.unlock()
    assert os.listdir(tmp_path) == ["checkpoint.1.pt"]
    second.lock()
    with pytest.raises(CheckpointLocked):
        first.lock()
    del second
    gc.collect()
    first.lock()
    first.unlock()


def lock_and_wait(folder, pipe):
    store = CheckpointStore(folder)
    store.lock()
    pipe.send(None)
    signal.pause()


@NEEDS_FORK
def test_a_lock_ends_with_its_process(tmp_path):
    here, there = multiprocessing.Pipe(duplex=False)
    process = child(lock_and_wait, tmp_path, there)
    here.recv()
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointLocked, match=f"pid {process.pid}"):
        store.lock()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.lock()
    store.unlock()


@NEEDS_FORK
def test_a_forked_worker_neither_holds_nor_ends_the_lock(tmp_path):
    store = CheckpointStore(tmp_path)
    store.lock()
    here, there = multiprocessing.Pipe(duplex=False)
    worker = child(wait_forked, there)  # as a data loader's
    here.recv()
    assert in_child(store.unlock) is None  # a worker that ends tidily
    with pytest.raises(CheckpointLocked):
        CheckpointStore(tmp_path).lock()
    store._lock._handle, handle = None, store._lock._handle  # the parent dies
    os.close(handle)
    other = CheckpointStore(tmp_path)
    other.lock()
    other.unlock()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def wait_forked(pipe):
    pipe.send(None)
    signal.pause()


def test_a_single_file_has_a_lock_too(tmp_path):
    path = tmp_path / "imagen.pt"
    with lock_of(path) as lock:
        assert lock.held and os.listdir(tmp_path) == [".imagen.pt.lock"]
        name, text = outcome(lock_of(path).acquire)
        assert name == "CheckpointLocked" and f"is saving into {path}" in text
    assert os.listdir(tmp_path) == [] and not lock.held
    with pytest.raises(CheckpointNotWritten, match="cannot write to .*missing"):
        lock_of(tmp_path / "missing" / "a.pt").acquire()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    """Its last holder removes the file between opening and locking it: the lock would be on a file without a name."""
    good, calls = locks.try_lock, []

    def late(handle):
        calls.append(handle)
        if len(calls) == 1:
            os.remove(tmp_path / ".a.pt.lock")
        return good(handle)

    monkeypatch.setattr(locks, "try_lock", late)
    with lock_of(tmp_path / "a.pt"), pytest.raises(CheckpointLocked):
        lock_of(tmp_path / "a.pt").acquire()


def test_a_lock_whose_file_says_nothing_still_holds(tmp_path):
    with lock_of(tmp_path / "a.pt") as lock:
        for text in ("", "[" * 100_000, '{"pid": ' + "9" * 5000 + "}", "[1]"):
            with open(lock.path, "w") as file:
                file.write(text)
            with pytest.raises(CheckpointLocked, match="^another run"):
                lock_of(tmp_path / "a.pt").acquire()


def test_where_there_are_no_locks_saving_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("imagen_pytorch.storage.locks.try_lock", lambda handle: None)
    for store in (CheckpointStore(tmp_path), CheckpointStore(tmp_path)):
        store.lock()
        store.write(1, contents(1))


def test_the_last_run_has_a_remote_folder(tmp_path):
    url = f"memory://{tmp_path.name}/run"
    first, second = filled(url, 1), CheckpointStore(url)
    first.lock()
    first.write(2, contents(2))
    second.lock()
    message = rf"another run \(pid {os.getpid()}, host .+, since .+\) has taken over {url}; choose another"
    with pytest.raises(CheckpointLocked, match=message):
        first.write(3, contents(3))
    first.unlock()  # leaves the other's claim
    second.write(3, contents(33))
    assert step_of(CheckpointStore(url).read()[1]) == 33 and second.steps() == [3, 2, 1]
    second.unlock()
    second.unlock()
    assert not second.fs.exists(f"{second.folder}/run.lock")
    second.write(4, contents(4))  # a store that was never locked, or no longer is, asks nobody


def test_a_claim_that_cannot_be_seen_stops_the_write(tmp_path, monkeypatch):
    store = CheckpointStore(f"memory://{tmp_path.name}/run")
    store.lock()

    def down(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(store.fs), "cat_file", down)
    with pytest.raises(CheckpointNotWritten, match="cannot see who saves into memory://.*: no route to host"):
        store.write(1, contents(1))
    monkeypatch.setattr(type(store.fs), "pipe_file", down)
    with pytest.raises(CheckpointNotWritten, match="cannot write to memory://.*: no route to host"):
        CheckpointStore(f"memory://{tmp_path.name}/run").lock()

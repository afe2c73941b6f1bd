"""One run at a time saves to a place."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from threading import Event

import pytest
from storage_toys import NEEDS_FORK, child, contents, filled, in_child, outcome, step_of

from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.checkpoints import (
    BackgroundWriter,
    CheckpointLocked,
    CheckpointNotWritten,
    previous_of,
    read_checkpoint,
    write_checkpoint,
)
from imagen_pytorch.io import locks
from imagen_pytorch.io.files import locate
from imagen_pytorch.io.locks import lock_of


def try_to_lock(folder):
    """What another process gets: None, or the name of the error and its text."""
    return in_child(outcome, CheckpointStore(folder).lock)


@NEEDS_FORK
def test_a_local_folder_is_locked_for_others(tmp_path):
    first = filled(tmp_path, 1)
    first.lock()
    first.lock()
    name, text = try_to_lock(tmp_path)
    message = rf"another run \(pid {os.getpid()}, host .+, since 20.+\) is saving into {tmp_path}; choose another"
    assert name == "CheckpointLocked" and re.match(message, text)
    assert step_of(CheckpointStore(tmp_path).read()[1]) == 1  # reading needs no lock
    first.unlock()
    first.unlock()
    assert os.listdir(tmp_path) == ["checkpoint.1.pt"]
    assert try_to_lock(tmp_path) is None


def test_within_a_process_the_newest_has_the_folder(tmp_path):
    first, second, third = filled(tmp_path, 1), CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    first.lock()
    second.lock()
    for refused in (first.lock, first.check_lock, lambda: first.write(2, contents(2))):
        with pytest.raises(CheckpointLocked, match=f"a newer trainer of this process saves into {tmp_path} in place"):
            refused()
    second.write(2, contents(2))
    third.lock()
    with pytest.raises(CheckpointLocked):
        second.write(3, contents(3))
    assert try_to_lock(tmp_path)[0] == "CheckpointLocked"
    del third
    gc.collect()
    second.write(3, contents(3))  # nobody newer is left, and what is there was written here
    second.unlock()
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.1.pt", "checkpoint.2.pt", "checkpoint.3.pt"]


def test_a_folder_is_taken_over_after_the_last_write_of_the_one_before(tmp_path):
    first, second, writer, began = CheckpointStore(tmp_path), CheckpointStore(tmp_path), BackgroundWriter(), Event()
    first.lock()
    writer.submit(lambda: (began.set(), time.sleep(0.2), first.write(1, contents(1))))
    began.wait()
    second.lock()
    writer.wait()
    assert second.steps() == [1]


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
    assert try_to_lock(tmp_path)[0] == "CheckpointLocked"
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
    monkeypatch.setattr("imagen_pytorch.io.locks.try_lock", lambda handle: None)
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
    second.write(4, contents(4))  # a store that was never locked, or no longer is, asks nobody


def test_a_remote_folder_that_another_run_had_meanwhile_is_not_taken_back(tmp_path):
    """The other one has ended before the first looks again; what it saved stays."""
    url = f"memory://{tmp_path.name}/run"
    first, second = CheckpointStore(url), CheckpointStore(url)
    first.lock()
    first.write(1, contents(1))
    second.lock()
    second.write(2, contents(22))
    second.unlock()
    with pytest.raises(CheckpointLocked, match=f"has taken over {url}"):
        first.write(2, contents(2))
    first.unlock()
    assert step_of(CheckpointStore(url).read()[1]) == 22
    third = CheckpointStore(f"{url}-alone")
    third.lock()
    assert third.fs.exists(f"{third.folder}/run.lock")
    third.unlock()
    assert not third.fs.exists(f"{third.folder}/run.lock")


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


# -- a lock whose file goes away ---------------------------------------------------------------------------------------


def other_run(path, step):
    """What another run does: it takes the lock and saves."""
    with lock_of(path):
        write_checkpoint(contents(step), path)


REMOVALS = {
    "the lock": lambda path: os.remove(path.parent / f".{path.name}.lock"),
    "the folder": lambda path: shutil.rmtree(path.parent),
    "lock and file": lambda path: [os.remove(entry) for entry in path.parent.iterdir()],
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_lock_that_is_removed_is_taken_again(tmp_path, removal):
    path = tmp_path / "run" / "a.pt"
    path.parent.mkdir()
    with lock_of(path) as lock:
        write_checkpoint(contents(1), path)
        REMOVALS[removal](path)
        write_checkpoint(contents(2), path)
        assert step_of(read_checkpoint(path)) == 2 and lock.held
        with pytest.raises(CheckpointLocked, match="another run"):
            lock_of(path).acquire()
    assert os.listdir(path.parent) == ["a.pt"]


@NEEDS_FORK
@pytest.mark.parametrize("removal", REMOVALS)
def test_another_run_that_came_in_keeps_what_it_saved(tmp_path, removal):
    path = tmp_path / "run" / "a.pt"
    path.parent.mkdir()
    with lock_of(path) as lock:
        write_checkpoint(contents(1), path)
        REMOVALS[removal](path)
        path.parent.mkdir(exist_ok=True)
        in_child(other_run, path, 33)  # it has ended
        for _ in range(2):
            with pytest.raises(CheckpointLocked, match=rf"another run has saved a.pt into {path}; choose another"):
                write_checkpoint(contents(2), path, keep_previous=True)
            with pytest.raises(CheckpointLocked):
                lock.check()
    assert step_of(read_checkpoint(path)) == 33 and not os.path.exists(previous_of(str(path)))


@NEEDS_FORK
def test_another_run_that_came_in_and_still_runs_is_named(tmp_path):
    path = tmp_path / "a.pt"
    here, there = multiprocessing.Pipe(duplex=False)
    with lock_of(path):
        os.remove(tmp_path / ".a.pt.lock")
        process = child(hold_and_wait, path, there)
        here.recv()
        try:
            with pytest.raises(CheckpointLocked, match=rf"another run \(pid {process.pid}, .* is saving into {path}"):
                write_checkpoint(contents(2), path)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert not path.exists()


def hold_and_wait(path, pipe):
    with lock_of(path):
        pipe.send(None)
        signal.pause()


@NEEDS_FORK
def test_a_folder_whose_lock_is_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.lock()
    store.write(1, contents(1))
    os.remove(tmp_path / ".lock")
    store.write(2, contents(2))
    os.remove(tmp_path / ".lock")
    in_child(run_in_folder, tmp_path)
    for refused in (lambda: store.write(4, contents(4)), store.lock):
        with pytest.raises(CheckpointLocked, match=rf"another run has saved checkpoint.3.pt into {tmp_path}; choose"):
            refused()
    assert CheckpointStore(tmp_path).steps() == [3, 2, 1]


def run_in_folder(folder):
    store = CheckpointStore(folder)
    store.lock()
    store.write(3, contents(3))
    store.unlock()


def test_the_lock_is_looked_at_again_when_the_file_is_filled(tmp_path, monkeypatch):
    """Another run may come in while a large file is being written."""
    path = tmp_path / "a.pt"
    good, looked = locks.FolderLock.check, []
    monkeypatch.setattr(locks.FolderLock, "check", lambda lock: (looked.append(os.listdir(tmp_path)), good(lock)))
    with lock_of(path):
        write_checkpoint(contents(1), path)
    assert len(looked) == 2 and not [name for name in looked[0] if name.endswith(".tmp")]
    assert [name for name in looked[1] if name.endswith(".tmp")]


# -- links and other files in the place of the lock --------------------------------------------------------------------


def test_a_link_and_its_file_have_one_lock(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    real, link, deep = tmp_path / "one" / "real.pt", tmp_path / "link.pt", tmp_path / "two" / "deep.pt"
    link.symlink_to(real)
    deep.symlink_to("../link.pt")
    folder = tmp_path / "three"
    folder.symlink_to("one")
    spellings = [real, link, deep, folder / "real.pt", tmp_path / "two" / ".." / "one" / "real.pt"]
    for mine in spellings:  # the file is not there yet
        with lock_of(mine):
            for other in spellings:
                assert outcome(lock_of(other).acquire)[0] == "CheckpointLocked"
    for step, path in enumerate(spellings):
        write_checkpoint(contents(step), path, keep_previous=True)
        assert step_of(read_checkpoint(real)) == step and link.is_symlink() and deep.is_symlink()
        assert previous_of(str(path)) == str(real.parent / "real.previous.pt") or not path.is_symlink()
    assert previous_of(f"file://{deep}") == str(real.parent / "real.previous.pt")
    assert step_of(read_checkpoint(real.parent / "real.previous.pt")) == len(spellings) - 2


@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "pipe", "folder"])
def test_nothing_is_written_through_the_lock(tmp_path, kind):
    victim, lock = tmp_path / "victim.txt", tmp_path / ".a.pt.lock"
    victim.write_text("mine")
    {
        "link": lambda: lock.symlink_to("victim.txt"),
        "dangling": lambda: lock.symlink_to("made.txt"),
        "second name": lambda: os.link(victim, lock),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    with pytest.raises(CheckpointNotWritten, match=rf"cannot write to {tmp_path}/a.pt: "):
        lock_of(tmp_path / "a.pt").acquire()
    assert victim.read_text() == "mine" and not (tmp_path / "made.txt").exists() and os.path.lexists(lock)


def test_a_file_that_is_no_note_is_neither_changed_nor_removed(tmp_path):
    lock = tmp_path / ".a.pt.lock"
    for text in ("my notes", '{"pid": 1', "[1]", "x" * 10_000):
        lock.write_text(text)
        with lock_of(tmp_path / "a.pt"):
            assert outcome(lock_of(tmp_path / "a.pt").acquire)[0] == "CheckpointLocked"
        assert lock.read_text() == text
    lock.write_text('{"pid": 123456, "host": "x", "since": "long ago", "padding": "................................."}')
    with lock_of(tmp_path / "a.pt"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_fork_hooks_do_not_pile_up(tmp_path, monkeypatch):
    """The only one is registered when the module is imported."""
    monkeypatch.setattr(os, "register_at_fork", lambda **_: pytest.fail("another hook"), raising=False)
    for _ in range(5):
        with lock_of(tmp_path / "a.pt"):
            pass


def test_a_copy_of_a_lock_is_not_held(tmp_path):
    with lock_of(tmp_path / "a.pt") as lock:
        assert not copy.deepcopy(lock).held
    store = CheckpointStore(f"memory://{tmp_path.name}/run")
    store.lock()
    assert not copy.deepcopy(store._lock).held and copy.deepcopy(store._lock).path == store._lock.path


def test_files_of_one_remote_folder_have_claims_of_their_own(tmp_path):
    """As three machines have that train one U-Net each."""
    fs, folder = locate(f"memory://{tmp_path.name}")
    one, two = (lock_of(f"{folder}/unet{number}.pt", fs, f"unet{number}.pt") for number in (1, 2))
    one.acquire()
    two.acquire()
    for number, claim in ((1, one), (2, two)):
        claim.check()
        write_checkpoint(contents(number), f"{folder}/unet{number}.pt", fs)
    other = lock_of(f"{folder}/unet1.pt", fs, "unet1.pt")
    other.acquire()
    with pytest.raises(CheckpointLocked, match=r"another run \(pid .*\) has taken over unet1.pt"):
        one.check()
    write_checkpoint(contents(3), f"{folder}/unet1.pt", fs)  # the newest claim of this process counts
    fs.pipe_file(other.path, b'{"run": "x", "pid": 12}')
    with pytest.raises(CheckpointLocked, match=r"another run \(pid 12\) has taken over unet1.pt"):
        write_checkpoint(contents(4), f"{folder}/unet1.pt", fs)
    write_checkpoint(contents(4), f"{folder}/unet2.pt", fs)
    assert step_of(read_checkpoint(f"{folder}/unet1.pt", fs)) == 3
    for claim in (one, two, other):
        claim.release()
    assert not claim.held and sorted(fs.ls(folder, detail=False))[0].endswith("/.unet1.pt.lock")  # not ours any more

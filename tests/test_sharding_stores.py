"""Folders of shards that are replaced, here and in object stores: the one before stays until the new one is whole."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import fsspec
import pytest
import torch
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointError, CheckpointStore
from imagen_pytorch.checkpoints import (
    CheckpointLocked,
    CheckpointNotWritten,
    describe_checkpoint,
    previous_of,
    sharded,
    verify_checkpoint,
)
from imagen_pytorch.checkpoints.paths import MANIFEST
from imagen_pytorch.checkpoints.sharded import read_sharded
from imagen_pytorch.io import locks
from imagen_pytorch.io.locks import FolderClaim, lock_of
from imagen_pytorch.training import checkpointing

MEMORY, LOCAL = fsspec.filesystem("memory"), fsspec.filesystem("file")
each_place = pytest.mark.parametrize("fs", [LOCAL, MEMORY], ids=["file", "memory"])


def save(fs, folder, step, **options):
    tensors = {"model/w": torch.full((5,), float(step)), "optim0/state/0/step": torch.tensor(step)}
    sharded.write_sharded(fs, str(folder), tensors, {"steps": step}, **options)


def step_in(fs, folder):
    found = read_sharded(fs, str(folder))
    assert found["model"]["w"].tolist() == [found["steps"]] * 5
    return found["steps"]


def names(fs, folder):
    return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(str(folder), detail=False))


CALLS = ["put_file", "pipe_file", "ls", "info", "cp_file"]


def saved_while_failing(folder, call, number):
    """Save while a call of the store fails from its ``number``-th time on; whether that was refused, and the calls."""
    count, good = itertools.count(1), getattr(MEMORY, call)

    def fail(*arguments, **options):
        if next(count) >= number:
            raise ConnectionError("connection lost")
        return good(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MEMORY, call, fail)
        try:
            save(MEMORY, folder, 2, keep_previous=True)
            refused = False
        except CheckpointError:
            refused = True
    return refused, next(count) - 1


@pytest.mark.filterwarnings("ignore:cannot remove old files")
def test_a_connection_that_dies_at_any_call_leaves_the_checkpoint_before(tmp_path):
    """The law: what can be read is the old checkpoint if the save was refused, else the new one."""
    refusals = set()
    for call in CALLS:
        for number in range(1, 60):
            folder = f"{tmp_path}/{call}{number}/run"
            save(MEMORY, folder, 1)
            refused, calls = saved_while_failing(folder, call, number)
            assert step_in(MEMORY, folder) == (1 if refused else 2), (call, number)
            verify_checkpoint(folder, MEMORY)
            refusals |= {call} if refused else set()
            save(MEMORY, folder, 3)
            assert step_in(MEMORY, folder) == 3 and len(names(MEMORY, folder)) == 2  # what was left behind is gone
            if calls < number:
                break
        else:
            pytest.fail(f"{call} is called without end")
    assert refusals == {*CALLS}


def test_one_small_object_decides(tmp_path, monkeypatch):
    """Until the manifest is there the old checkpoint is read, after that the new one."""
    folder, good, read = tmp_path / "run", MEMORY.pipe_file, []

    def pipe_file(path, data, **options):
        if path.endswith(MANIFEST):
            read.append(step_in(MEMORY, folder))
        good(path, data, **options)
        read.append(step_in(MEMORY, folder))

    save(MEMORY, folder, 1)
    monkeypatch.setattr(MEMORY, "pipe_file", pipe_file)
    save(MEMORY, folder, 2)
    assert read == [1, 2] and describe_checkpoint(str(folder), fs=MEMORY).format == "shards"


def test_a_folder_of_the_first_format_is_replaced(tmp_path):
    samples = Path(__file__).parent / "data" / "_checkpoints" / "shards"
    folder = f"{tmp_path}/run"
    MEMORY.put(f"{samples}/", f"{folder}/", recursive=True)
    MEMORY.pipe_file(f"{folder}/notes.txt", b"mine")
    assert read_sharded(MEMORY, folder)["version"] == "1"
    save(MEMORY, folder, 2, keep_previous=True)
    shards, *rest = sorted(names(MEMORY, folder), reverse=True)
    assert step_in(MEMORY, folder) == 2 and shards.startswith("shards-") and rest == ["notes.txt", MANIFEST]
    assert read_sharded(MEMORY, previous_of(folder))["version"] == "1"


@each_place
def test_the_one_before_is_kept(tmp_path, fs):
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        save(fs, folder, step, keep_previous=True)
    assert step_in(fs, folder) == 3 and step_in(fs, previous_of(str(folder))) == 2
    assert names(fs, tmp_path) == ["run", "run.previous"]
    save(fs, folder, 4)
    assert step_in(fs, folder) == 4 and step_in(fs, previous_of(str(folder))) == 2
    assert names(fs, tmp_path) == ["run", "run.previous"]


@each_place
def test_what_cannot_be_read_is_set_aside(tmp_path, fs):
    folder = tmp_path / "run"
    for step in (1, 2):
        save(fs, folder, step, keep_previous=True)
    path = next(path for path in fs.find(str(folder)) if path.endswith(".safetensors"))
    fs.pipe_file(path, b"cut off")
    with pytest.warns(UserWarning, match=r"its file rank0.safetensors has 7 of .*/run is kept as .*/run.unreadable"):
        save(fs, folder, 3, keep_previous=True)
    assert step_in(fs, folder) == 3 and step_in(fs, previous_of(str(folder))) == 1
    assert names(fs, tmp_path) == ["run", "run.previous", "run.unreadable"]
    with pytest.raises(CheckpointError, match="7 of"):
        step_in(fs, f"{folder}.unreadable")


@each_place
def test_an_existing_one_may_be_protected(tmp_path, fs):
    save(fs, tmp_path / "run", 1, overwrite=False)
    with pytest.raises(CheckpointNotWritten, match="run exists already; allow overwrite=True or choose another path"):
        save(fs, tmp_path / "run", 2, overwrite=False)
    assert step_in(fs, tmp_path / "run") == 1


@each_place
def test_what_belongs_to_others_is_not_replaced(tmp_path, fs):
    fs.makedirs(f"{tmp_path}/pictures")
    fs.pipe_file(f"{tmp_path}/pictures/cat.png", b"a cat")
    fs.pipe_file(f"{tmp_path}/file", b"text")
    for name in ("pictures", "file"):
        with pytest.raises(
            CheckpointNotWritten, match=rf"could not write .*/{name}: what is there is not a checkpoint"
        ):
            save(fs, tmp_path / name, 1)
    assert fs.cat_file(f"{tmp_path}/pictures/cat.png") == b"a cat" and fs.cat_file(f"{tmp_path}/file") == b"text"
    fs.makedirs(f"{tmp_path}/empty")
    save(fs, tmp_path / "empty", 1)
    assert step_in(fs, tmp_path / "empty") == 1


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for step in (1, 2):
        save(LOCAL, tmp_path / "link", step, keep_previous=True)
    assert (tmp_path / "link").is_symlink() and step_in(LOCAL, tmp_path / "real") == 2
    assert step_in(LOCAL, previous_of(str(tmp_path / "link"))) == 1


def test_what_a_link_with_the_name_of_what_was_left_behind_points_to_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    save(LOCAL, tmp_path / "run", 1)
    (tmp_path / "run" / "shards-0123456789ab").symlink_to(tmp_path / "elsewhere")
    save(LOCAL, tmp_path / "run", 2)
    assert (tmp_path / "elsewhere" / "file").read_text() == "mine"
    assert step_in(LOCAL, tmp_path / "run") == 2


def test_pruning_does_not_follow_links(tmp_path):
    save(LOCAL, tmp_path / "elsewhere", 1)
    store = CheckpointStore(tmp_path / "run", keep=1)
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "checkpoint.1")
    store.write(2, {"a": torch.ones(1)})
    assert os.listdir(tmp_path / "run") == ["checkpoint.2.pt"] and step_in(LOCAL, tmp_path / "elsewhere") == 1


def test_the_lock_is_looked_at_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    looked, run = [], tmp_path / "run"
    monkeypatch.setattr(locks.FolderLock, "check", lambda lock: looked.append(os.listdir(run) if run.exists() else []))
    with lock_of(run):
        save(LOCAL, run, 1)
    assert looked[0] == [] and len(looked) == 2 and len(looked[1]) == 1 and looked[1][0].startswith("shards-")


def test_a_run_that_was_taken_over_while_it_wrote_publishes_nothing(tmp_path, monkeypatch):
    folder = f"{tmp_path}/run"
    mine = FolderClaim(MEMORY, f"{tmp_path}/run.lock", "here", str(tmp_path))
    other = FolderClaim(MEMORY, "/run.lock", "there", "/elsewhere")
    save(MEMORY, folder, 1)
    mine.acquire()
    save(MEMORY, folder, 2)
    good = sharded.sizes_in

    def listed(*arguments):
        MEMORY.pipe_file(mine.path, b'{"run": "another", "pid": 12}')
        return good(*arguments)

    monkeypatch.setattr(sharded, "sizes_in", listed)
    with pytest.raises(CheckpointLocked, match=r"another run \(pid 12\) has taken over here"):
        save(MEMORY, folder, 3)
    assert step_in(MEMORY, folder) == 2 and not other.held
    assert len(names(MEMORY, folder)) == 2


def test_a_trainer_honours_its_options_for_folders(tmp_path, monkeypatch):
    trainer, given = ImagenTrainer(small_imagen(condition_on_text=False)), []
    assert not trainer.writes_folder(tmp_path / "run")
    monkeypatch.setattr(trainer.processes, "sharded", True)
    monkeypatch.setattr(checkpointing, "split_shared", lambda contents: ({}, contents))
    monkeypatch.setattr(checkpointing, "write_sharded", lambda *arguments, **options: given.append(options))
    assert trainer.writes_folder(tmp_path / "run") and not trainer.writes_folder(tmp_path / "run.pt")
    trainer.save(tmp_path / "run", overwrite=False, keep_previous=True)
    trainer.save(tmp_path / "run")
    assert given == [{"overwrite": False, "keep_previous": True}, {"overwrite": True, "keep_previous": False}]
    with pytest.raises(ValueError, match="background=True is not for .*/run: all processes write this folder"):
        trainer.save(tmp_path / "run", background=True)
    assert len(given) == 2

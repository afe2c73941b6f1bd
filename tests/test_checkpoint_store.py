"""Folders of checkpoints: which is newest, which are kept, and who may save there."""

from __future__ import annotations

import json
import warnings

import fsspec
import pytest
from storage_toys import contents, filled, step_of

from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.checkpoints import (
    CheckpointError,
    CheckpointMissing,
    CheckpointNotWritten,
    CheckpointUnreachable,
    files,
    read_checkpoint,
)


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run"


def damage(store, step):
    store.fs.pipe_file(store.path(step), store.fs.cat_file(store.path(step))[:-100])


def add_folder(store, step, whole=True):
    """A checkpoint in several files, as far as a store looks at it."""
    folder = f"{store.folder}/checkpoint.{step}"
    store.fs.makedirs(folder, exist_ok=True)
    store.fs.pipe_file(f"{folder}/rank0.pt", b"x")
    if whole:
        store.fs.pipe_file(f"{folder}/manifest.json", json.dumps({"step": step}).encode())
    return folder


# -- order and number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["007", "9" * 20, "\u0663", "-1", "1e3"])
def test_other_spellings_of_a_number_are_names_of_others(url, name):
    """One that counted as a checkpoint would have those before it removed in its favour."""
    store = filled(url, 1, 2, keep=2)
    store.fs.pipe_file(f"{store.folder}/checkpoint.{name}.pt", b"mine")
    store.write(3, contents(3))
    assert store.steps() == [3, 2] and store.fs.cat_file(f"{store.folder}/checkpoint.{name}.pt") == b"mine"


def test_steps_count_as_numbers_and_the_newest_stay(url):
    store = filled(url, 8, 9, 10, 11, keep=3)
    assert store.steps() == [11, 10, 9]
    assert [path.rsplit("/", 1)[1] for path in store.paths()] == [f"checkpoint.{step}.pt" for step in (11, 10, 9)]
    path, found = CheckpointStore(url).read()
    assert step_of(found) == 11 and path == store.path(11)
    assert step_of(store.read(9)[1]) == 9
    with pytest.raises(CheckpointMissing, match=r"no checkpoint at .*checkpoint.8.pt"):
        store.read(8)


def test_an_empty_folder_holds_none(url):
    store = CheckpointStore(url)
    assert store.steps() == [] and store.read() is None and store.paths() == []


def test_all_stay_on_request(url):
    assert filled(url, *range(5), keep=0).steps() == [4, 3, 2, 1, 0]


def test_other_files_are_left_alone(url):
    store = filled(url, 1)
    others = ["checkpoint.pt", "checkpoint.x.pt", "checkpoint.1.pt.bak", "checkpoint.-1.pt", "best.pt"]
    for name in others:
        store.fs.pipe_file(f"{store.folder}/{name}", b"")
    store.keep = 1
    store.write(2, contents(2))
    left = {entry.rsplit("/", 1)[-1] for entry in store.fs.ls(store.folder, detail=False)}
    assert left == {"checkpoint.2.pt", *others} and store.steps() == [2]


def test_the_one_just_written_stays_whatever_its_number(url):
    store = filled(url, 100, 200, keep=2)
    assert store.steps() == [200, 100]
    store.write(5, contents(5))  # a fresh start in an old folder
    assert store.steps() == [200, 100, 5]
    store.keep = 1
    store.write(6, contents(6))
    assert store.steps() == [200, 6]


# -- damage -----------------------------------------------------------------------------------------------------------


def test_the_newest_whole_one_is_taken_and_damaged_ones_do_not_count(url):
    filled(url, 1, 2, 3, 4, keep=9)
    store = CheckpointStore(url, keep=2)
    damage(store, 4)
    damage(store, 3)
    with pytest.warns(UserWarning, match=r"checkpoint.[43].pt: .*; the one before it is taken instead") as caught:
        path, found = store.read()
    assert step_of(found) == 2 and len(caught) == 2
    store.write(5, contents(5))
    assert store.steps() == [5, 4, 3, 2]  # two whole ones; nothing that may still be wanted is removed
    store.write(6, contents(6))
    assert store.steps() == [6, 5]
    store.write(4, contents(4))  # whole now
    assert step_of(store.read(4)[1]) == 4


def test_none_readable_is_an_error_and_nothing_is_removed(url):
    store = filled(url, 1, 2)
    for step in (1, 2):
        damage(store, step)
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* is readable"):
        store.read()
    assert store.steps() == [2, 1]


def test_a_checkpoint_that_is_gone_is_passed_over(url, monkeypatch):
    store = filled(url, 1, 2)
    names = store.fs.ls(store.folder, detail=False)
    store.fs.rm_file(store.path(2))
    other = CheckpointStore(url)
    monkeypatch.setattr(type(other.fs), "ls", lambda self, path, detail=True, **_: names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_of(other.read()[1]) == 1


def test_a_listing_that_lags_behind_hides_nothing_of_ones_own(url, monkeypatch):
    store = filled(url, 1)
    old = store.fs.ls(store.folder, detail=False)
    store.write(2, contents(2))
    monkeypatch.setattr(type(store.fs), "ls", lambda self, path, detail=True, **_: old)
    assert store.steps() == [2, 1] and step_of(store.read()[1]) == 2
    store.keep = 1
    store.write(3, contents(3))
    assert not store.fs.exists(store.path(1)) and step_of(store.read()[1]) == 3


def test_nothing_older_is_taken_when_the_newest_cannot_be_reached(tmp_path, monkeypatch):
    """A connection that is down says nothing about the file: going on from an older one would lose steps."""
    store = filled(f"memory://{tmp_path.name}/run", 1, 2)

    def down(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(store.fs), "get_file", down)
    with pytest.raises(CheckpointUnreachable, match=r"cannot read the checkpoint .*checkpoint.2.pt: no route to host"):
        store.read()
    monkeypatch.setattr(type(store.fs), "ls", down)
    with pytest.raises(CheckpointUnreachable, match="cannot list the checkpoints in .*: no route to host"):
        store.steps()


def test_what_cannot_be_removed_is_said_and_harms_nothing(url, monkeypatch):
    store = filled(url, 1, keep=1)

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(type(store.fs), "rm_file", refuse)
    with pytest.warns(UserWarning, match="cannot remove the old checkpoint .*checkpoint.1.pt: not yours"):
        store.write(2, contents(2))
    assert step_of(store.read()[1]) == 2


# -- folders as checkpoints -------------------------------------------------------------------------------------------


def test_folders_count_when_they_are_whole(url, monkeypatch):
    monkeypatch.setattr(files, "read_sharded", lambda fs, path: contents(int(path.rsplit(".", 1)[1])))
    store = filled(url, 1, 3, keep=2)
    folder = add_folder(store, 5)
    add_folder(store, 9, whole=False)
    assert store.steps() == [5, 3, 1] and store.paths()[0] == folder == store.folder_path(5)
    path, found = store.read()
    assert path == folder and step_of(found) == 5 and step_of(store.read(5)[1]) == 5 and step_of(store.read(3)[1]) == 3
    with pytest.raises(CheckpointError, match="it is a folder without manifest.json"):
        read_checkpoint(f"{url}/checkpoint.9")


def test_folders_are_removed_like_files(url):
    store = filled(url, 1, keep=2)
    add_folder(store, 3)
    add_folder(store, 2, whole=False)  # its writer was killed
    add_folder(store, 9, whole=False)  # in the making
    store.wrote(add_folder(store, 4))
    assert store.steps() == [4, 3] and not store.fs.exists(store.folder_path(2))
    assert store.fs.exists(store.folder_path(9))
    store.write(10, contents(10))
    store.write(11, contents(11))
    assert store.steps() == [11, 10]
    assert not any(store.fs.exists(store.folder_path(step)) for step in (3, 4, 9))


def test_what_is_left_of_a_folder_never_counts(url, monkeypatch):
    store = filled(url, 5, keep=1)
    add_folder(store, 2)

    def interrupted(*_, **__):
        raise OSError("interrupted")

    monkeypatch.setattr(type(store.fs), "rm", interrupted)
    with pytest.warns(UserWarning, match="cannot remove the old checkpoint .*checkpoint.2: interrupted"):
        store.write(6, contents(6))
    assert store.fs.exists(f"{store.folder_path(2)}/rank0.pt") and store.steps() == [6]


# -- connections ------------------------------------------------------------------------------------------------------


def test_calls_are_tried_three_times(tmp_path, monkeypatch):
    """Uploads and downloads that fail twice succeed; what fails for good has a sentence and leaves the old object."""
    fs = fsspec.filesystem("memory")
    store = filled(f"memory://{tmp_path.name}/run", 1)
    for name in ("put_file", "get_file"):
        good, calls = getattr(type(fs), name), []

        def flaky(self, *arguments, good=good, calls=calls, **options):
            calls.append(arguments)
            if len(calls) < 3:
                raise ConnectionResetError("connection reset by peer")
            return good(self, *arguments, **options)

        monkeypatch.setattr(type(fs), name, flaky)
    store.write(1, contents(11))
    assert step_of(store.read()[1]) == 11

    def partly(self, local, path, **_):
        pass

    def broken(self, local, path, **_):
        raise RuntimeError("something of its own\nover two lines")

    for put, message in ((partly, "bytes arrived"), (broken, "RuntimeError: something of its own over two lines")):
        monkeypatch.setattr(type(fs), "put_file", put)
        with pytest.raises(CheckpointNotWritten, match=f"could not write .*checkpoint.1.pt .*: .*{message}; what was"):
            store.write(1, contents(1, width=50))
    assert step_of(store.read()[1]) == 11

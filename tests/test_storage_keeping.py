"""What is replaced: the checkpoint before stays whole, and what cannot be read is never thrown away."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from storage_toys import contents, filled, step_of

from imagen_pytorch.checkpoint import CheckpointError, CheckpointStore
from imagen_pytorch.checkpoints import files, previous_of, read_checkpoint, verify_checkpoint, write_checkpoint
from imagen_pytorch.io.atomic import noted
from imagen_pytorch.io.files import locate

DAMAGE = {
    "cut off": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:],
    "empty": lambda data: b"",
    "another kind": lambda data: b"my notes",
}


def tampered(fs, path, change):
    """Another program changes a file."""
    with fs.open(path, "rb") as file:
        data = file.read()
    with fs.open(path, "wb") as file:
        file.write(change(data))
    return change(data)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_file_is_set_aside_and_the_one_before_stays(tmp_path, kind, damage):
    path = tmp_path / f"a.{kind}"
    for step in (1, 2):
        write_checkpoint(contents(step), path, keep_previous=True)
    held = tampered(locate(path)[0], str(path), DAMAGE[damage])
    said = rf"cannot read the checkpoint {path}: .*; {path} is kept as {tmp_path}/a.unreadable.{kind}"
    with pytest.warns(UserWarning, match=said):
        write_checkpoint(contents(3), path, keep_previous=True)
    assert (tmp_path / f"a.unreadable.{kind}").read_bytes() == held
    assert step_of(read_checkpoint(path)) == 3 and step_of(read_checkpoint(previous_of(str(path)))) == 1
    tampered(locate(path)[0], str(path), DAMAGE[damage])
    with pytest.warns(UserWarning, match=rf"a.unreadable-2.{kind}"):
        write_checkpoint(contents(4), path, keep_previous=True)
    assert step_of(read_checkpoint(previous_of(str(path)))) == 1 and len(os.listdir(tmp_path)) == 4


def test_a_file_elsewhere_that_cannot_be_read(tmp_path):
    url = f"memory://{tmp_path.name}/a.pt"
    fs, place = locate(url)
    for step in (1, 2):
        write_checkpoint(contents(step), url, keep_previous=True)
    held = tampered(fs, place, lambda data: data[:500])
    with pytest.warns(UserWarning, match="is kept as .*/a.unreadable.pt"):
        write_checkpoint(contents(3), url, keep_previous=True)
    assert fs.cat_file(place.replace("a.pt", "a.unreadable.pt")) == held
    assert step_of(read_checkpoint(url)) == 3 and step_of(read_checkpoint(previous_of(url))) == 1


def flipped(data):
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


@pytest.mark.parametrize("place", ["{path}/a.pt", "memory://{name}/a.pt"])
@pytest.mark.parametrize("fault", ["one bit", "NaN", "too large"])
def test_a_file_from_which_one_could_not_go_on_never_replaces_the_one_before(tmp_path, place, fault):
    """Also where the next write fails after the one before would have been replaced."""
    url = place.format(path=tmp_path, name=tmp_path.name)
    fs, path = locate(url)
    write_checkpoint(contents(1), url)
    if fault == "one bit":
        write_checkpoint(contents(2), url, keep_previous=True)
        tampered(fs, path, flipped)
    else:
        ruined = contents(2)
        ruined["model"]["a.weight"][0, 0] = float("nan") if fault == "NaN" else 1e30
        write_checkpoint(ruined, url, keep_previous=True)
    with pytest.raises(CheckpointError, match="checksum" if fault == "one bit" else r"too large, in model/a.weight$"):
        verify_checkpoint(url, fs)
    with pytest.warns(UserWarning, match="is kept as .*/a.unreadable.pt"):
        write_checkpoint(contents(3), url, keep_previous=True)
    assert step_of(read_checkpoint(url)) == 3 and step_of(read_checkpoint(previous_of(url))) == 1
    write_checkpoint(contents(4), url, keep_previous=True)
    assert step_of(read_checkpoint(previous_of(url))) == 3


def test_a_folder_sets_aside_what_it_could_not_read(tmp_path):
    store = filled(tmp_path, 1, 2)
    held = tampered(store.fs, store.path(2), lambda data: data[:-1])
    with pytest.warns(UserWarning, match="checkpoint.2.pt.*the one before it is taken instead"):
        assert step_of(store.read()[1]) == 1
    with pytest.warns(UserWarning, match=r"checkpoint.2.pt is kept as .*/checkpoint.2.unreadable.pt"):
        store.write(2, contents(22))
    assert (tmp_path / "checkpoint.2.unreadable.pt").read_bytes() == held
    assert store.steps() == [2, 1] and step_of(CheckpointStore(tmp_path).read()[1]) == 22
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.write(2, contents(23))


def test_a_file_of_this_process_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_checkpoint(contents(1), path)
    monkeypatch.setattr(files, "check_file", lambda path: pytest.fail("it was read"))
    write_checkpoint(contents(2), path, keep_previous=True)
    fs = locate(path)[0]
    assert noted(fs, str(path)) == (True, None) and noted(fs, previous_of(str(path))) == (False, None)
    assert step_of(read_checkpoint(previous_of(str(path)))) == 1


def test_a_whole_file_of_another_run_becomes_the_one_before(tmp_path):
    path = tmp_path / "a.pt"
    write_checkpoint(contents(1), tmp_path / "b.pt")
    os.rename(tmp_path / "b.pt", path)
    write_checkpoint(contents(2), path, keep_previous=True)
    assert step_of(read_checkpoint(tmp_path / "a.previous.pt")) == 1


def test_a_write_that_fails_leaves_everything(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    for step in (1, 2):
        write_checkpoint(contents(step), path, keep_previous=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagen_pytorch.checkpoints.files.publish", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(contents(3), path, keep_previous=True)
    assert step_of(read_checkpoint(path)) == 2 and Path(previous_of(str(path))).exists()
    assert len(os.listdir(tmp_path)) == 2

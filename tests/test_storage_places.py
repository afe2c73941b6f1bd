"""Names and URLs: which file they mean, and what is said when nothing can be opened."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import fsspec
import pytest
from storage_toys import contents, filled, step_of
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointError, CheckpointMissing, CheckpointStore
from imagen_pytorch.checkpoints import (
    CheckpointMisaddressed,
    CheckpointNotWritten,
    CheckpointUnreachable,
    describe_checkpoint,
    newest_in,
    read_checkpoint,
    write_checkpoint,
)
from imagen_pytorch.io.files import ends_with_process, is_local, locate

ODD_NAMES = ["run::1.pt", "a::b::c.pt", "data:,abc.pt", "file:a.pt", "local:a.pt", "a b\n.pt", "#1?x=2.pt", "*.pt"]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("form", [str, Path, os.path.abspath], ids=["text", "Path", "absolute"])
def test_a_name_without_a_protocol_is_a_local_name(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    Path("run").write_text("mine")
    write_checkpoint(contents(3), form(name))
    assert sorted(os.listdir()) == sorted([name, "run"]) and Path("run").read_text() == "mine"
    assert step_of(read_checkpoint(form(name))) == 3 and describe_checkpoint(form(name)).size == os.path.getsize(name)
    fs, place = locate(form(name))
    assert is_local(fs) and place == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a::b", "c:d", "~here"])
def test_a_folder_of_checkpoints_has_its_own_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    filled(name, 1)
    assert os.listdir() == [name] and newest_in(name) == str(tmp_path / name / "checkpoint.1.pt")
    trainer = ImagenTrainer(small_imagen(condition_on_text=False), checkpoint_path=f"ck/{name}", checkpoint_every=1)
    trainer.save_to_checkpoint_folder()
    assert os.listdir("ck") == [name] and os.path.isfile(f"ck/{name}/checkpoint.0.pt")


def test_names_that_mean_the_home_folder_or_are_urls(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("~/a.pt", f"file://{tmp_path}/a.pt", f"file:{tmp_path}/a.pt", f"{tmp_path}/a.pt/"):
        assert locate(url)[1] == str(tmp_path / "a.pt")
    chain = f"simplecache::file://{tmp_path}/a.pt"
    write_checkpoint(contents(1), tmp_path / "a.pt")
    assert step_of(read_checkpoint(chain)) == 1 and not is_local(locate(chain)[0])


@pytest.mark.parametrize("url", [Path("memory://runs/a.pt"), "s3:/bucket/a.pt", Path("https://host/a.pt")])
def test_a_url_that_lost_a_slash_makes_no_folder(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointMisaddressed, match=r"cannot open .*: write \w+:// with two slashes, as a string"):
        write_checkpoint(contents(), url)
    assert os.listdir() == []


def test_stores_that_end_with_the_process():
    name = uuid.uuid4().hex
    for url in (f"memory://{name}/a.pt", f"simplecache::memory://{name}/a.pt", f"dir::memory://{name}"):
        assert ends_with_process(locate(url)[0]), url
    assert ends_with_process(fsspec.filesystem("dir", path="x", fs=fsspec.filesystem("memory")))
    assert not ends_with_process(locate("a.pt")[0]) and not ends_with_process(locate("simplecache::file:///a")[0])


def test_the_sentence_about_unknown_protocols_names_no_store_that_ends_with_the_process():
    with pytest.raises(CheckpointMisaddressed, match='no file system is called "s4"; use gs://') as caught:
        locate("s4://bucket/a.pt")
    assert "memory" not in str(caught.value)


class Broken(fsspec.AbstractFileSystem):
    """A filesystem all of whose calls fail, each time in another way."""

    protocol = "broken"
    cachable = False
    errors = (KeyError("key"), ConnectionError("no route"), RuntimeError("closed"), IndexError("list index"))

    def __init__(self, number: int = 0, **options) -> None:
        super().__init__(**options)
        self.error = self.errors[number]

    def fail(self, *_, **__):
        raise self.error

    ls = info = open = cat_file = pipe_file = put_file = get_file = rm_file = makedirs = cp_file = size = fail


DOORS = {
    "read": lambda url, fs: read_checkpoint(url, fs),
    "write": lambda url, fs: write_checkpoint(contents(), url, fs),
    "outline": lambda url, fs: describe_checkpoint(url, fs=fs),
    "newest": lambda url, fs: newest_in(url, fs),
    "folder": lambda url, fs: CheckpointStore(url, fs=fs).read(),
}


@pytest.mark.parametrize("number", range(len(Broken.errors)))
@pytest.mark.parametrize("door", DOORS)
def test_every_error_of_another_filesystem_is_one_of_ours(door, number):
    with pytest.raises(CheckpointError, match=r"cannot|could not") as caught:
        DOORS[door]("broken://a/b.pt", Broken(number))
    assert isinstance(caught.value, CheckpointUnreachable | CheckpointNotWritten)


@pytest.mark.parametrize("door", DOORS)
def test_urls_that_cannot_be_opened(tmp_path, monkeypatch, door):
    monkeypatch.chdir(tmp_path)
    Path("z.zip").write_text("")
    for url in (
        f"zip://a.pt::file://{tmp_path}/no.zip",
        f"tar://a.pt::file://{tmp_path}/z.zip",
        "://a.pt",
        "x::y://a.pt",
        "simplecache::y://a.pt",
        "reference://a.pt",
        "data://,abc",
    ):
        with pytest.raises(CheckpointError, match="cannot|could not"):
            DOORS[door](url, None)
    assert os.listdir() == ["z.zip"]


def test_loading_what_is_nowhere_has_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ImagenTrainer(small_imagen(condition_on_text=False))
    with pytest.raises(CheckpointMissing, match="no checkpoint at .*/data:,abc"):
        trainer.load("data:,abc")
    with pytest.raises(CheckpointMisaddressed, match="cannot open zip://a.pt::file:///no.zip"):
        trainer.save("zip://a.pt::file:///no.zip")

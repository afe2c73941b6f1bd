"""Folders of pictures and clips anywhere: in memory, in an archive, and in emulated object stores."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import sys
import uuid
import warnings
import zipfile

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from imagen_pytorch.data import DataError, Dataset, DataUnavailable, VideoDataset, get_images_dataloader, open_source
from imagen_pytorch.data import places as data_places
from imagen_pytorch.data import trouble as data_trouble

#: file systems that fsspec has imported already
REGISTRY = sys.modules["fsspec.registry"]._registry

# the emulator speaks no gRPC, and gcsfs asks for a bucket's kind that way: each first use would wait for a minute
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def encoded(colour="red", form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[colour]).save(buffer, form)
    return buffer.getvalue()


def animation(count=4):
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), 10 * number) for number in range(count)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


PAIRS = {f"{colour}.png": encoded(colour) for colour in COLOURS} | {
    f"{colour}.txt": f"a {colour} square".encode() for colour in COLOURS
}
CAPTIONS = ["a blue square", "a green square", "a red square", "a white square"]


def stored(files, fs=None):
    """A new folder in memory with these files."""
    url = f"memory://{uuid.uuid4().hex}"
    (fs or MemoryFileSystem()).pipe(
        {f"{url.removeprefix('memory:/')}/{name}": content for name, content in files.items()}
    )
    return url


def colours_of(data):
    return [
        next(name for name, rgb in COLOURS.items() if (image[:, 0, 0] * 255 - torch.tensor(rgb)).abs().max() < 3)
        for image in (item[0] if isinstance(item, tuple) else item for item in data)
    ]


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_and_captions_beside_them():
    url = stored(PAIRS)
    data = Dataset(url, 8)
    assert data.captions == CAPTIONS == [caption for _, caption in data] and data.skipped == []
    assert colours_of(data) == ["blue", "green", "red", "white"]
    assert data.folder == url and data.paths[0] == f"{url}/blue.png"


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_pictures_and_a_table(table):
    rows = [{"file_name": f"in/{colour}.PNG", "text": f"{colour}, said the table"} for colour in COLOURS]
    lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in rows)]
    content = "\n".join(map(json.dumps, rows)) if table.endswith("l") else "\r\n".join(lines)
    url = stored({table: b"\xef\xbb\xbf" + content.encode(), **{f"in/{c}.PNG": encoded(c) for c in COLOURS}})
    assert Dataset(url, 4).captions == [f"{colour}, said the table" for colour in sorted(COLOURS)]
    with pytest.raises(DataError, match=f'{url}/{table}, line .*: no column "txt"'):
        Dataset(url, 4, text_label="txt")


def test_hidden_files_subfolders_order_and_other_endings():
    names = ["b/2.png", "b/10.png", "a.png", "B.JPG", ".hidden.png", ".git/x.png", "b/.thumbs/x.png", "notes.md"]
    data = Dataset(stored({name: encoded() for name in names}), 4)
    assert [data.name(index) for index in range(len(data))] == ["B.JPG", "a.png", "b/10.png", "b/2.png"]


def test_a_neighbour_whose_name_begins_alike_is_another_folder():
    fs, url = MemoryFileSystem(), stored(PAIRS)
    fs.pipe(f"{url.removeprefix('memory:/')}2/other.png", encoded())
    assert len(Dataset(f"{url}/", 4)) == 4


def test_damage_is_found_when_a_picture_is_read(monkeypatch):
    files = {"bad.png": b"not a picture", "empty.png": b"", "silent.png": encoded(), "half.png": encoded()[:50]}
    captions = {"bad.txt": b"x", "empty.txt": b"x", "half.txt": b"x", "latin.txt": b"\xe9", "latin.png": encoded()}
    url = stored(PAIRS | files | captions)
    fetched = []
    cat_file = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda self, path, *a, **k: fetched.append(path) or cat_file(self, path)
    )
    with pytest.warns(UserWarning, match="3 of the images in memory://"):
        data = Dataset(url, 4)
    assert all(path.endswith(".txt") for path in fetched)  # no picture was fetched
    expected = {
        "empty.png": "empty file",
        "latin.png": "caption: latin.txt is not UTF-8 text",
        "silent.png": "no caption",
    }
    assert {item.name: item.reason for item in data.skipped} == expected
    with pytest.warns(UserWarning, match="bad.png cannot be read and is left out: not an image"):
        texts = [caption for _, caption in data]
    assert set(texts) == set(CAPTIONS)
    assert {item.name for item in data.skipped} == {*expected, "bad.png", "half.png"}


def test_what_the_table_names_and_what_is_too_large(monkeypatch):
    monkeypatch.setattr(data_places, "MAX_FILE_BYTES", 2**20)
    rows = [{"file_name": name, "text": "x"} for name in ("red.png", "gone.png", "../red.png", "large.png")]
    table = {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    with pytest.warns(UserWarning):
        data = Dataset(stored({"red.png": encoded(), "large.png": encoded() + bytes(2**20), **table}), 4)
    reasons = {item.name: item.reason for item in data.skipped}
    assert reasons == {"gone.png": "missing", "../red.png": "outside of the folder", "large.png": "larger than 1 MiB"}


def test_a_file_that_is_gone_in_the_middle():
    url = stored(PAIRS)
    data = Dataset(url, 4)
    MemoryFileSystem().rm(f"{url.removeprefix('memory:/')}/blue.png")
    with pytest.warns(UserWarning, match="blue.png cannot be read and is left out: missing"):
        assert data[0][1] == "a green square"


@pytest.mark.parametrize(("url", "words"), [
    ("memory://nothing-here", "the folder memory://nothing-here does not exist, or is empty"),
    ("memoyr://x/y", r'memoyr://x/y cannot be read: no file system is called "memoyr"; .* did you mean "memory"'),
])  # fmt: skip
def test_folders_that_are_not_there(url, words):
    for make in (lambda: Dataset(url, 4), lambda: open_source(url, image_size=4)):
        with pytest.raises(DataError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_folder_without_pictures():
    url = stored({"notes.md": b"x", "film.mp4": b"x"})
    with pytest.raises(DataError, match=rf"{url} holds no images; .* It holds clips \(film.mp4\)"):
        Dataset(url, 4)
    with pytest.raises(DataError, match="holds no usable image; the first is a.png: empty file"):
        Dataset(stored({"a.png": b""}), 4)


@pytest.mark.parametrize(("protocol", "module"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, protocol, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(REGISTRY, protocol, raising=False)
    with pytest.raises(ImportError, match=rf"{protocol}://bucket/in .* pip install {module}$") as caught:
        Dataset(f"{protocol}://bucket/in", 4)
    assert "\n" not in str(caught.value)


def test_local_urls_are_local_folders(tmp_path):
    for name, content in PAIRS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken.png").write_bytes(b"x")
    for url in (f"file://{tmp_path}", f"local://{tmp_path}"):
        with pytest.warns(UserWarning, match="broken.png"):  # found on opening
            data = open_source(url, image_size=4)
        assert data.folder == tmp_path and data.captions == CAPTIONS
    with pytest.raises(DataError, match="the folder .* does not exist"):
        open_source("file:///nowhere/at/all", image_size=4)


def test_an_archive_is_a_folder_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        for name, content in PAIRS.items():
            archive.writestr(f"in/{name}", content)
    assert Dataset(f"zip://in::file://{tmp_path}/pairs.zip", 4).captions == CAPTIONS
    assert len(Dataset(f"zip://::file://{tmp_path}/pairs.zip", 4)) == 4


# -- other processes and bad connections ------------------------------------------------------------------------------


class Fragile(MemoryFileSystem):
    """As a connection after a fork: of use in the process that made it only."""

    protocol = "fragile"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("fragile://", "memory://"))

    def __init__(self, word="", **options):
        super().__init__(word=word, **options)
        self.process, self.word = os.getpid(), word

    def cat_file(self, path, *args, **options):
        if self.process != os.getpid():
            raise RuntimeError("not fork-safe")
        if self.word != "open sesame":
            raise PermissionError(13, "Permission denied")
        return super().cat_file(path, *args, **options)


@pytest.fixture
def fragile():
    fsspec.register_implementation("fragile", Fragile, clobber=True)
    url = stored(PAIRS)
    yield url.replace("memory", "fragile")
    REGISTRY.pop("fragile", None)


@pytest.mark.parametrize("ready", [False, True])
def test_worker_processes_have_file_systems_of_their_own(fragile, ready):
    options = {"fs": Fragile("open sesame")} if ready else {"fs_kwargs": {"word": "open sesame"}}
    data = open_source(fragile, image_size=4, **options)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        assert [text for _, texts in loader for text in texts] == CAPTIONS
    assert data.skipped == [] and len(list(data)) == 4  # this process's own still works
    assert [caption for _, caption in pickle.loads(pickle.dumps(data))] == CAPTIONS


def test_a_refusal_is_final(fragile, monkeypatch):
    monkeypatch.setattr(data_trouble, "PAUSE", 1000)
    with pytest.raises(DataError, match="no usable image; the first is blue.png: caption: Permission denied"):
        Dataset(fragile, 4, fs_kwargs={"word": "please"})


class Moody(MemoryFileSystem):
    """Fails as often as asked before each answer."""

    protocol = "moody"
    cachable = False
    failures, asked = 0, 0

    def cat_file(self, path, *args, **options):
        type(self).asked += 1
        if type(self).asked % (type(self).failures + 1):
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().cat_file(path, *args, **options)


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_what_may_pass_is_tried_again(monkeypatch, failures):
    pauses = []
    monkeypatch.setattr(data_trouble.time, "sleep", pauses.append)
    monkeypatch.setattr(Moody, "failures", failures)
    monkeypatch.setattr(Moody, "asked", 0)
    data = Dataset(stored({"red.png": encoded(), "blue.png": encoded("blue")}), 4, fs=Moody())
    assert colours_of(data) == ["blue", "red"] and data.skipped == []
    assert pauses == [0.5, 1.0][:failures] * 2


def test_what_does_not_pass_is_no_damage(monkeypatch):
    monkeypatch.setattr(data_trouble, "PAUSE", 0)
    monkeypatch.setattr(Moody, "failures", 10**9)
    data = Dataset(stored({"red.png": encoded()}), 4, fs=Moody())
    reason = r"red.png cannot be read at present: Connection reset by peer \(tried 3 times\)"
    with pytest.raises(DataUnavailable, match=reason):
        data[0]
    assert data.skipped == []

    def refuse(self, path, **options):
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(Moody, "find", refuse)
    with pytest.raises(DataError, match=r"memory://x cannot be read at present: nobody answers \(tried 3"):
        Dataset("memory://x", 4, fs=Moody())


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_of_every_kind():
    av = pytest.importorskip("av")
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for number in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (16, 16), (60 * number,) * 3))))
        container.mux(stream.encode())
    frames = {f"c/frame{number}.png": encoded("red" if number % 2 else "blue") for number in range(4)}
    texts = {name: name[:1].encode() for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt")}
    url = stored(
        {"a.gif": animation(), "b.mp4": film.getvalue(), "d.gif": animation(2), "e.gif": b"x", **frames, **texts}
    )
    data = VideoDataset(url, 8, 4, random_start=False)
    assert len(data) == 5 and data.skipped == []
    with pytest.warns(UserWarning) as caught:
        items = list(data)
    assert [item["texts"] for item in items] == ["a", "b", "c", "a", "a"]
    assert {item.name: item.reason for item in data.skipped} == {
        "d.gif": "2 frames, 4 are needed",
        "e.gif": "not an image",
    }
    assert len(caught) == 2
    assert torch.allclose(items[0]["images"][0, :, 0, 0] * 255, torch.arange(0.0, 40, 10), atol=1)
    assert torch.allclose(items[1]["images"][0, :, 0, 0] * 255, torch.arange(0.0, 240, 60), atol=6)
    assert items[2]["images"][0, :, 0, 0].tolist() == [0, 1, 0, 1]
    assert pickle.loads(pickle.dumps(data))[0]["texts"] == "a"


def test_what_is_said_about_clips_before_any_is_fetched(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="b.mp4: reading it needs PyAV: pip install av"):
        VideoDataset(stored({"a.gif": b"", "b.mp4": b"x"}), 8, 4)
    with pytest.raises(DataError, match=r"It holds images \(0.jpg\); numbered frames belong into a subfolder"):
        VideoDataset(stored({"0.jpg": encoded(form="JPEG")}), 8, 4)


# -- object stores ----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_store(url, fs_kwargs):
    """What a store must do, in this process and in worker processes."""
    fs, folder = fsspec.core.url_to_fs(url, **fs_kwargs)
    cut = encoded("red", "JPEG")[:400]
    for name, content in {**PAIRS, "cut.jpg": cut, "cut.txt": b"cut", "clip/a.gif": animation()}.items():
        fs.pipe_file(f"{folder}/{name}", content)
    data = Dataset(url, 4, ("png", "jpg"), fs_kwargs=fs_kwargs)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        texts = [text for _, captions in loader for text in captions]
    assert texts == [*CAPTIONS[:1], "a green square", *CAPTIONS[1:]]  # a neighbour stands in
    assert [tuple(item) for item in data.skipped] == [("cut.jpg", "truncated")]
    assert colours_of(data)[0] == "blue"
    clip = open_source(f"{url}/clip", image_size=8, num_frames=4, fs_kwargs=fs_kwargs)[0]["images"]
    assert np.allclose(clip[0, :, 0, 0] * 255, [0, 10, 20, 30], atol=1)
    (images, _) = next(iter(get_images_dataloader(url, batch_size=3, image_size=4, exts="png", fs_kwargs=fs_kwargs)))
    assert images.shape == (3, 3, 4, 4)
    with pytest.raises(DataError, match="the folder .*/empty does not exist, or is empty"):
        Dataset(f"{url}/empty", 4, fs_kwargs=fs_kwargs)


@pytest.mark.slow
def test_pictures_in_google_cloud_storage():
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server")
    port = free_port()
    emulator = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="pics")
    emulator.start()
    try:
        check_store("gs://pics/in", {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"})
    finally:
        emulator.stop()


@pytest.mark.slow
def test_pictures_in_s3():
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    emulator = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    emulator.start()
    try:
        host, port = emulator.get_host_and_port()
        options = {"key": "t", "secret": "t", "endpoint_url": f"http://{host}:{port}"}
        fsspec.filesystem("s3", **options).mkdir("pics")
        check_store("s3://pics/in", options)
    finally:
        emulator.stop()

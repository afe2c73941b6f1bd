"""Trouble of the machine, its storage or its network is no damage: asked again, then said, and nothing is marked."""

from __future__ import annotations

import errno
import io
import os
import resource
import threading
import uuid
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from imagen_pytorch.data import Collator, DataError, Dataset, DataUnavailable, TableDataset, VideoDataset
from imagen_pytorch.data import trouble as data_trouble
from imagen_pytorch.data.decoding import reason_of
from imagen_pytorch.data.remote import NoAnswer, fetch

COUNT = 5


def encoded(form="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 255, 0)).save(buffer, form, **options)
    return buffer.getvalue()


def animated():
    return encoded("GIF", save_all=True, append_images=[Image.new("RGB", (8, 8))], duration=100)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(data_trouble, "PAUSE", 0)


def local(folder):
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(encoded())
    return Dataset(folder, 4, cache_memory_share=0)


def remote(folder):
    url = f"memory://{uuid.uuid4().hex}"
    MemoryFileSystem().pipe({f"{url.removeprefix('memory:/')}/{number}.png": encoded() for number in range(COUNT)})
    return Dataset(url, 4, cache_memory_share=0)


def animations(folder):
    for number in range(COUNT):
        (folder / f"{number}.gif").write_bytes(animated())
    return VideoDataset(folder, 4, 2)


def frames(folder):
    for number in range(COUNT):
        (folder / str(number)).mkdir()
        for frame in range(2):
            (folder / str(number) / f"{frame}.png").write_bytes(encoded())
    return VideoDataset(folder, 4, 2)


def table(folder):
    rows = [{"image": str(folder / f"{number}.png")} for number in range(COUNT)]
    local(folder)
    return TableDataset(rows, 4, cache_memory_share=0)


SOURCES = {"local": local, "remote": remote, "animations": animations, "frames": frames, "table": table}
TROUBLE = [MemoryError(), *(OSError(number, os.strerror(number)) for number in sorted(data_trouble.PASSING))]
NAMES = ["MemoryError", *(errno.errorcode[number] for number in sorted(data_trouble.PASSING))]


class Failing:
    """Stands for a function that fails so many times before it works again."""

    def __init__(self, monkeypatch, owner, name, error=None):
        self.error, self.left, self.usual = error, 0, getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args, **options):
        if self.left:
            self.left -= 1
            raise self.error
        return self.usual(*args, **options)


def test_what_counts_as_trouble():
    listed = {"ESTALE", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ETIMEDOUT"}
    assert listed <= set(NAMES) and not {"ENOENT", "EACCES", "EPERM", "ELOOP", "EISDIR", "EAGAIN"} & set(NAMES)


@pytest.mark.parametrize("source", SOURCES)
def test_trouble_is_waited_for_and_then_said_and_marks_nothing(source, tmp_path, monkeypatch):
    data = SOURCES[source](tmp_path)
    torch.manual_seed(0)
    expected = data[1]
    failing = Failing(monkeypatch, Image, "open")
    for failing.error in TROUBLE:
        failing.left = data_trouble.ATTEMPTS - 1  # a moment
        torch.manual_seed(0)
        item = data[1]
        pairs = [(item["images"], expected["images"])] if isinstance(item, dict) else [(item, expected)]
        assert all(torch.equal(one, other) for one, other in pairs)
        failing.left = 10**9
        with pytest.raises(DataUnavailable, match="cannot be read at present: .*tried 3 times.* nothing was left out"):
            data[0]
        assert data.skipped == [] and 10**9 - failing.left == data_trouble.ATTEMPTS
    failing.left = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len([data[index] for index in range(len(data))]) == COUNT and data.skipped == []


@pytest.mark.parametrize("source", ["local", "animations", "frames"])
def test_trouble_while_opening(source, tmp_path, monkeypatch):
    SOURCES[source](tmp_path)

    def opened():
        return Dataset(tmp_path, 4) if source == "local" else VideoDataset(tmp_path, 4, 2)

    # the times of GIFs are read without Pillow
    for owner, name in [(os, "stat"), (os, "scandir"), *([] if source == "animations" else [(Image, "open")])]:
        with monkeypatch.context() as patch:
            failing = Failing(patch, owner, name)
            for failing.error in (MemoryError(), OSError(errno.ESTALE, "stale"), OSError(errno.EMFILE, "too many")):
                failing.left = data_trouble.ATTEMPTS - 1
                data = opened()
                assert len(data) == COUNT and data.skipped == []
                failing.left = 10**9
                with pytest.raises(DataUnavailable, match="nothing was left out"):
                    opened()


def test_no_more_open_files(tmp_path):
    """Really: the limit is lowered to what is open."""
    data = local(tmp_path)
    data[0]
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, usual[1]))
    try:
        with pytest.raises(DataUnavailable, match="Too many open files"):
            data[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert data.skipped == [] and len(list(data)) == COUNT


def test_captions_that_cannot_be_read_at_present(tmp_path, monkeypatch):
    local(tmp_path)
    (tmp_path / "0.txt").write_text("a caption")
    failing = Failing(monkeypatch, os, "stat", OSError(errno.ESTALE, "stale"))
    usual = failing.usual
    monkeypatch.setattr(
        os, "stat", lambda path, **options: (failing if str(path).endswith("t") else usual)(path, **options)
    )
    failing.left = 10**9
    with pytest.raises(DataUnavailable, match="0.txt cannot be read at present"):
        Dataset(tmp_path, 4)


def test_trouble_in_a_worker_process(tmp_path, monkeypatch):
    data = local(tmp_path)
    Failing(monkeypatch, Image, "open", OSError(errno.EIO, "Input/output error")).left = 10**9
    with pytest.raises(DataUnavailable, match="Input/output error"):
        next(iter(DataLoader(data, num_workers=1, multiprocessing_context="fork")))
    assert data.skipped == []


# -- the folder is gone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["local", "animations", "frames"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_folder_that_is_gone_for_a_while(source, left, tmp_path):
    """As a mount that is taken away and comes back."""
    folder = tmp_path / "in"
    folder.mkdir()
    data = SOURCES[source](folder)
    folder.rename(tmp_path / "elsewhere")
    if left != "nothing":
        folder.mkdir()
    with pytest.raises(DataUnavailable, match="folder is gone" if left == "nothing" else "nothing is in the folder"):
        data[0]
    assert data.skipped == []
    if left != "nothing":
        folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    assert len(list(data)) == COUNT and data.skipped == []


def test_a_remote_folder_that_is_gone(monkeypatch):
    data = remote(None)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    with pytest.raises(DataUnavailable, match="the folder does not answer"):
        data[0]
    assert data.skipped == []


def test_files_that_are_gone_while_the_folder_is_there_are_damage(tmp_path):
    data = local(tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    with pytest.warns(UserWarning, match="0.png cannot be read and is left out: missing") as caught:
        assert data[0].shape == (3, 4, 4)
    assert [tuple(item) for item in data.skipped] == [(f"{number}.png", "missing") for number in range(4)]
    assert len(caught) == 3
    (tmp_path / "4.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 5 images can be read; the first is .*0.png: ."):
        data[0]
    assert len(data.skipped) == 5


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.EINVAL, None])
def test_errors_of_a_file_are_damage_at_once(number, tmp_path, monkeypatch):
    data = local(tmp_path)
    error = OSError("decoding error") if number is None else OSError(number, os.strerror(number))
    Failing(monkeypatch, Image, "open", error).left = 1
    with pytest.warns(UserWarning, match="0.png cannot be read and is left out"):
        data[0]
    assert [tuple(item) for item in data.skipped] == [("0.png", reason_of(error))]


# -- addresses --------------------------------------------------------------------------------------------------------


class Dripping(BaseHTTPRequestHandler):
    """Sends a byte now and then: of its headers, or of a picture."""

    seen: list[str] = []
    gone = threading.Event()

    def do_GET(self):
        self.seen.append(self.path)
        if self.path == "/fast":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded())
            return
        if self.path == "/body":
            self.send_response(200)
            self.end_headers()
        else:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            self.wfile.flush()
        try:
            for _ in range(60):
                if self.gone.wait(0.05):
                    return
                self.wfile.write(b"x")
                self.wfile.flush()
        except OSError:
            self.gone.set()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    Dripping.seen.clear()
    Dripping.gone.clear()
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    Dripping.gone.set()
    serving.shutdown()
    serving.server_close()


@pytest.mark.parametrize("part", ["body", "headers"])
def test_a_server_that_sends_a_byte_now_and_then_is_left_in_time_and_not_asked_again(server, part):
    """It would send for three seconds, and never be silent for longer than the timeout."""
    with pytest.raises(NoAnswer, match="too slow|timed out"):
        fetch(f"{server}/{part}", timeout=0.2)
    assert Dripping.seen == [f"/{part}"] and fetch(f"{server}/fast", 5) == encoded()


def test_a_network_that_is_down_marks_no_row(server):
    rows = [{"URL": f"{server}/fast"} for _ in range(20)]
    data = TableDataset(rows, 4, url_label="URL", fetch_timeout=1, cache_memory_share=0)
    assert data[0].shape == (3, 4, 4)
    data.rows = [{"URL": "http://127.0.0.1:9/x"} for _ in range(20)]  # nobody listens there
    with pytest.raises(DataUnavailable, match=r"row 0, row 1, row 2 cannot be read .* no address answers \(Connection"):
        data[0]
    assert data.skipped == []
    data.rows = [{"URL": f"{server}/fast" if index in (0, 9) else "http://127.0.0.1:9/x"} for index in range(20)]
    with pytest.warns(UserWarning, match="row [123] cannot be read and is left out: Connection refused") as caught:
        data[1]
    assert len(caught) == 3
    assert [item.name for item in data.skipped] == [f"row {index}" for index in range(1, 9)]


def test_batches_of_addresses_that_do_not_answer(server):
    collate = Collator(4, "URL", "text", timeout=1)
    dead = [{"URL": "http://127.0.0.1:9/x", "text": "a"}] * 8
    with pytest.raises(DataUnavailable, match="no URL of a batch answers"):
        collate(dead)
    assert collate.num_skipped == 0
    with pytest.warns(UserWarning, match="is left out: Connection refused"):
        images, _ = collate([*dead[1:], {"URL": f"{server}/fast", "text": "b"}])
    assert len(images) == 1 and collate.num_skipped == 7


def test_trouble_in_a_batch(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded())
    collate = Collator(4, text_label="text")
    failing = Failing(monkeypatch, Image, "open", OSError(errno.ESTALE, "Stale file handle"))
    failing.left = 10**9
    with pytest.raises(DataUnavailable, match="Stale file handle"):
        collate([{"image": str(tmp_path / "a.png"), "text": "a"}])
    assert collate.num_skipped == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_waiting_for_an_image_takes_some_time_and_not_for_ever(seconds):
    with pytest.raises(ValueError, match=r"fetch_timeout must be a finite number of seconds above 0, got"):
        TableDataset([{"URL": "http://127.0.0.1/a.png"}], 4, url_label="URL", fetch_timeout=seconds)

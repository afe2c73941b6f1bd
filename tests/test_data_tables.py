"""Tables with a column of pictures or of addresses: data sets of the hub, lists of dicts, and what they may hold."""

from __future__ import annotations

import io
import sys
import threading
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pytorch.data import Collator, DataError, TableDataset, hub_dataset, open_source
from imagen_pytorch.data import remote as data_remote
from imagen_pytorch.data.remote import captions_of, fetch

RED = Image.new("RGB", (9, 9), (255, 0, 0))


def encoded(picture=RED, form="PNG", **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def turned():
    """A picture that is not read yet and lies on its side: its first stored pixel is red."""
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.new("RGB", (8, 8))
    picture.putpixel((0, 0), (255, 0, 0))
    return Image.open(io.BytesIO(encoded(picture, exif=exif)))


# -- cells ------------------------------------------------------------------------------------------------------------


CELLS = {
    "a Pillow image": lambda path: RED,
    "bytes": lambda path: encoded(),
    "a path": str,
    "a dict of bytes": lambda path: {"bytes": encoded(), "path": None},
    "a dict of a path": lambda path: {"bytes": None, "path": str(path)},
    "an array": lambda path: np.asarray(RED),
}


@pytest.mark.parametrize("name", CELLS)
def test_pictures_in_every_form(tmp_path, name):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    ((image, caption),) = TableDataset([{"image": CELLS[name](path), "text": "red"}], 4)
    assert caption == "red" and image.shape == (3, 4, 4)
    assert torch.allclose(image.mean((1, 2)), torch.tensor([1.0, 0, 0]))


def test_pillow_images_are_read_and_turned_upright():
    (image,) = TableDataset([{"image": turned()}], 8, random_flip=False)
    assert image[0, 0, 7] == 1 and image.sum() == 1


def test_captions_are_one_or_several():
    assert captions_of(" a cat ") == ("a cat",) and captions_of(["a", None, " ", "b"]) == ("a", "b")
    for nothing in (None, "", [], [None, " "]):
        with pytest.raises(OSError, match="no caption"):
            captions_of(nothing)
    for wrong in (3, ["a", 3], {"en": "a"}):
        with pytest.raises(TypeError, match="a caption is a string or a list of strings, got"):
            captions_of(wrong)


@pytest.mark.parametrize(
    ("image", "text"), [("img", "caption"), ("jpg", "txt"), ("picture", "prompt"), ("png", "TEXT")]
)
def test_columns_with_usual_names_are_found(image, text):
    data = TableDataset([{"id": 1, image: RED, text: "a"}], 4)
    assert (data.image_label, data.text_label) == (image, text) and data[0][1] == "a"


def test_without_captions_pictures_are_alone_and_may_be_flipped():
    left = Image.fromarray(np.array([[255, 0]], np.uint8))
    data = TableDataset([{"image": left}], (1, 2), channels=1)
    assert {tuple(data[0].flatten().tolist()) for _ in range(32)} == {(1.0, 0.0), (0.0, 1.0)}
    still = TableDataset([{"image": left, "text": "left"}], (1, 2), channels=1)
    assert {tuple(still[0][0].flatten().tolist()) for _ in range(32)} == {(1.0, 0.0)}


def test_rows_that_cannot_be_read_are_left_out_and_listed():
    rows = [{"image": RED, "text": "red"}, {"image": b"x", "text": "b"}, {"image": RED, "text": None}, {"image": RED}]
    data = TableDataset(rows, 4)
    with pytest.warns(UserWarning, match="row [123] cannot be read and is left out") as caught:
        assert [caption for _, caption in data] == ["red"] * 4
    assert len(caught) == 3
    assert [item.name for item in data.skipped] == ["row 1", "row 2", "row 3"]
    assert [item.reason for item in data.skipped][1:] == ["no caption", "no caption"]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "the table has no rows"),
        ([{"a": 1, "b": 2}], {}, "set image_label or url_label to the column of the images, one of: a, b"),
        ([{"image": 1}], {"image_label": "img"}, 'no column "img"; set image_label to one of: image'),
        ([{"image": 1}], {"text_label": "txt"}, 'no column "txt"; set text_label to one of: image'),
        ([{"image": 1}], {"url_label": "URL"}, 'no column "URL"; set url_label to one of: image'),
    ],
)
def test_columns_that_do_not_exist(rows, options, words):
    with pytest.raises(DataError, match=words):
        TableDataset(rows, 4, **options)


def test_a_column_of_something_else_is_a_mistake_and_no_damage():
    with pytest.raises(TypeError, match="an image is a Pillow image, bytes, .* got int"):
        TableDataset([{"image": 7}], 4)[0]
    with pytest.raises(TypeError, match="a caption is a string .* got int: 3"):
        TableDataset([{"image": RED, "text": 3}], 4)[0]


# -- addresses --------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Pictures, refusals, and a page that answers at the second attempt."""

    seen = []

    def do_GET(self):
        self.seen.append((self.path, self.headers["User-Agent"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            return self.end_headers()
        status = {"/gone": 404, "/broken": 500}.get(self.path, 200)
        if self.path == "/moody" and sum(path == "/moody" for path, _ in self.seen) == 1:
            status = 503
        body = b"<html>" if self.path == "/page" else b"x" * 2000 if self.path == "/huge" else encoded()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:50] if self.path == "/cut" else body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    """The address of a server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    Handler.seen.clear()
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_pictures_behind_addresses(server):
    rows = [{"URL": f"{server}/{number}", "TEXT": f"number {number}", "image": "unused"} for number in range(5)]
    data = TableDataset(rows, 4, url_label="URL", text_label="TEXT")
    assert [caption for _, caption in data] == [row["TEXT"] for row in rows]
    images, texts = Collator(4, "URL", "TEXT")(rows)
    assert images.shape == (5, 3, 4, 4) and texts == [row["TEXT"] for row in rows]
    assert all("imagen" in agent for _, agent in Handler.seen)


def test_dead_addresses_are_left_out(server):
    paths = ["/ok", "/gone", "/page", "/cut", "/moody"]
    rows = [{"URL": f"{server}{path}", "text": path} for path in paths]
    rows += [{"URL": "ftp://x/y", "text": "ftp"}, {"URL": None, "text": "none"}, {"URL": "http://[", "text": "odd"}]
    collate = Collator(4, url_label="URL")
    with pytest.warns(UserWarning, match="/gone is left out: .*404"):
        _, texts = collate(rows)
    assert texts == ["/ok", "/moody"] and collate.num_skipped == 6
    reasons = {item.name: item.reason for item in collate.skipped}
    assert reasons["/page"] == "not an image" and reasons["/cut"] == "truncated"
    assert reasons["ftp"] == "not an http address: ftp://x/y" and reasons["none"] == "not an http address: None"


@pytest.mark.parametrize("other", ["ftp://127.0.0.1:1/x", "file:///etc/hostname", "data:,x", "unknown:x"])
def test_a_redirection_leads_to_http_addresses_only(other, server):
    """A server of another kind would answer as long as it likes."""
    with pytest.raises(OSError, match=r"unknown url type|not allowed"):
        fetch(f"{server}/to/{other}", timeout=5)
    assert fetch(f"{server}/to/{server}/fine", timeout=5) == encoded()


def test_a_refusal_is_final_and_a_mishap_is_tried_again(server):
    for path, attempts in (("/gone", 1), ("/broken", 2), ("/moody", 2)):
        Handler.seen.clear()
        with _maybe(OSError, path != "/moody"):
            fetch(f"{server}{path}", timeout=5)
        assert len(Handler.seen) == attempts


@contextmanager
def _maybe(error, expected):
    if not expected:
        yield
        return
    with pytest.raises(error):
        yield


def test_what_is_too_large_is_not_kept(server, monkeypatch):
    monkeypatch.setattr(data_remote, "MAX_BYTES", 1000)
    with pytest.raises(OSError, match="/huge is larger than"):
        fetch(f"{server}/huge", timeout=5)


# -- the hub ----------------------------------------------------------------------------------------------------------


class Rows(list):
    """Like a ``datasets.Dataset``: rows, and the names of the columns."""

    column_names = ("picture", "words")


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the datasets library; its calls."""
    calls = []

    def load_dataset(name, subset=None, *, split, revision):
        calls.append((name, subset, split, revision))
        if name == "nobody/nothing":
            raise FileNotFoundError("Dataset 'nobody/nothing'\n doesn't exist")
        if name == "old/script":
            raise RuntimeError("Dataset scripts are no longer supported")
        if split == "tset":
            raise ValueError("Unknown split \"tset\". Should be one of ['train'].")
        return Rows({"picture": RED, "words": f"number {number}"} for number in range(3))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_data_set_of_the_hub_by_its_name(library):
    data = open_source(
        "owner/name",
        split="train[:3]",
        subset="en",
        revision="v1",
        image_size=4,
        image_label="picture",
        text_label="words",
    )
    assert library == [("owner/name", "en", "train[:3]", "v1")]
    assert [caption for _, caption in data] == ["number 0", "number 1", "number 2"] and data[0][0].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nobody/nothing", {}, '"nobody/nothing" is neither a folder nor .*emoji64.* the hub has none .*: Dataset'),
        ("old/script", {}, "no longer supported"),
        ("owner/name", {"split": "tset"}, 'Unknown split "tset"'),
    ],
)
def test_what_the_hub_does_not_have(library, name, options, words):
    with pytest.raises(FileNotFoundError, match=words) as caught:
        hub_dataset(name, **options)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_columns_that_the_hub_s_table_does_not_have(library):
    with pytest.raises(DataError, match='no column "TEXT"; set text_label to one of: picture, words'):
        open_source("owner/name", text_label="TEXT")


@pytest.mark.parametrize(
    ("name", "error"),
    [("laion/laion2B-en", ImportError), ("emoji46", FileNotFoundError), ("./pictures/cats", FileNotFoundError),
     ("/no/such/folder", FileNotFoundError), ("~/pictures", FileNotFoundError)],
)  # fmt: skip
def test_without_the_library_one_sentence_says_what_to_do(monkeypatch, name, error):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(error) as caught:
        open_source(name)
    message = str(caught.value)
    assert f'"{name}" is neither a folder nor an embedded data set (emoji64, moving-digits)' in message
    assert "pip install datasets" in message and "\n" not in message and caught.value.__suppress_context__


def test_arguments_that_the_hub_does_not_take(library):
    with pytest.raises(TypeError, match='owner/name takes no argument "spilt"; .*did you mean "split"'):
        open_source("owner/name", spilt="train")
    assert library == []

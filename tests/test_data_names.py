"""Names of files in tables: which file each of them means, and which of them are refused."""

from __future__ import annotations

import json
import sys
import unicodedata
import uuid
import warnings

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from imagen_pytorch.data import DataError, Dataset, VideoDataset

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def opened(folder, names, **options):
    """Captions by image, and reasons by what was left out, of a table that names files; each caption is its number."""
    rows = [{"file_name": name, "text": str(number)} for number, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = Dataset(folder, 4, **options)
    captions = {data.name(index): set(data._captions[data._relative[index]]) for index in range(len(data))}
    return captions, {item.name: item.reason for item in data.skipped}


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "sub" / "b.png")
    save(tmp_path / "private" / "secret.png")
    return tmp_path / "in"


OUTSIDE = ["../private/secret.png", "sub/../../private/secret.png", "..", "../in/a.png", "..\\private\\secret.png",
           "./../private/secret.png", "/etc/hostname.png", "C:\\pictures\\a.png", "\\\\server\\a.png",
           "\\a.png"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_the_folder_are_refused_with_the_reason(folder, name):
    captions, skipped = opened(folder, ["a.png", "sub/b.png", name])
    assert captions == {"a.png": {"0"}, "sub/b.png": {"1"}}
    assert list(skipped) == [name] and skipped[name].startswith("outside of the folder")


def test_absolute_paths_are_refused_even_into_the_folder(folder):
    _, skipped = opened(folder, ["sub/b.png", str(folder / "a.png")])
    reason = "outside of the folder: an absolute path; names in a table are relative to it"
    assert skipped == {str(folder / "a.png"): reason, "a.png": "no caption"}


SAME = ["sub/b.png", " sub/b.png ", "./sub/b.png", "sub//b.png", "sub/../sub/b.png", "sub/./b.png", "no/../sub/b.png",
        "sub\\b.png", ".\\sub\\b.png", "sub/b", "sub\\b", "SUB/B.PNG", "sub/B"]  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_one_item_however_a_file_is_spelled(folder, name):
    assert opened(folder, ["a.png", "sub/b.png", name]) == ({"a.png": {"0"}, "sub/b.png": {"1", "2"}}, {})
    assert opened(folder, ["a.png", name]) == ({"a.png": {"0"}, "sub/b.png": {"1"}}, {})


@links
def test_one_item_through_links(folder, tmp_path):
    (folder / "link").symlink_to("sub")
    (folder / "z.png").symlink_to("a.png")
    (folder / "far").symlink_to(tmp_path / "private")
    (folder / "wide").symlink_to(tmp_path / "private")
    names = ["a.png", "link/b.png", "z.png", "wide/secret.png", "sub/b.png", "far/secret.png", "link/../a.png"]
    # a folder that the owner linked into this one belongs to it, as it does where there is no table
    expected = {"a.png": {"0", "2", "6"}, "sub/b.png": {"1", "4"}, "far/secret.png": {"3", "5"}}
    assert opened(folder, names) == (expected, {})


def test_what_is_there_counts_before_what_is_alike(folder):
    save(folder / "A.PNG")
    save(folder / "c.png")
    save(folder / "c.jpg")
    save(folder / "back\\slash.png")
    captions, skipped = opened(folder, ["A.PNG", "a.png", "sub/b.png", "back\\slash.png", "c"])
    assert captions == {"A.PNG": {"0"}, "a.png": {"1"}, "sub/b.png": {"2"}, "back\\slash.png": {"3"}}
    assert skipped == {"c": "missing", "c.jpg": "no caption", "c.png": "no caption"}  # which of the two?


def test_accents_as_another_system_writes_them(folder):
    name = "é.png"
    for stored, asked in (("NFC", "NFD"), ("NFD", "NFC")):
        path = folder / unicodedata.normalize(stored, name)
        save(path)
        captions, _ = opened(folder, [unicodedata.normalize(asked, name)])
        assert captions == {path.name: {"0"}}
        path.unlink()


def test_tables_elsewhere():
    url = f"memory://{uuid.uuid4().hex}"
    content = open_bytes()
    rows = [{"file_name": name, "text": name} for name in ("sub\\a.png", "./b", "../c.png", "/d.png", "sub/../b.png")]
    files = {"sub/a.png": content, "b.png": content, "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    MemoryFileSystem().pipe({f"{url.removeprefix('memory:/')}/{name}": value for name, value in files.items()})
    with pytest.warns(UserWarning, match="2 of the images"):
        data = Dataset(url, 4)
    assert data.captions == ["./b", "sub\\a.png"] and {item.name for item in data.skipped} == {"../c.png", "/d.png"}


def open_bytes():
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_clips_and_folders_of_frames(tmp_path):
    for number in range(2):
        save(tmp_path / "frames" / f"{number}.png")
    rows = [{"file_name": name, "text": name} for name in ("frames/", "..", ".\\frames", "FRAMES")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="1 of the clips .*outside of the folder"):
        data = VideoDataset(tmp_path, 4, 2)
    assert len(data) == 1 and len(data._captions[data._relative[0]]) == 3


def test_a_table_that_names_nothing_that_is_there_says_so_first(folder):
    with pytest.raises(DataError, match="no usable image; 2 files that the table names are missing; the first is x/a"):
        opened(folder, ["x/a.png.jpg", "y.gif"])

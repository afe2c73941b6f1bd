"""Captions and images that lie there and would not be found: read where it is clear what is meant, else named."""

from __future__ import annotations

import json
import os
import sys
import types

import pytest
from PIL import Image, ImageFile

from imagen_pytorch.data import DataError, Dataset, TableDataset, VideoDataset, decoding, open_source
from imagen_pytorch.data.local_folder import LocalFolder


def folder(place, *beside, names=("p0.png",)):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(place / name)
    for name, text in beside:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


# -- read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p0.TXT", "p0.Txt", "p0.txt"])
def test_text_files_in_any_case_of_letters(tmp_path, name):
    assert Dataset(folder(tmp_path, (name, "a cat")), 16).captions == ["a cat"]


@pytest.mark.parametrize("table", ["metadata.jsonl", "METADATA.JSONL", "Metadata.Csv"])
@pytest.mark.parametrize("where", ["", "train/", "a/b/c/"])
def test_tables_serve_the_images_below_them(tmp_path, where, table):
    text = "file_name,text\np0.png,a cat\n" if table.lower().endswith("csv") else (
        '{"file_name": "p0.png", "text": "a cat"}')  # fmt: skip
    data = Dataset(folder(tmp_path, (f"{where}{table}", text), names=(f"{where}p0.png",)), 16)
    assert data.captions == ["a cat"] and data.skipped == []


def test_the_nearest_table_counts_and_text_files_serve_the_rest(tmp_path):
    rows = [("a/metadata.jsonl", [("0.png", "upper"), ("b/1.png", "upper"), ("b/2.png", "upper")]),
            ("a/b/metadata.jsonl", [("1.png", "lower"), ("../0.png", "outside")])]  # fmt: skip
    tables = [(table, "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in named))
              for table, named in rows]  # fmt: skip
    names = ("a/0.png", "a/b/1.png", "a/b/2.png", "c/3.png")
    folder(tmp_path, *tables, ("c/3.txt", "beside"), ("a/0.txt", "not read"), names=names)
    with pytest.warns(UserWarning, match="outside of the folder"):
        data = Dataset(tmp_path, 16)
    assert data.captions == ["upper", "lower", "upper", "beside"]
    # a table in the folder itself tells all captions
    (tmp_path / "metadata.csv").write_text("file_name,text\nc/3.png,mine\n")
    with pytest.warns(UserWarning, match="3 of the images"):
        assert Dataset(tmp_path, 16).captions == ["mine"]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", ", ", "; "])
def test_separators_of_tables(tmp_path, mark):
    lines = [mark.join(("id", "file_name", "text")), mark.join(("1", "p0.png", f'"a cat{mark}asleep"'))]
    data = Dataset(folder(tmp_path, ("metadata.csv", "\ufeff" + "\r\n".join(lines))), 16)
    assert data.captions == [f"a cat{mark}asleep"]


def test_captions_of_clips_in_tables_below(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    folder(tmp_path, ("in/metadata.jsonl", '{"file_name": "a", "text": "x"}'), names=())
    frames[0].save(tmp_path / "in" / "a.gif", save_all=True, append_images=frames[1:])
    assert VideoDataset(tmp_path, 8, 2).captions == ["x"]


# -- named ------------------------------------------------------------------------------------------------------------


NAMED = [
    ("p0.caption", 'p0.caption lies beside p0.png and is not read: the option caption_extension ".caption"'),
    ("p0.png.txt", 'p0.png.txt lies beside p0.png and is not read: the option caption_extension ".png.txt"'),
    ("p0.CAP", 'the option caption_extension ".CAP" reads such files'),
    ("p0.json", "p0.json lies beside p0.png and is not read: captions are lines of a text file, or a"),
    ("captions.csv", 'captions.csv is not read: a table of captions is called metadata.jsonl or metadata.csv '
                     'and has the columns "file_name" and "text"'),
    ("captions.txt", "captions.txt is not read: a table of captions is called metadata.jsonl"),
    ("labels.tsv", "labels.tsv is not read"),
    ("train/prompts.parquet", "train/prompts.parquet is not read"),
    ("train/metadata.csv", 'train/metadata.csv is not read .*no column "file_name", but: x'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), NAMED)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path, name, words):
    folder(tmp_path, (name, "x,y\n1,2\n"))
    with pytest.warns(UserWarning, match=f"no captions were found for the images in .*{words}"):
        data = Dataset(tmp_path, 16)
    assert data.captions == [] and len(data.near_misses) == 1 and data[0].shape == (3, 16, 16)


@pytest.mark.parametrize("extension", [".caption", ".png.txt", ".CAP"])
def test_the_option_that_is_named_reads_them(tmp_path, extension):
    folder(tmp_path, (f"p0{extension}", "a cat"))
    assert Dataset(tmp_path, 16, caption_extension=extension).captions == ["a cat"]


def test_nothing_is_said_where_nothing_lies_or_captions_are_found_or_not_wanted(tmp_path, recwarn):
    for name, beside, options in (
        ("a", [("readme.md", "x"), ("notes.txt", "x")], {}),
        ("b", [("p0.caption", "x"), ("p0.txt", "a cat")], {}),
        ("c", [("p0.caption", "x")], {"captions": False}),
    ):
        assert Dataset(folder(tmp_path / name, *beside), 16, **options).near_misses == ()
    assert not recwarn


def test_a_column_of_another_name_is_said_with_the_option(tmp_path):
    folder(tmp_path, ("metadata.csv", "file_name,caption\np0.png,a cat\n"))
    with pytest.raises(DataError, match='no column "text", but: file_name, caption; text_label names the column'):
        Dataset(tmp_path, 16)
    assert Dataset(tmp_path, 16, text_label="caption").captions == ["a cat"]


# -- images of other kinds --------------------------------------------------------------------------------------------


def test_images_that_need_a_package_are_left_out_by_name(tmp_path):
    folder(tmp_path, *((name, "x") for name in ("a.HEIC", "b.jxl", "c.NEF", "p0.heic", "in/d.heif")))
    with pytest.warns(UserWarning, match="4 of the images .*a.HEIC .*convert it to JPEG or PNG, or pip install"):
        data = Dataset(tmp_path, 16)
    assert {item.name: item.reason for item in data.skipped} == {
        "a.HEIC": "HEIC is not read: convert it to JPEG or PNG, or pip install pillow-heif",
        "b.jxl": "JXL is not read: convert it to JPEG or PNG, or pip install pillow-jxl-plugin",
        "c.NEF": "NEF is not read: convert it to JPEG or PNG",
        "in/d.heif": "HEIF is not read: convert it to JPEG or PNG, or pip install pillow-heif",
    }  # p0.heic has been converted
    assert Dataset(tmp_path, 16, exts="png").skipped == []  # asked for these alone


def test_images_that_need_a_package_alone(tmp_path):
    folder(tmp_path, ("in/a.HEIC", "x"), names=())
    with pytest.raises(
        DataError, match="holds no image that can be read; the first is in/a.HEIC: HEIC is not read: conv"
    ):
        Dataset(tmp_path, 16)


def test_they_are_read_once_the_package_is_there(tmp_path, monkeypatch):
    """A package that stands for the real one: it reads files with a signature of its own."""

    class Toy(ImageFile.ImageFile):
        format = "HEIF"
        format_description = "toy"

        def _open(self):
            self._size, self._mode, self.tile = (4, 4), "L", [("raw", (0, 0, 4, 4), 0, ("L", 0, 1))]

    def register():
        Image.register_open("HEIF", Toy, lambda start: start[:4] == b"toyh")
        Image.register_extension("HEIF", ".heic")

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener, plugin.__spec__ = register, types.SimpleNamespace()
    for name in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, type(getattr(Image, name))(getattr(Image, name)))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    decoding._load_plugins.cache_clear()
    try:
        (folder(tmp_path) / "a.HEIC").write_bytes(b"toyh" + bytes(12))
        data = Dataset(tmp_path, 4)
        assert [data.name(index) for index in range(2)] == ["a.HEIC", "p0.png"] and data.skipped == []
        assert abs(float(data[0].max()) - ord("y") / 255) < 1e-6
    finally:
        decoding._load_plugins.cache_clear()


# -- limits -----------------------------------------------------------------------------------------------------------


def test_tables_and_lines_have_a_limit(tmp_path, monkeypatch):
    folder(tmp_path, ("metadata.jsonl", json.dumps({"file_name": "p0.png", "text": "x" * 2**21})))
    with pytest.raises(DataError, match="metadata.jsonl cannot be read: line 1 is longer than 1 Mi characters"):
        Dataset(tmp_path, 16)
    (tmp_path / "metadata.jsonl").unlink()
    with (tmp_path / "metadata.csv").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    with pytest.raises(DataError, match="metadata.csv cannot be read: larger than 1 GiB; give each subfolder a table"):
        Dataset(tmp_path, 16)


def test_a_caption_of_a_hundred_megabytes_is_left_out_without_being_read(tmp_path):
    folder(tmp_path, ("p1.txt", "fine"), names=("p0.png", "p1.png"))
    with (tmp_path / "p0.txt").open("wb") as file:
        file.truncate(10**8)
    with pytest.warns(UserWarning, match="p0.png .caption: larger than 1 MiB."):
        assert Dataset(tmp_path, 16).captions == ["fine"]


@pytest.mark.slow
def test_folders_within_folders_have_a_limit(tmp_path):
    folder(tmp_path)
    deep = tmp_path.joinpath(*["d"] * 105)
    folder(deep)
    with pytest.warns(UserWarning, match="folder: more than 100 levels deep"):
        assert len(Dataset(tmp_path, 16)) == 1


@pytest.mark.slow
def test_links_that_multiply_are_followed_once(tmp_path):
    """Ten folders that each hold links to all ten: ten million ways of seven steps."""
    for number in range(10):
        folder(tmp_path / str(number))
        for other in range(10):
            (tmp_path / str(number) / f"to{other}").symlink_to(tmp_path / str(other))
    assert len(LocalFolder(tmp_path).files()) == 10


def test_captions_in_cells_have_the_same_limit():
    rows = [{"image": Image.new("RGB", (8, 8)), "text": text} for text in ("x" * 10**7, ["x" * 2**19] * 3, "fine")]
    data = TableDataset(rows, 4)
    with pytest.warns(UserWarning, match="row [01] cannot be read and is left out: caption: larger than 1 MiB"):
        assert [caption for _, caption in data] == ["fine"] * 3


def test_animations_have_a_limit(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    for name in ("a.gif", "b.gif", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for name in ("b.gif", "c.webp"):
        with (tmp_path / name).open("ab") as file:
            file.truncate(2**33)  # takes no room on the disk
    with pytest.warns(UserWarning, match="2 of the clips .*larger than 256 MiB"):
        assert len(VideoDataset(tmp_path, 4, 2)) == 1


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links as POSIX has them")
@pytest.mark.parametrize("target", ["nowhere", "metadata.csv"])
def test_a_table_that_leads_nowhere_is_no_missing_table(target, tmp_path):
    """Its captions are meant, and not those of text files beside the images, or none."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "metadata.csv").symlink_to(target)
    with pytest.raises(DataError, match=r"metadata\.csv cannot be read: "):
        Dataset(tmp_path, 8)


@pytest.mark.parametrize(
    ("key", "value"), [("caption_extension", ""), ("caption_extension", "/txt"), ("exts", ""), ("exts", [])]
)
def test_impossible_endings_are_named(key, value, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"^{key}: "):
        Dataset(tmp_path, 8, **{key: value})


def test_a_file_is_no_data_set_of_the_hub(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="a.png is a file; data are a folder, or a data set by its name"):
        open_source(str(tmp_path / "a.png"))

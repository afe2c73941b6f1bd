"""Whatever is wrong with a file costs that file only: it is skipped with a reason; nothing hangs or takes memory."""

from __future__ import annotations

import builtins
import io
import json
import os
import resource
import struct
import sys
import warnings
import zlib

import pytest
import torch
from PIL import Image

from imagen_pytorch.data import DataError, Dataset, TableDataset, VideoDataset, get_images_dataloader
from imagen_pytorch.data import folder as data_folder
from imagen_pytorch.data.decoding import MAX_PIXELS, decode, printable, reason_of

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def encoded(form="PNG", size=(9, 9), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (0, 255, 0)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded())
    return tmp_path


def opened(folder, **options):
    """Why what was left out, by name, after all items were read; each is the good picture, whatever is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = Dataset(folder, 4, **options)
        for item in data:
            image = item[0] if isinstance(item, tuple) else item
            assert image.shape == (3, 4, 4) and (image - torch.tensor([0.0, 1, 0])[:, None, None]).abs().max() < 1e-5
    return {item.name: item.reason for item in data.skipped}


# -- files ------------------------------------------------------------------------------------------------------------


DAMAGE = {
    "zero bytes": (b"", "empty file"),
    "not an image": (b"hello, world", "not an image"),
    "a page of an error": (b"<html>404</html>", "not an image"),
    "a signature alone": (encoded()[:8], "not an image|SyntaxError|truncated|Truncated"),
    "half a JPEG": (encoded("JPEG", (200, 200), quality=100)[:700], "truncated"),
    "half a PNG": (encoded("PNG", (300, 300))[:200], "truncated"),
    "PostScript, for which a program would start": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "not an image"
    ),
}  # fmt: skip


@pytest.mark.parametrize("looks_into", [True, False], ids=["found on opening", "found on reading"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_skipped_with_a_reason(folder, name, looks_into, monkeypatch):
    """Very many files are not looked into on opening, only on reading."""
    content, reason = DAMAGE[name]
    if not looks_into:
        monkeypatch.setattr(data_folder, "MAX_LOOKED_INTO", 1)
    (folder / "bad.png").write_bytes(content)
    skipped = opened(folder)
    assert list(skipped) == ["bad.png"] and any(word in skipped["bad.png"] for word in reason.split("|"))


def test_a_file_that_may_not_be_read(folder, monkeypatch):
    """Forbidden by hand: for the superuser, who runs some tests, permissions forbid nothing."""
    (folder / "secret.png").write_bytes(encoded())
    (folder / "secret").mkdir()
    scandir, usual = os.scandir, builtins.open

    def may(path):
        if os.path.basename(os.fspath(path)) in ("secret", "secret.png"):
            raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", lambda path: may(path) or scandir(path))
    # Pillow opens by name, everything else here by handle or path object
    monkeypatch.setattr(
        builtins, "open", lambda file, *args, **kw: (isinstance(file, str) and may(file)) or usual(file, *args, **kw)
    )
    assert opened(folder) == {"secret": "folder: Permission denied", "secret.png": "Permission denied"}


def test_a_folder_that_may_not_be_looked_into(folder, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match="cannot look into .*: Permission denied"):
        Dataset(folder, 4)


def test_a_file_that_is_gone_in_the_middle(folder):
    (folder / "a.png").write_bytes(encoded())
    data = Dataset(folder, 4)
    (folder / "a.png").unlink()
    with pytest.warns(UserWarning, match="a.png cannot be read and is left out: missing"):
        assert data[0].shape == (3, 4, 4)
    assert [tuple(item) for item in data.skipped] == [("a.png", "missing")] and data.found == 2


@links
def test_links_that_lead_nowhere_or_round_in_a_circle(folder):
    (folder / "self.png").symlink_to("self.png")
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    (folder / "dangling.png").symlink_to("nothing.png")
    loop = os.strerror(40) if sys.platform == "linux" else "symbolic links"
    skipped = opened(folder)
    assert skipped.pop("dangling.png") == "missing" and set(skipped) == {"self.png", "one.png", "two.png"}
    assert all(loop in reason for reason in skipped.values())


@links
def test_linked_folders_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.png").write_bytes(encoded())
    (folder / "in").mkdir()
    (folder / "in" / "near.png").write_bytes(encoded())
    (folder / "in" / "up").symlink_to(folder)  # a circle
    (folder / "again").symlink_to(folder / "in")
    (folder / "link").symlink_to(elsewhere)
    (folder / "second").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    data = Dataset(folder, 4)
    assert [data.name(index) for index in range(len(data))] == ["good.png", "in/near.png", "link/far.png"]
    assert data.skipped == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_pipes_and_devices_are_never_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "good.txt")
    assert opened(folder) == {}  # neither a picture nor its captions
    rows = [{"file_name": name, "text": "x"} for name in ("good.png", "pipe.png", "/dev/zero", ".", "a\0b.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reasons = opened(folder)
    assert reasons["pipe.png"] == "not a file" and reasons["."] == "a folder"
    assert reasons["/dev/zero"].startswith("outside of the folder")
    assert "null byte" in reasons[r"a\x00b.png"]


def test_names_that_are_no_text(folder, capfd):
    name = os.fsdecode(b"caf\xe9\n.png")
    try:
        (folder / name).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(encoded())
    skipped = opened(folder)
    assert skipped == {r"caf\xe9\n.png": "not an image"}
    with pytest.warns(UserWarning, match=r"caf\\xe9\\n.png"):
        data = Dataset(folder, 4)
    assert [data.name(index) for index in range(2)] == ["good.png", r"\xff.png"]
    json.dumps(data.skipped, ensure_ascii=False).encode()
    rows = [{"file_name": "\udcff.png", "text": "by its name"}, {"file_name": "\ud800.png", "text": "x"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="3 of the images"):
        data = Dataset(folder, 4)
    assert data.captions == ["by its name"] and r"\ud800.png" in {item.name for item in data.skipped}


def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"\\xff holds no images"):
        Dataset(folder, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [("plain ä 猫 👩‍🚀.png", "plain ä 猫 👩‍🚀.png"), ("a\tb\x1b[31m", r"a\tb\x1b[31m"), ("\udc80", r"\x80"),
     ("\ud800x", r"\ud800x"), ("a\u2028b", r"a\u2028b")],
)  # fmt: skip
def test_names_in_messages(name, words):
    assert printable(name) == words


# -- captions ---------------------------------------------------------------------------------------------------------


def test_captions_that_are_no_text_or_none_at_all(folder):
    (folder / "good.txt").write_text("fine")
    for name, content in (("latin", "é".encode("latin-1")), ("zeros", b"\xff\xfe\0"), ("long", b"x" * (2**20 + 1))):
        (folder / f"{name}.png").write_bytes(encoded())
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "dir.png").write_bytes(encoded())
    (folder / "dir.txt").mkdir()
    (folder / "silent.png").write_bytes(encoded())
    assert opened(folder) == {
        "dir.png": "caption: Is a directory",
        "latin.png": "caption: latin.txt is not UTF-8 text",
        "long.png": "caption: larger than 1 MiB",
        "silent.png": "no caption",
        "zeros.png": "caption: zeros.txt is not UTF-8 text",
    }


def test_halves_of_characters_in_a_table(folder):
    """JSON may hold them, and nothing that writes or encodes text takes them."""
    (folder / "half.png").write_bytes(encoded())
    rows = [{"file_name": "good.png", "text": ["\ud83d", "whole"]}, {"file_name": "half.png", "text": "\ud83d"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opened(folder) == {"half.png": "caption: not UTF-8 text"}
    with pytest.warns(UserWarning):
        assert Dataset(folder, 4).captions == ["whole"]
    with pytest.warns(UserWarning, match="row 0 cannot be read and is left out: no caption"):
        data = TableDataset([{"image": encoded(), "text": "\ud83d"}, {"image": encoded(), "text": "b"}], 4)
        assert data[0][1] == "b"


# -- bombs ------------------------------------------------------------------------------------------------------------


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, before=b"", after=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 1) * height) if width * height < 100 else bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", rows) + after + chunk(b"IEND", b"")


def gif(width, height):
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b";"


def webp(width, height):
    small = encoded("WEBP", lossless=True)[12:]
    canvas = (
        b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(small)) + b"WEBP" + canvas + small


def tiff(width, height):
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 99)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def bmp(width, height):
    return b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


BOMBS = {"png": png, "gif": gif, "webp": webp, "tiff": tiff, "bmp": bmp}


@pytest.mark.parametrize("side", [60_000, 12_000])
@pytest.mark.parametrize("ending", BOMBS)
def test_bombs_are_refused_by_their_header(folder, ending, side, monkeypatch):
    """Whether Pillow would only warn (12,000 x 12,000) or somebody told it to take everything."""
    assert side * side > MAX_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (folder / f"bomb.{ending}").write_bytes(BOMBS[ending](side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    skipped = opened(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes; unpacked: over 140,000
    assert list(skipped) == [f"bomb.{ending}"]
    assert "too large" in skipped[f"bomb.{ending}"] or ending == "webp"  # where libwebp itself refuses
    assert Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_bombs_among_clips_too(tmp_path, ending):
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    frames[0].save(tmp_path / "good.gif", save_all=True, append_images=frames[1:])
    (tmp_path / f"bomb.{ending}").write_bytes(BOMBS[ending](60_000, 60_000))
    with pytest.warns(UserWarning, match=f"bomb.{ending}"):
        data = VideoDataset(tmp_path, 4, 1)
        assert all(item["images"].shape == (3, 1, 4, 4) for item in data)
    assert [item.name for item in data.skipped] == [f"bomb.{ending}"]


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_text_that_unpacks_to_megabytes(folder, kind, where):
    packed = zlib.compress(bytes(2**22))
    text = b"a\0\0" + packed if kind == b"zTXt" else b"a\0\1\0\0\0" + packed
    (folder / "bomb.png").write_bytes(png(9, 9, **{where: chunk(kind, text)}))
    assert "Decompressed data too large" in opened(folder)["bomb.png"]


def test_a_small_text_costs_no_picture(folder):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"made by a camera"))
    (folder / "good.png").write_bytes(encoded()[:33] + text + encoded()[33:])
    assert opened(folder) == {}


# -- words and numbers ------------------------------------------------------------------------------------------------


def test_reasons_are_short_lines_without_paths(folder):
    assert reason_of(PermissionError(13, "Permission denied", "/a/b")) == "Permission denied"
    assert reason_of(OSError("one\ntwo  \x1b")) == r"one two \x1b" and reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 10_000))) < 200
    with pytest.raises(OSError, match="no pixels in it"):
        decode(Image.new("RGB", (0, 4)), (4, 4))


def test_after_a_few_warnings_damage_is_only_listed(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(encoded("JPEG", (64, 64), quality=100)[: None if number > 6 else 650])
    data = Dataset(tmp_path, 4)
    with pytest.warns(UserWarning) as caught:
        list(data)
    assert len(caught) == 3 and "further ones are only listed" in str(caught[-1].message) and len(data.skipped) == 7


def test_fewer_pictures_than_a_batch(folder):
    (batch,) = get_images_dataloader(folder, batch_size=64, image_size=4)
    assert batch.shape == (1, 3, 4, 4)


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for name in ("b/1.PNG", "a.png", "Z.WebP", "c.JPG", "b.AVIF.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    names = [path.name for path in Dataset(tmp_path, 4).paths]
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            with scandir(self.path) as entries:
                return iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert (
        [path.name for path in Dataset(tmp_path, 4).paths]
        == names
        == ["Z.WebP", "a.png", "b.AVIF.png", "1.PNG", "c.JPG"]
    )

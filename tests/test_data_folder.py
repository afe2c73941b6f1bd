"""A folder of pictures: what is found, in which order, with which captions, and what happens to the rest."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from imagen_pytorch.data import DataError, Dataset

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def save(path, colour="red", size=(12, 10), **options):
    """A picture of one colour; (width, height) as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = options.pop("picture", None) or Image.new(options.pop("mode", "RGB"), size, COLOURS.get(colour, colour))
    picture.save(path, **options)
    return path


@pytest.fixture
def pairs(tmp_path):
    """Four pictures, a caption beside each."""
    for colour in COLOURS:
        save(tmp_path / f"{colour}.png", colour).with_suffix(".txt").write_text(f"a {colour} square\n")
    return tmp_path


# -- what is found ----------------------------------------------------------------------------------------------------


def test_pictures_alone_are_tensors_of_one_shape(tmp_path):
    save(tmp_path / "wide.png", size=(40, 10))
    save(tmp_path / "high.png", size=(10, 40))
    save(tmp_path / "small.png", size=(3, 2))
    data = Dataset(tmp_path, 8)
    assert len(data) == 3 and data.captions == [] and data.skipped == []
    for item in data:
        assert item.shape == (3, 8, 8) and item.dtype == torch.float32
        assert torch.allclose(item[:, 4, 4], torch.tensor([1.0, 0, 0]))


def test_captions_in_text_files_beside_the_pictures(pairs):
    data = Dataset(pairs, 8)
    assert [caption for _, caption in data] == ["a blue square", "a green square", "a red square", "a white square"]
    for image, caption in data:
        assert torch.allclose(image[:, 0, 0] * 255, torch.tensor(COLOURS[caption.split()[1]]).float())


@pytest.mark.parametrize("ending", ["jpg", "JPG", "Jpeg", "png", "PNG", "webp", "WEBP", "tiff", "tif", "bmp", "gif"])
def test_endings_in_any_case_of_letters(tmp_path, ending):
    save(tmp_path / f"a.{ending}")
    (item,) = Dataset(tmp_path, 4)
    assert (item[:, 1, 1] - torch.tensor([1.0, 0, 0])).abs().max() < 0.02


@pytest.mark.parametrize(
    ("exts", "names"), [(("jpg", ".PNG"), ["a.jpg", "b.png"]), ("webp", ["d.webp"]), ("tiff, jpg", ["a.jpg", "c.tiff"])]
)
def test_only_the_wanted_endings(tmp_path, exts, names):
    for name in ("a.jpg", "b.png", "c.tiff", "d.webp"):
        save(tmp_path / name)
    assert [path.name for path in Dataset(tmp_path, 4, exts).paths] == names


def test_subfolders_hidden_files_and_order(tmp_path):
    for name in ("b/2.png", "b/10.png", "a.png", "B.png", ".hidden.png", ".git/x.png", "b/.thumbs/x.png"):
        save(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.md").write_text("nothing")
    data = Dataset(tmp_path, 4)
    assert [data.name(index) for index in range(len(data))] == ["B.png", "a.png", "b/10.png", "b/2.png"]
    assert data.paths[2] == tmp_path / "b" / "10.png"


def test_indices_from_the_end_and_out_of_range(pairs):
    data = Dataset(pairs, 4)
    assert data[-1][1] == "a white square"
    with pytest.raises(IndexError, match="there are 4 images, got index 4"):
        data[4]


# -- sizes, modes, orientation ----------------------------------------------------------------------------------------


def test_the_middle_is_cut_out_of_the_covering_picture(tmp_path):
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (20, 1, 3))  # 20 high, 60 wide
    save(tmp_path / "a.png", picture=Image.fromarray(ramp))
    (item,) = Dataset(tmp_path, 20, random_flip=False)
    assert torch.allclose(item[0, 0] * 255, torch.arange(80.0, 160, 4))
    (item,) = Dataset(tmp_path, (10, 6), random_flip=False)
    assert item.shape == (3, 10, 6) and torch.allclose(item[0, 5].mean() * 255, torch.tensor(118.0), atol=0.5)


def test_pictures_are_shrunk_without_aliasing_and_enlarged(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "a.png", picture=Image.fromarray(board))
    save(tmp_path / "b.png", "green", size=(2, 2))
    shrunk, enlarged = Dataset(tmp_path, 16)
    assert (shrunk[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.01
    assert enlarged.shape == (3, 16, 16) and torch.allclose(enlarged.mean((1, 2)), torch.tensor([0.0, 1, 0]))


MODES = {
    "RGBA": dict(mode="RGBA", colour=(255, 0, 0, 255)),
    "LA": dict(mode="LA", colour=(76, 255)),
    "L": dict(mode="L", colour=76),
    "1 bit": dict(mode="1", colour=1),
    "palette": dict(picture=Image.new("RGB", (9, 9), (255, 0, 0)).convert("P")),
    "palette of a web page": dict(picture=Image.new("RGB", (9, 9), (255, 0, 0)).quantize(4)),
    "16 bits": dict(picture=Image.fromarray(np.full((9, 9), 19532, np.uint16))),
}
GREY_LEVEL = {"LA": 76, "L": 76, "1 bit": 255, "16 bits": 76}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODES)
def test_any_mode_becomes_the_models(tmp_path, name, channels):
    save(tmp_path / "a.png", **MODES[name])
    (item,) = Dataset(tmp_path, 4, channels=channels)
    grey = GREY_LEVEL.get(name)
    red = (76, 76, 76) if channels < 3 else (255, 0, 0)
    expected = torch.tensor(red if grey is None else (grey,) * 3)[: 1 if channels < 3 else 3]
    assert item.shape == (channels, 4, 4)
    assert (item[: len(expected), 2, 2] * 255 - expected).abs().max() <= 1.01
    assert channels in (1, 3) or torch.allclose(item[-1], torch.tensor(1.0))


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("CMYK", "tiff"), ("L", "jpg"), ("YCbCr", "tiff")])
def test_modes_that_only_some_formats_have(tmp_path, mode, ending):
    save(tmp_path / f"a.{ending}", picture=Image.new("RGB", (9, 9), (200, 200, 200)).convert(mode))
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:  # which does not read what it writes
        with pytest.warns(UserWarning), pytest.raises(DataError, match="a.tiff: truncated"):
            list(Dataset(tmp_path, 4))
        return
    (item,) = Dataset(tmp_path, 4)
    assert item.shape == (3, 4, 4) and (item * 255 - 200).abs().max() < 3


def test_mixed_modes_stack(tmp_path):
    for index, mode in enumerate(("L", "RGB", "RGBA", "P", "1", "LA")):
        save(tmp_path / f"{index}.png", mode=mode, colour=1)
    assert torch.stack(list(Dataset(tmp_path, 4))).shape == (6, 3, 4, 4)


def test_modes_by_their_pillow_name(tmp_path):
    save(tmp_path / "a.png")
    assert [len(Dataset(tmp_path, 4, convert_image_to_type=mode)[0]) for mode in ("L", "LA", "RGB", "RGBA")] == [
        1,
        2,
        3,
        4,
    ]


def test_transparency_is_white_and_its_hidden_colours_do_not_bleed(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 1] = 255  # invisible green
    pixels[:, 16:] = (255, 0, 0, 255)
    save(tmp_path / "a.png", picture=Image.fromarray(pixels))
    (opaque,) = Dataset(tmp_path, 6, random_flip=False)
    assert torch.allclose(opaque[:, 3, 0], torch.ones(3)) and torch.allclose(opaque[:, 3, 5], torch.tensor([1.0, 0, 0]))
    (clear,) = Dataset(tmp_path, 6, channels=4, random_flip=False)
    assert clear[3, 3, 0] == 0 and clear[1][clear[3] > 0.01].max() < 0.01 and clear.min() >= 0 and clear.max() <= 1


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_counts(tmp_path, ending):
    first, second = (Image.new("RGB", (9, 9), COLOURS[colour]) for colour in ("blue", "red"))
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
    (item,) = Dataset(tmp_path, 4)
    assert (item[:, 2, 2] - torch.tensor([0.0, 0, 1])).abs().max() < 0.02


ORIENTATIONS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_cameras_held_in_any_way(tmp_path, orientation):
    """A large JPEG whose first stored pixels are red; orientation 6, say, puts them at the top right."""
    pixels = np.zeros((900, 1200, 3), np.uint8)
    pixels[:300, :300] = (255, 0, 0)
    exif = Image.Exif()
    exif[274] = orientation
    save(tmp_path / "a.jpg", picture=Image.fromarray(pixels), exif=exif, quality=95)
    wide = orientation < 5
    (item,) = Dataset(tmp_path, (9, 12) if wide else (12, 9), random_flip=False)
    row, column = ORIENTATIONS[orientation]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert (item[0][corner] > 0.9) == (corner == (row, column))


def test_a_damaged_note_about_the_orientation_costs_no_picture(tmp_path):
    save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    (item,) = Dataset(tmp_path, 4)
    assert torch.allclose(item[:, 0, 0], torch.tensor([1.0, 0, 0]))


# -- captions ---------------------------------------------------------------------------------------------------------


def write_table(folder, rows, name="metadata.jsonl"):
    lines = [json.dumps(row) for row in rows] if name.endswith("l") else rows
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


ROWS = [{"file_name": f"{colour}.png", "text": f"{colour}, said the table"} for colour in COLOURS]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.jsonl", ROWS),
        ("metadata.csv", ["text,file_name", *(f'"{row["text"]}",./{row["file_name"]}' for row in ROWS)]),
    ],
)
def test_a_table_of_captions_wins_over_text_files(pairs, name, rows):
    write_table(pairs, rows, name)
    assert Dataset(pairs, 4).captions == [f"{colour}, said the table" for colour in sorted(COLOURS)]


def test_another_column_paths_in_subfolders_and_no_captions_at_all(tmp_path):
    save(tmp_path / "in" / "a.png")
    write_table(tmp_path, [{"file_name": "in/a.png", "text": "no", "prompt": "yes"}])
    data = Dataset(tmp_path, 4, text_label="prompt")
    assert data.captions == ["yes"] and data.name(0) == "in/a.png"
    assert isinstance(Dataset(tmp_path, 4, captions=False)[0], torch.Tensor)


def test_text_files_with_another_ending_or_a_byte_order_mark(tmp_path):
    save(tmp_path / "a.png").with_suffix(".caption").write_text("\ufeffein Kätzchen\r\n", encoding="utf-8")
    for extension in (".caption", "caption"):
        assert Dataset(tmp_path, 4, caption_extension=extension).captions == ["ein Kätzchen"]


@pytest.mark.parametrize("source", ["lines", "list", "rows"])
def test_several_captions_are_drawn_equally_often_and_by_seed(tmp_path, source):
    path, texts = save(tmp_path / "a.png"), ["one", "two", "three"]
    if source == "lines":
        path.with_suffix(".txt").write_text("one\n\n  two\nthree\n")
    else:
        write_table(tmp_path, [{"file_name": "a.png", "text": texts}] if source == "list" else [
            {"file_name": "a.png", "text": text} for text in texts])  # fmt: skip
    data = Dataset(tmp_path, 2)
    drawn = [data[0][1] for _ in range(90)]
    assert sum((drawn.count(text) - 30) ** 2 / 30 for text in texts) < 13.8  # chi-square, 2 degrees, 0.1 %
    torch.manual_seed(0)
    assert drawn == [data[0][1] for _ in range(90)] and data.captions == ["one"]


# -- flips ------------------------------------------------------------------------------------------------------------


def test_flips_are_drawn_without_captions_and_off_with_them(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    path = save(tmp_path / "a.png", picture=Image.fromarray(pixels))

    def share(**options):
        data = Dataset(tmp_path, 8, **options)
        items = [item[0] if isinstance(item, tuple) else item for item in (data[0] for _ in range(64))]
        return sum(int(item[0, 0, 0] == 0) for item in items) / 64

    assert share(random_flip=False) == 0 and 0.25 < share() < 0.75  # four standard deviations
    path.with_suffix(".txt").write_text("white on the left")
    assert share() == 0 and share(random_flip=True) > 0.3


# -- what cannot be used ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_left_out_counted_and_listed(pairs):
    (pairs / "broken.png").write_bytes(b"not a picture")
    (pairs / "empty.jpg").write_bytes(b"")
    save(pairs / "silent.png")
    save(pairs / "latin.png").with_suffix(".txt").write_bytes("ein Kätzchen".encode("latin-1"))
    save(pairs / "blank.png").with_suffix(".txt").write_text(" \n")
    with pytest.warns(UserWarning, match=r"5 of the images in .* are left out: blank.png .* and 2 more"):
        data = Dataset(pairs, 4)
    assert len(data) == 4
    assert {item.name: item.reason for item in data.skipped} == {
        "blank.png": "no caption",
        "broken.png": "not an image",
        "empty.jpg": "empty file",
        "latin.png": "caption: latin.txt is not UTF-8 text",
        "silent.png": "no caption",
    }


def test_pictures_that_the_table_names_but_that_are_not_there(pairs):
    write_table(pairs, [*ROWS[:2], {"file_name": "gone.png", "text": "x"}, {"file_name": "blue.png", "text": None}])
    with pytest.warns(UserWarning, match="3 of the images"):
        data = Dataset(pairs, 4)
    assert [tuple(item) for item in data.skipped] == [
        ("gone.png", "missing"), ("blue.png", "no caption"), ("white.png", "no caption")]  # fmt: skip


def truncated(path):
    """The header is fine; the pixels end in the middle."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def test_damage_that_only_reading_reveals(pairs):
    truncated(pairs / "damaged.jpg")
    (pairs / "damaged.txt").write_text("half a picture")
    data = Dataset(pairs, 4)
    assert len(data) == 5 and data.skipped == []
    with pytest.warns(UserWarning, match="damaged.jpg cannot be read and is left out"):
        image, caption = data[1]
    assert caption == "a green square" and image[1].mean() == 1  # its neighbour stands in
    assert data.skipped[0].name == "damaged.jpg" and "truncated" in data.skipped[0].reason
    assert data[1][1] == "a green square" and len(data.skipped) == 1  # no second attempt, no second warning


def test_when_nothing_at_all_can_be_read(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        truncated(tmp_path / name)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 2 images can be read; .* a.jpg"):
        Dataset(tmp_path, 4)[1]


def empty(folder):
    (folder / "notes.txt").write_text("no pictures here")


def only_broken(folder):
    (folder / "a.png").write_bytes(b"x")


def silent(folder):
    save(folder / "a.png").with_suffix(".txt").write_text("")


def table(rows, name="metadata.jsonl"):
    def make(folder):
        save(folder / "a.png")
        if isinstance(rows, bytes):
            (folder / name).write_bytes(rows)
        else:
            write_table(folder, rows, name)

    return make


REFUSED = {
    "no pictures": (empty, r"holds no images; looked for jpg, .*webp.* in it and its subfolders"),
    "nothing readable": (only_broken, r"holds no usable image; the first is a.png: not an image"),
    "captions that are empty": (silent, "holds no usable image; the first is a.png: no caption"),
    "a misspelt column": (table([{"file_name": "a.png", "txet": "x"}]),
                          'metadata.jsonl, line 1: no column "text", but: file_name, txet; did you mean "txet"'),
    "a misspelt column in a CSV": (table(["filename,text", "a.png,x"], "metadata.csv"),
                                   'line 2: no column "file_name", but: filename, text; did you mean "filename"'),
    "a misspelt name": (table([], "metadata.json1"), r"metadata.json1 is not read: .* metadata.jsonl or metadata.csv"),
    "an array": (table([], "metadata.json"), r"metadata.json is not read"),
    "no JSON": (table(b'{"file_name": "a.png", "text": "x"}\n{"file_name"'), "metadata.jsonl, line 2: not JSON"),
    "no object": (table(b"[1]"), "line 1: each line holds an object such as"),
    "a number as caption": (table([{"file_name": "a.png", "text": 7}]), "line 1: a caption is a string or a list .* 7"),
    "no rows": (table(b"\n"), "metadata.jsonl has no rows"),
    "a table that is no UTF-8": (table(b'{"file_name": "\xe4.png", "text": "x"}'), "metadata.jsonl is not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_usable_pictures_is_refused_by_a_sentence(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        Dataset(tmp_path, 4)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_may_be_called_metadata(tmp_path):
    save(tmp_path / "metadata.png").with_suffix(".txt").write_text("a table")
    assert Dataset(tmp_path, 4).captions == ["a table"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image size"),
        ({"channels": 5}, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"channels": 0}, "no number of channels 0"),
        ({"convert_image_to_type": "CMYK"}, "no image mode 'CMYK'; known: L, LA, RGB, RGBA"),
        ({"convert_image_to_type": "L", "channels": 3}, "channels=3 and .*'L' contradict"),
    ],
)
def test_impossible_options(pairs, options, words):
    with pytest.raises(ValueError, match=words):
        Dataset(pairs, **{"image_size": 8, **options})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="the folder .*nowhere does not exist"):
        Dataset(tmp_path / "nowhere", 4)

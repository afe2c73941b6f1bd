"""Whatever bytes a folder holds, opening and reading it ends with a skip or a sentence: nothing else, and soon."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from imagen_pytorch.data import DataError, Dataset, TableDataset, VideoDataset
from imagen_pytorch.data.decoding import decode, pixels
from imagen_pytorch.data.frames import Animation, VideoFile

bounded = settings(
    max_examples=150, derandomize=True, deadline=2000, database=None, suppress_health_check=list(HealthCheck)
)

FRAMES = [Image.new("RGB", (12, 9), colour) for colour in ("red", "green", "blue")]


def written(form, mode="RGB", **options):
    buffer = io.BytesIO()
    frame = FRAMES[0].convert("L") if mode == "I;16" else FRAMES[0]  # older Pillow converts no colours to it
    frame.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def exif():
    note = Image.Exif()
    note[274], note[270] = 6, "a picture"
    return note


MANY = dict(save_all=True, append_images=FRAMES[1:], duration=100)
PICTURES = [
    written("PNG"), written("PNG", mode="P"), written("PNG", mode="I;16"), written("PNG", exif=exif()),
    written("JPEG", exif=exif()), written("JPEG", mode="CMYK"), written("JPEG", progressive=True), written("GIF"),
    written("TIFF"), written("TIFF", compression="tiff_lzw"), written("TIFF", mode="F"), written("BMP"),
    written("WEBP", exif=exif()), written("WEBP", lossless=True), written("PPM"), written("TGA"), written("ICO"),
]  # fmt: skip
CLIPS = [written(form, **MANY) for form in ("GIF", "PNG", "WEBP")]
if features.check("avif"):
    PICTURES.append(written("AVIF"))
    CLIPS.append(written("AVIF", **MANY))


@st.composite
def damaged(draw, good):
    """A good file with some bytes changed, cut off, put in or taken away; mostly near its beginning."""
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 6))):
        place = min(draw(st.integers(0, 64) | st.integers(0, len(content))), max(len(content) - 1, 0))
        kind = draw(st.integers(0, 3))
        if kind < 2:
            piece = draw(
                st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff\xff\xff\xff", b"\x80"]) | st.binary(max_size=4)
            )
            content[place : place + (len(piece) if kind else 0)] = piece
        elif kind == 2:
            del content[place : place + draw(st.integers(1, 8))]
        elif draw(st.booleans()):
            del content[place:]
    return bytes(content)


def read(clip):
    """Its first frames, at most as many as a training would take."""
    numbers, _ = clip.at(10)
    list(clip.frames(sorted(set(numbers[:4].tolist())), (8, 8)))


@bounded
@given(content=damaged(PICTURES) | st.binary(max_size=64), channels=st.sampled_from([1, 2, 3, 4]))
def test_pictures(content, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = pixels(decode(content, (8, 8)), channels)
        except OSError:
            return
    assert picture.shape[0] == channels and picture.min() >= 0 and picture.max() <= 1


@bounded
@given(content=damaged(CLIPS) | st.binary(max_size=64))
def test_animations(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(Animation.open(content))
        except OSError:
            return


@pytest.fixture(scope="module")
def film():
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.resize((16, 16)))))
        container.mux(stream.encode())
    av.logging.set_level(av.logging.PANIC)
    return buffer.getvalue()


@settings(bounded, max_examples=60)
@given(data=st.data())
def test_films(film, data):
    try:
        read(VideoFile.open(data.draw(damaged([film]))))
    except OSError:
        return


# -- captions ---------------------------------------------------------------------------------------------------------


def open_with(name, content, kind=Dataset):
    """A folder of one picture and one clip with this file in it; what it yields, if it can be opened."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "a.png").write_bytes(PICTURES[0])
        (folder / "b.gif").write_bytes(CLIPS[0])
        (folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = kind(folder, 4) if kind is Dataset else kind(folder, 4, 2)
            items = list(data)
        json.dumps(data.skipped, ensure_ascii=False).encode()
        return [item["texts"] if isinstance(item, dict) else item[1] for item in items if not hasattr(item, "shape")]
    except DataError as error:
        assert "\n" not in str(error) and str(error).encode()
        return []
    finally:
        shutil.rmtree(folder)


def check_captions(captions):
    for caption in captions:
        assert caption.strip() == caption and caption and caption.encode()


@settings(bounded, max_examples=50)
@given(content=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(content=b"\xef\xbb\xbf")
@example(content=b"a\0b\r\rc\x85")
def test_text_files(content):
    check_captions(open_with("a.txt", content))


names = st.sampled_from(
    ["a.png", "./a.png", "b.gif", "gone.png", "../a.png", "/", "", ".", "a\0", "a" * 300, "\udc80", "é"]
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | names
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2), max_leaves=4
)
rows = st.fixed_dictionaries({"file_name": names | values, "text": values}) | values
lines = st.lists(rows.map(json.dumps) | st.text(max_size=12), max_size=4).map("\n".join)


@pytest.mark.slow
@settings(bounded, max_examples=80)
@given(text=lines, video=st.booleans())
@example(text="[" * 100_000, video=False)
@example(text='{"file_name": "a.png", "text": ' + "1" * 5000 + "}", video=False)
@example(text='{"file_name": "a.png", "text": "\\ud83d"}', video=False)
def test_tables_of_json_lines(text, video):
    content = text.encode("utf-8", "surrogatepass")
    check_captions(open_with("metadata.jsonl", content, VideoDataset if video else Dataset))


@pytest.mark.slow
@bounded
@given(content=damaged([b'file_name,text\na.png,one\nb.gif,"two,\nlines"\n', b"text,file_name\r\n,a.png\r\n"]))
@example(content=b'file_name,text\na.png,"' + b"x" * 200_000)
@example(content=b"file_name,text\na.png,\0\n")
@example(content=b"file_name,text\na.png\nb.gif,two,three\n")
def test_tables_of_comma_separated_values(content):
    check_captions(open_with("metadata.csv", content))


@settings(bounded, max_examples=60)
@given(
    image=damaged(PICTURES) | st.none(),
    text=st.text(st.characters(), max_size=8) | st.lists(st.none() | st.text(max_size=3)),
)
def test_rows_of_tables(image, text):
    data = TableDataset([{"image": image, "text": text}, {"image": PICTURES[0], "text": "good"}], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_captions([data[0][1]])

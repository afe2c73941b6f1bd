"""Data of the command line: folders anywhere, and one line with exit code 3 for what cannot be used."""

from __future__ import annotations

import io
import json
import os
import sys
import uuid

import click
import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.cli._data import caption_of, images_of, open_data
from imagen_pytorch.configs import TrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

UNET = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False}


def picture(form="PNG"):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, form, **({"save_all": True, "append_images": frames[1:]} if form == "GIF" else {}))
    return buffer.getvalue()


def stored(**files):
    """A new folder in memory; a double underscore stands for the dot."""
    name = uuid.uuid4().hex
    MemoryFileSystem().pipe({f"/{name}/{key.replace('__', '.')}": content for key, content in files.items()})
    return f"memory://{name}"


def config(name, captions=False, video=False, **dataset):
    model = {"unets": [UNET], "image_sizes": [4], "condition_on_text": captions, "text_encoder_name": "builtin:words"}
    extra = {"video": True, "video_frames": 2} if video else {}
    unets = [{"dim": 8, "dim_mults": [1]}] if video else [UNET]
    return TrainingConfig(imagen={**model, **extra, "unets": unets}, dataset_name=name, dataset=dataset)


def test_a_folder_anywhere_is_data():
    url = stored(a__png=picture(), a__txt=b"a red square", b__png=picture(), b__txt=b"another")
    data = open_data(config(url, captions=True), (4, 4))
    assert [caption_of(item) for item in data] == ["a red square", "another"] and images_of(data[0]).shape == (3, 4, 4)
    plain = open_data(config(url), (4, 4))
    assert plain[0].shape == (3, 4, 4) and len(plain) == 2


def test_options_of_the_file_system_come_from_the_configuration(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    data = open_data(config(f"file://{tmp_path}", batch_size=1, fs_kwargs={"auto_mkdir": False}, channels=1), (4, 4))
    assert data[0].shape == (1, 4, 4)
    with pytest.raises(ValueError, match='unknown key "fs_kwarg"; did you mean "fs_kwargs"'):
        config(f"file://{tmp_path}", fs_kwarg={})


def test_clips_anywhere_and_pictures_where_there_are_none():
    clip = open_data(config(stored(a__gif=picture("GIF")), video=True), (4, 4))[0]
    assert images_of(clip).shape == (3, 2, 4, 4)
    still = open_data(config(stored(a__jpg=picture("JPEG")), video=True), (4, 4))[0]
    assert images_of(still).shape == (3, 4, 4)


def test_captions_that_are_missing_anywhere():
    with pytest.raises(click.UsageError, match="have no captions, and the model needs them"):
        open_data(config(stored(a__png=picture()), captions=True), (4, 4))


def refused(tmp_path, name):
    settings = {"imagen": {"unets": [UNET], "image_sizes": [4], "condition_on_text": False}, "dataset_name": name}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    arguments = ["train", "--config", str(tmp_path / "config.json"), "-o", str(tmp_path / "run"), "--steps", "1", "-q"]
    done = CliRunner().invoke(main, arguments)
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, done.stderr
    return done.exit_code, lines[0]


UNUSABLE = {
    "nothing there": (lambda: "memory://nothing", "the folder memory://nothing does not exist, or is empty"),
    "no images": (lambda: stored(a__md=b"x"), "holds no images; looked for jpg,"),
    "nothing readable": (lambda: stored(a__png=b""), "holds no usable image; the first is a.png: empty file"),
    "nothing readable, as reading shows": (lambda: stored(a__png=b"x"), "none of the 1 images can be read"),
    "a table that is none": (lambda: stored(a__png=b"x", metadata__jsonl=b"["), "metadata.jsonl, line 1: not JSON"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_data_that_cannot_be_used_end_in_one_line(tmp_path, name):
    make, words = UNUSABLE[name]
    code, line = refused(tmp_path, make())
    assert code == 3
    with pytest.raises(ValueError, match=words):
        raise ValueError(line)


def test_names_that_are_no_text_end_in_one_line(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    code, line = refused(tmp_path, str(folder))
    assert code == 3 and r"the first is caf\xe9\n.png: not an image" in line


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "gcsfs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    fsspec.filesystem("memory")
    code, line = refused(tmp_path, "gs://bucket/in")
    assert code == 2 and "gs://bucket/in" in line and line.endswith("pip install gcsfs")

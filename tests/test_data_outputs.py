"""What our commands write into a folder of data is no data, whatever lies beside it."""

from __future__ import annotations

import logging
import os

import pytest
from PIL import Image

from imagen_pytorch.data import DataError, Dataset, VideoDataset, open_source


def save(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def names_of(data):
    return [data.name(index) for index in range(len(data))]


def test_listed_outputs_are_passed_over_and_counted(tmp_path, caplog):
    save(tmp_path, "a.png", "b.png", "grid.png", "in/grid.png", "in/c.png")
    (tmp_path / ".imagen-outputs").write_bytes("grid.png\nröt.png\ngone.png\n".encode())
    save(tmp_path, "röt.png")
    with caplog.at_level(logging.INFO, "imagen_pytorch"):
        data = Dataset(tmp_path, 4)
    assert names_of(data) == ["a.png", "b.png", "in/c.png", "in/grid.png"]  # the list is of its own folder
    assert data.outputs == 2 and data.skipped == [] and data.found == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"2 files that our commands wrote into {tmp_path} are no data and are passed over"
    ]


def test_outputs_do_not_silence_the_images_beside_captions(tmp_path):
    """A sample without a caption does not count as an image without one."""
    save(tmp_path, "a.png", "sample.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".imagen-outputs").write_text("sample.png")
    data = Dataset(tmp_path, 4)
    assert data.captions == ["a"] and data.skipped == []


def test_what_earlier_versions_wrote_is_known_by_its_name_where_a_run_was(tmp_path):
    outputs = ("sample-1.png", "sample-20-unet2.png", "loss.png", "sample-3.gif", "loss-1.png", "sample-1-1.png")
    data = ("a.png", "sample-x.png", "sample-1-unet.png", "my-sample-1.png", "loss.jpg")
    save(tmp_path, *data, *outputs, *(f"other/{name}" for name in outputs))
    (tmp_path / "metrics.jsonl").touch()
    found = Dataset(tmp_path, 4)
    assert names_of(found) == sorted((*data, *(f"other/{name}" for name in outputs))) and found.outputs == 6
    (tmp_path / "metrics.jsonl").unlink()
    assert len(Dataset(tmp_path, 4)) == 17 and Dataset(tmp_path, 4).outputs == 0


def test_clips_too(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    for name in ("a.gif", "sample-1.gif", "mine.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / ".imagen-outputs").write_text("mine.gif\n")
    (tmp_path / "metrics.jsonl").touch()
    data = VideoDataset(tmp_path, 4, 2)
    assert names_of(data) == ["a.gif"] and data.outputs == 2


def test_a_folder_of_outputs_alone_holds_no_data(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / ".imagen-outputs").write_text("a.png\n")
    with pytest.raises(DataError, match="holds no images"):
        Dataset(tmp_path, 4)


@pytest.mark.parametrize("what", ["pipe", "folder", "not UTF-8", "empty"])
def test_odd_lists(tmp_path, what):
    save(tmp_path, "a.png", "b.png")
    path = tmp_path / ".imagen-outputs"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe\nb.png" if what == "not UTF-8" else b"")
    data = open_source(str(tmp_path), image_size=4)
    assert names_of(data) == (["a.png"] if what == "not UTF-8" else ["a.png", "b.png"])

"""What is left out is listed once, with its reason, whichever process found it; too much of it ends the run."""

from __future__ import annotations

import io
import json
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset

from imagen_pytorch.data import (
    Collator,
    DataError,
    Dataset,
    SkippedReport,
    TableDataset,
    check_share,
    emoji64,
)
from imagen_pytorch.data.skipping import FILE, SharedTexts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def encoded(form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(buffer, form, quality=95)
    return buffer.getvalue()


GOOD, CUT = encoded(), encoded("JPEG")[:900]


def folder_of(path, good=8, broken=(), truncated=(), silent=()):
    """Pictures with captions: fine ones, some whose header is broken, some that reading finds out, some without."""
    path.mkdir(exist_ok=True)
    for number in range(good):
        (path / f"good{number}.png").write_bytes(GOOD)
    for names, content in ((broken, b"x"), (truncated, CUT), (silent, GOOD)):
        for name in names:
            (path / name).write_bytes(content)
    for picture in list(path.iterdir()):
        if picture.name not in silent:
            picture.with_suffix(".txt").write_text("a caption")
    return path


def listed(folder):
    return [(item["name"], item["reason"]) for item in map(json.loads, (folder / FILE).read_text().splitlines())]


MIXED = dict(broken=["broken.png"], truncated=["cut.jpg"], silent=["silent.png"])
REASONS = [("broken.png", "not an image"), ("silent.png", "no caption"), ("cut.jpg", "truncated")]

# -- the list ---------------------------------------------------------------------------------------------------------


def test_each_item_is_listed_once_as_soon_as_it_is_known(tmp_path):
    data, runs = Dataset(folder_of(tmp_path / "in", **MIXED), 4), tmp_path / "runs" / "new"
    report = SkippedReport(data, runs, limit=1)
    assert report.line() is None and not runs.exists()
    assert report.update() == 2 and listed(runs) == REASONS[:2]
    assert report.update() == 0
    list(data)
    assert report.update() == 1 and report.update() == 0 and listed(runs) == REASONS
    assert report.line() == f"3 of 11 images were left out: {runs / FILE}"


def test_a_resumed_run_lists_nothing_twice(tmp_path):
    folder, runs = folder_of(tmp_path / "in", **MIXED), tmp_path / "run"
    for expected in (3, 0):
        data = Dataset(folder, 4)
        list(data)
        report = SkippedReport(data, runs, limit=1)
        assert report.update() == expected and listed(runs) == REASONS
        assert report.line().startswith("3 of 11 images were left out")
    (folder / "new.png").write_bytes(b"")
    report = SkippedReport(Dataset(folder, 4), runs, limit=1)
    assert report.update() == 1 and listed(runs) == [*REASONS, ("new.png", "empty file")]


def test_nothing_to_list_makes_no_file(tmp_path):
    data = Dataset(folder_of(tmp_path / "in"), 4)
    report = SkippedReport(data, tmp_path / "run", limit=0)
    list(data)
    assert report.update() == 0 and report.line() is None and not (tmp_path / "run").exists()


def test_a_file_that_was_torn_or_holds_something_else(tmp_path):
    good = json.dumps({"name": "broken.png", "reason": "x"})
    (tmp_path / FILE).write_bytes(f'{good}\n7\n[]\n{{"name": []}}\n\xff\n{{"name": "sil'.encode("latin-1"))
    report = SkippedReport(Dataset(folder_of(tmp_path / "in", **MIXED), 4), tmp_path, limit=1)
    assert report.update() == 1
    last = (tmp_path / FILE).read_text(errors="replace").splitlines()[-1]
    assert json.loads(last) == {"name": "silent.png", "reason": "no caption"}


def test_a_folder_that_cannot_be_written_to_costs_no_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    report = SkippedReport(Dataset(folder_of(tmp_path / "in", **MIXED), 4), tmp_path / "file", limit=1)
    with pytest.warns(UserWarning, match=r"cannot write .*skipped.jsonl: (File exists|Not a directory)"):
        report.update()
    assert report.line().startswith("2 of 11 images")


def test_names_that_are_no_text(tmp_path):
    folder = folder_of(tmp_path / "in")
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    SkippedReport(Dataset(folder, 4), tmp_path, limit=1).update()
    assert listed(tmp_path) == [(r"caf\xe9.png", "not an image")]


# -- other processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_tell_their_reasons(tmp_path, start):
    data = Dataset(folder_of(tmp_path / "in", **MIXED), 4)
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=start)
    report = SkippedReport(loader, tmp_path, limit=1)
    assert sum(len(images) for images, _ in loader) == 9
    assert report.update() == 3 and listed(tmp_path) == REASONS


def test_rows_that_workers_left_out_of_batches(tmp_path):
    rows = [{"image": GOOD, "text": "good"}, {"image": CUT, "text": "cut"}, {"image": b"x", "text": "bröken\n"}]
    loader = DataLoader(rows * 4, batch_size=3, num_workers=2, collate_fn=Collator(4), multiprocessing_context="fork")
    report = SkippedReport(loader, tmp_path, limit=1)
    assert [len(images) for images, _ in loader] == [1] * 4
    assert report.update() == 2
    assert sorted(listed(tmp_path)) == [("bröken\\n", "not an image"), ("cut", "truncated")]
    assert report.line() == f"2 of 12 rows were left out: {tmp_path / FILE}"


def test_what_another_process_lists_counts_here_too(tmp_path):
    folder = folder_of(tmp_path / "in", 97, truncated=["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / FILE).write_text(json.dumps({"name": "from before", "reason": "x"}) + "\n")
    mine, theirs = (Dataset(folder, 4) for _ in range(2))
    reports = [SkippedReport(data, tmp_path, limit=0.02) for data in (mine, theirs)]
    assert mine.name(0) == "a.jpg" and mine[0] and theirs[1] and theirs[2]  # a shard each
    assert reports[1].update() == 2
    with pytest.raises(DataError, match="3 of 100 images"):
        reports[0].update()
    assert [name for name, _ in listed(tmp_path)] == ["from before", "b.jpg", "c.jpg", "a.jpg"]


# -- the share --------------------------------------------------------------------------------------------------------


def test_too_much_is_refused_by_a_sentence(tmp_path):
    data = Dataset(folder_of(tmp_path / "in", 37, broken=["a.png", "b.png", "c.png"], truncated=["d.jpg"]), 4)
    report = SkippedReport(data, tmp_path, limit=0.08)
    assert report.update() == 3  # 7.3 %
    list(data)
    with pytest.raises(DataError) as caught:
        report.update()
    assert str(caught.value) == (
        f"4 of 41 images (9.76 %) cannot be used, more than max_skipped_share = 8 %: see {tmp_path / FILE}; first: "
        "a.png (not an image), b.png (not an image), c.png (not an image) and 1 more; repair or remove them, or set "
        "max_skipped_share to at least 0.098"
    )
    assert len(listed(tmp_path)) == 4 and report.line() is not None  # listed all the same
    with pytest.raises(DataError):
        report.update()
    assert SkippedReport(data, tmp_path, limit=0.098).update() == 0


@pytest.mark.parametrize(
    ("good", "broken", "limit", "fits"),
    [(9, 1, 0.05, False), (9, 1, 0.1, True), (19, 1, 0.05, True), (1, 1, 1.0, True), (9, 1, 0, False), (9, 0, 0, True)],
)  # fmt: skip
def test_the_share_is_of_all_that_was_found_in_small_folders_too(tmp_path, good, broken, limit, fits):
    data = Dataset(folder_of(tmp_path / "in", good, broken=[f"{number}.png" for number in range(broken)]), 4)
    if fits:
        check_share(data, limit)
    else:
        with pytest.raises(DataError, match=f"{broken} of {good + broken} images"):
            check_share(data, limit)


def test_missing_captions_count(tmp_path):
    data = Dataset(folder_of(tmp_path / "in", 9, silent=["silent.png"]), 4)
    with pytest.raises(DataError, match=r"1 of 10 images \(10 %\) .* first: silent.png \(no caption\); repair"):
        check_share(data)
    check_share(Dataset(tmp_path / "in", 4, captions=False))


def test_the_usual_limit_is_a_twentieth(tmp_path):
    check_share(Dataset(folder_of(tmp_path / "in", 19, broken=["a.png"]), 4))
    (tmp_path / "in" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 21 .* more than max_skipped_share = 5 %: see the attribute skipped"):
        check_share(Dataset(tmp_path / "in", 4))


@pytest.mark.parametrize("limit", [-0.1, 5, float("nan")])
def test_a_share_that_is_none(tmp_path, limit):
    with pytest.raises(ValueError, match="max_skipped_share is a fraction from 0 to 1, such as 0.05, got"):
        SkippedReport([], tmp_path, limit)
    with pytest.raises(ValueError, match="max_skipped_share"):
        check_share([], limit)


class Wrapped:
    """Something around a data set, as commands and trainers have it."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)


def test_data_sets_within_others_count_once(tmp_path):
    one, two = (Dataset(folder_of(tmp_path / name, 9, broken=[f"{name}.png"]), 4) for name in "ab")
    parts = ConcatDataset([Subset(one, [0]), Wrapped(two), Subset(one, [1])])
    report = SkippedReport(DataLoader(parts), tmp_path, limit=0.1)
    assert report.update() == 2 and report.line().startswith("2 of 20 images")
    table = TableDataset([{"image": GOOD}, {"image": b"x"}], 4)
    table[1]
    with pytest.raises(DataError, match="3 of 22 images"):
        check_share(ConcatDataset([one, two, table]), 0.1)


@pytest.mark.parametrize("data", [[1, 2], emoji64(limit=4), None])
def test_data_that_skip_nothing(tmp_path, data):
    report = SkippedReport(data, tmp_path, limit=0)
    assert report.update() == 0 and report.line() is None
    check_share(data, 0)


# -- texts from workers -----------------------------------------------------------------------------------------------


def test_shared_texts_are_kept_once_and_cut_at_whole_letters():
    texts = SharedTexts(4, 8)
    places = [texts.add(text) for text in ("one", "two", "one", "ääääää")]
    assert places[0] == places[2] != places[1] and texts[places[0]] == "one" and texts[places[3]] == "ääää"
    assert sorted(texts) == ["one", "two", "ääää"] and texts.add("äääää") == places[3]
    assert SharedTexts(1, 3)[SharedTexts(1, 3).add("xää") or 0] == "" and texts.add("four") is not None
    assert texts.add("five") is None and texts.add("two") == places[1] and len(list(texts)) == 4


def test_more_reasons_than_there_is_room_for(tmp_path, monkeypatch):
    data = Dataset(folder_of(tmp_path / "in", 1, truncated=["a.jpg", "b.jpg"]), 4)
    data._reasons = SharedTexts(1, 16)
    data._reasons.add("something else")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(torch.equal(item[0], data[2][0]) for item in data)
    assert [item.reason for item in data.skipped] == ["cannot be read"] * 2


OTHERS = {
    "link": lambda path, other: path.symlink_to(other),
    "dangling link": lambda path, other: path.symlink_to(other.with_name("nowhere")),
    "pipe": lambda path, _: os.mkfifo(path),
    "link to a pipe": lambda path, _: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "link to a device": lambda path, _: path.symlink_to("/dev/zero"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes as POSIX has them")
@pytest.mark.parametrize("kind", OTHERS)
def test_what_has_the_name_of_the_list_and_is_no_file_is_set_aside(kind, tmp_path):
    """Nothing is written through it, nothing waits for it, and no device is read to its end."""
    folder_of(tmp_path / "pictures", good=4, broken=("z.png",))
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    OTHERS[kind](tmp_path / "run" / FILE, other)
    report = SkippedReport(Dataset(tmp_path / "pictures", 8), tmp_path / "run", 1.0)
    assert report.update() == 1 and other.read_bytes() == b"precious" and not (tmp_path / "nowhere").exists()
    path = tmp_path / "run" / FILE
    assert not path.is_symlink() and len(path.read_text(encoding="utf-8").splitlines()) == 1
    assert os.path.lexists(path.with_name("skipped-1.jsonl"))

"""Whatever lies where an output is to be written: nothing is written through it, nothing hangs, a sentence tells."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.cli._errors import format_error
from imagen_pytorch.cli._files import (
    OUTPUTS,
    backup_output,
    check_place,
    encoded,
    listed_outputs,
    overwrite,
    prefix_number,
    replace_file,
    slug,
    tell,
    write_new,
    write_series,
)
from imagen_pytorch.lines import append_lines, backup, next_free

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes as POSIX has them")

OUTSIDE = b"of somebody else"


def picture() -> bytes:
    return encoded(Image.new("RGB", (4, 4), "red"))


def trace(path: Path) -> list[Path]:
    """As `imagen profile` does: a free name for another library, which opens it as usual."""
    free = next_free(path)
    check_place(free)
    free.write_bytes(b"{}")
    return [free]


def over(write: Callable[[bytes, Path], None]) -> Callable[[Path], list[Path]]:
    def call(path: Path) -> list[Path]:
        write(picture(), path)
        return [path]

    return call


def metrics(path: Path) -> list[Path]:
    append_lines(['{"step": 1}'], path)  # what fails here is a warning of the training, which goes on
    return [path]


#: every kind of output of the commands: its name, and how it is written
WRITERS: dict[str, tuple[str, Callable[[Path], list[Path]]]] = {
    "sample": ("a_cat.png", lambda path: [write_new(picture(), path)]),
    "sheet": ("a_cat-grid.png", lambda path: [write_new(picture(), path)]),
    "stage": ("a_cat-unet1.png", lambda path: [write_new(picture(), path)]),
    "video": ("a_cat.gif", lambda path: [write_new(b"GIF", path)]),
    "frames": ("frame-%02d.png", lambda path: write_series([picture()] * 3, path)),
    "sheet of a training": ("sample-1.png", lambda path: [write_new(picture(), path)]),
    "curve": ("loss.png", over(overwrite)),
    "sheet of the demo": ("stage1-after.png", over(overwrite)),
    "metrics": ("metrics.jsonl", metrics),
    "metrics of the demo": ("metrics.json", over(replace_file)),
    "configuration": ("imagen_config.json", over(replace_file)),
    "trace": ("trace.json", trace),
    "sheet of a sweep": ("a_cat-sweep.png", lambda path: [write_new(picture(), path)]),
    "sheet of an evaluation": ("eval.png", lambda path: [write_new(picture(), path)]),
    "sheet of a comparison": ("compare.png", lambda path: [write_new(picture(), path)]),
    "figures of an evaluation": (
        "eval.json",
        lambda path: [write_new(b'{"figures": {"kid": 0.1}}', path, listed=False)],
    ),
}


def dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nowhere")


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "file")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def folder_in_the_way(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(OUTSIDE)


def other_file(path: Path, outside: Path) -> None:
    path.write_bytes(OUTSIDE)


OBSTACLES = (dangling_link, link_to_file, link_to_folder, link_to_itself, pipe, folder_in_the_way, other_file)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda made: made.__name__)
@pytest.mark.timeout(20)
def test_nothing_is_written_through_what_is_in_the_way(kind, obstacle, tmp_path):
    name, write = WRITERS[kind]
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "file").write_bytes(OUTSIDE)
    place = folder / (name % 2 if "%" in name else name)
    obstacle(place, outside)
    try:
        written = write(folder / name)
    except OSError as error:
        assert obstacle is folder_in_the_way and str(place) in format_error(error)
        written = []
    assert os.listdir(outside) == ["file"] and (outside / "file").read_bytes() == OUTSIDE
    for path in written:
        assert path.is_file() and not path.is_symlink() and path.read_bytes() != OUTSIDE
    # what was there is still there, under its own name or another one
    appends_or_replaces = kind == "metrics" or kind in (
        "curve",
        "sheet of the demo",
        "metrics of the demo",
        "configuration",
    )
    if obstacle is folder_in_the_way:
        assert any((path / "inside").is_file() for path in folder.iterdir())
    elif not appends_or_replaces:
        assert os.path.lexists(place) and place not in written
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


@contextlib.contextmanager
def full_disk():
    """Files larger than a few bytes cannot be written inside the block; pytest writes files of its own around it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", [name for name in WRITERS if name not in ("trace", "video", "metrics")])
def test_a_full_disk_leaves_no_part_of_a_file(kind, tmp_path):
    name, write = WRITERS[kind]
    with pytest.raises(OSError) as caught, full_disk():
        write(tmp_path / name)
    assert caught.value.errno == errno.EFBIG and format_error(caught.value).endswith("File too large")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_spares_what_is_there(tmp_path):
    (tmp_path / "loss.png").write_bytes(b"before")
    with pytest.raises(OSError), full_disk():
        overwrite(picture(), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == b"before" and os.listdir(tmp_path) == ["loss.png"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_that_is_too_long_is_a_sentence(kind, tmp_path):
    name, write = WRITERS[kind]
    with pytest.raises((OSError, click.UsageError)) as caught:
        write(tmp_path / f"{'x' * 256}{name}")
    if isinstance(caught.value, OSError):
        assert format_error(caught.value).endswith("File name too long")
    assert set(os.listdir(tmp_path)) <= {OUTPUTS}


READ_ONLY = Path("/sys/kernel")  # for everybody, also for root


@pytest.mark.skipif(not READ_ONLY.is_dir(), reason="a folder that only Linux has")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_read_only_folder_is_a_sentence(kind):
    name, write = WRITERS[kind]
    with pytest.raises((OSError, click.UsageError)) as caught:
        write(READ_ONLY / name)
    assert isinstance(caught.value, click.UsageError) or caught.value.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def test_a_name_that_is_always_taken_ends(tmp_path, monkeypatch):
    """As in a folder where another process is always faster."""
    monkeypatch.setattr("imagen_pytorch.cli._files.os.path.lexists", lambda _: False)
    (tmp_path / "x.png").symlink_to("nowhere")
    for number in range(1, 3):
        (tmp_path / f"frame-{number}.png").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_new(b"x", tmp_path / "x.png")
    monkeypatch.setattr("imagen_pytorch.cli._files.prefix_number", lambda path, _: path)
    with pytest.raises(FileExistsError):
        write_series([b"1", b"2"], tmp_path / "frame-%d.png")


def test_a_series_that_meets_another_one_is_whole_or_not_there(tmp_path, monkeypatch):
    """Its third name is taken by another process while it is written."""
    seen = []
    own = os.path.lexists
    monkeypatch.setattr(
        "imagen_pytorch.cli._files.os.path.lexists", lambda path: own(path) and not seen.append(path) and len(seen) > 1
    )
    (tmp_path / "f-3.png").write_bytes(OUTSIDE)
    written = write_series([b"1", b"2", b"3"], tmp_path / "f-%d.png")
    again = prefix_number(tmp_path / "f-%d.png", "1")
    assert [path.name for path in written] == [again.name % number for number in (1, 2, 3)]
    assert sorted(os.listdir(tmp_path)) == sorted([OUTPUTS, "f-3.png", *(path.name for path in written)])
    assert (tmp_path / "f-3.png").read_bytes() == OUTSIDE


def test_a_command_takes_the_next_name_beside_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("imagen_config.json").symlink_to("elsewhere.json")
    refused = CliRunner().invoke(main, ["config"])
    assert refused.exit_code == 2 and "exists already" in refused.stderr and os.listdir() == ["imagen_config.json"]
    assert CliRunner().invoke(main, ["config", "--force"]).exit_code == 0
    assert not Path("imagen_config.json").is_symlink() and json.loads(Path("imagen_config.json").read_text())
    assert not Path("elsewhere.json").exists()


@pytest.mark.timeout(120)
def test_links_where_a_training_and_a_sampling_write(tmp_path, monkeypatch):
    """Neither waits, and nobody else's file is written."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Path("outside").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (99 * number, 9, 9)).save(f"pictures/{number}.png")
    unet = {"dim": 8, "dim_mults": [1], "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
    model = {"image_sizes": [8], "condition_on_text": False, "timesteps": 1, "unets": [unet]}
    values = {"imagen": model, "dataset_name": "pictures", "dataset": {"batch_size": 2}, "checkpoint_path": "imagen.pt"}
    Path("imagen_config.json").write_text(json.dumps(values))
    Path("run").mkdir()
    record = ("command.txt", "config.resolved.json", "environment.json", "report.html")
    for name in ("sample-000001.png", "loss.png", "metrics.jsonl", "skipped.jsonl", "sample.png", *record):
        Path("run", name).symlink_to(tmp_path / "outside" / name)
    done = CliRunner().invoke(main, ["train", "--steps", "1", "--sample-every", "1", "--log-every", "1", "-o", "run"])
    assert done.exit_code == 0 and "run/sample-000001-1.png" in done.stderr, done.stderr
    sampled = CliRunner().invoke(main, ["sample", "--model", "run", "-o", "run/"])
    assert (sampled.exit_code, sampled.stdout) == (0, "run/sample-1.png\n"), sampled.stderr
    assert os.listdir("outside") == []
    assert listed_outputs(Path("run")) >= {"sample-000001-1.png", "loss.png", "sample-1.png"}
    assert all(Path("run", name).is_file() and not Path("run", name).is_symlink() for name in record)


def test_a_link_is_set_aside_and_not_followed(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("nowhere")
    backup(tmp_path / "metrics.jsonl")
    assert os.readlink(tmp_path / "metrics-1.jsonl") == "nowhere" and len(os.listdir(tmp_path)) == 1


# -- the list of outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_images_sheets_videos_and_curves_are_listed(kind, tmp_path):
    """One name a line, once; what is no image is not."""
    name, write = WRITERS[kind]
    written = {path.name for _ in range(2) for path in write(tmp_path / name)}
    is_image = Path(name).suffix in (".png", ".gif")
    text = (tmp_path / OUTPUTS).read_text(encoding="utf-8") if is_image else ""
    assert sorted(text.splitlines()) == (sorted(written) if is_image else [])
    assert (tmp_path / OUTPUTS).exists() == is_image and listed_outputs(tmp_path) - {""} == set(text.splitlines())


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda made: made.__name__)
def test_a_list_that_cannot_be_written_spoils_nothing(obstacle, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(OUTSIDE)
    obstacle(tmp_path / OUTPUTS, outside)
    overwrite(b"x", tmp_path / "loss.png")
    assert write_new(b"x", tmp_path / "ü.png").read_bytes() == b"x"
    assert os.listdir(outside) == ["file"] and (outside / "file").read_bytes() == OUTSIDE


def test_a_curve_that_is_set_aside_stays_an_output(tmp_path):
    """A later training on the images of its own folder does not take it for one of them."""
    overwrite(b"x", tmp_path / "loss.png")
    (tmp_path / "mine.png").write_bytes(b"x")
    for name in ("loss.png", "mine.png", "nowhere.png"):
        backup_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == [OUTPUTS, "loss-1.png", "mine-1.png"]
    assert listed_outputs(tmp_path) - {""} == {"loss.png", "loss-1.png"}


def test_names_that_are_no_text_are_listed(tmp_path):
    path = write_new(b"x", tmp_path / os.fsdecode(b"\xff.png"))
    overwrite(b"x", path)
    assert (tmp_path / OUTPUTS).read_bytes() == b"\xff.png\n" and path.name in listed_outputs(tmp_path)


def test_lines_are_appended_to_a_file_of_ours(tmp_path):
    for text in ("one", "ü"):
        append_lines([text], tmp_path / "deep" / "log")
    assert (tmp_path / "deep" / "log").read_text(encoding="utf-8") == "one\nü\n"


@pytest.mark.parametrize(("terminal", "line"), [(True, b"a\\x1b[2J\\xff.png\n"), (False, b"a\x1b[2J\xff.png\n")])
def test_a_path_is_printed_as_it_is_to_programs_only(terminal, line, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    tell(Path(os.fsdecode(b"a\x1b[2J\xff.png")))
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == line


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("\x9b31mred", "31mred"),
        ("a\x9b31mred", "a_31mred"),
        ("a\u202egnp.exe", "a_gnp.exe"),
        ("a\u2028b\u2029c", "a_b_c"),
        ("a\ud800b", "a_b"),
        ("zero\u200bwidth", "zero_width"),
        ("CON", "CON_"),
        ("nul.txt", "nul_.txt"),
        ("Com1", "Com1_"),
        ("lpt\u00b9", "lpt\u00b9_"),
        ("conquest", "conquest"),
        ("console.log", "console.log"),
        ("~", "sample"),
        ("~root", "root"),
        ("~/x", "x"),
        ("пёс 犬", "пёс_犬"),
    ],
)
def test_slugs_are_safe_on_every_system_and_terminal(caption, name):
    assert slug(caption) == name


def test_no_slug_steers_a_terminal_or_leaves_its_folder():
    """Every character there is, alone and between letters."""
    import unicodedata

    for start in range(0, sys.maxunicode + 1, 97):
        char = chr(start)
        for text in (char, f"a{char}b"):
            name = slug(text)
            name.encode("utf-8")
            assert not {unicodedata.category(part) for part in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
            assert not set(name) & set('/\\:*?"<>|') and name.strip(".~") and name == slug(name)

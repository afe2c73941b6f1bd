"""What happens to a file when writers are killed, disks are full and others write too: it stays whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time

import pytest
from storage_toys import NEEDS_FORK, child, contents, in_child, outcome, same, step_of

from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.checkpoints import CheckpointError, CheckpointNotWritten, read_checkpoint, write_checkpoint
from imagen_pytorch.io.atomic import DAY, temporary_file, temporary_name

WIDTH = 20_000  # a file of 300 kB: writing it takes long enough to be killed in its midst


# -- killed writers ---------------------------------------------------------------------------------------------------


def save_for_ever(write, first, done):
    step = first
    while True:
        write(step, contents(step, WIDTH))
        done.value = step
        step += 1


def kill_at_random(write, newest, kills):
    """Kill savers at random moments; the newest checkpoint is then the one that was finished last, or the next."""
    done = multiprocessing.get_context("fork").Value("q", 0, lock=False)
    for _ in range(kills):
        process = child(save_for_ever, write, done.value + 1, done)
        time.sleep(random.uniform(0.005, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = newest()
        if found is None:
            assert done.value == 0
            continue
        assert done.value <= step_of(found) <= done.value + 1
        done.value = step_of(found)
    assert done.value > 0


def kill_savers_of_a_file(path, kills):
    def newest():
        return read_checkpoint(path) if os.path.exists(path) else None

    kill_at_random(lambda step, value: write_checkpoint(value, path), newest, kills)


def kill_savers_of_a_folder(path, kills):
    def newest():
        found = CheckpointStore(path).read()
        return found and found[1]

    kill_at_random(lambda step, value: CheckpointStore(path, keep=3).write(step, value), newest, kills)


@NEEDS_FORK
@pytest.mark.filterwarnings("error")  # a damaged checkpoint would be warned about
@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "folder"])
def test_killed_savers_lose_at_most_one_save(tmp_path, kind, kills):
    if kind == "folder":
        kill_savers_of_a_folder(tmp_path / "a", kills)
        store = CheckpointStore(tmp_path / "a", keep=3)
        store.write(10**9, contents())
        wanted = {f"checkpoint.{step}.pt" for step in store.steps()}
        assert len(wanted) <= 3
    else:
        kill_savers_of_a_file(tmp_path / "a" / f"a.{kind}", kills)
        write_checkpoint(contents(), tmp_path / "a" / f"a.{kind}")
        wanted = {f"a.{kind}"}
    assert set(os.listdir(tmp_path / "a")) == wanted  # the next save has tidied up


@NEEDS_FORK
def test_a_save_killed_before_its_end_leaves_nothing_that_counts(tmp_path):
    """The moments before each call that changes the disk, one by one, for first saves and overwrites."""
    for overwriting in (False, True):
        for moment in range(1, 99):
            path = tmp_path / f"{overwriting}{moment}" / "a.pt"
            if overwriting:
                write_checkpoint(contents(1), path)
            process = child(save_until, path, moment)
            process.join()
            found = read_checkpoint(path) if path.exists() else None
            assert step_of(found) in (1, 2) if found else not overwriting
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert 4 < moment < 98 and step_of(found) == 2


def save_until(path, moment):
    """Save, and die when the disk is about to be changed for the given time."""
    count = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("open", "fsync", "replace", "link", "remove", "fchmod"):
        setattr(os, name, counted(getattr(os, name)))
    write_checkpoint(contents(2), path, keep_previous=True)


def test_only_what_killed_writers_left_is_removed(tmp_path):
    stale, elsewhere, old = (temporary_name(str(tmp_path)) for _ in range(3))
    host = os.path.basename(stale).removeprefix(".imagen-").split("-")[0]
    elsewhere, old = elsewhere.replace(host, "another"), old.replace(host, "another")
    for name in (stale, elsewhere, old, str(tmp_path / ".other.tmp")):
        open(name, "w").close()
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    with temporary_file(str(tmp_path)) as living:
        write_checkpoint(contents(), tmp_path / "a.pt")
        left = set(os.listdir(tmp_path))
    assert left == {os.path.basename(living.name), os.path.basename(elsewhere), ".other.tmp", "a.pt"}
    assert not os.path.exists(living.name)


def test_without_locks_only_age_tells(tmp_path, monkeypatch):
    monkeypatch.setattr("imagen_pytorch.io.atomic.try_lock", lambda handle: None)
    new, old = temporary_name(str(tmp_path)), temporary_name(str(tmp_path))
    for name in (new, old):
        open(name, "w").close()
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    write_checkpoint(contents(), tmp_path / "a.pt")
    assert set(os.listdir(tmp_path)) == {os.path.basename(new), "a.pt"}


# -- no room ----------------------------------------------------------------------------------------------------------


def save_with_little_room(path, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return outcome(write_checkpoint, contents(2, WIDTH), path)


@NEEDS_FORK
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_limit_on_file_sizes_has_a_sentence(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    for old in (None, contents(1)):
        if old:
            write_checkpoint(old, path)
        size = 14 * WIDTH
        for limit in (1, 1000, 240_000, size):  # the last ones come when most is written
            name, text = in_child(save_with_little_room, path, limit)
            assert name == "CheckpointNotWritten"
            assert text.startswith(
                f"could not write {path} (about 280,016 bytes): [Errno {errno.EFBIG}] File too large"
            )
            assert text.endswith("what was there before is untouched")
            assert os.listdir(tmp_path) == ([path.name] if old else [])
    assert same(read_checkpoint(path), contents(1))


def test_a_full_disk_is_known_before(tmp_path, monkeypatch):
    write_checkpoint(contents(1), tmp_path / "a.pt")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100_000))
    message = rf"write .*a.pt \(about 280,016 bytes\): .* bytes are needed and 100,000 are free in {tmp_path}; what was"
    with pytest.raises(CheckpointNotWritten, match=message):
        write_checkpoint(contents(2, WIDTH), tmp_path / "a.pt")
    with pytest.raises(CheckpointNotWritten, match=r"write memory://full/a.pt .* 100,000 are free in /"):
        write_checkpoint(contents(2, WIDTH), "memory://full/a.pt")
    write_checkpoint(contents(3), tmp_path / "a.pt")  # a small one still fits
    assert step_of(read_checkpoint(tmp_path / "a.pt")) == 3 and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_at_any_call_leaves_the_old_file(tmp_path, monkeypatch, call, kind):
    path = tmp_path / f"a.{kind}"
    write_checkpoint(contents(1), path)
    for error in (errno.ENOSPC, errno.EDQUOT, errno.EIO):

        def fails(*_, error=error):
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(CheckpointNotWritten, match=f"could not write {path} .*{os.strerror(error)}"):
                write_checkpoint(contents(2), path)
        assert step_of(read_checkpoint(path)) == 1 and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_disk_that_loses_bytes_is_noticed(tmp_path, monkeypatch, kind):
    """What is read back before the file gets its name is not what was written."""
    path = tmp_path / f"a.{kind}"
    write_checkpoint(contents(1), path)

    def spoil(handle):
        os.pwrite(handle, b"\xff", os.fstat(handle).st_size // 2)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(CheckpointNotWritten, match=r"could not write .*(is wrong|is not what was written)"):
        write_checkpoint(contents(2, 5000), path)
    assert step_of(read_checkpoint(path)) == 1 and os.listdir(tmp_path) == [path.name]


def test_a_lost_connection_to_the_disk_while_reading_is_damage(tmp_path, monkeypatch):
    write_checkpoint(contents(1), tmp_path / "a.pt")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("imagen_pytorch.checkpoints.files.read_pt", fails)
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*a.pt: \[Errno 5\] Input/output error"):
        read_checkpoint(tmp_path / "a.pt")


# -- places that cannot be written to ---------------------------------------------------------------------------------


def test_places_that_cannot_be_written_to_have_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.pt" / "inside").mkdir(parents=True)
    with pytest.raises(CheckpointNotWritten, match="cannot make the checkpoint folder .*file"):
        write_checkpoint(contents(), tmp_path / "file" / "a.pt")
    with pytest.raises(CheckpointNotWritten, match="could not write .*folder.pt: there is a folder"):
        write_checkpoint(contents(), tmp_path / "folder.pt")
    with pytest.raises(CheckpointNotWritten, match="could not write .*name too long"):
        write_checkpoint(contents(), tmp_path / ("a" * 300))
    write_checkpoint(contents(), tmp_path / "deep" / "er" / ("a" * 252 + ".pt"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that even root cannot write to")
def test_read_only_places_have_a_sentence():
    with pytest.raises(CheckpointNotWritten, match="cannot make the checkpoint folder /proc/imagen"):
        write_checkpoint(contents(), "/proc/imagen/a.pt")
    with pytest.raises(CheckpointNotWritten, match="/proc/self"):
        write_checkpoint(contents(), "/proc/self/a.pt")
    with pytest.raises(CheckpointError, match="/proc/imagen"):
        CheckpointStore("/proc/imagen")


def test_links_rights_and_other_files_stay(tmp_path):
    (tmp_path / "disk").mkdir()
    write_checkpoint(contents(1), tmp_path / "disk" / "a.pt")
    os.chmod(tmp_path / "disk" / "a.pt", 0o640)
    (tmp_path / "a.pt").symlink_to(tmp_path / "disk" / "a.pt")
    write_checkpoint(contents(2), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").is_symlink() and step_of(read_checkpoint(tmp_path / "disk" / "a.pt")) == 2
    assert os.stat(tmp_path / "a.pt").st_mode & 0o777 == 0o640


def test_nothing_is_replaced_unasked(tmp_path):
    write_checkpoint(contents(1), tmp_path / "a.pt", overwrite=False)
    with pytest.raises(CheckpointNotWritten, match="a.pt exists already; allow overwrite=True or choose another path"):
        write_checkpoint(contents(2), tmp_path / "a.pt", overwrite=False)
    assert step_of(read_checkpoint(tmp_path / "a.pt")) == 1


# -- the file before --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_the_file_before_is_kept_on_request(tmp_path, monkeypatch, links):
    def none(*_):
        raise PermissionError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", none)
    for step in (1, 2, 3):
        write_checkpoint(contents(step), tmp_path / "a.b.pt", keep_previous=True)
        assert step_of(read_checkpoint(tmp_path / "a.b.pt")) == step
        if step > 1:
            assert step_of(read_checkpoint(tmp_path / "a.b.previous.pt")) == step - 1
    assert sorted(os.listdir(tmp_path)) == ["a.b.previous.pt", "a.b.pt"]
    os.remove(tmp_path / "a.b.previous.pt")
    os.link(tmp_path / "a.b.pt", tmp_path / "a.b.previous.pt") if links else None  # as after a kill between two steps
    write_checkpoint(contents(4), tmp_path / "a.b.pt", keep_previous=True)
    assert step_of(read_checkpoint(tmp_path / "a.b.previous.pt")) == 3
    assert sorted(os.listdir(tmp_path)) == ["a.b.previous.pt", "a.b.pt"]


def test_the_object_before_is_kept_on_request():
    for step in (1, 2, 3):
        write_checkpoint(contents(step), "memory://before/a.pt", keep_previous=True)
    assert step_of(read_checkpoint("memory://before/a.pt")) == 3
    assert step_of(read_checkpoint("memory://before/a.previous.pt")) == 2


# -- two at once ------------------------------------------------------------------------------------------------------


def save_often(path, first, count):
    for step in range(first, first + count):
        write_checkpoint(contents(step, 2000), path, keep_previous=True)


@NEEDS_FORK
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_two_processes_that_save_to_one_path_never_damage_it(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write_checkpoint(contents(0), path)
    processes = [child(save_often, path, first, 20) for first in (100, 200)]
    seen = set()
    while any(process.is_alive() for process in processes):
        seen.add(step_of(read_checkpoint(path)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert step_of(read_checkpoint(path)) in (119, 219) and len(seen) > 3
    step_of(read_checkpoint(tmp_path / f"a.previous.{kind}"))
    assert sorted(os.listdir(tmp_path)) == [f"a.previous.{kind}", f"a.{kind}"]

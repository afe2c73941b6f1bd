"""Images are read once: what comes from the cache is, bit for bit, what was read, whoever put it there."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
import resource
import time

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset

from imagen_pytorch.data import Dataset, Emoji64, ImageDataset, TableDataset
from imagen_pytorch.data import cache as room
from imagen_pytorch.data.cache import ImageCache, available_memory, from_levels, kept_of, levels
from imagen_pytorch.data.decoding import decode
from imagen_pytorch.data.skipping import DataUnavailable

COUNT = 6


@pytest.fixture
def folder(tmp_path):
    """Noise of odd sizes with two captions each, so that every item draws."""
    made = tmp_path / "images"
    made.mkdir()
    generator = torch.Generator().manual_seed(1)
    for number in range(COUNT):
        shape = (17 + number, 23, 4)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(f"one {number}\ntwo {number}\n")
    return made


@pytest.fixture
def reads(monkeypatch):
    """The sources that were decoded since then, in this process."""
    found = []

    def noted(source, size):
        found.append(source)
        return decode(source, size)

    monkeypatch.setattr("imagen_pytorch.data.folder.decode", noted)
    monkeypatch.setattr("imagen_pytorch.data.remote.decode", noted)
    return found


def as_folder(folder, **options):
    return Dataset(folder, 8, random_flip=True, **options)


def as_table(folder, **options):
    rows = [{"image": path.read_bytes(), "text": ["one", "two"]} for path in sorted(folder.glob("*.png"))]
    return TableDataset(rows, 8, random_flip=True, **options)


def as_hub(folder, **options):
    datasets = pytest.importorskip("datasets", reason="the datasets library is optional")
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    rows = datasets.Dataset.from_dict({"image": paths, "text": [["one", "two"]] * len(paths)})
    return TableDataset(rows.cast_column("image", datasets.Image()), 8, random_flip=True, **options)


SOURCES = [as_folder, as_table, as_hub]


def drawn(data, seed=3):
    """All items, each with draws of its own."""
    items = []
    for index in range(len(data)):
        torch.manual_seed(seed + index)
        items.append(data[index])
    return torch.stack([image for image, _ in items]), [caption for _, caption in items]


def equal(one, other):
    return torch.equal(one[0], other[0]) and one[1] == other[1]


# -- the same items ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_a_cached_item_is_the_uncached_one(source, channels, folder):
    """At the first and the second look, with flips and captions drawn anew each time."""
    plain, cached = source(folder, channels=channels, cache_memory_share=0), source(folder, channels=channels)
    for seed in (3, 4):
        assert equal(drawn(plain, seed), drawn(cached, seed))
    assert not plain.kept().any() and cached.kept().all()
    assert not equal(drawn(cached, 3), drawn(cached, 40))


@pytest.mark.parametrize("size", [24, 64, 96])
def test_items_have_the_256_levels_of_8_bits(size, folder):
    """Images of folders, tables and embedded data, also where they are not kept."""
    made = [Dataset(folder, size), Dataset(folder, size, cache_memory_share=0), Emoji64(image_size=size, limit=2)]
    for data in made:
        image = data[1][0]
        assert torch.equal(image, (image * 255).round() / 255)


def test_rounding_is_to_the_nearest_level():
    assert levels(torch.tensor([0.0, 0.0019, 0.002, 0.5, 1.0])).tolist() == [0, 0, 1, 128, 255]
    assert torch.equal(levels(from_levels(torch.arange(256, dtype=torch.uint8))), torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("source", [as_folder, as_table])
def test_each_image_is_read_once(source, folder, reads):
    data = source(folder)
    for _ in range(3):
        drawn(data)
    assert len(reads) == COUNT
    plain = source(folder, cache_memory_share=0)
    drawn(plain), drawn(plain)
    assert len(reads) == 3 * COUNT


def test_a_table_of_the_hub_does_not_decode_for_a_caption(folder, monkeypatch):
    data = as_hub(folder)
    drawn(data)
    monkeypatch.setattr(type(data.rows.features["image"]), "decode_example", None)
    assert equal(drawn(data), drawn(data))


def test_damage_is_never_kept(folder):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-400])
    data = as_folder(folder)
    with pytest.warns(UserWarning, match=r"2\.png cannot be read"):
        first = drawn(data)
    assert equal(first, drawn(data)) and [item.name for item in data.skipped] == ["2.png"]
    assert data.kept().all() and not data.cache.kept()[2]


def test_a_source_of_ones_own_decides_itself(folder):
    class Own(ImageDataset):
        def name(self, index):
            return str(index)

        def read(self, index):
            return Image.open(folder / f"{index}.png"), ("a", "b")

    plain, cached = Own(COUNT, 8, 3, True), Own(COUNT, 8, 3, True, 0.25)
    assert equal(drawn(plain), drawn(cached)) and equal(drawn(plain, 9), drawn(cached, 9))
    assert not plain.kept().any() and cached.kept().all()


# -- shared by processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_what_worker_processes_read_is_kept_for_all(method, place, folder, tmp_path, reads):
    options = {} if place == "memory" else {"cache_folder": tmp_path / "cache"}
    data = as_folder(folder, **options)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=method)
    assert len(list(loader)) == COUNT // 2
    assert data.kept().all()
    assert equal(drawn(data), drawn(as_folder(folder, cache_memory_share=0)))
    assert len(reads) == COUNT  # those of the uncached one


def test_copies_have_a_cache_of_their_own(folder, reads):
    data = as_folder(folder)
    drawn(data)
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert not other.kept().any() and other.cache.capacity == COUNT
        assert equal(drawn(other), drawn(data))
    assert len(pickle.dumps(data)) < 100_000 and len(reads) == 3 * COUNT


def test_wrappers_tell_what_is_kept(folder):
    data, other = as_folder(folder), as_folder(folder)
    data[0], data[2]
    part = Subset(data, [2, 1, 0])
    assert kept_of(part).tolist() == [True, False, True]
    assert kept_of(ConcatDataset([part, other])).tolist() == [True, False, True] + [False] * COUNT
    assert kept_of([1, 2]) is None and kept_of(ConcatDataset([part, [1]])) is None


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_nothing_is_left_open(folder):
    as_folder(folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        as_folder(folder)[0]
    assert len(os.listdir("/proc/self/fd")) <= before


# -- files ------------------------------------------------------------------------------------------------------------


def files(place):
    return sorted(path for path in place.iterdir()) if place.exists() else []


def test_a_later_run_reads_nothing(folder, tmp_path, reads):
    place = tmp_path / "deep" / "cache"
    first = drawn(as_folder(folder, cache_folder=place))
    later = as_folder(folder, cache_folder=place)
    assert later.kept().all() and equal(drawn(later), first) and len(reads) == COUNT
    assert len(files(place)) == 1 and files(place)[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["contents", "time", "name", "more", "size", "channels", "version", "decoder"])
def test_what_changes_an_image_changes_the_file(change, folder, tmp_path, monkeypatch, reads):
    place, options = tmp_path / "cache", {}
    drawn(Dataset(folder, 8, cache_folder=place))
    if change == "contents":
        Image.new("RGB", (20, 20), "red").save(folder / "1.png")
    elif change == "time":
        os.utime(folder / "1.png", ns=(1, 1))
    elif change == "name":
        (folder / "1.png").rename(folder / "1b.png"), (folder / "1.txt").rename(folder / "1b.txt")
    elif change == "more":
        Image.new("RGB", (20, 20), "red").save(folder / "7.png"), (folder / "7.txt").write_text("x")
    elif change == "channels":
        options = {"channels": 1}
    elif change == "version":
        monkeypatch.setattr(room, "__version__", "0")
    elif change == "decoder":
        monkeypatch.setattr("PIL.__version__", "0")
    size = 9 if change == "size" else 8
    made = Dataset(folder, size, cache_folder=place, **options)
    assert not made.kept().any()
    assert equal(drawn(made), drawn(Dataset(folder, size, cache_memory_share=0, **options)))


def test_a_folder_is_known_however_it_is_spelled(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    drawn(Dataset(folder, 8, cache_folder=tmp_path / "cache"))
    for spelling in (f"{folder}/", folder / ".." / folder.name, tmp_path / "link"):
        assert Dataset(spelling, 8, cache_folder=tmp_path / "cache").kept().all()


def test_without_a_folder_what_does_not_fit_goes_into_the_users_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    drawn(as_folder(folder))
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr(room, "available_memory", lambda: 4 * COUNT * 100)  # a quarter is for three of six
    first = drawn(as_folder(folder))
    (file,) = (tmp_path / "home" / "imagen_pytorch" / "images").iterdir()
    assert file.stat().st_size == COUNT * (3 * 8 * 8 + 4)
    assert as_folder(folder).kept().all() and equal(first, drawn(as_folder(folder)))


def test_what_cannot_be_told_from_other_versions_is_kept_in_memory_as_far_as_it_fits(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(room, "available_memory", lambda: 4 * 3 * (3 * 8 * 8 + 4))
    data = as_table(folder)
    plain = as_table(folder, cache_memory_share=0)
    for seed in (3, 4):
        assert equal(drawn(data, seed), drawn(plain, seed))
    assert data.kept().tolist() == [True] * 3 + [False] * 3 and not (tmp_path / "home").exists()


def test_processes_of_one_machine_divide_the_memory(monkeypatch):
    monkeypatch.setattr(room, "available_memory", lambda: 8000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ImageCache(100, (3, 4, 4)).capacity == 500 // 52


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf"), True])
def test_an_impossible_share_is_refused(share, folder):
    with pytest.raises(ValueError, match="cache_memory_share must be a number from 0"):
        Dataset(folder, 8, cache_memory_share=share)


def test_the_memory_that_is_available():
    assert 2**20 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- what can go wrong with them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "flipped", "longer", "sums"])
def test_a_damaged_file_counts_for_nothing(damage, folder, tmp_path):
    first = drawn(as_folder(folder, cache_folder=tmp_path / "cache"))
    (file,) = files(tmp_path / "cache")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        for place in range(4 * COUNT + 5, len(content), 192):
            content[place] ^= 1
    elif damage == "sums":
        content[: 4 * COUNT] = os.urandom(4 * COUNT)
    changed = {"cut": content[:100], "empty": b"", "zeros": bytes(len(content)), "longer": content + b"x"}
    file.write_bytes(changed.get(damage, content))
    for _ in range(2):
        assert equal(drawn(as_folder(folder, cache_folder=tmp_path / "cache")), first)
    assert as_folder(folder, cache_folder=tmp_path / "cache").kept().all()


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe", "place is a file", "unwritable"])
def test_what_is_no_file_of_its_own_is_left_alone(kind, folder, tmp_path):
    """Nothing is written through it, and the images are kept in memory."""
    place = tmp_path / "cache"
    first = drawn(as_folder(folder, cache_folder=place))
    (file,) = files(place)
    file.unlink()
    other = tmp_path / "precious"
    other.write_bytes(b"precious")
    if kind == "link":
        file.symlink_to(other)
    elif kind == "hard link":
        os.link(other, file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        place.rmdir()
        if kind == "place is a file":
            place.write_bytes(b"precious")
        else:
            place = tmp_path / "\0"
    data = as_folder(folder, cache_folder=place)
    assert equal(drawn(data), first) and data.kept().all() and other.read_bytes() == b"precious"


def test_a_cache_that_is_deleted_meanwhile_changes_nothing(folder, tmp_path):
    data = as_folder(folder, cache_folder=tmp_path / "cache")
    first = drawn(data)
    files(tmp_path / "cache")[0].unlink()
    (tmp_path / "cache").rmdir()
    assert equal(drawn(data), first)


def test_a_full_disk_is_no_error(folder, tmp_path, monkeypatch):
    data = as_folder(folder, cache_folder=tmp_path / "cache")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert equal(drawn(data), drawn(as_folder(folder, cache_memory_share=0))) and not data.kept().any()


def test_a_limit_on_the_size_of_files_is_no_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        made = [
            ImageCache(40, (3, 8, 8)),  # in memory
            ImageCache(40, (3, 8, 8), folder=tmp_path, key=lambda: "f" * 64),
        ]
        for cache in made:
            cache.put(20, torch.ones(3, 8, 8, dtype=torch.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all(cache.get(20) is None for cache in made)


def test_a_disk_with_too_little_room_is_left_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert as_folder(folder, cache_folder=tmp_path / "cache").cache.capacity == COUNT  # in memory
    assert not files(tmp_path / "cache")


def test_files_that_no_run_has_opened_for_long_are_removed(folder, tmp_path):
    place = tmp_path / "cache"
    place.mkdir()
    old, new = place / f"{'a' * 64}.images", place / f"{'b' * 64}.images"
    foreign = [place / "notes.txt", place / ("c" * 64)]  # other programs name files by digests, too
    for path in (old, new, *foreign):
        path.write_bytes(b"x")
    long_ago = time.time() - room.UNUSED - 60
    for path in (old, *foreign):
        os.utime(path, (long_ago, long_ago))
    as_folder(folder, cache_folder=place)
    assert not old.exists() and new.exists() and all(path.exists() for path in foreign)


def write_and_look(place):
    """What one of two writers does: it never finds anything but what belongs there."""
    kept = ImageCache(40, (3, 16, 16), folder=place, key=lambda: "f" * 64)
    images = torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for _ in range(30):
        for index in torch.randperm(40).tolist():
            found = kept.get(index)
            assert found is None or torch.equal(found, images[index]), index
            kept.put(index, images[index])
    assert kept.kept().all()


def test_two_writers_never_give_a_mixture(tmp_path):
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=write_and_look, args=(tmp_path,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0] and len(files(tmp_path)) == 1


def test_a_folder_that_has_gone_is_no_damage_although_other_images_are_kept(folder, tmp_path):
    """What comes from the cache does not say that the folder can be read."""
    data = as_folder(folder)
    data[2], data[3]
    (folder).rename(tmp_path / "elsewhere")
    assert data[2][0].shape == (3, 8, 8)
    with pytest.raises(DataUnavailable):
        data[1]
    (tmp_path / "elsewhere").rename(folder)
    assert not data.skipped and equal(drawn(data), drawn(as_folder(folder, cache_memory_share=0)))


def test_without_a_home_folder_images_are_kept_in_memory_alone(folder, monkeypatch):
    """As in a container whose user has no name: "~" leads nowhere."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no such user"])
    monkeypatch.chdir(folder)
    assert as_folder(folder, cache_memory_share=1e-15).cache.capacity == 0
    assert not (folder / "~").exists()


UNUSABLE = [("file", "Not a directory"), ("\0", "null"), ("~nobody9", "no such user")]


@pytest.mark.parametrize(("place", "reason"), UNUSABLE)
def test_a_stated_folder_that_cannot_be_used_is_said(place, reason, folder, tmp_path):
    """Once, where the data set is made; not again in the processes that it is handed to."""
    (tmp_path / "file").write_bytes(b"precious")
    place = place if place[0] == "~" else tmp_path / place / "cache"
    with pytest.warns(UserWarning, match=f"no images are kept in the cache_folder .*{reason}.*memory is used instead"):
        data = as_folder(folder, cache_folder=place)
    drawn(data)
    assert data.kept().all()


def test_that_a_table_cannot_be_kept_in_files_is_said(folder, tmp_path):
    with pytest.warns(UserWarning, match="nothing tells these images from other versions of themselves"):
        data = as_table(folder, cache_folder=tmp_path / "cache")
    drawn(data)
    assert data.kept().all() and not files(tmp_path / "cache")

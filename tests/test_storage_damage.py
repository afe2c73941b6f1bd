"""Files that are damaged, lie or attack: refused with a sentence, taking no memory and running nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from storage_toys import (
    KINDS,
    NEEDS_FORK,
    Storage,
    View,
    contents,
    each_kind,
    good_files,
    handmade,
    in_child,
    outcome,
    pickled,
    pt_bytes,
    refusal,
    safetensors_bytes,
    same,
    zip_bytes,
)

from imagen_pytorch.checkpoint import CheckpointStore, load_imagen_from_checkpoint
from imagen_pytorch.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from imagen_pytorch.checkpoints.files import check_file
from imagen_pytorch.checkpoints.format_pt import Archive
from imagen_pytorch.checkpoints.pickle_scan import UNSAFE, scan_pickle


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_files(tmp_path_factory.mktemp("good"))


# -- damage -----------------------------------------------------------------------------------------------------------


@each_kind
def test_any_flipped_bit_is_found(good, kind):
    data = bytearray(good[kind])
    assert refusal(kind, bytes(data)) is None
    for place in range(len(data)):
        bit = 1 << random.randrange(8)
        data[place] ^= bit
        assert refusal(kind, bytes(data)), f"bit {bit} of byte {place}"
        data[place] ^= bit


@each_kind
def test_any_missing_end_is_found(good, kind):
    for length in range(len(good[kind])):
        assert refusal(kind, good[kind][:length]), length
    for more in (b"\x00", b"x" * 5000):
        assert refusal(kind, good[kind] + more) and refusal(kind, more + good[kind])


@each_kind
@pytest.mark.parametrize("page", [512, 64])
def test_lost_pages_are_found(good, kind, page):
    data = good[kind]
    for start in range(0, len(data), page):
        lost = data[:start] + bytes(len(data[start : start + page])) + data[start + page :]
        assert lost == data or refusal(kind, lost), start


def test_a_changed_byte_is_found_without_our_note_too():
    """Files of other tools have checksums of their entries only: every byte of every tensor is still covered."""
    data = bytearray(pt_bytes(contents(3, 2)))
    entries = [entry for entry in Archive(io.BytesIO(data)).entries if entry.file_size]
    for entry in entries:
        start = entry.header_offset + 30 + sum(struct.unpack_from("<2H", data, entry.header_offset + 26))
        place = start + random.randrange(entry.file_size)
        data[place] ^= 4
        assert refusal("pt", bytes(data)) == f"the checksum of its entry {entry.filename} is wrong"
        data[place] ^= 4
    assert sum(entry.filename.count("/data/") for entry in entries) == 4


def test_the_checksum_goes_with_the_file(good, tmp_path):
    """A note of another file, one with more in it and one with something else are no notes."""
    data = good["pt"]
    start = data.rindex(b'{"format"')
    note = json.loads(data[start:])
    assert note["bytes"] == start
    for changed in ({**note, "sha256 around entries": "0" * 64}, {**note, "bytes": start + 1}, {**note, "more": 1}):
        text = json.dumps(changed).encode()
        other = data[: start - 2] + struct.pack("<H", len(text)) + text
        assert refusal("pt", other) in ("its checksum is wrong", "the note with its length and checksum is damaged")
    (tmp_path / "a.pt").write_bytes(data)
    check_file(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(data.replace(b"byteorder", b"bytEorder"))
    with pytest.raises(CheckpointError, match="damaged|wrong"):
        check_file(tmp_path / "a.pt")


def test_files_with_a_checksum_of_everything_are_read_and_checked(good):
    """As the first versions wrote them."""
    data = good["pt"]
    before = data[: data.rindex(b'{"format"') - 2]

    def noted(body):
        whole = hashlib.sha256(body + struct.pack("<H", length)).hexdigest()
        return f'{{"format": "imagen-pytorch", "bytes": {len(body) + 2}, "sha256": "{whole}"}}'.encode()

    length = 0
    length = len(noted(before))
    old = before + struct.pack("<H", length) + noted(before)
    assert refusal("pt", old) is None
    other = hashlib.sha256(b"").hexdigest().encode()
    assert refusal("pt", old[: -len(other) - 2] + other + old[-2:]) == "its checksum is wrong"
    for place in range(0, len(before), 97):
        assert refusal("pt", old[:place] + bytes([old[place] ^ 16]) + old[place + 1 :]), place


OTHERS = {
    "empty": b"",
    "text": b"hello world\n" * 99,
    "json": b'{"model": []}',
    "pickle": pickle.dumps({"model": 1}),
    "gzip": b"\x1f\x8b" + bytes(999),
    "zeros": bytes(9999),
    "zip": zip_bytes([("a.txt", b"hello")]),
    "two archives": zip_bytes([("data.pkl", pickled({}))]).replace(b"x/data.pkl", b"data/x.pkl"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", KINDS)
def test_other_files_are_refused(tmp_path, name, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(OTHERS[name])
    with pytest.raises(CheckpointError, match=rf"cannot read the checkpoint .*a\.{suffix}: it is "):
        read_checkpoint(tmp_path / f"a.{suffix}")


def test_files_of_old_torch_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="another kind of file"):
        read_checkpoint(tmp_path / "a.pt")


def test_the_other_byte_order_is_refused():
    data = zip_bytes([("data.pkl", pickled({})), ("byteorder", b"big")])
    assert refusal("pt", data) == "its numbers are in the byte order of another kind of machine"


# -- code -------------------------------------------------------------------------------------------------------------


class Call:
    """Unpickling it would call a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


TOUCH = b"cos\nsystem\n(X\x0e\x00\x00\x00touch executedtR."
HOSTILE = {
    "reduce": pickled({"model": Call(os.system, "touch executed")}),
    "reduce, protocol 4": pickled({"model": Call(os.system, "touch executed")}, 4),
    "getattr": pickled({"model": Call(getattr, "text", "upper")}),
    "eval as a key": pickled({Call(eval, "1"): 1}),
    "inst": b"(S'touch executed'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nX\x0e\x00\x00\x00touch executedo.",
    "newobj": b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85\x81.",
    "extension": b"\x80\x02\x82\x01)R.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.",
    "alone": b"\x80\x02cos\nsystem\n.",
    "allowed name of another module": b"\x80\x02cos\n_rebuild_tensor_v2\n.",
    "dotted": b"\x80\x02ctorch\nserialization.os.system\n.",
    "behind the end": pickled({}) + TOUCH,
    "build": b"\x80\x02ccollections\nOrderedDict\n" + b"}X\x01\x00\x00\x00a" + TOUCH[:-1] + b"sb.",
    "attributes of a class": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "codec": pickled({"model": Call(__import__("codecs").encode, "touch", "rot13")}),
    "hook": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00)))" + TOUCH[:-1] + b"tR.",
    "persistent id": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_never_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.makedirs("store")
    for path in ("a.pt", "b.safetensors", "store/checkpoint.1.pt"):
        with open(path, "wb") as file:
            file.write(handmade(HOSTILE[name]))
    for door in (read_checkpoint, load_imagen_from_checkpoint):
        for path in ("a.pt", "b.safetensors"):
            with pytest.raises(CheckpointError):
                door(path)
    with pytest.warns(UserWarning, match="checkpoint.1.pt"), pytest.raises(CheckpointError, match="none of the 1"):
        CheckpointStore("store").read()
    assert not os.path.exists("executed")
    assert sorted(os.listdir()) == ["a.pt", "b.safetensors", "store"]


def test_names_that_could_run_code_are_said_to():
    for name in ("reduce", "stack global", "getattr", "inst", "newobj", "extension", "alone", "persistent id"):
        with pytest.raises(CheckpointError) as caught:
            scan_pickle(HOSTILE[name], {})
        assert str(caught.value) == UNSAFE


# -- lies about sizes -------------------------------------------------------------------------------------------------

HUGE = 1 << 40


def memo_bomb():
    """Puts a value at index 4 billion of the memo: a table of that length, for readers that have one."""
    return b"\x80\x02}r\xff\xff\xff\xff."


def shared_bomb(levels=60):
    """Pairs of the pair before: 2**60 values in 300 bytes."""
    pairs = b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(levels))
    return b"\x80\x02}X\x01\x00\x00\x00a]q\x00" + pairs + b"s."


def shared_keys(levels=60):
    """Pairs of pairs as a key: whoever hashes it walks through 2**60 values."""
    pairs = b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(levels))
    return b"\x80\x02})q\x00" + pairs + b"Ns."


def expanded():
    return pickled({"a": View(Storage(), (HUGE, 4), (0, 1))})


def late_growth():
    """A tensor whose list of sizes gets another entry after it was looked at."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + pickled(Storage())[2:-1] + b"K\x00"
        b"]q\x11K\x04a]q\x12K\x01a\x89NtRsX\x01\x00\x00\x00bh\x11M\xff\xffas."
    )


def deep(levels, protocol=2):
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * levels + b"a" * (levels - 1) + b"s."


def deep_twice():
    """Two lists of 60 levels, one inside the other, each shallow where it is first seen."""
    inner = b"]" * 60 + b"a" * 59 + b"q\x01"
    outer = b"]" * 60 + b"h\x01a" + b"a" * 59
    return b"\x80\x02}X\x01\x00\x00\x00a" + inner + b"sX\x01\x00\x00\x00b" + outer + b"s."


def tensor(size=(4,), stride=(1,), offset=0, **storage):
    return handmade(pickled({"a": View(Storage(**storage), size, stride, offset)}))


def header(**entries):
    return json.dumps(entries)


def safe(shape, offsets, dtype="F32", data=bytes(16)):
    return safetensors_bytes(header(a={"dtype": dtype, "shape": shape, "data_offsets": offsets}), data)


def lying_zip(name="data/0", **changes):
    """A zip whose directory claims other things of an entry than are true: (place in the record, number)."""
    data = bytearray(handmade(pickled({"a": View(Storage(), (4,), (1,))})))
    at = data.index(f"x/{name}".encode(), data.index(b"PK\x01\x02")) - 46
    for offset, value in changes.values():
        struct.pack_into("<L", data, at + offset, value)
    return bytes(data)


def doubled():
    entries = [("data.pkl", pickled({})), ("data/0", b"a"), ("data/1", b"b")]
    return zip_bytes(entries).replace(b"data/1", b"data/0")


CLAIMS = {
    "compressed": (zip_bytes([("data.pkl", pickled({})), ("data/0", bytes(1 << 24))], zipfile.ZIP_DEFLATED), "compr"),
    "a storage of a terabyte": (tensor(count=HUGE), "not as long as its tensors need"),
    "a short storage": (tensor((3,), count=3), "not as long as its tensors need"),
    "a missing storage": (tensor(key="7"), "storage 7 are missing"),
    "a storage elsewhere": (tensor(key="../data.pkl"), "are missing"),
    "an expanded tensor": (handmade(expanded()), "claims more than the file holds"),
    "a tensor behind the end": (tensor(offset=1), "decoded"),
    "steps too long": (tensor((2,), (4,)), "decoded"),
    "too many elements": (tensor((4, 4), (1, 0)), "claims more"),
    "a negative size": (tensor((-4,)), "decoded"),
    "a negative step": (tensor((4,), (-1,)), "decoded"),
    "a negative place": (tensor((1,), (1,), -1), "decoded"),
    "an absurd size": (tensor((2**62, 0), (1, 1)), "impossible size"),
    "an absurd empty tensor": (tensor((2**40, 2**40, 0), (1, 1, 1)), "decoded"),
    "65 axes": (tensor((1,) * 65, (1,) * 65), "impossible size"),
    "sizes that are no numbers": (tensor((4.0,)), "decoded"),
    "a memo of billions": (handmade(memo_bomb()), "an odd index"),
    "lists of lists": (handmade(shared_bomb()), "amount to far more than the file"),
    "tuples of tuples as a key": (handmade(shared_keys()), "as a key"),
    "very deep": (handmade(deep(1_000_000)), "nested deeper than 100 levels"),
    "deep": (handmade(deep(110)), "nested deeper than 100 levels"),
    "deep twice": (handmade(deep_twice()), "nested deeper than 100 levels"),
    "itself": (handmade(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."), "hold themselves"),
    "a text of a terabyte": (handmade(b"\x80\x02}X\x01\x00\x00\x00a\x8d" + struct.pack("<Q", HUGE) + b"s."), "decoded"),
    "bytes of a terabyte": (handmade(b"\x80\x02}X\x01\x00\x00\x00a\x96" + struct.pack("<Q", HUGE) + b"s."), "decoded"),
    "a number of gigabytes": (handmade(b"\x80\x02}X\x01\x00\x00\x00a\x8b\xff\xff\xff\x7fs."), "decoded"),
    "an entry of 4 GB": (lying_zip(packed=(20, 2**32 - 2), size=(24, 2**32 - 2)), "unpack to more than its own"),
    "an entry over the next": (lying_zip(packed=(20, 40), size=(24, 40)), "lie over each other"),
    "an entry over the end": (lying_zip("version", packed=(20, 60), size=(24, 60)), "lie over each other"),
    "a size that is none": (lying_zip(size=(24, 17)), "compressed"),
    "an encrypted entry": (lying_zip(flags=(8, 1)), "damaged"),
    "two entries of one name": (doubled(), "doubled"),
    "a header of a terabyte": (struct.pack("<Q", HUGE) + b"{" + bytes(99), "another kind of file"),
    "a header of 65 MB": (struct.pack("<Q", 65 << 20) + b"{" + bytes(66 << 20), "its header claims 68,157,440 bytes"),
    "a deep header": (safetensors_bytes("{" + '"a":[' * 100_000), "header cannot be decoded"),
    "no header": (safetensors_bytes("[1]" + " " * 9), "another kind of file"),
    "a name twice": (safetensors_bytes('{"a":{"dtype":"F32","dtype":"F32"}}'), "header cannot be decoded"),
    "a tensor of a terabyte": (safe([HUGE], [0, 4 * HUGE]), "does not fit what follows"),
    "a longer tensor": (safe([5], [0, 16]), "does not fit what follows"),
    "a tensor that ends before it begins": (safe([0], [16, 0]), "does not fit what follows"),
    "a hole": (safe([3], [4, 16]), "does not fit what follows"),
    "something behind": (safe([3], [0, 12]), "does not fit what follows"),
    "an unknown kind": (safe([4], [0, 16], "F33"), "cannot be decoded"),
    "a negative length": (safe([-4], [0, 16]), "cannot be decoded"),
    "an absurd length": (safe([2**62, 0], [0, 0], data=b""), "impossible size"),
}


def claims():
    """Try every lie with 300 MB of memory to spare; the texts of the errors, the seconds."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (300 << 20),) * 2)
    found = {}
    for name, (data, _) in CLAIMS.items():
        start = time.process_time()
        kind = "pt" if data.startswith(b"PK") else "safetensors"
        found[name] = (outcome(refusal, kind, data), time.process_time() - start)
    return found


@NEEDS_FORK
def test_lies_about_sizes_take_no_memory():
    for name, (found, seconds) in in_child(claims).items():
        wanted = CLAIMS[name][1]
        if wanted is None:
            assert found is None, name
        else:
            assert isinstance(found, str), (name, found)
            assert any(part in found for part in wanted.split("|")), (name, found)
        assert seconds < 10, (name, seconds)


def refuse_measured(names):
    """How much more memory than for a good file each refusal takes at most, in bytes."""
    assert refusal("pt", tensor()) is None and refusal("safetensors", safe([4], [0, 16])) is None
    found = {}
    for name in names:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refusal("pt" if CLAIMS[name][0].startswith(b"PK") else "safetensors", CLAIMS[name][0])
        found[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return found


@NEEDS_FORK
def test_lies_are_refused_before_memory_is_taken():
    """Also the million lists in one another and the key with 2**60 values; a header that is read counts itself."""
    names = [name for name, (data, _) in CLAIMS.items() if len(data) < 10 << 20]
    assert {"very deep", "tuples of tuples as a key"} < {*names}
    large = {name: memory for name, memory in in_child(refuse_measured, names).items() if memory > 50 << 20}
    assert not large


@each_kind
def test_tensors_may_be_mapped_from_a_file(tmp_path, kind):
    for step in (1, 2):
        write_checkpoint(contents(step), tmp_path / f"{step}.{kind}")
    found = read_checkpoint(tmp_path / f"1.{kind}", mapped=True)
    assert same(found, contents(1))
    found["model"]["a.weight"][0] = 7  # a private copy of the page
    os.replace(tmp_path / f"2.{kind}", tmp_path / f"1.{kind}")
    assert same(read_checkpoint(tmp_path / f"1.{kind}"), contents(2)) and found["model"]["a.bias"][0] == 1


def test_sizes_are_those_that_were_checked():
    found = KINDS["pt"](io.BytesIO(handmade(late_growth())))
    assert found["b"] == [4, 65535] and found["a"].shape == (4,)


def test_limits_leave_room_for_honest_files():
    """Shared values, nearly a hundred levels and parts of storages are fine."""
    nested = shared = (0.9, 0.99)
    for _ in range(95):
        nested = [nested]
    value = {"groups": [{"betas": shared, "lr": 0.1} for _ in range(50)], "nested": nested}
    assert same(KINDS["pt"](io.BytesIO(pt_bytes(value))), value)
    floats = torch.arange(4.0)
    found = KINDS["pt"](io.BytesIO(pt_bytes({"a": floats, "c": OrderedDict(x=floats[1:], y=floats[4:])})))
    assert found["c"]["x"].tolist() == [1, 2, 3] and found["c"]["y"].shape == (0,)

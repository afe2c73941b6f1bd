"""Checkpoints in shards: written and read by any number of processes, damaged, and forged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from launching import launch, run
from sharding_toys import LOCAL, Shared

from imagen_pytorch.checkpoints import CheckpointError, CheckpointMismatch, CheckpointMissing, CheckpointStore
from imagen_pytorch.checkpoints.manifest import Manifest
from imagen_pytorch.checkpoints.paths import MANIFEST
from imagen_pytorch.checkpoints.sharded import ShardedCheckpoint, read_sharded, write_sharded
from imagen_pytorch.training import fsdp
from imagen_pytorch.training.fsdp import (
    fill,
    load_optimizer_state,
    module_tensors,
    optimizer_state,
)
from imagen_pytorch.training.optim import make_optimizer

# -- checkpoints ------------------------------------------------------------------------------------------------------

TENSORS = {
    "model/a.weight": torch.arange(35.0).view(7, 5),
    "model/one": torch.ones(1, 4),
    "model/share": torch.tensor(0.25),
    "ema/0.initted": torch.tensor(True),
    "optim0/state/3/exp_avg": torch.arange(18.0).view(3, 6),
}
PLAIN = {"version": "1", "optim0": {"state": {3: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1}]}}


@pytest.fixture
def folder(tmp_path) -> str:
    write_sharded(LOCAL, str(tmp_path / "checkpoint.5"), TENSORS, PLAIN)
    return str(tmp_path / "checkpoint.5")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_folder_is_read_as_a_file_would_be(tmp_path, kind):
    fs, folder = fsspec.filesystem(kind), f"{tmp_path}/runs/checkpoint.5"
    for _ in range(2):  # the second replaces the first
        write_sharded(fs, folder, TENSORS, PLAIN)
        found = read_sharded(fs, folder)
        assert torch.equal(found["model"]["a.weight"], TENSORS["model/a.weight"]) and found["model"]["share"].ndim == 0
        assert found["ema"]["0.initted"].dtype == torch.bool and found["version"] == "1"
        assert torch.equal(found["optim0"]["state"][3]["exp_avg"], TENSORS["optim0/state/3/exp_avg"])
        assert found["optim0"]["state"][3]["step"] == 7 and found["optim0"]["param_groups"] == [{"lr": 0.1}]
    store = CheckpointStore(f"{tmp_path}/runs", fs=fs)
    assert store.steps() == [5] and store.read()[1].keys() == found.keys()
    assert [str(name).rsplit("/", 1)[-1] for name in fs.ls(f"{tmp_path}/runs", detail=False)] == ["checkpoint.5"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_processes_loads_it(folder, count):
    names = [name for name, item in TENSORS.items() if item.ndim]
    for rank in range(count):
        targets = {name: Shared.of(torch.zeros_like(TENSORS[name]), rank, count) for name in names}
        ShardedCheckpoint(LOCAL, folder).load(targets)
        for name, target in targets.items():
            assert torch.equal(target.part, Shared.of(TENSORS[name], rank, count).part)


def test_a_number_fits_a_vector_of_one(folder):
    for rank, length in ((0, 1), (1, 0)):
        target = Shared.of(torch.zeros(1), rank, 2)
        ShardedCheckpoint(LOCAL, folder).load({"model/share": target})
        assert target.part.tolist() == [0.25] * length
    target = torch.zeros(1)
    fill({"model/share": target}, read_sharded(LOCAL, folder))
    assert target.tolist() == [0.25]


def test_what_does_not_fit_changes_nothing(folder):
    good, bad = torch.zeros(7, 5), torch.zeros(7, 6)
    with pytest.raises(CheckpointMismatch, match=r"one is \(1, 4\) in the checkpoint .* and \(7, 6\) in the model"):
        ShardedCheckpoint(LOCAL, folder).load({"model/a.weight": good, "model/one": bad})
    with pytest.raises(CheckpointMismatch, match="has no model/b; nothing was loaded"):
        ShardedCheckpoint(LOCAL, folder).load({"model/a.weight": good, "model/b": bad})
    assert not good.any()
    with pytest.raises(ValueError, match=r"model/one must be \(7, 6\), got \(1, 4\)"):
        fill({"model/one": bad}, read_sharded(LOCAL, folder))


def test_only_tensors_go_in(tmp_path):
    with pytest.raises(TypeError, match="model/a must be a tensor of numbers, got str"):
        write_sharded(LOCAL, str(tmp_path / "a"), {"model/a": "text"}, {})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="checkpoints hold only tensors"):
        write_sharded(LOCAL, str(tmp_path / "a"), {}, {"x": object()})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_an_error_while_writing_leaves_the_checkpoints_before(tmp_path, kind, monkeypatch):
    fs = fsspec.filesystem(kind)
    write_sharded(fs, f"{tmp_path}/checkpoint.1", TENSORS, PLAIN)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagen_pytorch.checkpoints.sharded.sizes_in", full)
    with pytest.raises(CheckpointError, match="process 0 could not write .* No space left on device"):
        write_sharded(fs, f"{tmp_path}/checkpoint.2", TENSORS, PLAIN)
    assert CheckpointStore(str(tmp_path), fs=fs).steps() == [1]
    with pytest.raises(CheckpointMissing, match="it has no manifest.json"):
        read_sharded(fs, f"{tmp_path}/checkpoint.2")
    assert kind == "memory" or os.listdir(tmp_path) == ["checkpoint.1"]


def test_what_a_dead_process_left_never_counts_and_is_removed(folder):
    """Beside a whole checkpoint, and where there is none yet."""
    left = "shards-0123456789ab"
    for place in (Path(folder), Path(folder).with_name("checkpoint.6")):
        (place / left).mkdir(parents=True)
        (place / left / "rank0.safetensors").write_bytes(b"x")
    assert CheckpointStore(Path(folder).parent).steps() == [5] and read_sharded(LOCAL, folder)["version"] == "1"
    with pytest.raises(CheckpointMissing, match="it has no manifest.json"):
        read_sharded(LOCAL, str(place))
    for path in (folder, str(place)):
        write_sharded(LOCAL, path, TENSORS, {"version": "2"})
        assert read_sharded(LOCAL, path)["version"] == "2" and left not in os.listdir(path)
        assert len(os.listdir(path)) == 2


def test_the_state_of_an_optimizer_comes_back_exactly(tmp_path, monkeypatch):
    def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.PReLU())
        settings = {"lr": 1e-3, "eps": 1e-8, "beta1": 0.9, "beta2": 0.99, "group_wd_params": True, "weight_decay": 0.1}
        optimizer = make_optimizer(network, settings)
        for _ in range(steps):
            for item in network.parameters():
                item.grad = torch.randn_like(item)
            optimizer.step()
        return network, optimizer

    network, optimizer = trained(2)
    state = optimizer_state(optimizer)
    tensors, rest = {}, {"state": {}, "param_groups": state["param_groups"]}
    for index, entries in state["state"].items():
        tensors |= {f"optim0/state/{index}/{key}": item for key, item in entries.items() if key != "step"}
        rest["state"][index] = {"step": entries["step"]}
    weights = {f"model/{name}": item for name, item in module_tensors(network).items()}
    write_sharded(LOCAL, str(tmp_path / "checkpoint.2"), {**weights, **tensors}, {"optim0": rest})
    expected = optimizer.state_dict()
    contents = read_sharded(LOCAL, str(tmp_path / "checkpoint.2"))
    assert str(contents["optim0"]) == str({"state": expected["state"], "param_groups": expected["param_groups"]})

    saved = ShardedCheckpoint(LOCAL, str(tmp_path / "checkpoint.2"))
    for way in ("shards", "whole"):
        if way == "shards":
            monkeypatch.setattr(fsdp, "is_shared", lambda _: True)
        _, other = trained(0 if way == "shards" else 1)  # moments are made where there are none
        if way == "shards":
            load_optimizer_state(other, saved.described()["optim0"], "optim0", saved.load)
        else:
            load_optimizer_state(other, contents["optim0"], "optim0", lambda targets: fill(targets, contents))
        found = other.state_dict()
        assert found["param_groups"] == expected["param_groups"] and found["state"].keys() == expected["state"].keys()
        for index, state in expected["state"].items():
            assert all(torch.equal(item, found["state"][index][key]) for key, item in state.items())
        monkeypatch.undo()


# -- damage and malice ------------------------------------------------------------------------------------------------


def files_in(folder: str) -> Path:
    """Where the files of a checkpoint are: in a folder of its own, but for those of the first format."""
    return Path(folder) / json.loads((Path(folder) / MANIFEST).read_bytes()).get("folder", "")


@pytest.fixture
def first_format(tmp_path) -> str:
    shutil.copytree(Path(__file__).parent / "data" / "_checkpoints" / "shards", tmp_path / "first")
    return str(tmp_path / "first")


@pytest.mark.parametrize("name", ["rank0.safetensors", "state.pt", "__0_0.distcp", ".metadata"])
def test_damaged_files_are_named(folder, first_format, name):
    folder = first_format if name in ("__0_0.distcp", ".metadata") else folder
    path = files_in(folder) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"its file {name} has .* of .* bytes"):
        read_sharded(LOCAL, folder)
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    if name != ".metadata":  # nobody reads that one
        with pytest.raises(CheckpointError, match=f"the checksum of its file {name} is wrong"):
            read_sharded(LOCAL, folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"its file {name} is missing"):
        read_sharded(LOCAL, folder)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def forge(folder: str, change) -> None:
    """Change the manifest of a folder, with checksums and sizes as they should be."""
    path = Path(folder) / MANIFEST
    given = json.loads(path.read_bytes())
    for row in given["files"]:
        data = (Path(folder) / given.get("folder", "") / row[0]).read_bytes()
        row[1:] = len(data), hashlib.sha256(data).hexdigest()
    change(given)
    body = {name: given[name] for name in ("files", "tensors", "folder") if name in given}
    given["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(given))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["state.pt", "rank0.safetensors", ".metadata", "__0_0.distcp"])
def test_nothing_in_a_hostile_folder_runs(folder, first_format, tmp_path, name, kind):
    folder = first_format if name in ("__0_0.distcp", ".metadata") else folder
    trace, path = tmp_path / "ran", files_in(folder) / name
    file = io.BytesIO()
    torch.save(Evil(trace), file) if kind == "torch" else pickle.dump(Evil(trace), file)
    payload = file.getvalue()
    path.write_bytes(payload)

    def change(given):
        for entry in given["tensors"].values():
            for part in entry[2]:
                part[3:] = (0, len(payload)) if name == "__0_0.distcp" else ()
                entry[1] = part[1] = [1] * len(part[1])
                part[0] = [0] * len(part[0])

    forge(folder, change if name in ("__0_0.distcp", "rank0.safetensors") else lambda given: None)
    if name == ".metadata":
        assert read_sharded(LOCAL, folder)["version"] == "1"
    else:
        reason = "could run code; nothing was executed" if kind == "torch" else "damaged or another kind of file"
        reason = "header" if name == "rank0.safetensors" else reason
        with pytest.raises(CheckpointError, match=f"(?i)cannot read the checkpoint .*{reason}"):
            read_sharded(LOCAL, folder)
    assert not trace.exists()


LIES = {
    "another folder": lambda given: given["files"].append(["../secret", 3, "0" * 64]),
    "an absolute path": lambda given: given["files"].append(["/etc/passwd", 3, "0" * 64]),
    "more memory than there is data": lambda given: given["tensors"].update(
        {f"model/{index}": given["tensors"]["model/a.weight"] for index in range(99)}
    ),
    "a part outside of the file": lambda given: given["tensors"]["model/one"][2][0].extend((1 << 40, 16)),
    "a part outside of the tensor": lambda given: given["tensors"]["model/one"][2][0].__setitem__(0, [1, 0]),
    "a huge tensor": lambda given: given["tensors"]["model/one"].__setitem__(1, [1 << 40, 4]),
    "a hole": lambda given: given["tensors"]["model/one"].__setitem__(2, []),
    "negative sizes": lambda given: given["tensors"]["model/one"].__setitem__(1, [-1, -4]),
    "another type": lambda given: given["tensors"]["model/one"].__setitem__(0, "object"),
    "another type of the same width": lambda given: given["tensors"]["model/one"].__setitem__(0, "int32"),
    "no numbers": lambda given: given["tensors"]["model/one"].__setitem__(1, ["1", "4"]),
    "an unknown file": lambda given: given["tensors"]["model/one"][2][0].__setitem__(2, 77),
    "no tensors": lambda given: given.__setitem__("tensors", 3),
    "two things of one name": lambda given: given["tensors"].update({"version": given["tensors"]["model/one"]}),
    "a name under another": lambda given: given["tensors"].update({"version/x": given["tensors"]["model/one"]}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(folder, lie):
    forge(folder, LIES[lie])
    with pytest.raises(CheckpointError):
        read_sharded(LOCAL, folder)


def test_a_manifest_is_what_it_was_or_damaged(folder):
    path = Path(folder) / MANIFEST
    whole = path.read_bytes()
    assert Manifest.from_bytes(whole).to_bytes() == whole
    for damaged in (whole[:-5], whole.replace(b'"rank0', b'"rank1'), b"", b"[" * 100_000):
        with pytest.raises(CheckpointError, match="its manifest"):
            Manifest.from_bytes(damaged)


# -- many real processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_written_by_one_loaded_by_two_written_by_two_loaded_by_three(tmp_path):
    tensors = {name: item for name, item in TENSORS.items() if name.startswith("model/")}
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    write_sharded(LOCAL, one, tensors, {"version": "1"})
    run(2, "load_sharded.py", one, two)
    two += "/checkpoint.2"
    manifest, own = sorted(os.listdir(two))  # as in an object store: each write has a folder of its own
    assert manifest == MANIFEST and own.startswith("shards-")
    assert sorted(os.listdir(f"{two}/{own}")) == ["rank0.safetensors", "rank1.safetensors", "state.pt"]
    run(3, "load_sharded.py", two)
    found = read_sharded(LOCAL, two)
    assert all(torch.equal(found["model"][name.partition("/")[2]], item) for name, item in tensors.items())


@pytest.mark.slow
def test_a_process_that_is_killed_while_writing_leaves_the_checkpoint_before(tmp_path):
    assert launch(2, "killed_writing.py", str(tmp_path), seconds=120).returncode != 0
    store = CheckpointStore(str(tmp_path))
    assert store.steps() == [1] and store.read()[1]["model"]["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert not (tmp_path / "checkpoint.2" / MANIFEST).exists()
    store.write(3, {"version": "1"})
    store.keep = 2
    store.prune()
    assert sorted(name for name in os.listdir(tmp_path) if "checkpoint" in name) == ["checkpoint.1", "checkpoint.3.pt"]

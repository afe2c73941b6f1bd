"""Files that earlier versions wrote still open: samples of each format, written by version 3.0 of 2026-11.

``data/_checkpoints/README.md`` says how each was written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from sharding_toys import LOCAL, Shared
from storage_toys import contents, same, step_of

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoints import (
    CheckpointStore,
    describe_checkpoint,
    previous_of,
    read_checkpoint,
    verify_checkpoint,
)
from imagen_pytorch.checkpoints.sharded import ShardedCheckpoint

SAMPLES = Path(__file__).parent / "data" / "_checkpoints"


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_single_files(kind):
    assert step_of(read_checkpoint(SAMPLES / f"plain.{kind}")) == 3
    assert describe_checkpoint(SAMPLES / f"plain.{kind}").contents.keys() == {"model", "optim0", "state"}


def test_a_folder_of_shards():
    folder = str(SAMPLES / "shards")
    wanted = {
        "version": "1",
        "optim0": {
            "state": {3: {"step": torch.tensor(7.0), "exp_avg": torch.arange(18.0).view(3, 6)}},
            "param_groups": [{"lr": 0.1}],
        },
        "model": {"a.weight": torch.arange(35.0).view(7, 5), "share": torch.tensor(0.25)},
    }
    assert same(read_checkpoint(folder), wanted)
    verify_checkpoint(folder, LOCAL)
    target = torch.zeros(7, 5)
    ShardedCheckpoint(LOCAL, folder).load({"model/a.weight": target})
    assert torch.equal(target, torch.arange(35.0).view(7, 5))
    assert describe_checkpoint(folder).format == "shards"


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_and_the_one_before(kind):
    path = f"{SAMPLES}/kept/imagen.{kind}"
    assert step_of(read_checkpoint(path)) == 6 and step_of(read_checkpoint(previous_of(path))) == 5
    verify_checkpoint(previous_of(path), LOCAL)


@pytest.mark.parametrize(("name", "half"), [("store/checkpoint.6", torch.float16), ("two-processes", torch.float32)])
def test_folders_of_one_and_two_processes(name, half):
    folder = str(SAMPLES / name)
    share = torch.tensor(0.25)
    tensors = {"a.weight": torch.arange(35.0).view(7, 5), "half": torch.arange(6.0).to(half), "share": share}
    assert same(read_checkpoint(folder), {"version": "1", "model": tensors})
    verify_checkpoint(folder, LOCAL)
    for rank in range(3):
        target = Shared.of(torch.zeros(7, 5), rank, 3)
        ShardedCheckpoint(LOCAL, folder).load({"model/a.weight": target})
        assert torch.equal(target.part, Shared.of(tensors["a.weight"], rank, 3).part)


def test_a_folder_of_checkpoints(tmp_path):
    shutil.copytree(SAMPLES / "store", tmp_path / "store")
    store = CheckpointStore(tmp_path / "store", keep=2)
    assert store.steps() == [6, 4, 2]
    path, found = store.read()
    assert path.endswith("checkpoint.6") and found["model"]["share"] == 0.25
    assert step_of(store.read(4)[1]) == 4
    store.write(8, contents(8))
    assert store.steps() == [8, 6] and step_of(store.read()[1]) == 8


def test_the_checkpoint_of_a_trainer():
    contents = read_checkpoint(SAMPLES / "trainer.pt")
    imagen = load_imagen_from_checkpoint(SAMPLES / "trainer.pt")
    assert all(torch.equal(item, contents["model"][name]) for name, item in imagen.state_dict().items())
    trainer = ImagenTrainer(imagen)
    trainer.load(SAMPLES / "trainer.pt")
    assert trainer.steps.tolist() == [1]

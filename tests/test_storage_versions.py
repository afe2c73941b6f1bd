"""Files that earlier versions wrote still open: samples of each format, written by version 3.0 of 2026-11.

``plain.*`` hold `storage_toys.contents(3)`, ``shards`` a few tensors, ``trainer.pt`` a run of one step.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharding_toys import LOCAL
from storage_toys import same, step_of

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.storage import read_checkpoint
from imagen_pytorch.storage.outlines import read_outline
from imagen_pytorch.storage.sharded import load_sharded
from imagen_pytorch.storage.store import verify_checkpoint

SAMPLES = Path(__file__).parent / "data" / "checkpoints"


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_single_files(kind):
    assert step_of(read_checkpoint(SAMPLES / f"plain.{kind}")) == 3
    assert read_outline(SAMPLES / f"plain.{kind}").contents.keys() == {"model", "optim0", "state"}


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
    load_sharded(LOCAL, folder, {"model/a.weight": target})
    assert torch.equal(target, torch.arange(35.0).view(7, 5))
    assert read_outline(folder).format == "shards"


def test_the_checkpoint_of_a_trainer():
    contents = read_checkpoint(SAMPLES / "trainer.pt")
    imagen = load_imagen_from_checkpoint(SAMPLES / "trainer.pt")
    assert all(torch.equal(item, contents["model"][name]) for name, item in imagen.state_dict().items())
    trainer = ImagenTrainer(imagen)
    trainer.load(SAMPLES / "trainer.pt")
    assert trainer.steps.tolist() == [1]

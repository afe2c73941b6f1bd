"""What a trainer takes over from a checkpoint, whole or in part."""

from __future__ import annotations

import os

import pytest
import torch
from test_promises_loading import new, train
from test_resume import differing, everything
from toys import CAPTIONS, pictures

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint


def test_a_file_of_safetensors_is_as_good(tmp_path):
    whole = new()
    train(whole, 2)
    whole(pictures(2), texts=CAPTIONS[:2])
    whole.save(tmp_path / "a.safetensors")
    whole.update()
    losses = train(whole, 3)
    other = new(seed=99)
    other.load(tmp_path / "a.safetensors")
    other.update()
    assert train(other, 3) == losses and not differing(everything(whole), everything(other))
    whole.save(tmp_path / "b.safetensors", without_optim_and_sched=True)
    averaged = load_imagen_from_checkpoint(tmp_path / "b.safetensors", load_ema_if_available=True)
    wanted = whole.get_ema_unet(1).state_dict()
    assert all(torch.equal(item, wanted[name]) for name, item in averaged.unets[0].state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_trainer_made_from_a_file_trains(tmp_path, suffix):
    made = new()
    train(made, 2)
    made.save(tmp_path / f"a{suffix}")
    other = ImagenTrainer(imagen_checkpoint_path=tmp_path / f"a{suffix}", lr=1e-3, verbose=False)
    average = other.get_ema_unet(1).state_dict()
    assert all(torch.equal(item, average[name]) for name, item in made.get_ema_unet(1).state_dict().items())
    loss = other(pictures(2), texts=CAPTIONS[:2])
    assert other.update() and other.steps.tolist() == [1] and loss == loss
    assert other.sample(texts=["x"], use_tqdm=False).shape == (1, 3, 8, 8)


def test_averages_that_nobody_keeps_are_left_out(tmp_path):
    made = new()
    train(made, 2)
    made.save(tmp_path / "a.pt")
    other = new(use_ema=False)
    other.load(tmp_path / "a.pt")
    assert train(other) == train(made) and other.ema_unets is None


def test_what_fits_is_taken_and_the_rest_is_named_and_kept(tmp_path, capsys):
    """Of a model with another number of U-Nets and a wider first one."""
    wide = new((4, 8), {"unet": {"text_embed_dim": 24}, "text_encoder_name": "builtin:words:24"})
    train(wide, 2)
    wide.save(tmp_path / "a.pt")
    made = new(verbose=True)
    before = everything(made)
    made.load(tmp_path / "a.pt", strict=False)
    said = capsys.readouterr().out
    taken, kept = wide.imagen.unets[0].state_dict(), []
    for name, item in made.imagen.unets[0].state_dict().items():
        if name in taken and taken[name].shape == item.shape:
            assert torch.equal(item, taken[name]), name
        else:
            kept.append(name)
            assert torch.equal(item, before[f"imagen.unets.0.{name}"]) and name in said
    assert kept and "not in the model" in said and "steps of 2 U-Nets, the model has 1" in said
    assert not made.optim0.state and train(made)


def test_foreign_files_in_the_folder_are_left_alone(tmp_path):
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 1, "max_checkpoints_keep": 1}
    names = ["best.pt", "checkpoint.x.pt", "checkpoint.9.pt.bak", "checkpoint.9.safetensors", "notes.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    made = new(**options)
    train(made, 2)
    made.wait_for_saves()
    assert sorted(os.listdir(tmp_path)) == sorted([*names, ".lock", "checkpoint.2.pt"])
    assert {(tmp_path / name).read_bytes() for name in names} == {b"mine"}
    del made
    assert new(**options).steps.tolist() == [2]

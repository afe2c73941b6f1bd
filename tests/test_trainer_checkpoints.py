"""Checkpoints: what is in them, that they always open again, and that a run goes on where it was."""

from __future__ import annotations

import os
import pickle
import zipfile

import fsspec
import pytest
import torch
from toys import CAPTIONS, SMALL, WORDS, pictures, small_imagen, small_unet

from imagen_pytorch import (
    ElucidatedImagen,
    Imagen,
    ImagenConfig,
    ImagenTrainer,
    NullUnet,
    SRUnet256,
    load_imagen_from_checkpoint,
)
from imagen_pytorch.checkpoint import CheckpointError, CheckpointMismatch, CheckpointMissing, read_checkpoint
from imagen_pytorch.text import text_encoder

OFTEN = {"ema_update_after_step": 0, "ema_update_every": 1}


def trainer(sizes=(8,), kind=Imagen, model=None, **options):
    imagen = small_imagen(sizes, kind, **(model or {}))
    return ImagenTrainer(imagen, **{"lr": 1e-2, "verbose": False, "seed": 5, **OFTEN, **options})


def step(made, number=1, count=1):
    for _ in range(count):
        made(pictures(size=16), texts=CAPTIONS, unet_number=number)
        made.update(number)


def state(made):
    return {name: item.clone() for name, item in made.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
def test_training_goes_on_exactly_where_it_was(tmp_path, kind):
    options = {"warmup_steps": 3, "cosine_decay_max_steps": 9, "max_grad_norm": 1.0}
    whole = trainer((8, 16), kind, **options)
    step(whole, 1, 2)
    step(whole, 2)
    whole.save(tmp_path / "half.pt")
    step(whole, 1)
    step(whole, 2, 2)
    other = trainer((8, 16), kind, **{**options, "seed": 99})
    assert other.load(tmp_path / "half.pt")["steps"].tolist() == [2, 1]
    step(other, 1)
    step(other, 2, 2)
    assert equal(state(whole), state(other))
    assert whole.steps.tolist() == other.steps.tolist() == [3, 3]
    assert [whole.get_lr(number) for number in (1, 2)] == [other.get_lr(number) for number in (1, 2)]


def test_the_order_of_the_data_goes_on_too(tmp_path):
    def with_data(**options):
        made = trainer(model={"condition_on_text": False}, **options)
        made.add_train_dataset(list(pictures(7)), batch_size=2, shuffle=True)
        return made

    whole = with_data()
    for _ in range(2):
        whole.train_step()
    whole.save(tmp_path / "a.pt")
    losses = [whole.train_step() for _ in range(5)]  # into the next epochs
    late = with_data(seed=1)
    late.load(tmp_path / "a.pt")
    early = trainer(model={"condition_on_text": False})
    early.load(tmp_path / "a.pt")  # before the data are there
    early.add_train_dataset(list(pictures(7)), batch_size=2, shuffle=True)
    for other in (late, early):
        assert [other.train_step() for _ in range(5)] == losses
        assert equal(state(whole), state(other))


# -- what is in a file ------------------------------------------------------------------------------------------------


def test_entries_have_the_names_that_people_know(tmp_path):
    made = trainer((8, 16), warmup_steps=2)
    step(made)
    made.save(tmp_path / "deep" / "er" / "a.pt", note="mine", numbers=[1, 2])
    contents = torch.load(tmp_path / "deep" / "er" / "a.pt", weights_only=True)
    known = {"model", "version", "steps", "ema", "imagen_type", "imagen_params", "state", "note", "numbers"}
    assert set(contents) == known | {f"{part}{index}" for part in ("optim", "scaler", "scheduler") for index in (0, 1)}
    assert contents["imagen_type"] == "original" and contents["note"] == "mine"
    made.save(tmp_path / "b.pt", without_optim_and_sched=True)
    assert set(read_checkpoint(tmp_path / "b.pt")) == known - {"note", "numbers"}
    assert os.listdir(tmp_path / "deep" / "er") == ["a.pt"]  # nothing temporary is left


@pytest.mark.parametrize("name", ["model", "optim0", "steps", "scheduler12", "version"])
def test_own_entries_cannot_be_replaced(tmp_path, name):
    with pytest.raises(ValueError, match=f'the entry "{name}" of a checkpoint is the trainer\'s own'):
        trainer().save(tmp_path / "a.pt", **{name: 1})


def test_entries_that_are_not_plain_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['mine'\] is a Unet: checkpoints hold only tensors"):
        trainer().save(tmp_path / "a.pt", mine=small_unet())
    assert os.listdir(tmp_path) == []


def test_nothing_is_replaced_unasked(tmp_path):
    made = trainer()
    made.save(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="exists already"):
        made.save(tmp_path / "a.pt", overwrite=False)


# -- opening again ----------------------------------------------------------------------------------------------------

PLAIN = {"channels": 1, "dynamic_thresholding": False}
MODELS = {
    "original": lambda: small_imagen((8, 16), noise_schedules=("cosine", "linear"), pred_objectives="v", **PLAIN),
    "elucidated": lambda: small_imagen((8, 16), ElucidatedImagen, sigma_max=(40, 80.5), lowres_residual=0.25),
    "unconditional": lambda: small_imagen((8,), condition_on_text=False),
    "config": lambda: ImagenConfig(
        unets=[SMALL], image_sizes=[8], text_encoder_name=WORDS, timesteps=2, cond_drop_prob=0.2
    ).create(),
    "preset": lambda: Imagen(
        [NullUnet(), SRUnet256(dim=8, num_resnet_blocks=1, attn_heads=2, attn_dim_head=8, attn_pool_text=False)],
        image_sizes=((8, 12), (16, 24)),
        text_encoder_name=WORDS,
        timesteps=2,
    ),
    "width": lambda: small_imagen((8,), unet={"text_embed_dim": 5}, text_embed_dim=5),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_opens_again_as_itself(tmp_path, name):
    imagen = MODELS[name]()
    with torch.no_grad():
        for item in imagen.parameters():
            item += 0.01
    made = ImagenTrainer(imagen, verbose=False)
    made.save(tmp_path / "a.pt")
    again = load_imagen_from_checkpoint(tmp_path / "a.pt")
    assert type(again) is type(imagen) and again.to_config() == imagen.to_config()
    assert [type(unet) for unet in again.unets] == [type(unet) for unet in imagen.unets]
    assert equal(again.state_dict(), imagen.state_dict())
    fresh = load_imagen_from_checkpoint(tmp_path / "a.pt", load_weights=False)
    assert not equal(fresh.state_dict(), imagen.state_dict())
    trained = ImagenTrainer(imagen_checkpoint_path=tmp_path / "a.pt", verbose=False)
    assert equal(trained.imagen.state_dict(), imagen.state_dict()) and trained.steps.tolist() == [0] * made.num_unets


def test_averaged_weights_on_request(tmp_path):
    made = trainer(ema_beta=0.5)
    step(made, count=3)
    made.save(tmp_path / "a.pt")
    averaged = load_imagen_from_checkpoint(tmp_path / "a.pt", load_ema_if_available=True).unets[0].state_dict()
    assert equal(averaged, made.get_ema_unet(1).state_dict())
    assert not equal(averaged, made.imagen.unets[0].state_dict())
    without = trainer(use_ema=False)
    without.save(tmp_path / "b.pt")
    again = load_imagen_from_checkpoint(tmp_path / "b.pt", load_ema_if_available=True)
    assert equal(again.state_dict(), without.imagen.state_dict())


def test_averages_begin_at_the_weights_of_a_checkpoint_without_them(tmp_path):
    made = trainer(use_ema=False)
    step(made)
    made.save(tmp_path / "a.pt")
    other = trainer()
    with pytest.warns(UserWarning, match="no averaged weights: the averages start from its weights"):
        other.load(tmp_path / "a.pt")
    assert equal(other.get_ema_unet(1).state_dict(), made.imagen.unets[0].state_dict())


def test_only_the_model_is_taken_if_wanted(tmp_path):
    made = trainer()
    step(made, count=2)
    made.save(tmp_path / "a.pt")
    other = trainer(lr=1e-5)
    other.load(tmp_path / "a.pt", only_model=True)
    assert equal(state(other), state(made))
    assert other.steps.tolist() == [0] and other.get_lr(1) == 1e-5 and not other.optim0.state


def test_files_of_one_unet_each_join_into_a_model(tmp_path):
    made = trainer((8, 16))
    step(made, 1)
    step(made, 2)
    for number in (1, 2):
        made.save(tmp_path / f"{number}.pt", unet_number=number)
    other = trainer((8, 16), seed=6)
    for number in (1, 2):
        other.load(tmp_path / f"{number}.pt")
    assert equal(state(other), state(made)) and other.steps.tolist() == [1, 1]
    with pytest.warns(UserWarning, match="holds a part of its model; the rest is untrained"):
        part = load_imagen_from_checkpoint(tmp_path / "1.pt")
    assert equal(part.unets[0].state_dict(), made.imagen.unets[0].state_dict())


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_another_model_is_refused_and_nothing_is_changed(tmp_path, capsys):
    wide = trainer(model={"unet": {"dim": 16}})
    wide.save(tmp_path / "a.pt")
    made = trainer(verbose=True)
    before = state(made)
    with pytest.raises(CheckpointMismatch, match=r"another model, nothing was loaded; model: of another shape \(\d+\)"):
        made.load(tmp_path / "a.pt")
    assert equal(state(made), before)
    made.load(tmp_path / "a.pt", strict=False)
    assert "loaded what fits; left out: model: of another shape" in capsys.readouterr().out
    fits = "unets.0.to_time_hiddens.0.weights"
    assert torch.equal(made.imagen.state_dict()[fits], wide.imagen.state_dict()[fits])


def test_missing_files(tmp_path):
    made = trainer()
    with pytest.raises(CheckpointMissing, match=f"no checkpoint at {tmp_path}/none.pt"):
        made.load(tmp_path / "none.pt")
    assert made.load(tmp_path / "none.pt", noop_if_not_exist=True) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_imagen_from_checkpoint(tmp_path / "none.pt")


class _Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Evil()}, "zip.pt")
    with open("raw.pt", "wb") as file:
        pickle.dump({"model": _Evil()}, file)
    for name, message in (("zip.pt", "could run code; nothing was executed"), ("raw.pt", "another kind of file")):
        for load in (trainer().load, load_imagen_from_checkpoint):
            with pytest.raises(CheckpointError, match=message):
                load(name)
    assert sorted(os.listdir()) == ["raw.pt", "zip.pt"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_damage_has_a_sentence(tmp_path, damage):
    made = trainer()
    made.save(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(damage((tmp_path / "a.pt").read_bytes()))
    with pytest.raises(CheckpointError, match="a.pt: it is cut off, damaged or another kind of file"):
        made.load(tmp_path / "a.pt")


def test_a_changed_byte_is_found(tmp_path):
    made = trainer()
    made.save(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        contents = archive.read(largest)
    data = (tmp_path / "a.pt").read_bytes()
    place = data.index(contents) + len(contents) // 2
    (tmp_path / "a.pt").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(CheckpointError, match=f"the checksum of its entry {largest.filename} is wrong"):
        made.load(tmp_path / "a.pt")


# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_keeps_the_newest_and_training_goes_on_from_it(tmp_path, remote):
    folder = f"memory://{tmp_path.name}" if remote else str(tmp_path / "runs")
    options = {"checkpoint_path": folder, "checkpoint_every": 2, "max_checkpoints_keep": 2}
    made = trainer((8, 16), **options)
    step(made, 1, 9)
    step(made, 2, 3)
    names = [path.rsplit("/", 1)[1] for path in made.all_checkpoints_sorted]
    assert names == ["checkpoint.12.pt", "checkpoint.10.pt"]  # by number, not by spelling
    made.fs.pipe_file(f"{made.store.folder}/other.pt", b"not ours")
    again = trainer((8, 16), **options)
    assert again.steps.tolist() == [9, 3] and equal(state(again), state(made))
    again.load_from_checkpoint_folder(last_total_steps=10)
    assert again.steps.tolist() == [9, 1]
    assert made.fs.exists(f"{made.store.folder}/other.pt")


def test_a_damaged_newest_file_is_passed_over(tmp_path):
    made = trainer(checkpoint_path=tmp_path, checkpoint_every=1)
    step(made, count=2)
    made.wait_for_saves()
    newest = tmp_path / "checkpoint.2.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="checkpoint.2.pt.* the one before it is taken instead"):
        again = trainer(checkpoint_path=tmp_path, checkpoint_every=1)
    assert again.steps.tolist() == [1]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    made = trainer()
    made.save(tmp_path / "a.pt")
    old = (tmp_path / "a.pt").read_bytes()
    step(made)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; what was there before is untouched"):
        made.save(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == old and os.listdir(tmp_path) == ["a.pt"]


def test_folder_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint folder: give it checkpoint_path and checkpoint_every"):
        trainer().save_to_checkpoint_folder()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the checkpoint folder"):
        trainer(checkpoint_path=tmp_path / "file", checkpoint_every=1)


def test_a_ready_filesystem_is_used(tmp_path):
    fs = fsspec.filesystem("memory")
    made = trainer(checkpoint_fs=fs)
    made.save(f"/{tmp_path.name}/a.pt")
    assert fs.exists(f"/{tmp_path.name}/a.pt") and trainer(checkpoint_fs=fs).load(f"/{tmp_path.name}/a.pt")


def test_a_version_difference_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("imagen_pytorch.training.state.__version__", "0.0.1")
    trainer().save(tmp_path / "a.pt")
    monkeypatch.undo()
    trainer(verbose=True).load(tmp_path / "a.pt")
    assert "the checkpoint is of version 0.0.1, this is version" in capsys.readouterr().out


def test_an_encoder_object_is_not_written_down(tmp_path):
    imagen = small_imagen(text_encoder=text_encoder(WORDS))
    ImagenTrainer(imagen, verbose=False).save(tmp_path / "a.pt")
    assert load_imagen_from_checkpoint(tmp_path / "a.pt").text_encoder.dim == 16

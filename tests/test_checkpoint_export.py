"""A model to share: the weights that sample, and the description of the model, and nothing else."""

from __future__ import annotations

import json
import os

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from toys import small_imagen

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointNotWritten, export_model, read_checkpoint, write_checkpoint
from imagen_pytorch.cli import main


@pytest.fixture
def trained(tmp_path):
    """A checkpoint whose averages differ from its weights, after two steps of the first of two U-Nets."""
    imagen = small_imagen((8, 16), condition_on_text=False)
    trainer = ImagenTrainer(imagen, lr=1e-2, ema_update_every=1, ema_update_after_step=0, verbose=False)
    for _ in range(2):
        trainer(torch.rand(2, 3, 8, 8), unet_number=1)
        trainer.update(unet_number=1)
    trainer.save(tmp_path / "imagen.pt")
    return tmp_path / "imagen.pt"


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_file_holds_the_weights_that_sample(trained, tmp_path, suffix, averaged):
    export_model(trained, tmp_path / f"a{suffix}", half=False, averaged=averaged)
    found = load_imagen_from_checkpoint(tmp_path / f"a{suffix}").state_dict()
    wanted = load_imagen_from_checkpoint(trained, load_ema_if_available=averaged).state_dict()
    other = load_imagen_from_checkpoint(trained, load_ema_if_available=not averaged).state_dict()
    assert all(torch.equal(found[name], item) for name, item in wanted.items())
    assert not all(torch.equal(found[name], item) for name, item in other.items())
    contents = read_checkpoint(tmp_path / f"a{suffix}")
    assert set(contents) == {"version", "imagen_type", "imagen_params", "steps", "model"}
    assert contents["steps"].tolist() == [2, 0]


def test_a_file_describes_itself_to_other_tools(trained, tmp_path):
    """By the keys that ModelSpec 1.0.1 demands of models of images, in the header of the file."""
    export_model(trained, tmp_path / "two stages.safetensors")
    with safe_open(tmp_path / "two stages.safetensors", "pt") as file:
        header = file.metadata()
    assert {name.partition(".")[2]: text for name, text in header.items() if name.startswith("modelspec.")} == {
        "sai_model_spec": "1.0.1",
        "architecture": "imagen-cascade/original",
        "implementation": "imagen-pytorch",
        "title": "two stages",
        "resolution": "16x16",
    }
    assert json.loads(header["imagen.config"]) == read_checkpoint(trained)["imagen_params"]


def test_half_precision_rounds_once_and_halves_the_file(trained, tmp_path):
    export_model(trained, tmp_path / "half.pt")
    export_model(trained, tmp_path / "full.pt", half=False)
    half, full = (load_imagen_from_checkpoint(tmp_path / f"{name}.pt").state_dict() for name in ("half", "full"))
    assert all(half[name].dtype == item.dtype for name, item in full.items())
    assert all(torch.equal(half[name], item.half().to(item.dtype)) for name, item in full.items())
    weights = sum(item.nbytes for item in full.values())
    assert (tmp_path / "full.pt").stat().st_size - (tmp_path / "half.pt").stat().st_size > 0.48 * weights


def test_weights_that_half_precision_cannot_hold(trained, tmp_path):
    contents = read_checkpoint(trained)
    name = next(iter(contents["model"]))
    contents["model"][name] = torch.full_like(contents["model"][name], 1e5)
    del contents["ema"]
    write_checkpoint(contents, tmp_path / "large.pt")
    with pytest.raises(ValueError, match=rf"beyond the range of float16 \(1\): {name}; pass half=False"):
        export_model(tmp_path / "large.pt", tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()
    export_model(tmp_path / "large.pt", tmp_path / "a.pt", half=False)


@pytest.mark.parametrize(("name", "stays"), [("emoji64", True), ("/home/me/pictures", False), (["emoji64"], False)])
def test_only_embedded_data_are_named(trained, tmp_path, name, stays):
    source = {"name": name, "arguments": {"split": "train"}}
    write_checkpoint({**read_checkpoint(trained), "data_source": source}, tmp_path / "named.pt")
    export_model(tmp_path / "named.pt", tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").get("data_source") == (source if stays else None)


def test_one_unet_of_a_model_stays_one(tmp_path):
    trainer = ImagenTrainer(small_imagen((8, 16), condition_on_text=False), verbose=False)
    trainer.save(tmp_path / "part.pt", unet_number=2)
    with pytest.warns(UserWarning, match="part of its model"):
        export_model(tmp_path / "part.pt", tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="part of its model"):
        load_imagen_from_checkpoint(tmp_path / "a.pt")


def test_a_file_is_replaced_only_where_that_is_asked_for(trained, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"mine")
    with pytest.raises(CheckpointNotWritten, match="exists already"):
        export_model(trained, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == b"mine"
    export_model(trained, tmp_path / "a.pt", overwrite=True)
    load_imagen_from_checkpoint(tmp_path / "a.pt")


def test_the_command_takes_the_newest_model_and_prints_the_file(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export"])
    assert (done.exit_code, done.stdout) == (0, "./model.safetensors\n"), done.stderr
    assert read_checkpoint("model.safetensors")["model"]["unets.0.final_conv.weight"].dtype == torch.float16
    again = CliRunner().invoke(main, ["export"])
    assert again.exit_code == 2 and "model.safetensors exists already; --force replaces it" in again.stderr
    os.mkdir("shared")
    done = CliRunner().invoke(main, ["export", "--full", "--no-load-ema", "-o", "shared"])
    assert (done.exit_code, done.stdout) == (0, "shared/model.safetensors\n"), done.stderr
    assert read_checkpoint("shared/model.safetensors")["model"]["unets.0.final_conv.weight"].dtype == torch.float32


def test_the_command_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export", "nothing.pt"])
    assert done.exit_code == 2 and "no model at nothing.pt" in done.stderr and not os.listdir(tmp_path)

"""A model writes itself to a file or a folder and is opened again, without a connection."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from toys import small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointMismatch, CheckpointMissing, CheckpointNotWritten

TEXTS = ["a red heart", "a blue car"]


@pytest.fixture
def offline(monkeypatch):
    """Refuses every connection."""

    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def weights_of_a_loop_of_ones_own() -> Imagen:
    """A model after two steps of plain torch."""
    imagen = small_imagen((8, 16))
    optimizer = torch.optim.Adam(imagen.parameters(), lr=1e-2)
    for number in (1, 2):
        imagen(torch.rand(2, 3, 16, 16), texts=TEXTS, unet_number=number).backward()
        optimizer.step()
    return imagen.eval()


def same(first, second) -> bool:
    return all(torch.equal(item, second.state_dict()[name]) for name, item in first.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_a_loop_of_ones_own_open_again(suffix, tmp_path):
    imagen = weights_of_a_loop_of_ones_own()
    imagen.save(tmp_path / f"a{suffix}")
    opened = load_imagen_from_checkpoint(tmp_path / f"a{suffix}")
    assert type(opened) is Imagen and same(imagen, opened) and opened.to_config() == imagen.to_config()
    drawn = [model.eval().sample(texts=TEXTS, seed=1, use_tqdm=False) for model in (imagen, opened)]
    assert torch.equal(*drawn)
    trainer = ImagenTrainer(small_imagen((8, 16)), verbose=False)
    trainer.load(tmp_path / f"a{suffix}", only_model=True)
    assert same(imagen, trainer.imagen)
    with pytest.raises(CheckpointNotWritten, match="exists already"):
        imagen.save(tmp_path / f"a{suffix}", overwrite=False)


def test_half_precision_is_rounded_once_and_must_be_able_to_hold_the_weights(tmp_path):
    imagen = small_imagen()
    imagen.save(tmp_path / "full.pt")
    imagen.save(tmp_path / "half.pt", half=True)
    opened = load_imagen_from_checkpoint(tmp_path / "half.pt").state_dict()
    assert all(torch.equal(opened[name], item.half().float()) for name, item in imagen.state_dict().items())
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * (tmp_path / "full.pt").stat().st_size
    with torch.no_grad():
        next(imagen.parameters()).fill_(1e5)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        imagen.save(tmp_path / "half.pt", half=True)
    with torch.no_grad():
        next(imagen.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        imagen.save(tmp_path / "full.pt")
    assert load_imagen_from_checkpoint(tmp_path / "half.pt")


def test_a_model_with_an_encoder_of_ones_own_opens_with_it(tmp_path):
    encoder = lambda texts: torch.ones(len(texts), 3, 16)  # noqa: E731
    imagen = small_imagen(text_encoder_name=None, text_encoder=encoder)
    imagen.save(tmp_path / "a.pt")
    imagen.save_pretrained(tmp_path / "folder")
    for opened in (
        load_imagen_from_checkpoint(tmp_path / "a.pt", text_encoder=encoder),
        Imagen.from_pretrained(tmp_path / "folder", text_encoder=encoder),
    ):
        assert torch.equal(opened.encode_text(["x"]), torch.ones(1, 3, 16))


def test_a_folder_for_the_hub_opens_without_a_connection(tmp_path, offline):
    imagen, folder = small_imagen((8, 16)), tmp_path / "mine"
    imagen.save_pretrained(folder, half=True, card={"license": "mit", "Training data": "Emoji. <b>Bold</b> --- {{x}}"})
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text()) == imagen.to_config()
    opened = Imagen.from_pretrained(folder)
    assert not opened.training
    found = opened.state_dict()
    assert all(torch.equal(found[name], item.half().float()) for name, item in imagen.state_dict().items())
    card = (folder / "README.md").read_text()
    counts = [f"{sum(item.numel() for item in unet.parameters()):,}" for unet in imagen.unets]
    for fact in ("license: mit", "pipeline_tag: text-to-image", "8x8 -> 16x16", *counts, imagen.text_encoder_name):
        assert fact in card
    assert "## Training data\n\nEmoji. <b>Bold</b> --- {{x}}" in card
    (folder / "README.md").write_text("my own")
    imagen.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own" and same(imagen, Imagen.from_pretrained(str(folder)))


def test_a_folder_of_another_model_or_of_none(tmp_path, offline):
    small_imagen().save_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointMismatch, match=r"holds an Imagen: open it with Imagen\.from_pretrained"):
        ElucidatedImagen.from_pretrained(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointMissing):
        Imagen.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="none"):
        Imagen.from_pretrained(tmp_path / "none")


def test_what_is_uploaded_is_the_folder(monkeypatch):
    seen = {}

    class Hub:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            seen.update(repo=repo_id, files={path.name for path in folder_path.iterdir()})
            return "https://huggingface.co/me/mine/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert small_imagen().push_to_hub("me/mine", token="secret").endswith("commit/1")
    assert seen == {
        "token": "secret",
        "repo": "me/mine",
        "files": {"README.md", "config.json", "model.safetensors"},
    }

"""Files that are whole, and yet no checkpoint of a model: each has a sentence."""

from __future__ import annotations

import pytest
import torch
from toys import small_imagen

from imagen_pytorch import load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointError, CheckpointMismatch, write_checkpoint

NOT_MODELS = {
    "does not say how its model was made": [{}, {"model": {"a": torch.zeros(1)}}, {"imagen_params": [1]}],
    "describes a model that cannot be built": [
        {"imagen_params": {"unets": 5}},
        {"imagen_params": {"image_sizes": [8]}},
        {"imagen_params": {}, "imagen_type": [None]},
        {"imagen_params": {"no_such_option": 1}},
    ],
}


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("message", NOT_MODELS)
def test_contents_that_describe_no_model(tmp_path, kind, message):
    for contents in NOT_MODELS[message]:
        write_checkpoint(contents, tmp_path / f"a.{kind}")
        with pytest.raises(CheckpointError, match=rf"a\.{kind} {message}"):
            load_imagen_from_checkpoint(tmp_path / f"a.{kind}")


def test_weights_that_are_none(tmp_path):
    imagen = small_imagen((8,))
    described = {"imagen_params": imagen.to_config(), "imagen_type": "original"}
    for weights in (
        {},
        {"model": None},
        {"model": [torch.zeros(1)]},
        {"model": {"a": 1}},
        {"model": {1: torch.ones(1)}},
    ):
        write_checkpoint({**described, **weights}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r'a.pt has no weights under "model"; it is not a checkpoint of a'):
            load_imagen_from_checkpoint(tmp_path / "a.pt")
    write_checkpoint({**described, "model": {}, "state": None}, tmp_path / "a.pt")
    with pytest.raises(CheckpointMismatch, match="missing in the file"):
        load_imagen_from_checkpoint(tmp_path / "a.pt")
    write_checkpoint({**described, "model": imagen.state_dict(), "ema": {"0.x": 1}}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match='no weights under "ema"'):
        load_imagen_from_checkpoint(tmp_path / "a.safetensors", load_ema_if_available=True)
    again = load_imagen_from_checkpoint(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(again[name], item) for name, item in imagen.state_dict().items())

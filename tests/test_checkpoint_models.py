"""Files that are whole, and yet no checkpoint of a model: each has a sentence."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from storage_toys import NEEDS_FORK, in_child, outcome
from toys import small_imagen

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
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


def described(imagen, **more):
    return {"imagen_params": imagen.to_config(), "imagen_type": "original", "model": imagen.state_dict(), **more}


NAME = "unets.0.final_conv.bias"
ODD_NUMBERS = {
    "nan": (lambda item: torch.full_like(item, math.nan), rf"not finite \(NaN or infinity; 1\): {NAME}; take"),
    "too large in the precision of the model": (lambda item: torch.full_like(item.double(), 1e300), "not finite"),
    "infinity": (lambda item: torch.full_like(item, math.inf), "not finite"),
    "int8": (lambda item: item.to(torch.int8), rf"another kind of number \(1\): {NAME}: int8 in the file"),
    "bool": (lambda item: item.bool(), "another kind of number"),
    "complex": (lambda item: item.to(torch.complex64), "another kind of number"),
}


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("odd", ODD_NUMBERS)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, odd, averaged):
    change, message = ODD_NUMBERS[odd]
    imagen = small_imagen((8,), condition_on_text=False)
    contents = described(imagen)
    if averaged:
        contents["ema"] = {"0.ema_model.final_conv.bias": change(contents["model"][NAME])}
    else:
        contents["model"] = {**contents["model"], NAME: change(contents["model"][NAME])}
    write_checkpoint(contents, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_imagen_from_checkpoint(tmp_path / "a.pt", load_ema_if_available=averaged)
    load_imagen_from_checkpoint(tmp_path / "a.pt", load_weights=False)
    if averaged:
        load_imagen_from_checkpoint(tmp_path / "a.pt")


def test_other_floating_types_are_taken(tmp_path):
    imagen = small_imagen((8,), condition_on_text=False)
    contents = described(imagen)
    contents["model"] = {name: item.bfloat16() for name, item in contents["model"].items()}
    write_checkpoint(contents, tmp_path / "a.pt")
    again = load_imagen_from_checkpoint(tmp_path / "a.pt").state_dict()
    assert all(torch.equal(again[name], item.float()) for name, item in contents["model"].items())


def test_an_encoder_of_ones_own(tmp_path):
    def encode(texts):
        return torch.ones(len(texts), 3, 12)

    imagen = small_imagen((8,), text_encoder=encode, unet={"text_embed_dim": 12})
    write_checkpoint(described(imagen), tmp_path / "a.pt")
    again = load_imagen_from_checkpoint(tmp_path / "a.pt", text_encoder=encode)
    assert torch.equal(again.encode_text(["a"]), torch.ones(1, 3, 12))
    assert again.sample(["a"], use_tqdm=False).shape == (1, 3, 8, 8)
    with pytest.raises(CheckpointError, match="describes a model that cannot be built"):
        load_imagen_from_checkpoint(tmp_path / "a.pt", text_encoder=3)


# -- memory is taken when names, shapes and numbers have been compared ------------------------------------------------


def large_description(folder):
    """Files of a few hundred kilobytes that describe models of gigabytes, each with the message about it."""
    large = {"unets": [{"dim": 1100, "cond_on_text": False}], "image_sizes": [16], "condition_on_text": False}
    one = torch.zeros(1 << 16)
    aliases = {f"unets.0.w{number}": one for number in range(1000)}
    files = {
        "aliases": ({"imagen_params": large, "model": aliases}, "nothing to do with what it holds"),
        "other names": (
            {"imagen_params": {**large, "unets": [{"dim": 96}]}, "model": {"a": torch.zeros(3)}},
            "does not fit the model it describes|nothing to do",
        ),
    }
    for name, (contents, _) in files.items():
        write_checkpoint(contents, folder / f"{name}.pt")
    return {name: message for name, (_, message) in files.items()}


def opened(paths):
    """What opening each file gives, with 500 MB of memory to spare."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (500 << 20),) * 2)
    doors = (load_imagen_from_checkpoint, lambda path: ImagenTrainer(imagen_checkpoint_path=path))
    return [[outcome(door, path) for door in doors] for path in paths]


@NEEDS_FORK
def test_a_description_takes_no_memory_before_it_is_compared(tmp_path):
    messages = large_description(tmp_path)
    outcomes = in_child(opened, [tmp_path / f"{name}.pt" for name in messages])
    for found, message in zip(outcomes, messages.values(), strict=True):
        for answer in found:
            assert isinstance(answer, tuple) and any(part in answer[1] for part in message.split("|")), answer

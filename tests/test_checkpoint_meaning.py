"""A checkpoint is compared by what its weights mean, not by their names and shapes alone."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointMismatch
from imagen_pytorch.imagen import CASCADES
from imagen_pytorch.nn.presets import UNETS
from imagen_pytorch.training.meaning import CASCADE, MEANING, NETWORK, SHAPES, changes

KINDS = {"original": Imagen, "elucidated": ElucidatedImagen}


def named(target):
    """The names of a constructor's arguments, those of its bases included where it hands others on."""
    found = set()
    for base in target.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("imagen_pytorch"):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {item.name for item in parameters if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)}
    return found - {"self"}


def described(cascade):
    config = copy.deepcopy(cascade.to_config())
    return {"imagen_type": config.pop("type"), "imagen_params": config}


# -- every argument is classified -------------------------------------------------------------------------------------


def test_every_argument_of_every_cascade_is_classified():
    """Add a new argument to the table: does it change what the weights mean, or only training or sampling?"""
    names = {name for kind in CASCADES for name in inspect.signature(CASCADES[kind].__init__).parameters}
    assert names - {"self"} == CASCADE.keys()


def test_every_argument_of_every_network_is_classified():
    assert set().union(*(named(UNETS[kind]) for kind in UNETS)) == NETWORK.keys()


#: a value that no default is
OTHER = {
    "text_encoder_name": "builtin:letters",
    "self_cond": True,
    "noise_schedules": "linear",
    "pred_objectives": "x_start",
    "lowres_noise_schedule": "cosine",
    "image_sizes": [4, 12],
    "loss_type": "l1",
    "loss_space": "v",
    "sampler": "ddim",
    "random_crop_sizes": [None, 4],
    "resize_mode": "nearest",
    "temporal_resize_mode": "nearest",
    "guidance": "apg",
    "only_train_unet_number": 1,
    "timesteps": 7,
}


def other(name, usual):
    if name in OTHER:
        return OTHER[name]
    return not usual if isinstance(usual, bool) else (usual or 0) + 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_that_differs_is_found_and_said_with_both_values(kind):
    model = small_imagen((8, 16), KINDS[kind])
    own, usual = described(model), inspect.signature(KINDS[kind].__init__).parameters
    assert changes(own, model, [1, 2]) == ([], [])
    for name in usual.keys() - {"self", "text_encoder"}:
        if CASCADE[name] == SHAPES:
            continue
        found = copy.deepcopy(own)
        present = found["imagen_params"].get(name, usual[name].default)
        found["imagen_params"][name] = value = other(name, present)
        meaning, rest = changes(found, model, [1, 2])
        lines = meaning if CASCADE[name] == MEANING else rest
        assert lines and not (meaning and rest), name
        assert all(line.startswith(name) and "the checkpoint has" in line for line in lines), lines
        assert str(value) in lines[0] or isinstance(value, list), lines


def test_every_argument_of_a_network_that_differs_is_found():
    model = small_imagen((8,))
    own, usual = described(model), inspect.signature(UNETS["Unet"].__init__).parameters
    for name in usual.keys() - {"self"}:
        if NETWORK[name] == SHAPES:
            continue
        found = copy.deepcopy(own)
        unet = found["imagen_params"]["unets"][0]
        unet[name] = other(name, unet.get(name, usual[name].default)) if name != "resize_mode" else "bicubic"
        meaning, rest = changes(found, model, [1])
        (line,) = meaning if NETWORK[name] == MEANING else rest
        assert line.startswith(f"{name} of U-Net 1: ")


def test_another_spelling_of_the_same_model_is_the_same():
    model = small_imagen((8, 16), noise_schedules="cosine", pred_objectives=("noise", "noise"), sampler="ddpm")
    found = described(model)
    found["imagen_params"] |= {
        "noise_schedules": ["cosine", "cosine"],
        "pred_objectives": "noise",
        "sampler": ["ddpm", "ddpm"],
        "image_sizes": [[8, 8], [16, 16]],
        "timesteps": [2, 2],
        "cond_drop_prob": 0.1,
    }
    found["imagen_params"]["unets"][0] |= {"attn_heads": 2, "dropout": 0.0, "layer_attns_depth": 1}
    assert changes(found, model, [1, 2]) == ([], [])


def test_only_the_unets_in_the_file_are_compared():
    model = small_imagen((8, 16), pred_objectives=("noise", "v"))
    found = described(model)
    found["imagen_params"]["pred_objectives"] = ["x_start", "v"]
    assert changes(found, model, [2]) == ([], [])
    (line,) = changes(found, model, [1, 2]).meaning
    assert line == "pred_objectives of U-Net 1: 'noise' (the checkpoint has 'x_start')"


@pytest.mark.parametrize("junk", [None, 5, [], {}, {"unets": 3}, {"unets": [3]}, {"unets": [{"type": 5}]}])
def test_what_describes_nothing_is_passed_over(junk):
    changes({"imagen_params": junk, "imagen_type": 7}, small_imagen(), [1])


def test_tensors_in_a_description_are_refused():
    model = small_imagen()
    found = described(model)
    found["imagen_params"]["cond_drop_prob"] = torch.zeros(3)
    assert changes(found, model, [1]).meaning


# -- at the door ------------------------------------------------------------------------------------------------------


def trainer(kind=Imagen, **model):
    return ImagenTrainer(small_imagen((8,), kind, **model), lr=1e-3, verbose=False, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = trainer()
    made(pictures(), texts=CAPTIONS)
    made.update()
    made.save(tmp_path_factory.mktemp("meaning") / "a.pt")
    return tmp_path_factory.getbasetemp() / "meaning0" / "a.pt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pred_objectives": "v"}, "pred_objectives: 'v' (the checkpoint has 'noise')"),
        ({"noise_schedules": "linear"}, "noise_schedules: 'linear' (the checkpoint has 'cosine')"),
        ({"auto_normalize_img": False}, "auto_normalize_img: False (the checkpoint has True)"),
        ({"kind": ElucidatedImagen}, "type of model: 'elucidated' (the checkpoint has 'original')"),
        ({"unet": {"resnet_groups": 4}}, "resnet_groups of U-Net 1: 4 (the checkpoint has 8)"),
    ],
)
def test_another_meaning_is_refused_unless_it_is_asked_for(path, change, said):
    made = trainer(**change)
    before = {name: item.clone() for name, item in made.state_dict().items()}
    with pytest.raises(CheckpointMismatch) as caught:
        made.load(path)
    assert said in str(caught.value) and "nothing was loaded" in str(caught.value)
    assert all(torch.equal(item, before[name]) for name, item in made.state_dict().items()) and not made.optim0.state
    made.load(path, only_model=True)
    assert said in made.resume_notes and made.steps.tolist() == [0]
    made.load(path, strict=False)
    assert said in made.resume_notes and made.steps.tolist() == [1] and made.optim0.state


def test_what_only_concerns_training_or_sampling_is_free_and_said(path):
    made = trainer(timesteps=3, sampler="ddim", loss_type="l1", cond_drop_prob=0.2, image_sizes=16)
    made.load(path)
    assert sorted(made.resume_notes) == [
        "cond_drop_prob: 0.2 (the checkpoint has 0.1)",
        "image_sizes: [16, 16] (the checkpoint has [8, 8])",
        "loss_type: 'l1' (the checkpoint has 'l2')",
        "sampler: 'ddim' (the checkpoint has 'ddpm')",
        "timesteps: 3 (the checkpoint has 2)",
    ]


def test_a_checkpoint_without_a_description_is_compared_by_shapes(path, tmp_path):
    from imagen_pytorch.checkpoint import read_checkpoint, write_checkpoint

    contents = read_checkpoint(path)
    del contents["imagen_params"], contents["imagen_type"]
    write_checkpoint(contents, tmp_path / "b.pt")
    made = trainer(pred_objectives="v")
    made.load(tmp_path / "b.pt")
    assert made.steps.tolist() == [1]

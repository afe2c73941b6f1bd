"""Configuration classes: defaults live in the constructors, mistakes are named where they are."""

from __future__ import annotations

import inspect
import json

import pytest

from imagen_pytorch import (
    ElucidatedImagen,
    ElucidatedImagenConfig,
    Imagen,
    ImagenConfig,
    ImagenTrainer,
    ImagenTrainerConfig,
    NullUnet,
    Unet,
    Unet3D,
    UnetConfig,
)
from imagen_pytorch.configs import NoiseSchedule, NullUnetConfig, TrainingConfig, loader_arguments, unet_model
from imagen_pytorch.diffusion.schedules import SCHEDULES
from imagen_pytorch.nn.presets import UNETS
from imagen_pytorch.signatures import ConfigError, Configuration, constructor_arguments, parse

SMALL = {"dim": 8, "dim_mults": [1, 2], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}


def small(**changes) -> dict:
    """A model of one U-Net that needs no files."""
    return {"unets": [SMALL], "image_sizes": [8], "text_encoder_name": "builtin:words", **changes}


def training(**changes) -> dict:
    return {"imagen": small(), **changes}


# -- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (UnetConfig, Unet),
        (ImagenConfig, Imagen),
        (ElucidatedImagenConfig, ElucidatedImagen),
        (ImagenTrainerConfig, ImagenTrainer),
    ],
)
def test_defaults_are_those_of_the_class(model, target):
    own = {"unets", "text_encoder", "imagen", "imagen_checkpoint_path"}
    for name, item in inspect.signature(target.__init__).parameters.items():
        if name in own | {"self"} or item.kind == item.VAR_KEYWORD:
            continue
        field = model.model_fields[name]
        assert field.is_required() == (item.default is item.empty), name
        if not field.is_required():
            assert field.get_default(call_default_factory=True) == item.default, name


@pytest.mark.parametrize("name", [name for name in UNETS.names() if name != "NullUnet"])
def test_every_network_has_a_model(name):
    """Presets too, which take everything that their parent takes and have arguments and defaults of their own."""
    fields = unet_model(name).model_fields
    own, parents = (inspect.signature(kind.__init__).parameters for kind in (UNETS[name], Unet))
    passed_on = {argument for argument, item in own.items() if item.kind == item.VAR_KEYWORD}
    assert set(fields) == {*own, *parents} - passed_on - {"self"} | {"type"}
    for argument, default in getattr(UNETS[name], "defaults", {}).items():
        assert fields[argument].default == default


def test_arguments_are_followed_to_the_parents():
    class Parent:
        def __init__(self, *, size: int, depth: int = 2) -> None: ...

    class Child(Parent):
        defaults = {"size": 3}

        def __init__(self, depth: int = 5, **rest: int) -> None: ...

    assert constructor_arguments(Parent) == {"size": (int, ...), "depth": (int, 2)}
    assert constructor_arguments(Child) == {"depth": (int, 5), "size": (int, 3)}


def test_only_what_was_given_reaches_the_constructor():
    """A default that changes later must not be frozen into a checkpoint."""
    imagen = ImagenConfig(**small()).create()
    assert set(imagen._locals) == {"image_sizes", "text_encoder_name"}
    preset = ImagenConfig(**small(unets=[{**SMALL, "type": "SRUnet256", "num_resnet_blocks": 1}])).create()
    assert "memory_efficient" not in preset.unets[0]._locals and type(preset.unets[0]).__name__ == "SRUnet256"


# -- creation ---------------------------------------------------------------------------------------------------------


def test_a_network():
    unet = UnetConfig(**SMALL).create()
    assert type(unet) is Unet and unet._locals["dim"] == 8


@pytest.mark.parametrize(
    "null", [{"is_null": True}, NullUnetConfig(is_null=True), {"type": "NullUnet"}, {"is_null": True, "type": "Unet"}]
)
def test_a_placeholder(null):
    imagen = ImagenConfig(**small(unets=[null, SMALL], image_sizes=[4, 8])).create()
    assert isinstance(imagen.unets[0], NullUnet) and isinstance(imagen.unets[1], Unet)


@pytest.mark.parametrize("model", [ImagenConfig, ElucidatedImagenConfig])
def test_video_makes_video_networks_of_those_that_say_nothing_else(model):
    config = model(**small(video=True, unets=[SMALL, {**SMALL, "temporal_strides": [1, 2]}], image_sizes=[4, 8]))
    imagen = config.create()
    assert imagen.is_video and [type(unet) for unet in imagen.unets] == [Unet3D, Unet3D]
    assert imagen.unets[1].strides == (1, 2)
    again = model(**imagen._config).create()
    assert [type(unet) for unet in again.unets] == [Unet3D, Unet3D] and again.unets[1].strides == (1, 2)
    with pytest.raises(ValueError, match="all Unet .images. or all Unet3D .videos., got both"):
        model(**small(video=True, unets=[SMALL, {**SMALL, "type": "Unet"}], image_sizes=[4, 8])).create()
    assert not ImagenConfig(**small()).create().is_video


def test_a_trainer_of_a_video_model():
    trainer = ImagenTrainerConfig(imagen=small(), video=True, elucidated=True).create()
    assert type(trainer.imagen) is ElucidatedImagen and type(trainer.imagen.unets[0]) is Unet3D


@pytest.mark.parametrize(("model", "target"), [(ImagenConfig, Imagen), (ElucidatedImagenConfig, ElucidatedImagen)])
def test_a_model_remembers_its_configuration(model, target):
    unets = [UnetConfig(**SMALL), {**SMALL, "type": "BaseUnet64"}]
    config = model(**small(cond_drop_prob=0.25, unets=unets, image_sizes=[4, 8]))
    imagen = config.create()
    assert type(imagen) is target and imagen.cond_drop_prob == 0.25
    assert imagen._config["cond_drop_prob"] == 0.25
    assert [unet["type"] for unet in imagen._config["unets"]] == ["Unet", "BaseUnet64"]
    again = model(**json.loads(json.dumps(imagen._config))).create()
    assert again.to_config() | {"unets": 0} == again.to_config() | {"unets": 0}
    assert {name: item.shape for name, item in again.state_dict().items()} == {
        name: item.shape for name, item in imagen.state_dict().items()
    }


def test_one_network_without_a_list():
    assert len(ImagenConfig(**small(unets=SMALL, image_sizes=8)).create().unets) == 1
    assert ImagenConfig(**small(image_sizes=[8, 12])).create().image_sizes == ((8, 12),)


def test_schedules_as_an_enum():
    assert {item.value for item in NoiseSchedule} == set(SCHEDULES.names())
    imagen = ImagenConfig(**small(noise_schedules=NoiseSchedule.linear)).create()
    assert imagen.to_config()["noise_schedules"] == "linear"


def test_numbers_of_the_edm_process_may_be_fractions():
    values = dict(sigma_max=80.5, rho=6.5, S_churn=40.25, S_tmax=49.5)
    imagen = ElucidatedImagenConfig(**small(**values)).create()
    assert imagen.hparams[0]._asdict().items() >= values.items()


@pytest.mark.parametrize(("elucidated", "target"), [(False, Imagen), (True, ElucidatedImagen)])
def test_a_trainer(elucidated, target):
    config = ImagenTrainerConfig(imagen=small(), elucidated=elucidated, lr=3e-4, ema_beta=0.99, weight_decay=0.01)
    trainer = config.create()
    assert isinstance(trainer, ImagenTrainer) and type(trainer.imagen) is target
    assert trainer.get_lr(1) == pytest.approx(3e-4)


def test_a_training_file_makes_a_trainer():
    dataset = {"batch_size": 3, "split": "train"}
    config = parse(TrainingConfig, training(type="elucidated", trainer={"lr": [2e-4]}, dataset=dataset))
    trainer = config.create(lr=1e-3)
    assert type(trainer.imagen) is ElucidatedImagen and trainer.get_lr(1) == pytest.approx(1e-3)
    assert config.split_dataset_arguments() == ({"batch_size": 3}, {"split": "train"})
    assert {"batch_size", "shuffle", "num_workers"} <= loader_arguments()


def test_a_training_file_needs_little():
    config = parse(TrainingConfig, training())
    assert (config.type, config.dataset_name, config.checkpoint_path) == ("original", "emoji64", "./imagen.pt")
    assert config.url_label is config.text_label is config.image_label is None
    assert config.total_steps(1) is None and parse(TrainingConfig, training(steps=[7])).total_steps(1) == 7


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown key of the file": (training(datasets={}), r'^unknown key "datasets"; did you mean "dataset"\?$'),
    "unknown key of the model": (
        training(imagen=small(image_size=8)),
        r'^imagen: unknown key "image_size"; did you mean "image_sizes"',
    ),
    "unknown key of a network": (
        training(imagen=small(unets=[{**SMALL, "dimm": 3}])),
        r'^imagen\.unets\[0\]: unknown key "dimm"; .*"dim"',
    ),
    "unknown key of the trainer": (training(trainer={"lrr": 1}), r'^trainer: .*"lrr"; did you mean "lr"'),
    "unknown type": (training(type="orignal"), r'^type: no type of model "orignal"; known: .* did you mean "original"'),
    "unknown network": (
        training(imagen=small(unets=[{**SMALL, "type": "Unett"}])),
        r'imagen\.unets\[0\]: no network "Unett"',
    ),
    "unknown schedule": (
        training(imagen=small(noise_schedules="cosin")),
        r'^imagen.noise_schedules: no .*schedule "cosin".*did you mean "cosine"',
    ),
    "unknown schedule in a list": (
        training(imagen=small(noise_schedules=["cosin"])),
        r'^imagen.noise_schedules: no .*schedule "cosin"',
    ),
    "unknown objective": (
        training(imagen=small(pred_objectives="nois")),
        r'^imagen.pred_objectives: no .*"nois".*did you mean "noise"',
    ),
    "unknown sampler": (training(imagen=small(sampler="ddmp")), r'^imagen.sampler: no sampler "ddmp"'),
    "counts": (
        training(imagen=small(image_sizes=[8, 16, 32])),
        r"^imagen.image_sizes: 1 unets need as many image_sizes, got 3",
    ),
    "missing value": (
        training(imagen=small(unets=[{"dim_mults": [1, 2]}])),
        r"^imagen\.unets\[0\]\.dim: it is missing$",
    ),
    "missing model": ({}, r"^imagen: it is missing$"),
    "wrong kind": (training(imagen=small(channels="three")), r"^imagen\.channels: .*integer.* got 'three'$"),
    "wrong kind in a list": (
        training(imagen=small(unets=[{**SMALL, "dim_mults": [1, "x"]}])),
        r"^imagen\.unets\[0\]\.dim_mults\[1\]",
    ),
    "no network": (training(imagen=small(unets=[8])), r"^imagen\.unets\[0\]: a U-Net is described by a dict"),
    "steps": (training(steps=[1, 2]), r"^steps: it needs one number for each of the 1 U-Nets"),
    "batch": (training(max_batch_size=0), r"^max_batch_size: .*greater than or equal to 1, got 0$"),
    "captions": (training(sample_texts="a heart"), r"^sample_texts: .*list, got 'a heart'$"),
    "no object": (training(imagen=3), r"^imagen: .* got 3$"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_place(name):
    values, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message) as caught:
        parse(TrainingConfig, values)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_listed():
    with pytest.raises(ConfigError, match=r"imagen\.channels: .*; ") as caught:
        parse(TrainingConfig, training(imagen=small(channels="x", timesteps="y")))
    assert "imagen.timesteps: " in str(caught.value)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (UnetConfig, {"dim": 8, "dimm": 3}),
        (ImagenConfig, small(timestep=3)),
        (NullUnetConfig, {"is_null": True, "dim": 3}),
        (ImagenTrainerConfig, {"imagen": small(), "learning_rate": 3}),
    ],
)
def test_unknown_keys_fail_in_python_too(model, values):
    unknown = list(values)[-1]
    with pytest.raises(ValueError, match=unknown):
        model(**values)


def test_a_family_member_is_looked_up_in_its_registry():
    class Both(Configuration):
        families = {"noise_schedules": SCHEDULES}
        noise_schedules: str | tuple[str, ...] = "cosine"

    assert Both(noise_schedules=tuple(SCHEDULES.names())).noise_schedules == tuple(SCHEDULES.names())
    with pytest.raises(ValueError, match='no .*schedule "none"'):
        Both(noise_schedules=("cosine", "none"))

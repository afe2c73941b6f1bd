"""Every message about a value of a configuration begins with the key of that value."""

from __future__ import annotations

import pytest
from toys import SMALL

from imagen_pytorch.configs import TrainerOptions, TrainingConfig, cascade_model, unet_model
from imagen_pytorch.signatures import ConfigError, parse

WRONG = [-1, "x", [], {}]
MODELS = [
    (kind, key) for kind in ("original", "elucidated") for key in cascade_model(kind).model_fields if key != "unets"
]


def config(kind="original", model=None, unet=None, **changes):
    unet = {**SMALL, **(unet or {})}
    steps = "timesteps" if kind == "original" else "num_sample_steps"
    model = {"unets": [unet], "image_sizes": [8], "text_encoder_name": "builtin:words", steps: 2, **(model or {})}
    return {"type": kind, "imagen": model, **changes}


def mistake(values, made=lambda config: config.create()):
    """What is said about a configuration, None if it is used."""
    try:
        made(parse(TrainingConfig, values))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (config(model={"image_sizes": ["b"]}), "imagen.image_sizes"),
        (config(model={"image_sizes": [-1]}), "imagen.image_sizes: an image size is a positive int"),
        (config(model={"image_sizes": [8, 16]}, unet={"dim": 0}), "imagen.unets[0].dim: "),
        (config(model={"image_sizes": [8, 16, 32]}), "imagen.image_sizes: 1 unets need as many image_sizes, got 3"),
        (config(model={"noise_schedules": "cosin"}), 'imagen.noise_schedules: no '),
        (config(model={"noise_schedules": ["linear"] * 65}), "imagen.noise_schedules: it has 65 entries"),
        (config("elucidated", {"sigma_min": -1}), "imagen.sigma_min: must lie between"),
        (config(trainer={"lr": -1}), "trainer.lr: "),
        (config(trainer={"warmup_steps": 0}), "trainer.warmup_steps: "),
        (config(steps=[1, 2]), "steps: it needs one number for each of the 1 U-Nets"),
        (config(dataset={"shuffle": "no"}), "dataset.shuffle: "),
    ],
)  # fmt: skip
def test_keys_of_values(values, words):
    assert mistake(values).startswith(words)


@pytest.mark.parametrize(("kind", "key"), MODELS)
def test_models(kind, key):
    values = [value for value in WRONG if (key, value) != ("text_encoder_name", "x")]  # a name that may exist
    for value in values:
        said = mistake(config(kind, {key: value}), lambda made: made.imagen.create())
        assert said is None or said.startswith(f"imagen.{key}")


@pytest.mark.parametrize("kind", ["Unet", "Unet3D"])
def test_networks(kind):
    for key in unet_model(kind).model_fields:
        for value in WRONG[:2]:
            said = mistake(config(unet={"type": kind, key: value}), lambda made: made.imagen.create())
            assert said is None or said.startswith(f"imagen.unets[0].{key}") or key == "type"


def test_trainers():
    for key in TrainerOptions.model_fields:
        for value in WRONG[1:]:
            said = mistake(config(trainer={key: value}), lambda made: None)
            assert said is None or said.startswith(f"trainer.{key}")

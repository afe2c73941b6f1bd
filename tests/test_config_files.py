"""The shipped configuration files, and reading files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.nn.presets import UNETS
from imagen_pytorch.signatures import ConfigError, parse, read_json

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "imagen_pytorch" / "default_config.json"
FILES = [DEFAULT, *sorted((ROOT / "configs").glob("*.json"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    config = parse(TrainingConfig, read_json(path))
    assert config.checkpoint_path == "./imagen.pt" and config.sample_texts
    for number in range(1, len(config.imagen.unets) + 1):
        steps = config.total_steps(number)
        assert steps is None or steps > 0


def test_the_default_configuration_is_that_of_the_paper():
    """Its networks are the presets, whose numbers it spells out so that they can be edited."""
    config = parse(TrainingConfig, read_json(DEFAULT))
    for unet, name in zip(config.imagen.unets, ("BaseUnet64", "SRUnet256", "SRUnet1024"), strict=True):
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in unet.given().items()}
        assert given == UNETS[name].defaults
    assert config.imagen.timesteps == [1024, 512, 512] and config.imagen.random_crop_sizes == [None, 64, 256]
    assert config.imagen.image_sizes == [64, 256, 1024] and config.imagen.text_encoder_name == "google/t5-v1_1-large"
    assert config.trainer.given() == {"lr": 1e-4}
    assert config.dataset == {"batch_size": 2048, "shuffle": True} and config.dataset_name == "laion/laion2B-en"
    assert (config.image_label, config.url_label, config.text_label) == (None, "URL", "TEXT")
    assert (config.sample_at_every, config.save_at_every, config.validate_at_every) == (100, 1000, 1000)
    assert len(config.sample_texts) == 2


def test_the_emoji_cascade_builds():
    config = parse(TrainingConfig, read_json(ROOT / "configs" / "emoji.json"))
    imagen = config.imagen.create()
    assert imagen.kind == "elucidated" and len(imagen.unets) == 2 and imagen.image_sizes[1] == 64
    assert config.dataset_name == "emoji64" and all(config.total_steps(number) for number in (1, 2))
    assert sum(item.numel() for item in imagen.parameters()) < 20e6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_can_be_made_without_memory(path):
    """On the device "meta", as for counting weights; the paper's would otherwise take 12 GB."""
    config = parse(TrainingConfig, read_json(path)).imagen
    with torch.device("meta"):
        imagen = config._make()
    assert {item.device.type for item in imagen.parameters()} == {"meta"} and len(imagen.unets) == len(config.unets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON: line 1, column 2"),
        (b"[1]", "must hold one JSON object, found list"),
        (b"\xff\xfe\x00", "not valid UTF-8"),
        (b'{\n "a": 1,\n}', "not valid JSON: line [23]"),
    ],
)
def test_files_that_hold_no_configuration(text, message, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read_json(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "ok.json"
    path.write_text(json.dumps({"é": [1, None]}), encoding="utf-8")
    assert read_json(path) == {"é": [1, None]}

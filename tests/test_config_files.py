"""The shipped configuration files, and reading files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.nn.presets import UNETS
from imagen_pytorch.signatures import ConfigError, errors_in_file, parse, read_config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "imagen_pytorch" / "default_config.json"
FILES = [DEFAULT, *sorted((ROOT / "configs").glob("*.json"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    config = parse(TrainingConfig, read_config(path))
    assert config.checkpoint_path == "./imagen.pt" and config.sample_texts
    for number in range(1, len(config.imagen.unets) + 1):
        steps = config.total_steps(number)
        assert steps is None or steps > 0


def test_the_default_configuration_is_that_of_the_paper():
    """Its networks are the presets, whose numbers it spells out so that they can be edited."""
    config = parse(TrainingConfig, read_config(DEFAULT))
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
    config = parse(TrainingConfig, read_config(ROOT / "configs" / "emoji.json"))
    imagen = config.imagen.create()
    assert imagen.kind == "elucidated" and len(imagen.unets) == 2 and imagen.image_sizes[1] == 64
    assert config.dataset_name == "emoji64" and all(config.total_steps(number) for number in (1, 2))
    assert sum(item.numel() for item in imagen.parameters()) < 20e6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_can_be_made_without_memory(path):
    """On the device "meta", as for counting weights; the paper's would otherwise take 12 GB."""
    config = parse(TrainingConfig, read_config(path)).imagen
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
        read_config(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.json: No such file"):
        read_config(tmp_path / "none.json")


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "ok.json"
    path.write_text(json.dumps({"é": [1, None]}), encoding="utf-8")
    assert read_config(path) == {"é": [1, None]}


# -- other formats ----------------------------------------------------------------------------------------------------

VALUES = {"type": "elucidated", "trainer": {"lr": [3e-3, 1], "precision": "no"}, "sample_texts": ["a: b", "é", "#"]}
SAME = {
    "json": json.dumps({"$schema": "config.schema.json", **VALUES}),
    "yaml": """$schema: x
type: elucidated  # EDM
trainer: {lr: [3e-3, 1], precision: no}
sample_texts:
  - "a: b"
  - é
  - '#'
""",
    "yml": json.dumps(VALUES),
    "toml": """"$schema" = "x"
type = "elucidated"
sample_texts = ["a: b", "é", "#"]
[trainer]
lr = [3e-3, 1]
precision = "no"
""",
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")
@pytest.mark.parametrize("suffix", SAME)
def test_every_format_holds_the_same_values(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_text(SAME[suffix], encoding="utf-8")
    assert read_config(path) == VALUES


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "a = 1\nb = \n", "not valid TOML: .*line 2"),
        ("a.toml", "a = 1\na = 2\n", "not valid TOML: .*line 2"),
        ("a.yaml", "a: 1\nb: [1\n", "not valid YAML: line 3, column 1"),
        ("a.yaml", "a: &x [1]\nb: *x\n", "not valid YAML: line 2, column 4: aliases are not read"),
        ("a.yml", "a: !!python/object/apply:os.system [x]\n", "not valid YAML: line 1, column 4"),
        ("a.yaml", "- 1\n", "must hold one YAML object, found list"),
    ],
)
def test_mistakes_of_other_formats_have_their_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / name)


def test_toml_without_its_reader(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text("a = 1")
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"TOML needs Python 3\.11, or pip install tom"):
        read_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"imagen": 1,\n "dimm": 2}', 'unknown key "dimm" (line 2)'),
        ('{"imagen": {"unets": [{"dim": 8},\n{"dimm": 8}], "image_sizes": [8, 16]}}',
         'imagen.unets[1]: unknown key "dimm"; did you mean "dim"? (line 2)'),
        ('{"imagen": {"unets": [{"dim": 8}], "image_sizes": [8]},\n"steps":\n"x"}',
         "steps: input should be a valid integer, unable to parse string as an integer, got 'x' or input should be a "
         "valid list, got 'x' (line 2)"),
        ('{"imagen": {"unets": [{"dimm": 8},\n{"dimm": 8}], "image_sizes": [8, 16]}}',  # two lines have it
         'imagen.unets[0]: unknown key "dimm"; did you mean "dim"?; '
         'imagen.unets[1]: unknown key "dimm"; did you mean "dim"?'),
    ],
)  # fmt: skip
def test_mistakes_in_values_have_their_line_where_one_line_sets_them(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught, errors_in_file(path):
        parse(TrainingConfig, read_config(path))
    assert str(caught.value) == f"{path}: {message}"

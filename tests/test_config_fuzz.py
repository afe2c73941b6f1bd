"""Configurations changed at random: used, or refused in one line, and never more memory than there is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

from imagen_pytorch.cli import main
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.signatures import ConfigError, parse, read_config

GOOD = {
    "type": "elucidated",
    "imagen": {
        "unets": [
            {"dim": 8, "dim_mults": [1, 2], "layer_attns": False, "layer_cross_attns": [False, True], "attn_heads": 2},
            {"type": "Unet", "dim": 8, "dim_mults": [1, 2], "layer_attns": [False, True], "cond_on_text": True},
        ],
        "image_sizes": [8, 16],
        "text_encoder_name": "builtin:words:16",
        "num_sample_steps": [4, 2],
        "cond_drop_prob": 0.1,
        "random_crop_sizes": [None, 8],
    },
    "trainer": {"lr": [1e-3, 1e-4], "warmup_steps": 3, "ema_beta": 0.9, "max_grad_norm": 1.0, "precision": "no"},
    "dataset_name": "emoji64",
    "dataset": {"batch_size": 4, "shuffle": True, "num_workers": 0},
    "checkpoint_path": "./imagen.pt",
    "steps": [2, 2],
    "sample_at_every": 0,
    "sample_texts": ["a red heart"],
}
bounded = settings(
    max_examples=40, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

KEYS = ["type", "unets", "dim", "dim_mults", "is_null", "video", "lr", "text_embed_dim", "__class__", "x", "", "é"]
plain = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), 1e-320])
    | st.sampled_from(["", "x", "Unet", "Unet3D", "elucidated", "8", "../../x", "\0", "é" * 2000, "__import__('os')"])
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Every place inside a configuration."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield from places(inner, (*path, name))


@st.composite
def changed(draw):
    """The good configuration with one to three entries replaced, added or removed."""
    config = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(list(places(config))))
        inner = config
        for name in outer:
            inner = inner[name]
        match draw(st.sampled_from(["replace", "replace", "add", "remove"])):
            case "replace":
                inner[last] = draw(values)
            case "add" if isinstance(inner, dict):
                inner[draw(st.sampled_from(KEYS))] = draw(values)
            case _:
                del inner[last]
    return config


def with_unet(**changes):
    config = copy.deepcopy(GOOD)
    config["imagen"]["unets"][0] |= changes
    return config


@seed(2)
@bounded
@given(config=changed())
@example(config=GOOD)
@example(config=with_unet(dim=10**9))
@example(config=with_unet(dim_mults=[1] * 10**6))
@example(config=with_unet(num_resnet_blocks=10**9))
@example(config=with_unet(attn_heads=10**12))
@example(config=with_unet(dim_mults=[]))
@example(config=with_unet(dim=0))
@example(config=GOOD | {"imagen": GOOD["imagen"] | {"unets": [GOOD["imagen"]["unets"][0]] * 10**5}})
@example(config=GOOD | {"imagen": GOOD["imagen"] | {"image_sizes": [10**12, 10**13]}})
@example(config=GOOD | {"imagen": GOOD["imagen"] | {"text_embed_dim": 10**10}})
def test_a_configuration_is_used_or_refused_in_one_line(config):

    try:
        model = parse(TrainingConfig, json.loads(json.dumps(config))).imagen.create()
    except (ConfigError, ValueError, TypeError) as error:
        assert isinstance(error, ConfigError), repr(error)
        assert "\n" not in str(error) and len(str(error)) < 6000
        return
    assert sum(item.numel() for item in model.parameters()) < 1e8


@seed(3)
@settings(bounded, max_examples=80)
@given(data=st.data())
def test_a_file_is_read_or_refused_in_one_line(data, tmp_path_factory):
    """Bytes replaced, cut out or doubled; and whatever else is no configuration."""
    text = bytearray(json.dumps(GOOD).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        text[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.mktemp("config") / "a.json"
    path.write_bytes(bytes(text))
    try:
        parse(TrainingConfig, read_config(path))
    except ConfigError as error:
        assert "\n" not in str(error)


HOPELESS = {
    "brackets": b"[" * 200_000,
    "numbers without end": b'{"steps": ' + b"9" * 10_000 + b"}",
    "a checkpoint": b"PK\x03\x04" + bytes(range(256)),
    "nothing": b"",
    "half of a pair": json.dumps(GOOD | {"dataset_name": "\ud83d"}).encode(),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_the_command_says_it_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_bytes(HOPELESS[name])
    done = CliRunner().invoke(main, ["train", "--config", "a.json", "--steps", "1", "--quiet"])
    assert done.exit_code in (2, 3) and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert "a.json" in done.stderr or name == "half of a pair"


@pytest.mark.slow
@seed(4)
@settings(bounded, max_examples=15)
@given(config=changed())
def test_the_command_ends_with_a_code_and_a_line(config, tmp_path_factory):
    """All but the training itself: data are opened, model and trainer made, a checkpoint written."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("imagen_pytorch.cli._training.Run.train", lambda *arguments: None)
        done = CliRunner().invoke(main, ["train", "--config", "a.json", "--unet", "1", "--steps", "1", "--quiet"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code in (0, 1, 2, 3, 4) and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("imagen: ")]
    assert len(said) == bool(done.exit_code), done.stderr

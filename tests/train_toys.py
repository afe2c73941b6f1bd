"""``imagen train`` inside the process of the tests: a folder of four coloured images, and a configuration for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli import main

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 200), "yellow": (220, 210, 60)}
UNET = {"dim": 8, "dim_mults": [1], "num_resnet_blocks": 1, "layer_attns": False, "layer_cross_attns": False}
UNET |= {"attn_heads": 2, "attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}
#: the arguments of a model of one stage that is made quickly
SMALL = {"unets": [UNET], "image_sizes": [8]}


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with images and their captions, and a configuration for them."""
    monkeypatch.chdir(folder)
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name} square")
    write_config()
    return folder


def write_config(path: str = "imagen_config.json", *, model: dict | None = None, **changes) -> Path:
    imagen = {
        "unets": [UNET, {**UNET, "memory_efficient": True}],
        "image_sizes": [4, 8],
        "text_encoder_name": "builtin:words",
        "num_sample_steps": 2,
        **(model or {}),
    }
    values = {
        "type": "elucidated",
        "imagen": imagen,
        "trainer": {"lr": 1e-3, "ema_update_after_step": 0, "ema_update_every": 1},
        "dataset_name": "pictures",
        "dataset": {"batch_size": 4, "shuffle": True},
        "sample_at_every": 0,
        **changes,
    }
    values["imagen"] = {name: value for name, value in imagen.items() if value is not None}
    values = {name: value for name, value in values.items() if value is not None}
    Path(path).write_text(json.dumps(values))
    return Path(path)


def imagen(*arguments: object, text: str | None = None):
    return CliRunner().invoke(main, [str(item) for item in arguments], input=text)


def succeed(*arguments: object, text: str | None = None):
    done = imagen(*arguments, text=text)
    assert done.exit_code == 0, done.stderr
    return done


def steps(path: str = "imagen.pt") -> list[int]:
    return read_checkpoint(path)["steps"].tolist()


def metrics(path: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def refused(done, code: int, *words: str) -> None:
    """One line with these words, no traceback, nothing on standard output."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("configuration ")]
    assert done.exit_code == code, done.stderr
    assert len(lines) == 1 and lines[0].startswith("imagen") and "Traceback" not in done.stderr, done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert done.stdout == ""

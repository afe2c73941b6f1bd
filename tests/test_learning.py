"""Toys that learn: after a few hundred steps, pictures have the colour that their caption asks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toys import small_unet

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer
from imagen_pytorch.cli import main

COLOURS = {
    "red": (0.65, 0.3, 0.3),
    "green": (0.35, 0.6, 0.35),
    "blue": (0.3, 0.4, 0.65),
    "yellow": (0.65, 0.6, 0.3),
    "grey": (0.5, 0.5, 0.5),
    "pink": (0.75, 0.55, 0.65),
}
PALETTE = torch.tensor(list(COLOURS.values()))
CAPTIONS = [f"a {name} square" for name in COLOURS]
UNET = {
    "dim": 16,
    "dim_mults": [1, 2],
    "layer_attns": False,
    "layer_cross_attns": [False, True],
    "attn_heads": 2,
    "attn_dim_head": 16,
    "attn_pool_text": False,
    "init_cross_embed": False,
    "use_global_context_attn": False,
}
TRAINER = {
    "lr": 3e-3,
    "warmup_steps": 20,
    "max_grad_norm": 1.0,
    "ema_beta": 0.98,
    "ema_update_after_step": 0,
    "ema_update_every": 1,
}
MODEL = {"text_encoder_name": "builtin:words:32", "cond_drop_prob": 0.1}


def squares(count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """Flat pictures with a little grain, and their captions."""
    which = torch.randint(len(PALETTE), (count,), generator=generator)
    grain = torch.rand(count, 3, size, size, generator=generator) * 0.06 - 0.03
    return PALETTE[which][:, :, None, None] + grain, [CAPTIONS[index] for index in which]


def share_right(pictures: torch.Tensor, captions: list[str]) -> float:
    """The share of pictures whose mean colour is nearest to the one that was asked for."""
    nearest = (pictures.mean((2, 3))[:, None] - PALETTE).norm(dim=2).argmin(1).tolist()
    return float(np.mean([CAPTIONS[found] == caption for found, caption in zip(nearest, captions, strict=True)]))


LONG = pytest.mark.slow  # the objectives are one another's transforms (test_diffusion_identities): one is enough here


@pytest.mark.parametrize(
    ("objective", "steps", "timesteps"),
    [("v", 120, 20), *(pytest.param(name, 250, 40, marks=LONG) for name in ("noise", "x_start", "elucidated"))],
)
def test_pictures_have_the_colour_that_was_asked_for(objective, steps, timesteps):
    unet = small_unet(**UNET)
    if objective == "elucidated":
        imagen = ElucidatedImagen(unet, image_sizes=8, num_sample_steps=12, **MODEL)
    else:
        imagen = Imagen(unet, image_sizes=8, timesteps=timesteps, pred_objectives=objective, **MODEL)
    trainer = ImagenTrainer(imagen, seed=0, verbose=False, **TRAINER)
    generator = torch.Generator().manual_seed(0)
    wanted = CAPTIONS * 10
    before = share_right(trainer.sample(texts=wanted, cond_scale=3.0, seed=0, use_tqdm=False), wanted)
    for _ in range(steps):
        images, texts = squares(24, 8, generator)
        trainer(images, texts=texts)
        trainer.update()
    made = trainer.sample(texts=wanted, cond_scale=3.0, seed=0, use_tqdm=False)
    assert before < 0.5 and share_right(made, wanted) >= 0.9


@pytest.mark.slow
def test_an_upsampler_keeps_what_it_enlarges():
    unets = [small_unet(**UNET), small_unet(**{**UNET, "memory_efficient": True})]
    imagen = ElucidatedImagen(
        unets, image_sizes=(4, 16), num_sample_steps=8, lowres_residual=0.25, lowres_sample_noise_level=0.1, **MODEL
    )
    trainer = ImagenTrainer(imagen, seed=0, verbose=False, only_train_unet_number=2, **TRAINER)
    generator = torch.Generator().manual_seed(0)

    def halves(count: int) -> tuple[torch.Tensor, list[str]]:
        left, texts = squares(count, 16, generator)
        right, _ = squares(count, 16, generator)
        return torch.cat([left[..., :8], right[..., :8]], dim=-1), texts

    for _ in range(150):
        images, texts = halves(16)
        trainer(images, texts=texts, unet_number=2)
        trainer.update()
    images, texts = halves(12)
    low = torch.nn.functional.avg_pool2d(images, 4)
    made = trainer.sample(
        texts=texts, start_at_unet_number=2, start_image_or_video=low, cond_scale=1.0, seed=0, use_tqdm=False
    )
    assert made.shape == (12, 3, 16, 16)
    assert float((torch.nn.functional.avg_pool2d(made, 4) - low).abs().mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["original", "elucidated"])
def test_the_command_line_learns_too(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "squares"
    folder.mkdir()
    images, texts = squares(60, 8, torch.Generator().manual_seed(0))
    for index, (picture, text) in enumerate(zip(images, texts, strict=True)):
        pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(text)
    steps = {"timesteps": 40, "pred_objectives": "v"} if kind == "original" else {"num_sample_steps": 12}
    config = {
        "type": kind,
        "imagen": {"unets": [UNET], "image_sizes": [8], **steps, **MODEL},
        "trainer": TRAINER,
        "dataset_name": "squares",
        "dataset": {"batch_size": 20, "shuffle": True},
        "sample_at_every": 0,
    }
    Path("config.json").write_text(json.dumps(config))
    Path("prompts.txt").write_text("\n".join(CAPTIONS))
    train = ["train", "--config", "config.json", "--steps", "250", "--seed", "0"]
    assert CliRunner().invoke(main, train).exit_code == 0
    sample = ["sample", "--prompts", "prompts.txt", "-n", "5", "--cond_scale", "3", "--seed", "0", "-o", "made/"]
    done = CliRunner().invoke(main, sample)
    assert done.exit_code == 0, done.stderr
    paths = done.stdout.splitlines()
    assert len(paths) == 5 * len(CAPTIONS)
    drawn = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths])
    assert share_right(drawn, [caption for caption in CAPTIONS for _ in range(5)]) >= 0.9

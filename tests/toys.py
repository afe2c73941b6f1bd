"""Models and pictures small enough for a test."""

from __future__ import annotations

from typing import Any

import torch

from imagen_pytorch import ElucidatedImagen, Imagen, Unet

SMALL = {
    "dim": 8,
    "dim_mults": (1, 2),
    "layer_attns": False,
    "layer_cross_attns": (False, True),
    "attn_heads": 2,
    "attn_dim_head": 8,
    "attn_pool_text": False,
    "init_cross_embed": False,
}
WORDS = "builtin:words:16"


def small_unet(**options: Any) -> Unet:
    return Unet(**{**SMALL, **options})


def small_imagen(
    sizes: tuple[int, ...] = (8,), kind: type = Imagen, unet: dict[str, Any] | None = None, **options: Any
) -> Imagen | ElucidatedImagen:
    """A cascade of tiny networks; few steps, words as text."""
    steps = {"timesteps": 2} if kind is Imagen else {"num_sample_steps": 2}
    networks = [small_unet(**(unet or {})) for _ in sizes]
    return kind(networks, **{"image_sizes": sizes, "text_encoder_name": WORDS, **steps, **options})


def pictures(count: int = 4, size: int = 8, seed: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


CAPTIONS = ["a red square", "green", "a very blue circle on white", "yellow star"]

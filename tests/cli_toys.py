"""Tiny trained models for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import torch

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Unet

#: contents of files that were written, by their names and the arguments
WRITTEN: dict[str, bytes] = {}


def write_model(path: str, *, trained: int = 2, kind: type = ElucidatedImagen, **changes) -> None:
    """Write a tiny two-stage cascade whose first ``trained`` U-Nets have weights that are not zero at the end."""
    key = repr((path, trained, kind, sorted(changes.items())))
    if key in WRITTEN:
        Path(path).write_bytes(WRITTEN[key])
        return
    torch.manual_seed(0)
    small = {"dim": 8, "dim_mults": (1,), "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
    small |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}
    arguments = {"text_encoder_name": "builtin:words", "image_sizes": (4, 8), **changes}
    arguments |= {"timesteps": 2} if kind is Imagen else {"num_sample_steps": 2}
    imagen = kind([Unet(**small) for _ in arguments["image_sizes"]], **arguments)
    for unet in imagen.unets[:trained]:
        for item in unet.parameters():
            item.data += 0.2 * torch.randn_like(item)
    ImagenTrainer(imagen, use_ema=False).save(path)
    WRITTEN[key] = Path(path).read_bytes()

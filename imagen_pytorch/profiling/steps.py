"""Steps to be profiled: training and sampling with random images and captions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..cascade.cascade import Cascade
from ..cascade.stage import takes_cond_images
from ..trainer import ImagenTrainer
from .shapes import frames_of, tokens_of
from .spans import Spans, name_network, name_training

#: weight of guided sampling
GUIDANCE = 5.0


def _captions(cascade: Cascade, number: int, count: int) -> dict[str, Tensor]:
    """Return random embeddings of the longest captions, or nothing for a model without text."""
    if not cascade.condition_on_text:
        return {}
    tokens = max(tokens_of(cascade.unets[number - 1]), 1)
    embeds = torch.randn(count, tokens, cascade.text_embed_dim, device=cascade.device)
    return {"text_embeds": embeds, "text_masks": torch.ones(count, tokens, dtype=torch.bool, device=cascade.device)}


def _images(cascade: Cascade, number: int, count: int, frames: int | None, channels: int | None = None) -> Tensor:
    """Return random images, or clips at the full frame rate, of the size of a stage."""
    stage = cascade.stages[number - 1]
    clip = ()
    if cascade.is_video and channels is None:
        clip = (frames_of(cascade, number, frames) * stage.frame_stride,)
    return torch.rand(count, channels or cascade.channels, *clip, *stage.size, device=cascade.device)


def _conditions(cascade: Cascade, number: int, count: int) -> dict[str, Tensor]:
    """Return random images for a network that is conditioned on some."""
    unet = cascade.unets[number - 1]
    if not takes_cond_images(unet):
        return {}
    return {"cond_images": _images(cascade, number, count, None, unet.cond_images_channels)}


def training_step(
    trainer: ImagenTrainer, number: int, count: int, frames: int | None = None, max_batch_size: int | None = None
) -> Callable[[], None]:
    """Return one training step of a U-Net (1-based) on ``count`` random images, always the same."""
    cascade = trainer.imagen
    batch = {
        "images": _images(cascade, number, count, frames),
        **_captions(cascade, number, count),
        **_conditions(cascade, number, count),
    }
    trainer.train()

    def step() -> None:
        trainer(**batch, unet_number=number, max_batch_size=max_batch_size)
        trainer.update(number)

    return step


def sampling_steps(
    cascade: Cascade, number: int, count: int, steps: int, frames: int | None = None
) -> Callable[[], None]:
    """Return some sampling steps of a U-Net (1-based) for ``count`` images, guided if the model supports it."""
    arguments: dict[str, Any] = {
        **_captions(cascade, number, count),
        **_conditions(cascade, number, count),
        "batch_size": count,
        "steps": steps,
        "cond_scale": GUIDANCE if cascade.condition_on_text and cascade.can_classifier_guidance else 1.0,
        "start_at_unet_number": number,
        "stop_at_unet_number": number,
        "use_tqdm": False,
        "seed": 0,
    }
    if cascade.is_video:
        arguments["video_frames"] = frames_of(cascade, number, frames) * cascade.stages[number - 1].frame_stride
    if number > 1:
        arguments["start_image_or_video"] = _images(cascade, number - 1, count, frames)

    def sample() -> None:
        cascade.sample(**arguments)

    return sample


def training_spans(trainer: ImagenTrainer, number: int) -> AbstractContextManager[Spans]:
    """Name the parts of a training step until the end of the context."""
    spans = Spans()
    name_training(spans, trainer, number)
    return spans


def sampling_spans(cascade: Cascade, number: int) -> AbstractContextManager[Spans]:
    """Name the parts of a sampling network until the end of the context."""
    spans = Spans()
    name_network(spans, cascade.unets[number - 1])
    return spans

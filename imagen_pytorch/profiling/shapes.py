"""Models and batches with shapes but without memory, or with synthetic values."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade.batch import TrainingBatch
from ..cascade.cascade import Cascade
from ..cascade.conditioning import Text
from ..cascade.module_state import device_of, evaluating
from ..cascade.stage import takes_cond_images
from ..cascade.training_inputs import TrainingInputs, build_batch
from ..cascade.video import ClipInput

#: default number of frames of the clips of a video model
USUAL_FRAMES = 16


def argument(unet: nn.Module, name: str) -> Any:
    """Return an argument of a network's constructor, or the default of its class."""
    given = {**getattr(type(unet), "defaults", {}), **getattr(unet, "_locals", {})}
    if name in given:
        return given[name]
    found = (inspect.signature(kind.__init__).parameters.get(name) for kind in type(unet).__mro__)
    return next((item.default for item in found if item is not None), None)


def frames_of(cascade: Cascade, number: int, frames: int | None = None) -> int | None:
    """Return the number of frames of a U-Net (1-based) for clips of ``frames`` at the full rate; None for images.

    Args:
        frames: default: the model's own, else 16, rounded up to a multiple that its stages support.
    """
    if not cascade.is_video:
        return None
    count = frames or cascade.video_frames or USUAL_FRAMES
    return -(-count // cascade.stages[number - 1].frame_stride)


def tokens_of(unet: nn.Module) -> int:
    """Return the number of tokens of the longest captions of a network."""
    return int(unet.max_text_len) if unet.cond_on_text else 0


def one_row(cascade: Cascade, number: int, frames: int | None = None, whole: bool = False) -> TrainingBatch:
    """Build a training batch of one black image with the longest caption, on the device of the U-Net's weights.

    Args:
        cascade: the model; on the device "meta" nothing is allocated.
        number: of the U-Net, 1-based.
        frames: of the clip at the full rate, for a video model; default: as for `frames_of`.
        whole: use the size of sampling, in place of the training crops.
    """
    stage, unet = cascade.stages[number - 1], cascade.unets[number - 1]
    device = device_of(unet)
    clip = () if not cascade.is_video else (frames_of(cascade, number, frames) * stage.frame_stride,)
    images = torch.zeros(1, cascade.channels, *clip, *stage.size, device=device)
    text, cond_images = None, None
    if cascade.condition_on_text:
        tokens = max(tokens_of(unet), 1)
        mask = torch.ones(1, tokens, dtype=torch.bool, device=device)
        text = Text(torch.zeros(1, tokens, cascade.text_embed_dim, device=device), mask)
    if takes_cond_images(unet):
        cond_images = torch.zeros(1, unet.cond_images_channels, *stage.size, device=device)
    request = TrainingInputs(images, text, cond_images, None, ClipInput())
    with evaluating(cascade):  # nothing is dropped, and no frames are given
        batch = build_batch(cascade, replace(stage, crop=None) if whole else stage, request, None)
    return replace(batch, self_condition=False, frame_times=None)


def as_rows(batch: TrainingBatch, rows: int, make: Callable[..., Tensor], device: torch.device) -> TrainingBatch:
    """Expand a batch of one row to many, with new values.

    Args:
        rows: number of rows.
        make: ``make(shape, dtype=..., device=...)``, such as ``torch.zeros``.
    """
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    new = {name: make((rows, *item.shape[1:]), dtype=item.dtype, device=device) for name, item in tensors.items()}
    masks = {name: torch.ones_like(item) for name, item in new.items() if item.dtype == torch.bool}
    return replace(batch, **{**new, **masks})


def fake_copy(unet: nn.Module, device: torch.device) -> nn.Module:
    """Copy a network with new, empty weights on a device. Inside `FakeTensorMode` these have no memory."""
    memo: dict[Any, Any] = {}
    for item in unet.parameters():
        empty = torch.empty(item.shape, dtype=item.dtype, device=device)
        memo[id(item)] = nn.Parameter(empty, requires_grad=item.requires_grad)
    for item in unet.buffers():
        memo[id(item)] = torch.empty(item.shape, dtype=item.dtype, device=device)
    return copy.deepcopy(unet, memo)

"""A training batch with every random draw made, so that the loss is a pure function of tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..ranges import check_whole


@dataclass(frozen=True)
class TrainingBatch:
    """Everything the loss of one U-Net depends on, besides its weights.

    Noise, times, crops and dropped captions are drawn before a batch is split. The mean gradient over its micro-batches
    is therefore the gradient of the complete batch.

    Attributes:
        unet_number: 1-based number of the U-Net.
        x0: the data of the stage, ``(b, c, *space)``.
        t: times of the stage's schedule, ``(b,)``.
        noise: standard normal, like ``x0``.
        self_condition: a first pass without gradient gives the network its own estimate.
        text_embeds: ``(b, n, d)``; text_mask: ``(b, n)``; text_keep: ``(b,)``, false = the caption is dropped.
        cond_images, cond_images_keep, lowres_cond_img, lowres_noise_times, crop_window, augment_label: arguments of the
            network.
        cond_video_frames, post_cond_video_frames, frame_times, fps, fps_keep, ignore_time: arguments of a video
            network.
        perceptual: ``(b,)``, true for the items that have a perceptual loss.
        base: the enlarged low-resolution image without noise, for a stage that models a residual.
    """

    unet_number: int
    x0: Tensor
    t: Tensor
    noise: Tensor
    self_condition: bool = False
    text_embeds: Tensor | None = None
    text_mask: Tensor | None = None
    text_keep: Tensor | None = None
    cond_images: Tensor | None = None
    cond_images_keep: Tensor | None = None
    lowres_cond_img: Tensor | None = None
    lowres_noise_times: Tensor | None = None
    cond_video_frames: Tensor | None = None
    post_cond_video_frames: Tensor | None = None
    frame_times: Tensor | None = None
    fps: Tensor | None = None
    fps_keep: Tensor | None = None
    ignore_time: Tensor | bool = False
    base: Tensor | None = None
    crop_window: Tensor | None = None
    augment_label: Tensor | None = None
    perceptual: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def conditioning(self) -> dict[str, Any]:
        """Return the keyword arguments of the network that are present."""
        own = ("x0", "t", "noise", "base", "perceptual")
        named = {name: value for name, value in self._tensors().items() if name not in own}
        return named | ({"ignore_time": True} if self.ignore_time is True else {})

    def rows(self, rows: slice) -> TrainingBatch:
        """Return some items of the batch."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def split(self, max_batch_size: int | None) -> list[TrainingBatch]:
        """Return micro-batches of at most ``max_batch_size`` items, in order.

        Raises:
            TypeError, ValueError: a size that is not an integer of at least 1.
        """
        if max_batch_size is None or check_whole(max_batch_size, "max_batch_size") >= len(self):
            return [self]
        return [self.rows(slice(first, first + max_batch_size)) for first in range(0, len(self), max_batch_size)]

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch on another device. Times stay on the CPU, in a precision that some devices lack."""
        moved = {name: value for name, value in self._tensors().items() if name != "frame_times"}
        return replace(self, **{name: value.to(device) for name, value in moved.items()})

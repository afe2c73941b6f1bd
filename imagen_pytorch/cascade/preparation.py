"""From a user's pictures and captions to a `TrainingBatch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..images import crop, crop_offsets, resize
from ..tensors import Generators, bernoulli, rand, randn_like
from .batch import TrainingBatch
from .conditioning import Text, conditioning_pictures, null_text
from .lowres import augmentation_times, lowres_companion, target_space
from .options import check_text_count
from .placement import device_of, dtype_of
from .stage import Stage, check_range

if TYPE_CHECKING:
    from .parts import CascadeParts


def checked_pictures(cascade: CascadeParts, images: Tensor, stage: Stage, device: torch.device) -> Tensor:
    """Training pictures in [-1, 1], in the precision of the weights but never less than single, on their device.

    Raises:
        ValueError: wrong rank, channels, size or proportions, or values that look like 0..255.
        TypeError: whole numbers that are not uint8.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (batch, channels, height, width), got {tuple(images.shape)}")
    if images.shape[1] != cascade.channels:
        raise ValueError(f"the model has {cascade.channels} channels, the images have {images.shape[1]}")
    (height, width), (least_height, least_width) = images.shape[-2:], stage.size
    what = f"U-Net {stage.number} trains on pictures of {least_height}x{least_width}"
    if height < least_height or width < least_width:
        raise ValueError(f"{what}, the images are smaller: {height}x{width}")
    # less than a pixel off is rounding
    if abs(height * least_width / width - least_height) >= 1:
        raise ValueError(f"{what}, images of {height}x{width} have other proportions: crop them or change image_sizes")
    pictures = cascade.as_given(images)
    check_range(pictures, normalized=not cascade.auto_normalize_img)
    precision = torch.promote_types(dtype_of(cascade.unets[stage.number - 1]), torch.float32)
    return cascade.normalize_img(pictures.to(device, precision))


def build_batch(
    cascade: CascadeParts,
    stage: Stage,
    images: Tensor,
    text: Text | None,
    cond_images: Tensor | None,
    noise: Tensor | None,
    generator: Generators,
) -> TrainingBatch:
    """Resize, crop and draw everything that is random; see `Cascade.training_batch`."""
    unet = cascade.unets[stage.number - 1]
    device, batch, mode = device_of(unet), len(images), cascade.resize_mode
    whole = checked_pictures(cascade, images, stage, device)
    picture = resize(whole, stage.size, mode)
    companion = None
    if stage.number > 1:
        companion = lowres_companion(whole, cascade.stages[stage.number - 2].size, stage.size, mode)
    pictures = conditioning_pictures(cond_images, unet, batch, device)
    if stage.crop is not None:
        offsets = crop_offsets(stage.size, stage.crop, rand((batch, 2), generator))
        picture, companion, pictures = (
            None if item is None else crop(resize(item, stage.size, mode), offsets, stage.crop)
            for item in (picture, companion, pictures)
        )
    x0 = target_space(companion, stage.residual).encode(picture)
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"noise must be like the training pictures {tuple(x0.shape)}, got {tuple(noise.shape)}")
    once = generator[0] if isinstance(generator, list | tuple) else generator
    lowres, lowres_times = None, None
    if companion is not None:
        per_sample = cascade.per_sample_random_aug_noise_level
        times = augmentation_times(batch, per_sample, generator if per_sample else once, device)
        times = times * cascade.lowres_max_noise_level
        lowres, lowres_times = cascade.augmentation(companion, times, generator)
    return TrainingBatch(
        unet_number=stage.number,
        x0=x0,
        t=stage.process.noise_levels.draw(batch, generator, device),
        noise=randn_like(x0, generator) if noise is None else noise.to(x0),
        self_condition=bool(unet.self_cond) and bool(rand((1,), once) < 0.5),
        **text_draws(cascade, stage, text, x0, generator),
        **picture_draws(cascade, pictures, generator),
        lowres_cond_img=lowres,
        lowres_noise_times=lowres_times,
        base=None if stage.residual is None else companion,
    )


def text_draws(
    cascade: CascadeParts, stage: Stage, text: Text | None, x0: Tensor, generator: Generators
) -> dict[str, Tensor]:
    """Captions where ``x0`` is, and which of them survive dropping (all, outside training).

    Raises:
        ValueError: another number of captions than pictures.
    """
    batch, unet = len(x0), cascade.unets[stage.number - 1]
    dtype = dtype_of(unet)
    if text is None:
        if not unet.cond_on_text:
            return {}
        text = null_text(batch, cascade.text_embed_dim, x0.device, dtype)
    check_text_count(text.embeds, batch)
    dropped = cascade.cond_drop_prob if cascade.training else 0.0
    keep = ~bernoulli(dropped, batch, generator, x0.device)
    embeds, mask = text.to(x0.device, dtype)
    return {"text_embeds": embeds, "text_mask": mask, "text_keep": keep}


def picture_draws(cascade: CascadeParts, pictures: Tensor | None, generator: Generators) -> dict[str, Tensor]:
    """Conditioning pictures, and which of them survive dropping (all, outside training)."""
    if pictures is None:
        return {}
    dropped = cascade.cond_images_drop_prob if cascade.training else 0.0
    return {
        "cond_images": pictures,
        "cond_images_keep": ~bernoulli(dropped, len(pictures), generator, pictures.device),
    }

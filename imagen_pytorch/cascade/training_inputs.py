"""From images and captions of a caller to a `TrainingBatch`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..images import crop, crop_offsets, crop_windows, resize
from ..tensors import Generators, bernoulli, once, rand, randn_like, sent, widest
from .batch import TrainingBatch
from .conditioning import Text, null_text, prepare_cond_images
from .geometric import changed
from .inputs import checked_images
from .lowres import augmentation_times, lowres_version, target_space
from .module_state import device_of, dtype_of
from .options import check_text_count
from .stage import Stage
from .video import (
    ClipFrames,
    ClipInput,
    StageFrames,
    clip_frames,
    draw_given,
    frame_rate,
    give_frames,
    given_frames,
    resample_to_stage,
    with_checked_frames,
)

if TYPE_CHECKING:
    from .base import CascadeBase


def check_training_images(cascade: CascadeBase, images: Tensor, stage: Stage, device: torch.device) -> Tensor:
    """Return training images in [-1, 1], at least in single precision, on the device of the weights.

    Raises:
        ValueError: wrong rank, channels, size or proportions, or values that look like 0..255.
        TypeError: neither a tensor nor an array, or integers that are not uint8.
    """
    given = images if images.is_floating_point() else sent(images, device)  # uint8: a fourth of the bytes
    checked = checked_images(cascade, given, "images")
    (height, width), (least_height, least_width) = images.shape[-2:], stage.size
    what = f"U-Net {stage.number} trains on images of {least_height}x{least_width}"
    if height < least_height or width < least_width:
        raise ValueError(f"{what}, the images are smaller: {height}x{width}")
    # a difference of less than a pixel is rounding
    if abs(height * least_width / width - least_height) >= 1:
        raise ValueError(f"{what}, images of {height}x{width} have other proportions: crop them or change image_sizes")
    precision = torch.promote_types(dtype_of(cascade.unets[stage.number - 1]), torch.float32)
    return cascade.normalize_img(checked.to(device, precision))


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs that a caller gives to train on."""

    images: Any
    text: Text | None
    cond_images: Any
    noise: Tensor | None
    clip: ClipInput


def build_batch(cascade: CascadeBase, stage: Stage, request: TrainingInputs, generator: Generators) -> TrainingBatch:
    """Resize, crop and make all random draws. See `Cascade.training_batch`."""
    unet = cascade.unets[stage.number - 1]
    device, batch = device_of(unet), len(request.images)
    common = once(generator)
    images, clip = as_clips(cascade, request)
    whole = check_training_images(cascade, images, stage, device)
    cond_images, are_given = prepare_cond_images(cascade, request.cond_images, unet, batch, device)
    label = augment_label(cascade, stage, batch, generator)
    if label is not None and stage.augment is not None and cascade.training:
        whole, cond_images, clip = augmented(whole, cond_images, clip, label)
    frames = clip_frames(cascade, whole.shape[2], clip, batch) if cascade.is_video else None
    image, lowres_image = images_of_stage(cascade, stage, whole, frames)
    stage_frames = None
    if frames is not None:
        stage_frames = frames.at(stage.frame_stride)
        pair = (image, lowres_image)
        image, lowres_image, stage_frames = with_given(cascade, stage, clip, stage_frames, pair, common)
    (image, lowres_image, cond_images), window = cropped(cascade, stage, (image, lowres_image, cond_images), generator)
    x0 = target_space(lowres_image, stage.residual).encode(image)
    x0, given = split_given(stage, x0, stage_frames)
    noise = request.noise
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"noise must be like the training images {tuple(x0.shape)}, got {tuple(noise.shape)}")
    lowres, lowres_times = None, None
    if lowres_image is not None:
        per_sample = cascade.per_sample_random_aug_noise_level
        times = augmentation_times(batch, per_sample, generator if per_sample else common, device)
        times = times * cascade.lowres_max_noise_level
        lowres, lowres_times = cascade.augmentation(lowres_image, times, generator)
    base = None if stage.residual is None else lowres_image
    t = stage.process.noise_levels.draw(batch, generator, device)
    return TrainingBatch(
        unet_number=stage.number,
        x0=x0,
        t=t,
        noise=randn_like(x0, generator) if noise is None else noise.to(x0),
        self_condition=bool(unet.self_cond) and bool(rand((1,), common) < 0.5),
        **text_draws(cascade, stage, request.text, x0, generator),
        **cond_image_draws(cascade, cond_images, are_given, generator),
        **given,
        **clip_draws(cascade, stage, clip, stage_frames, x0, generator),
        lowres_cond_img=lowres,
        lowres_noise_times=lowres_times,
        base=base if base is None or stage_frames is None else base[:, :, stage_frames.noisy_slice],
        crop_window=window,
        augment_label=label,
        perceptual=perceptual_draws(cascade, stage, t, generator),
    )


def as_clips(cascade: CascadeBase, request: TrainingInputs) -> tuple[Tensor, ClipInput]:
    """Return the inputs of a video model as clips. Images are clips of one frame without motion.

    Raises:
        ValueError: frames for an image model, or together with images.
    """
    images, clip = request.images, request.clip
    if not cascade.is_video:
        if clip.given():
            raise ValueError(f"this is an image model: it takes no {', '.join(clip.given())}")
        return images, clip
    if images.ndim == 4:
        if beside := [name for name in clip.given() if name not in ("fps", "ignore_time")]:
            raise ValueError(f"images are clips of one frame in which nothing moves: they take no {', '.join(beside)}")
        return images[:, :, None], ClipInput(ignore_time=True)
    return images, with_checked_frames(cascade, clip, len(images))


def images_of_stage(
    cascade: CascadeBase, stage: Stage, whole: Tensor, frames: ClipFrames | None
) -> tuple[Tensor, Tensor | None]:
    """Return training images at the stage's size and frame rate, and the simulated output of the previous stage."""

    def seen(stride: int) -> Tensor:
        return whole if frames is None or stride == 1 else whole[:, :, ::stride]

    image = resize(seen(stage.frame_stride), stage.size, cascade.resize_mode)
    if stage.number == 1:
        return image, None
    before = cascade.stages[stage.number - 2]
    lowres_image = lowres_version(seen(before.frame_stride), before.size, stage.size, cascade.resize_mode)
    if frames is None:
        return image, lowres_image
    return image, resample_to_stage(cascade, lowres_image, stage, before, image.shape[2])


def with_given(
    cascade: CascadeBase,
    stage: Stage,
    clip: ClipInput,
    stage_frames: StageFrames,
    pair: tuple[Tensor, Tensor | None],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None, StageFrames]:
    """Return the images and low-resolution images of all frames, given ones included, and which frames are given."""
    image, lowres_image = pair
    low = cascade.stages[stage.number - 2].size if stage.number > 1 else None
    given = given_frames(cascade, clip, stage_frames, low, stage.size)
    image = given.around(image, given.images)
    lowres_image = None if lowres_image is None else given.around(lowres_image, given.lowres_images)
    count = len(stage_frames.noisy)
    if not cascade.training or count < 2 or clip.ignore_time is not False or not cascade.given_frames_prob:
        return image, lowres_image, stage_frames
    if float(rand((1,), generator)) >= cascade.given_frames_prob:
        return image, lowres_image, stage_frames
    chosen = draw_given(count, cascade.unets[stage.number - 1].is_causal, generator)
    stage_frames, order = give_frames(stage_frames, chosen)
    order = order.to(image.device)
    return image[:, :, order], None if lowres_image is None else lowres_image[:, :, order], stage_frames


def perceptual_draws(cascade: CascadeBase, stage: Stage, t: Tensor, generator: Generators) -> Tensor | None:
    """Draw the items that have a perceptual loss. None without such a loss, as outside of training."""
    if stage.perceptual is None or not cascade.training:
        return None
    return stage.perceptual.draw(stage.process.schedule(widest(t)), generator)


def augment_label(cascade: CascadeBase, stage: Stage, batch: int, generator: Generators) -> Tensor | None:
    """Draw the augmentation label of each item. None for a network without labels, zeros outside of training."""
    unet = cascade.unets[stage.number - 1]
    dim, device = getattr(unet, "augment_dim", 0), device_of(unet)
    if not dim:
        return None
    if stage.augment is None or not cascade.training:
        return torch.zeros(batch, dim, device=device)
    return stage.augment.draw(batch, stage.size, generator, device)


def augmented(
    whole: Tensor, cond_images: Tensor | None, clip: ClipInput, label: Tensor
) -> tuple[Tensor, Tensor | None, ClipInput]:
    """Apply the same augmentation to images, conditioning images and given frames of each item.

    The low-resolution condition is computed from augmented images, as in sampling it is computed from the image itself.
    """
    names = ("cond_video_frames", "post_cond_video_frames")
    given = {name: part.to(label.device) for name in names if (part := getattr(clip, name)) is not None}
    clip = replace(clip, **{name: changed(part, label) for name, part in given.items()})
    return changed(whole, label), None if cond_images is None else changed(cond_images, label), clip


def cropped(
    cascade: CascadeBase, stage: Stage, items: tuple[Tensor, Tensor | None, Tensor | None], generator: Generators
) -> tuple[tuple[Tensor, Tensor | None, Tensor | None], Tensor | None]:
    """Crop the same random window from each item, and return the windows ``(b, 4)`` for a network with coordinates.

    Without ``random_crop_sizes`` all items are returned as they are.
    """
    if stage.crop is None:
        return items, None
    offsets = crop_offsets(stage.size, stage.crop, rand((len(items[0]), 2), generator))
    image, lowres_image, cond_images = (
        None if item is None else crop(resize(item, stage.size, cascade.resize_mode), offsets, stage.crop)
        for item in items
    )
    located = getattr(cascade.unets[stage.number - 1], "crop_coordinates", False)
    window = crop_windows(offsets, stage.crop, stage.size).to(items[0].device) if located else None
    return (image, lowres_image, cond_images), window


def split_given(stage: Stage, x0: Tensor, stage_frames: StageFrames | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Separate the frames to learn from the given ones. The latter are scaled as clean inputs of the network."""
    if stage_frames is None:
        return x0, {}
    first, last = stage_frames.noisy_slice.start, stage_frames.noisy_slice.stop
    clean = x0 * stage.process.clean_scale
    parts = {"cond_video_frames": clean[:, :, :first], "post_cond_video_frames": clean[:, :, last:]}
    return x0[:, :, first:last], {name: part for name, part in parts.items() if part.shape[2]}


def clip_draws(
    cascade: CascadeBase,
    stage: Stage,
    clip: ClipInput,
    stage_frames: StageFrames | None,
    x0: Tensor,
    generator: Generators,
) -> dict[str, Any]:
    """Return the times of frames, their rate, and for which clips it is hidden (none, outside training)."""
    if stage_frames is None or clip.ignore_time is True:
        return {} if stage_frames is None else {"ignore_time": True}
    batch = len(x0)
    named: dict[str, Any] = {"frame_times": stage_frames.times.expand(batch, -1)}
    if isinstance(clip.ignore_time, Tensor):
        named["ignore_time"] = clip.ignore_time.to(x0.device)
    rates = frame_rate(clip.fps, batch)
    if rates is not None:
        dropped = cascade.fps_drop_prob if cascade.training else 0.0
        named["fps"] = (rates / stage.frame_stride).to(x0.device, torch.float32)
        named["fps_keep"] = ~bernoulli(dropped, batch, generator, x0.device)
    return named


def text_draws(
    cascade: CascadeBase, stage: Stage, text: Text | None, x0: Tensor, generator: Generators
) -> dict[str, Tensor]:
    """Return the captions on the device of ``x0``, and which of them are kept (all, outside training).

    Raises:
        ValueError: another number of captions than images.
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


def cond_image_draws(
    cascade: CascadeBase, cond_images: Tensor | None, are_given: bool, generator: Generators
) -> dict[str, Tensor]:
    """Return the conditioning images, and which of them are kept (all, outside training)."""
    if cond_images is None:
        return {}
    dropped = cascade.cond_images_drop_prob if cascade.training else 0.0
    keep = ~bernoulli(dropped, len(cond_images), generator, cond_images.device)
    return {"cond_images": cond_images, "cond_images_keep": keep & are_given}

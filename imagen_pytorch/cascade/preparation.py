"""From a user's pictures and captions to a `TrainingBatch`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..images import crop, crop_offsets, crop_windows, resize
from ..tensors import Generators, bernoulli, once, rand, randn_like, widest
from .batch import TrainingBatch
from .conditioning import Text, conditioning_pictures, null_text
from .geometric import changed
from .inputs import checked_images
from .lowres import augmentation_times, lowres_companion, target_space
from .options import check_text_count
from .placement import device_of, dtype_of
from .stage import Stage
from .video import (
    ClipFrames,
    ClipInput,
    StageFrames,
    clip_frames,
    draw_given,
    frame_rate,
    given_frames,
    in_front,
    in_time,
    with_checked_frames,
)

if TYPE_CHECKING:
    from .parts import CascadeParts


def checked_pictures(cascade: CascadeParts, images: Tensor, stage: Stage, device: torch.device) -> Tensor:
    """Training pictures in [-1, 1], in the precision of the weights but never less than single, on their device.

    Raises:
        ValueError: wrong rank, channels, size or proportions, or values that look like 0..255.
        TypeError: neither a tensor nor an array, or whole numbers that are not uint8.
    """
    pictures = checked_images(cascade, images, "images")
    (height, width), (least_height, least_width) = images.shape[-2:], stage.size
    what = f"U-Net {stage.number} trains on pictures of {least_height}x{least_width}"
    if height < least_height or width < least_width:
        raise ValueError(f"{what}, the images are smaller: {height}x{width}")
    # less than a pixel off is rounding
    if abs(height * least_width / width - least_height) >= 1:
        raise ValueError(f"{what}, images of {height}x{width} have other proportions: crop them or change image_sizes")
    precision = torch.promote_types(dtype_of(cascade.unets[stage.number - 1]), torch.float32)
    return cascade.normalize_img(pictures.to(device, precision))


@dataclass(frozen=True)
class Request:
    """What a caller gives to train on."""

    images: Any
    text: Text | None
    cond_images: Any
    noise: Tensor | None
    clip: ClipInput


def build_batch(cascade: CascadeParts, stage: Stage, request: Request, generator: Generators) -> TrainingBatch:
    """Resize, crop and draw everything that is random; see `Cascade.training_batch`."""
    unet = cascade.unets[stage.number - 1]
    device, batch = device_of(unet), len(request.images)
    common = once(generator)
    images, clip = as_clips(cascade, request)
    whole = checked_pictures(cascade, images, stage, device)
    pictures, are_given = conditioning_pictures(cascade, request.cond_images, unet, batch, device)
    label = augment_label(cascade, stage, batch, generator)
    if label is not None and stage.augment is not None and cascade.training:
        whole, pictures, clip = augmented(whole, pictures, clip, label)
    frames = clip_frames(cascade, whole.shape[2], clip, batch) if cascade.is_video else None
    picture, companion = pictures_of_stage(cascade, stage, whole, frames)
    shown = None
    if frames is not None:
        shown = frames.at(stage.factor)
        picture, companion, shown = with_given(cascade, stage, clip, shown, (picture, companion), common)
    (picture, companion, pictures), window = cropped(cascade, stage, (picture, companion, pictures), generator)
    x0 = target_space(companion, stage.residual).encode(picture)
    x0, given = split_given(stage, x0, shown)
    noise = request.noise
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"noise must be like the training pictures {tuple(x0.shape)}, got {tuple(noise.shape)}")
    lowres, lowres_times = None, None
    if companion is not None:
        per_sample = cascade.per_sample_random_aug_noise_level
        times = augmentation_times(batch, per_sample, generator if per_sample else common, device)
        times = times * cascade.lowres_max_noise_level
        lowres, lowres_times = cascade.augmentation(companion, times, generator)
    base = None if stage.residual is None else companion
    t = stage.process.noise_levels.draw(batch, generator, device)
    return TrainingBatch(
        unet_number=stage.number,
        x0=x0,
        t=t,
        noise=randn_like(x0, generator) if noise is None else noise.to(x0),
        self_condition=bool(unet.self_cond) and bool(rand((1,), common) < 0.5),
        **text_draws(cascade, stage, request.text, x0, generator),
        **picture_draws(cascade, pictures, are_given, generator),
        **given,
        **clip_draws(cascade, stage, clip, shown, x0, generator),
        lowres_cond_img=lowres,
        lowres_noise_times=lowres_times,
        base=base if base is None or shown is None else base[:, :, shown.noisy_slice],
        crop_window=window,
        augment_label=label,
        perceptual=perceptual_draws(cascade, stage, t, generator),
    )


def as_clips(cascade: CascadeParts, request: Request) -> tuple[Tensor, ClipInput]:
    """Pictures for a video model are clips of one frame, in which nothing moves.

    Raises:
        ValueError: frames for an image model, or beside pictures.
    """
    images, clip = request.images, request.clip
    if not cascade.is_video:
        if clip.given():
            raise ValueError(f"this is an image model: it takes no {', '.join(clip.given())}")
        return images, clip
    if images.ndim == 4:
        if beside := [name for name in clip.given() if name not in ("fps", "ignore_time")]:
            raise ValueError(
                f"pictures are clips of one frame in which nothing moves: they take no {', '.join(beside)}"
            )
        return images[:, :, None], ClipInput(ignore_time=True)
    return images, with_checked_frames(cascade, clip, len(images))


def pictures_of_stage(
    cascade: CascadeParts, stage: Stage, whole: Tensor, frames: ClipFrames | None
) -> tuple[Tensor, Tensor | None]:
    """Training pictures at the stage's size and frame rate, and what the stage before would have handed over."""

    def seen(factor: int) -> Tensor:
        return whole if frames is None or factor == 1 else whole[:, :, ::factor]

    picture = resize(seen(stage.factor), stage.size, cascade.resize_mode)
    if stage.number == 1:
        return picture, None
    before = cascade.stages[stage.number - 2]
    companion = lowres_companion(seen(before.factor), before.size, stage.size, cascade.resize_mode)
    return picture, companion if frames is None else in_time(cascade, companion, stage, before, picture.shape[2])


def with_given(
    cascade: CascadeParts,
    stage: Stage,
    clip: ClipInput,
    shown: StageFrames,
    pair: tuple[Tensor, Tensor | None],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None, StageFrames]:
    """Pictures and companions of all frames, given ones included, and which of them are given."""
    picture, companion = pair
    low = cascade.stages[stage.number - 2].size if stage.number > 1 else None
    given = given_frames(cascade, clip, shown, low, stage.size)
    picture = given.around(picture, given.pictures)
    companion = None if companion is None else given.around(companion, given.companions)
    count = len(shown.noisy)
    if not cascade.training or count < 2 or clip.ignore_time is not False or not cascade.given_frames_prob:
        return picture, companion, shown
    if float(rand((1,), generator)) >= cascade.given_frames_prob:
        return picture, companion, shown
    shown, order = in_front(shown, draw_given(count, cascade.unets[stage.number - 1].is_causal, generator))
    order = order.to(picture.device)
    return picture[:, :, order], None if companion is None else companion[:, :, order], shown


def perceptual_draws(cascade: CascadeParts, stage: Stage, t: Tensor, generator: Generators) -> Tensor | None:
    """Return for which items feature maps are compared; None where none are, as outside of training."""
    if stage.perceptual is None or not cascade.training:
        return None
    return stage.perceptual.draw(stage.process.schedule(widest(t)), generator)


def augment_label(cascade: CascadeParts, stage: Stage, batch: int, generator: Generators) -> Tensor | None:
    """Return what is to be done with each item; None if the network takes no label, zeros outside of training."""
    unet = cascade.unets[stage.number - 1]
    dim, device = getattr(unet, "augment_dim", 0), device_of(unet)
    if not dim:
        return None
    if stage.augment is None or not cascade.training:
        return torch.zeros(batch, dim, device=device)
    return stage.augment.draw(batch, stage.size, generator, device)


def augmented(
    whole: Tensor, pictures: Tensor | None, clip: ClipInput, label: Tensor
) -> tuple[Tensor, Tensor | None, ClipInput]:
    """Return images, conditioning images and given frames of each item, all changed alike.

    The low-resolution condition is made of changed images, as in sampling it is made of whatever the image is.
    """
    names = ("cond_video_frames", "post_cond_video_frames")
    given = {name: part.to(label.device) for name in names if (part := getattr(clip, name)) is not None}
    clip = replace(clip, **{name: changed(part, label) for name, part in given.items()})
    return changed(whole, label), None if pictures is None else changed(pictures, label), clip


def cropped(
    cascade: CascadeParts, stage: Stage, items: tuple[Tensor, Tensor | None, Tensor | None], generator: Generators
) -> tuple[tuple[Tensor, Tensor | None, Tensor | None], Tensor | None]:
    """Return the same random window of each item, and the windows ``(b, 4)`` for a network that takes coordinates.

    Without ``random_crop_sizes`` all items are returned as they are.
    """
    if stage.crop is None:
        return items, None
    offsets = crop_offsets(stage.size, stage.crop, rand((len(items[0]), 2), generator))
    picture, companion, pictures = (
        None if item is None else crop(resize(item, stage.size, cascade.resize_mode), offsets, stage.crop)
        for item in items
    )
    located = getattr(cascade.unets[stage.number - 1], "crop_coordinates", False)
    window = crop_windows(offsets, stage.crop, stage.size).to(items[0].device) if located else None
    return (picture, companion, pictures), window


def split_given(stage: Stage, x0: Tensor, shown: StageFrames | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames to learn and frames that are given, the latter scaled as the network takes clean ones."""
    if shown is None:
        return x0, {}
    first, last = shown.noisy_slice.start, shown.noisy_slice.stop
    clean = x0 * stage.process.clean_scale
    parts = {"cond_video_frames": clean[:, :, :first], "post_cond_video_frames": clean[:, :, last:]}
    return x0[:, :, first:last], {name: part for name, part in parts.items() if part.shape[2]}


def clip_draws(
    cascade: CascadeParts, stage: Stage, clip: ClipInput, shown: StageFrames | None, x0: Tensor, generator: Generators
) -> dict[str, Any]:
    """When frames were taken, their rate, and for which clips it is hidden (none, outside training)."""
    if shown is None or clip.ignore_time is True:
        return {} if shown is None else {"ignore_time": True}
    batch = len(x0)
    named: dict[str, Any] = {"frame_times": shown.times.expand(batch, -1)}
    if isinstance(clip.ignore_time, Tensor):
        named["ignore_time"] = clip.ignore_time.to(x0.device)
    rates = frame_rate(clip.fps, batch)
    if rates is not None:
        dropped = cascade.fps_drop_prob if cascade.training else 0.0
        named["fps"] = (rates / stage.factor).to(x0.device, torch.float32)
        named["fps_keep"] = ~bernoulli(dropped, batch, generator, x0.device)
    return named


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


def picture_draws(
    cascade: CascadeParts, pictures: Tensor | None, are_given: bool, generator: Generators
) -> dict[str, Tensor]:
    """Conditioning pictures, and which of them survive dropping (all, outside training)."""
    if pictures is None:
        return {}
    dropped = cascade.cond_images_drop_prob if cascade.training else 0.0
    keep = ~bernoulli(dropped, len(pictures), generator, pictures.device)
    return {"cond_images": pictures, "cond_images_keep": keep & are_given}

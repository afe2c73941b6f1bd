"""Checks of the images, clips and masks that a caller gives, before any work is done.

Training and sampling check alike, with two differences. In training, values that are not finite are left to the loss,
where the trainer counts and skips them. Values on an accelerator are not read in training, because every step would
wait.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..images import as_float
from ..ranges import check_number
from ..tensors import token_mask, truth_of
from .stage import takes_cond_images

#: the types that `as_tensor` accepts, for messages
_FITS = "a tensor or a NumPy array"


class TakesImages(Protocol):
    """The attributes of a `Cascade` that decide which images it takes."""

    channels: int
    input_image_range: tuple[float, float]
    cond_images_drop_prob: float
    is_video: bool
    unets: nn.ModuleList

    def as_given(self, images: Tensor, name: str = ...) -> Tensor:
        """Convert images to floats in the caller's range, also from uint8."""


def as_tensor(value: Any, name: str) -> Tensor:
    """Return a tensor, also from a NumPy array.

    Raises:
        TypeError: another type, or an array of values that a tensor cannot hold.
        ValueError: a tensor without axes.
    """
    if isinstance(value, Tensor) and not value.ndim:
        raise ValueError(f"{name} must be {_FITS} with an axis for the batch, got a single number")
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        try:
            own = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
            return torch.as_tensor(np.ascontiguousarray(own))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be {_FITS} of numbers, got an array of {value.dtype}") from error
    made_by = type(value).__module__.split(".")[0]
    hint = ""
    if made_by == "PIL":
        hint = "; imagen_pytorch.images.from_pil(image)[None] makes a batch of one"
    elif isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        hint = "; captions are texts=[...]"
    elif isinstance(value, list | tuple):
        hint = "; torch.stack(...) makes a batch of tensors"
    raise TypeError(f"{name} must be {_FITS} with an axis for the batch, got {type(value).__name__}{hint}")


def arrays_as_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert NumPy arrays of numbers to tensors, and arrays of captions to lists."""

    def without_numpy(value: Any, name: str) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return as_tensor(value, name) if value.dtype.kind in "biuf" else value.tolist()

    return {name: without_numpy(value, name) for name, value in arguments.items()}


def check_range(images: Tensor, name: str, bottom: float, *, sampling: bool) -> None:
    """Check the range of images: in 0..255 (an error), out of range (a warning), and in sampling not finite (an error).

    Args:
        bottom: of the range: 0, or -1 for a model that works on [-1, 1]. The top is 1.
        sampling: true in a call of `sample`, which may wait for an accelerator.

    Raises:
        ValueError: values far out of range, so that the image was probably not divided by 255; or NaN or infinity.
    """
    if images.is_meta or not images.numel() or (images.device.type != "cpu" and not sampling):
        return
    least, most = images.detach().aminmax()
    low, high = float(least), float(most)
    if not math.isfinite(high - low):
        if sampling:
            raise ValueError(f"{name} hold values that are not finite (NaN or infinity)")
        return
    fits = f"[{bottom:g}, 1]"
    if high > 16 or low < -16:
        cure = "divide by 255 or pass uint8"
        if bottom < 0:
            cure = "this model works on that range (auto_normalize_img=False): scale images and latents to it"
        raise ValueError(f"{name} must lie in {fits}, got {low:g} to {high:g}; {cure}")
    if high > 1 + 1e-3 or low < bottom - 1e-3:
        # without the values: a message that changes would be shown at every call
        warnings.warn(f"{name} should lie in {fits}, some values lie outside of it", stacklevel=4)


def checked_images(
    cascade: TakesImages,
    given: Any,
    name: str,
    *,
    batch: int | None = None,
    clips: bool | None = None,
    channels: int | None = None,
    sampling: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Return images or clips of a caller as floats in the caller's range.

    Args:
        batch: the required number; None takes any number but 0.
        clips: true for clips ``(b, c, f, h, w)``. Default: as the model generates.
        channels: by default those of the model.
        sampling: as for `check_range`.
        mask: true at relevant values, broadcastable. The others may be anything.

    Raises:
        ValueError: another shape, number, or range.
        TypeError: neither tensor nor array, or integers that are not uint8.
    """
    images = as_tensor(given, name)
    clips = cascade.is_video if clips is None else clips
    channels = cascade.channels if channels is None else channels
    if images.ndim != (5 if clips else 4) or images.shape[1] != channels:
        is_rank = images.ndim == (5 if clips else 4)
        fits = f"(batch, {channels}, {'frames, ' * clips}height, width)"
        hint = ""
        if is_rank:
            hint = f": the model has {channels} channels, the images have {images.shape[1]}"
            if images.shape[-1] == channels:
                hint += "; the last axis has as many: if these are the channels, permute the axes"
        raise ValueError(f"{name} must be {fits}, got {tuple(images.shape)}{hint}")
    if batch is not None and len(images) != batch:
        raise ValueError(f"{batch} {'clips' if clips else 'images'} need as many {name}, got {len(images)}")
    if not images.numel():
        raise ValueError(f"{name} must hold at least one image of at least one pixel, got {tuple(images.shape)}")
    floats = cascade.as_given(images, name)
    seen = floats if mask is None else floats.masked_fill(~mask.to(floats.device), 0)
    check_range(seen, name, cascade.input_image_range[0], sampling=sampling)
    return floats


def conditioning_images(
    cascade: TakesImages, given: Any, channels: int, *, batch: int, sampling: bool = False
) -> Tensor:
    """Return conditioning images as floats. uint8 becomes [0, 1].

    Raises:
        ValueError: another shape, number, or range.
        TypeError: neither tensor nor array, or integers that are not uint8.
    """
    images = as_float(as_tensor(given, "cond_images"), "cond_images")
    if images.ndim != 4:
        raise ValueError(f"cond_images must be (batch, channels, height, width), got {tuple(images.shape)}")
    return checked_images(
        cascade, images, "cond_images", batch=batch, clips=False, channels=channels, sampling=sampling
    )


# -- masks ------------------------------------------------------------------------------------------------------------


def image_mask(given: Any, name: str = "inpaint_masks") -> Tensor:
    """Return a mask of pixels as booleans. Numbers are thresholded in the middle: floats at 0.5, 0..255 at 128.

    Raises:
        TypeError: neither tensor nor array.
        ValueError: fewer axes than a batch of images, floats out of [0, 1], or integers out of 0..255.
    """
    mask = as_tensor(given, name)
    if mask.ndim < 3:
        raise ValueError(f"{name} must be (batch, height, width), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool or mask.is_meta or not mask.numel():
        return mask.bool()
    low, high = (end.item() for end in mask.aminmax())
    if mask.is_floating_point():
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{name} must be booleans, floats in [0, 1] (cut at 0.5) or uint8, got {low:g} to {high:g}"
            )
        return mask >= 0.5
    if low < 0 or high > 255:
        raise ValueError(f"{name} must be booleans, 0 and 1, or 0..255 (cut at 128), got {low} to {high}")
    return mask.bool() if high <= 1 else mask >= 128


def check_ignore_time(given: Any, batch: int) -> bool | Tensor:
    """Return ``ignore_time`` as a boolean, or as a boolean per clip.

    Raises:
        TypeError: a value of another type.
        ValueError: another number of entries, or other numbers than 0 and 1.
    """
    if given is None or isinstance(given, bool | np.bool_):
        return bool(given)
    mask = as_tensor(given, "ignore_time")
    if mask.shape != (batch,):
        raise ValueError(f"ignore_time must be True, False or ({batch},) of them, got {tuple(mask.shape)}")
    return truth_of(mask, "ignore_time", "booleans, or the numbers 0 and 1")


def text_mask(text_embeds: Tensor, given: Any) -> Tensor:
    """Return the given mask ``(b, n)``, or true where an embedding has any non-zero entry (zero padding is enough).

    Raises:
        TypeError: neither tensor nor array.
        ValueError: a mask of another shape, or other numbers than 0 and 1.
    """
    if given is None:
        return torch.any(text_embeds != 0, dim=-1)
    mask = as_tensor(given, "text_masks")
    if mask.shape != text_embeds.shape[:2]:
        raise ValueError(f"text_masks must be {tuple(text_embeds.shape[:2])}, got {tuple(mask.shape)}")
    return token_mask(mask, "text_masks")


# -- the arguments of sample() ----------------------------------------------------------------------------------------


def sampling_inputs(cascade: TakesImages, arguments: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Check those arguments of `Cascade.sample` that hold images, clips or masks.

    Returns:
        images as floats in the caller's range, masks as booleans.

    Raises:
        ValueError: another shape, number or range, or values that are not finite.
        TypeError: neither tensor nor array, or integers that are not uint8.
    """
    found: dict[str, Any] = {}

    def images(given: Any, name: str, **options: Any) -> Tensor:
        return checked_images(cascade, given, name, batch=batch, sampling=True, **options)

    if (mask := arguments["inpaint_masks"]) is not None:
        found["inpaint_masks"] = image_mask(mask)
    for name in ("inpaint_images", "inpaint_videos"):
        if (given := arguments[name]) is not None:
            known = _known_pixels(as_tensor(given, name), found.get("inpaint_masks"))
            low, high = cascade.input_image_range
            found[name] = images(given, name, mask=known).clamp(low, high)  # they are returned unchanged
    for name in ("start_image_or_video", "cond_video_frames", "post_cond_video_frames"):
        if (given := arguments[name]) is not None:
            if name != "start_image_or_video" and not cascade.is_video:
                raise ValueError(f"this is an image model: it takes no {name}")
            found[name] = images(given, name)
    init = arguments["init_images"]
    if isinstance(init, list | tuple):
        found["init_images"] = type(init)(None if item is None else images(item, "init_images") for item in init)
    elif init is not None:
        found["init_images"] = images(init, "init_images")
    if (given := arguments["cond_images"]) is not None:
        takers = [unet for unet in cascade.unets if takes_cond_images(unet)]
        for channels in sorted({unet.cond_images_channels for unet in takers if hasattr(unet, "cond_images_channels")}):
            found["cond_images"] = conditioning_images(cascade, given, channels, batch=batch, sampling=True)
    if (embeds := arguments["text_embeds"]) is not None:
        embeds = found["text_embeds"] = as_tensor(embeds, "text_embeds")
        if embeds.is_floating_point() and not embeds.is_meta and not bool(embeds.isfinite().all()):
            raise ValueError("text_embeds hold values that are not finite (NaN or infinity)")
        if embeds.ndim == 3:
            found["text_masks"] = text_mask(embeds, arguments["text_masks"])
    return found


def _known_pixels(images: Tensor, mask: Tensor | None) -> Tensor | None:
    """Make the mask broadcast over images, if it can. Its shape is checked later."""
    if mask is None or not 3 <= mask.ndim <= images.ndim:
        return None
    for _ in range(images.ndim - mask.ndim):
        mask = mask[:, None]
    fits = all(one in (1, other) for one, other in zip(mask.shape, images.shape, strict=True))
    return mask if fits else None


def check_times(given: Any) -> Tensor:
    """Return times of frames ``(b, m)`` in seconds.

    Raises:
        TypeError: not numbers.
        ValueError: not finite.
    """
    try:
        times = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"frame_times must be numbers, (batch, frames) seconds; got {type(given).__name__}") from error
    if not times.is_meta and not bool(times.isfinite().all()):
        raise ValueError("frame_times must be finite numbers of seconds, got NaN or infinity")
    return times


def check_rates(given: Any) -> None:
    """Check frames per second, one number or one per clip.

    Raises:
        TypeError: not numbers.
        ValueError: not positive, not finite, or absurdly large.
    """
    many = given.reshape(-1).tolist() if isinstance(given, Tensor | np.ndarray) else given
    for rate in many if isinstance(many, Sequence) and not isinstance(many, str | bytes) else [many]:
        check_number(rate, "fps", 0, 1e6, above=True)

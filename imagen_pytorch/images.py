"""Images and videos as tensors: ranges, antialiased resizing, paired crops, to and from Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

#: Height and width in pixels.
Size = tuple[int, int]

#: Largest number of pixels of a side.
MAX_SIDE = 65_536

#: Pillow's mode for each number of channels.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

#: Modes that Pillow converts to few others only, and the intermediate mode.
DETOURS = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}

RESIZE_MODES = ("nearest", "bilinear", "trilinear", "bicubic", "area")

TEMPORAL_MODES = ("linear", "nearest")


def as_size(size: int | Sequence[int]) -> Size:
    """Convert ``64`` or ``(height, width)`` to a pair.

    Raises:
        ValueError: not one or two positive integers, or more than `MAX_SIDE`.
    """
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"an image size is a positive int or (height, width), got {size!r}")
    if max(pair) > MAX_SIDE:
        raise ValueError(f"an image size is at most {MAX_SIDE:,} pixels a side, got {size!r}")
    return tuple(pair)


def normalize(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert from [0, 1] to the model's [-1, 1]."""
    return x * 2 - 1


def unnormalize(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert from the model's [-1, 1] to [0, 1], clipped."""
    return (x.clamp(-1, 1) + 1) / 2


def as_float(x: Shaped[Tensor, "*shape"], name: str = "images") -> Float[Tensor, "*shape"]:
    """Convert uint8 in 0..255 to float in [0, 1]. Floating tensors pass unchanged.

    Raises:
        TypeError: any other dtype.
    """
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point in [0, 1] or uint8 in 0..255, got {x.dtype}")
    return x


def _resize_plane(x: Float[Tensor, "b c h w"], size: Size, mode: str) -> Float[Tensor, "b c h2 w2"]:
    if mode in ("bilinear", "bicubic"):
        # the antialiasing kernels of the CPU do not support half precision
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return F.interpolate(wide, size, mode=mode, antialias=True, align_corners=False).to(x.dtype)
    return F.interpolate(x, size, mode="nearest-exact" if mode == "nearest" else mode)


def resize(
    x: Float[Tensor, "b c *space"], size: int | Sequence[int], mode: str = "bilinear"
) -> Float[Tensor, "b c *to"]:
    """Resize the last two axes of images ``b c h w`` or videos ``b c f h w``. "bilinear" and "bicubic" antialias.

    "trilinear" is "bilinear" here, where frames keep their number; `resample_frames` changes that.
    Bicubic overshoots, so the result is clipped to the range of the input.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f'no resize mode "{mode}"; known: {", ".join(RESIZE_MODES)}')
    mode = "bilinear" if mode == "trilinear" else mode
    size = as_size(size)
    if tuple(x.shape[-2:]) == size:
        return x
    if x.ndim == 4:
        out = _resize_plane(x, size, mode)
    else:
        b, c, f, h, w = x.shape
        planes = x.transpose(1, 2).reshape(b * f, c, h, w)
        out = _resize_plane(planes, size, mode).reshape(b, f, c, *size).transpose(1, 2)
    if mode != "bicubic":
        return out
    axes = tuple(range(1, x.ndim))
    return out.clamp(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True))


def resample_frames(
    x: Float[Tensor, "b c f h w"], places: Float[Tensor, " f2"], mode: str = "linear"
) -> Float[Tensor, "b c f2 h w"]:
    """Resample a clip at positions in it: 0 is its first frame, 1 its second, 1.5 lies between the second and third.

    Args:
        places: positions. Outside the clip its nearest frame is used.
        mode: "linear" mixes the two neighbours, "nearest" takes the last frame that is not later.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in TEMPORAL_MODES:
        raise ValueError(f'no temporal resize mode "{mode}"; known: {", ".join(TEMPORAL_MODES)}')
    places = places.double().clamp(0, x.shape[2] - 1)
    before = places.floor().long()
    earlier = x.index_select(2, before.to(x.device))
    if mode == "nearest" or bool((places == before).all()):
        return earlier
    later = x.index_select(2, (before + 1).clamp(max=x.shape[2] - 1).to(x.device))
    share = (places - before).to(x)[:, None, None]
    return torch.lerp(earlier, later, share)


def shrink_known(
    image: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"], size: Size
) -> tuple[Float[Tensor, "b c *to"], Bool[Tensor, "b 1 *to"]]:
    """Resize a partly known image and its mask (true = known).

    A small pixel is known only if every pixel that it covers is known. Its value is the mean over known pixels, so no
    unknown value has an influence.
    """
    hidden = resize((~mask).float(), size, "area")
    known = resize(image.masked_fill(~mask, 0), size, "area") / (1 - hidden).clamp(min=1e-6)
    return known.to(image.dtype), hidden == 0


def crop_offsets(size: Size, crop: Size, draws: Float[Tensor, "b 2"]) -> list[tuple[int, int]]:
    """Return the top-left corners of one crop per item from uniform draws in [0, 1).

    Raises:
        ValueError: the crop is larger than the image.
    """
    if crop[0] > size[0] or crop[1] > size[1]:
        raise ValueError(f"a crop of {crop} does not fit into an image of {size}; choose smaller random_crop_sizes")
    room = torch.tensor([size[0] - crop[0] + 1, size[1] - crop[1] + 1])
    return [(int(y), int(x)) for y, x in (draws.cpu().double() * room).long()]


def crop(x: Shaped[Tensor, "b c *space"], offsets: list[tuple[int, int]], size: Size) -> Shaped[Tensor, "b c *to"]:
    """Crop the same window from every channel and frame of an item. Equal offsets pair several tensors."""
    height, width = size
    pairs = zip(x, offsets, strict=True)
    return torch.stack([item[..., top : top + height, left : left + width] for item, (top, left) in pairs])


def crop_windows(offsets: list[tuple[int, int]], crop: Size, size: Size) -> Float[Tensor, "b 4"]:
    """Return top, left, height and width of crops at ``offsets`` as fractions of an image of ``size``."""
    return torch.tensor([(*corner, *crop) for corner in offsets], dtype=torch.float32) / torch.tensor(size * 2)


def check_channels(channels: int) -> str:
    """Return the Pillow mode of images with this number of channels.

    Raises:
        ValueError: Pillow has no such mode.
    """
    if channels not in MODES:
        raise ValueError(f"images have 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA) channels, got {channels}")
    return MODES[channels]


def to_pil(x: Float[Tensor, "b c h w"]) -> list[Image.Image]:
    """Convert images in [0, 1] to Pillow images (L, LA, RGB or RGBA by the number of channels), clipped to that range.

    Raises:
        ValueError: Pillow has no mode with this number of channels.
    """
    from PIL import Image

    mode = check_channels(x.shape[1])
    pixels = (x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(item[..., 0] if mode == "L" else item) for item in pixels]


def from_pil(picture: Image.Image, channels: int = 3) -> Float[Tensor, "c h w"]:
    """Convert a Pillow image of any mode to floats in [0, 1]. Transparency is composed over white, or kept as alpha.

    Raises:
        ValueError: Pillow has no mode with this number of channels.
    """
    import numpy as np
    from PIL import Image

    wanted = check_channels(channels)
    if picture.mode in DETOURS:
        picture = picture.convert(DETOURS[picture.mode])
    if picture.mode.startswith("I") or picture.mode == "F":
        white = 255 if picture.mode == "F" else 65535
        levels = np.asarray(picture, dtype=np.float32) / white
        picture = Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    if transparent and channels in (1, 3):
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = torch.from_numpy(np.array(picture.convert(wanted)))
    return (pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).float() / 255

"""Degraded versions of images: to train judges that ignore small defects, and as references for metrics.

Generated images differ from real ones by a little noise, blur or a shifted colour before they differ in content. A
judge that was trained on clean images only takes these defects for another subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..images import Size, resize


def with_noise(
    images: Float[Tensor, "n c h w"], sigma: float | Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Add Gaussian noise of this standard deviation, one for all images or one per image, and clip to [0, 1]."""
    scale = torch.as_tensor(sigma, dtype=images.dtype).reshape(-1, 1, 1, 1)
    return (images + scale * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def reduced(images: Float[Tensor, "n c h w"], size: int | Size) -> Float[Tensor, "n c h w"]:
    """Shrink to ``size`` and enlarge to the old size again, bicubically: the baseline of an upsampler."""
    return resize(resize(images, size), tuple(images.shape[-2:]), "bicubic")


def blurred(images: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Convolve each image with a Gaussian of its own width in pixels. Edges are repeated outwards."""
    count, channels, height, width = images.shape
    radius = max(1, int((3 * sigma.max()).ceil()))
    places = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.softmax(-0.5 * (places / sigma.clamp(min=1e-3)[:, None]) ** 2, 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    maps = F.pad(images.reshape(1, count * channels, height, width), (radius,) * 4, mode="replicate")
    maps = F.conv2d(maps, kernel[..., None, :], groups=count * channels)
    return F.conv2d(maps, kernel[..., None], groups=count * channels).reshape(images.shape)


def shifted(images: Float[Tensor, "n c h w"], offsets: Int[Tensor, "n 2"]) -> Float[Tensor, "n c h w"]:
    """Move each image down and right by whole pixels. Edges are repeated outwards."""
    rows, columns = (
        (torch.arange(side) - offsets[:, axis, None]).clamp(0, side - 1) for axis, side in enumerate(images.shape[-2:])
    )
    return images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None]].movedim(-1, 1)


@dataclass(frozen=True)
class Augmentation:
    """A random mixture of defects, drawn for each image independently.

    Args:
        probability: of each of the five kinds of defects in an image.
        noise: largest standard deviation of the noise, in units of the range [0, 1].
        blur: largest standard deviation of the blur, as a fraction of the shorter side.
        shift: largest shift along each axis, as a fraction of the shorter side.
        shrink: smallest and largest size to which images are shrunk before they are enlarged, as a fraction.
        colour: largest change of the gain and of the offset of each channel.
    """

    probability: float = 0.4
    noise: float = 0.06
    blur: float = 1 / 64
    shift: float = 1 / 20
    shrink: tuple[float, float] = (0.25, 0.5)
    colour: float = 0.06

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return an augmented version of each image, in [0, 1]. The same generator state gives the same versions."""
        count, side = len(images), min(images.shape[-2:])

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        def chosen() -> Tensor:
            return (uniform(count) < self.probability).nonzero()[:, 0]

        out = images.clone()
        index = chosen()
        if len(index):
            offsets = (uniform(len(index), 2) * 2 - 1) * self.shift * side
            out[index] = shifted(out[index], offsets.round().long())
        index = chosen()
        for part in index.chunk(3):  # three sizes a batch: images of one size are resized together
            if len(part):
                fraction = self.shrink[0] + (self.shrink[1] - self.shrink[0]) * float(uniform(1))
                height, width = (max(1, round(edge * fraction)) for edge in images.shape[-2:])
                out[part] = reduced(out[part], (height, width))
        index = chosen()
        if len(index):
            out[index] = blurred(out[index], uniform(len(index)) * self.blur * side)
        index = chosen()
        if len(index):
            gain, offset = ((uniform(len(index), images.shape[1], 1, 1) * 2 - 1) * self.colour for _ in range(2))
            out[index] = out[index] * (1 + gain) + offset
        index = chosen()
        if len(index):
            out[index] = with_noise(out[index], uniform(len(index)) * self.noise, generator)
        return out.clamp(0, 1)

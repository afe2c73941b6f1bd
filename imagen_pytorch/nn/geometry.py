"""The few layers that depend on the rank. All others are written for feature maps ``(b, c, *space)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .frames import Frames


class CrossEmbed(nn.Module):
    """Parallel convolutions with kernels of several sizes, concatenated. Widths halve from the smallest kernel on, and
    the largest takes the remainder.

    Raises:
        ValueError: kernels whose parity differs from the stride's (the maps would not fit together), or more kernels
            than the width can be divided among.
    """

    def __init__(self, dim_in: int, dim_out: int, kernels: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        kernels = sorted(kernels)
        if any(kernel % 2 != stride % 2 for kernel in kernels):
            raise ValueError(f"kernels of a cross embedding must be {'odd' if stride % 2 else 'even'}, got {kernels}")
        widths = [dim_out // 2 ** (index + 1) for index in range(len(kernels) - 1)]
        widths.append(dim_out - sum(widths))
        if 0 in widths:
            raise ValueError(f"{dim_out} channels are too few for {len(kernels)} kernels {kernels}; give fewer kernels")
        self.convs = nn.ModuleList(
            nn.Conv2d(dim_in, width, kernel, stride, (kernel - stride) // 2)
            for width, kernel in zip(widths, kernels, strict=True)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Apply all kernels to the same input."""
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class PixelUnshuffle(nn.Module):
    """Halve height and width without losing a pixel: space to depth, then a 1x1 convolution (Sunkara & Luo 2022,
    arXiv 2208.03641)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in * 4, dim_out, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return a map of half the size."""
        return self.conv(F.pixel_unshuffle(x, 2))


class PixelShuffle(nn.Module):
    """Double height and width by a sub-pixel convolution. Each group of four channels starts with equal weights, which
    avoids checkerboard artefacts (Aitken et al. 2017, arXiv 1707.02937)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out * 4, 1)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))
            self.conv.bias.zero_()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return a map of twice the size."""
        return F.pixel_shuffle(F.silu(self.conv(x)), 2)


class NearestUpsample(nn.Module):
    """Double height and width by repeating pixels, then a 3x3 convolution."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return a map of twice the size."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class TemporalIdentity(nn.Module):
    """Identity in place of the temporal layers."""

    def forward(self, x: Float[Tensor, "b c h w"], frames: Frames | None) -> Float[Tensor, "b c h w"]:
        """Return the input."""
        return x


@dataclass(frozen=True)
class Geometry:
    """Factories of the layers that depend on the rank of the data.

    Maps are always ``(b, c, h, w)``: the frames of a clip are items of the batch. Only the temporal layers mix frames
    of one clip. For images they are identities.
    """

    causal = token_shift = attends = False
    strides = 1

    def conv(self, dim_in: int, dim_out: int, kernel: int) -> nn.Module:
        """Return a convolution that keeps the size.

        Raises:
            ValueError: an even kernel.
        """
        if kernel % 2 == 0:
            raise ValueError(f"kernels of convolutions that keep the size must be odd, got {kernel}")
        return nn.Conv2d(dim_in, dim_out, kernel, padding=kernel // 2)

    def depthwise(self, dim: int, kernel: int) -> nn.Module:
        """Return a convolution of each channel alone that keeps the size."""
        return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)

    def cross_embed(self, dim_in: int, dim_out: int, kernels: Sequence[int], stride: int = 1) -> nn.Module:
        """Return parallel convolutions with kernels of several sizes."""
        return CrossEmbed(dim_in, dim_out, kernels, stride)

    def downsample(self, dim_in: int, dim_out: int) -> nn.Module:
        """Return a layer that halves height and width."""
        return PixelUnshuffle(dim_in, dim_out)

    def upsample(self, dim_in: int, dim_out: int, pixel_shuffle: bool) -> nn.Module:
        """Return a layer that doubles height and width."""
        return PixelShuffle(dim_in, dim_out) if pixel_shuffle else NearestUpsample(dim_in, dim_out)

    def temporal_conv(self, dim: int, kernel: int) -> nn.Module:
        """Return the layer after the convolutions of residual blocks. Temporal layers are called with a map and its
        `Frames`."""
        return TemporalIdentity()

    def temporal_peg(self, dim: int) -> nn.Module:
        """Return the layer before temporal attention."""
        return TemporalIdentity()

    def temporal_attention(
        self, dim: int, heads: int, dim_head: int, cosine: bool = False, kv_heads: int | None = None
    ) -> nn.Module:
        """Return the attention between the frames of each pixel."""
        return TemporalIdentity()

    def temporal_downsample(self, dim: int, stride: int) -> nn.Module:
        """Return a layer that merges ``stride`` frames into one."""
        return TemporalIdentity()

    def temporal_upsample(self, dim: int, stride: int) -> nn.Module:
        """Return a layer that makes ``stride`` frames from one."""
        return TemporalIdentity()


IMAGE = Geometry()

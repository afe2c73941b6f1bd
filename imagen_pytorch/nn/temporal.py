"""Layers between the frames of a clip. All other layers of a video network process each frame alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Attention
from .frames import USUAL_FPS, Frames
from .geometry import Geometry


class TemporalConv(nn.Module):
    """A convolution over frames after one over pixels (Singer et al. 2022, Make-A-Video, arXiv 2209.14792, section
    3.2). It starts as the identity.

    Args:
        dim: channels.
        kernel: odd number of frames.
        causal: a frame sees only itself and earlier ones.
        depthwise: convolve each channel alone and add the result to the input. It encodes positions for the attention
            that follows.
    """

    def __init__(self, dim: int, kernel: int = 3, causal: bool = True, depthwise: bool = False) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.padding = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.groups = dim if depthwise else 1
        self.weight = nn.Parameter(torch.zeros(dim, dim // self.groups, kernel, 1))
        self.bias = nn.Parameter(torch.zeros(dim))
        if not depthwise:
            with torch.no_grad():
                self.weight[:, :, self.padding[0], 0].diagonal().fill_(1)  # `initial.normal` says why not torch.eye

    def forward(self, x: Float[Tensor, "bf c h w"], frames: Frames | None) -> Float[Tensor, "bf c h w"]:
        """Return the mixed map."""
        if frames is None:
            return x
        clips = frames.clips(x).flatten(3).transpose(1, 2)
        mixed = F.conv2d(F.pad(clips, (0, 0, *self.padding)), self.weight, self.bias, groups=self.groups)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        return frames.unless_independent(x + mixed if self.depthwise else mixed, x)


class TimeBias(nn.Module):
    """Attention bias for the time between two frames: a network of ``sign(dt) log(1 + |dt| / dt0)``.

    It depends on differences alone, so it is defined for clips of any length and any spacing.

    Args:
        heads: number of outputs.
        width, depth: of the network.
    """

    def __init__(self, heads: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(width if index else 1, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, heads))

    def forward(self, time_deltas: Float[Tensor, "b f f"]) -> Float[Tensor, "b heads f f"]:
        """Return the bias for each frame (row) and each that it attends to (column), from the seconds between them."""
        scaled = time_deltas.sign() * torch.log1p(time_deltas.abs() * USUAL_FPS)
        dtype = next(part.dtype for part in self.net.parameters() if part.is_floating_point())
        return self.net(scaled[..., None].to(dtype)).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Attention between the frames of each pixel. It starts as the identity.

    Args:
        dim: channels.
        heads, dim_head, kv_heads: of the attention.
        causal: a frame sees only itself and earlier ones.
        depth: of the network of the bias.
        cosine: as for `Attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        causal: bool = True,
        depth: int = 2,
        cosine: bool = False,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.attention = Attention(dim, heads, dim_head, cosine=cosine, kv_heads=kv_heads)
        self.bias = TimeBias(heads, max(16, dim // 2), depth)
        self.null_bias = nn.Parameter(torch.zeros(heads))

    def scores(self, time_deltas: Float[Tensor, "b f f"]) -> Float[Tensor, "b heads f m"]:
        """Return the bias that is added to the logits of the null token and of all frames."""
        bias = self.bias(time_deltas)
        if self.causal:
            later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
            bias = bias.masked_fill(later, torch.finfo(bias.dtype).min)
        return torch.cat([self.null_bias[:, None, None].expand(*bias.shape[:-1], 1), bias], dim=-1)

    def _update(
        self, tokens: Float[Tensor, "b pixels f c"], scores: Float[Tensor, "b2 heads f m"]
    ) -> Float[Tensor, "b pixels f c"]:
        """Return the update of the frames of each pixel."""
        if scores.shape[0] == 1:
            return self.attention.tokens(tokens.flatten(0, 1), bias=scores).view_as(tokens)
        if torch.compiler.is_compiling():  # a loop would fix the number of clips
            repeated = scores.repeat_interleave(tokens.shape[1], dim=0)
            return self.attention.tokens(tokens.flatten(0, 1), bias=repeated).view_as(tokens)
        # each clip has its own times: one clip after the other, so that no bias is repeated for every pixel
        clips = zip(tokens, scores[:, None], strict=True)
        return torch.stack([self.attention.tokens(clip, bias=bias) for clip, bias in clips])

    def forward(self, x: Float[Tensor, "bf c h w"], frames: Frames | None) -> Float[Tensor, "bf c h w"]:
        """Return the mixed map."""
        if frames is None:
            return x
        clips = frames.clips(x).flatten(3)
        tokens = clips.permute(0, 3, 1, 2)  # b pixels f c
        update = self._update(tokens, self.scores(frames.time_deltas))
        mixed = x + update.permute(0, 2, 3, 1).reshape(x.shape)
        return frames.unless_independent(mixed, x)


class TemporalDownsample(nn.Module):
    """Merge ``stride`` frames into one: fold them into channels, then a 1x1 convolution. It starts as their mean, or,
    in a causal network, as a copy of the first.

    Args:
        causal: the merged frame must not depend on later frames than the first of its group. It is computed from that
            frame and the ``stride - 1`` before it.
    """

    def __init__(self, dim: int, stride: int, causal: bool) -> None:
        super().__init__()
        self.stride, self.causal = stride, causal
        self.conv = nn.Conv2d(dim * stride, dim, 1)
        with torch.no_grad():
            weight = torch.zeros(dim, stride, dim)
            if causal:
                weight[:, -1] = torch.eye(dim)
            else:
                weight[:] = torch.eye(dim)[:, None] / stride
            self.conv.weight.copy_(weight.flatten(1)[..., None, None])
            self.conv.bias.zero_()

    def forward(self, x: Float[Tensor, "bf c h w"], frames: Frames | None) -> Float[Tensor, "bs c h w"]:
        """Return the merged frames. ``frames`` are those of the output."""
        if frames is None:
            return x
        clips = x.unflatten(0, (-1, frames.count * self.stride))
        if self.causal:
            before = clips[:, :1].expand(-1, self.stride - 1, *clips.shape[2:])
            clips = torch.cat([before, clips[:, : 1 - self.stride]], dim=1)
        return self.conv(clips.unflatten(1, (frames.count, self.stride)).flatten(2, 3).flatten(0, 1))


class TemporalUpsample(nn.Module):
    """Make ``stride`` frames from each one by a sub-pixel convolution in time. It starts by repeating the frame."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim, dim * stride, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(dim).repeat(stride, 1)[..., None, None])
            self.conv.bias.zero_()

    def forward(self, x: Float[Tensor, "bs c h w"], frames: Frames | None) -> Float[Tensor, "bf c h w"]:
        """Return the map with more frames. ``frames`` are those of the input."""
        return x if frames is None else self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)


@dataclass(frozen=True)
class VideoGeometry(Geometry):
    """Layers of a video network: those of an image for every frame, and the layers between frames.

    Attributes:
        causal: frames see only themselves and earlier ones.
        strides: per level, number of frames that are merged into one.
        attends: per level, attention between frames.
        token_shift: feed-forwards shift half of their features to the next frame.
        bias_depth: layers of the network that computes the bias of temporal attention.
    """

    causal: bool = True
    strides: int | Sequence[int] = 1
    attends: bool | Sequence[bool] = True
    token_shift: bool = True
    bias_depth: int = 2

    def temporal_conv(self, dim: int, kernel: int) -> nn.Module:
        """Return the layer after the convolutions of residual blocks."""
        return TemporalConv(dim, kernel, self.causal)

    def temporal_peg(self, dim: int) -> nn.Module:
        """Return the layer before temporal attention."""
        return TemporalConv(dim, 3, self.causal, depthwise=True)

    def temporal_attention(
        self, dim: int, heads: int, dim_head: int, cosine: bool = False, kv_heads: int | None = None
    ) -> nn.Module:
        """Return the attention between the frames of each pixel."""
        return TemporalAttention(dim, heads, dim_head, self.causal, self.bias_depth, cosine, kv_heads)

    def temporal_downsample(self, dim: int, stride: int) -> nn.Module:
        """Return a layer that merges frames."""
        return TemporalDownsample(dim, stride, self.causal) if stride > 1 else super().temporal_downsample(dim, stride)

    def temporal_upsample(self, dim: int, stride: int) -> nn.Module:
        """Return a layer that restores the number of frames."""
        return TemporalUpsample(dim, stride) if stride > 1 else super().temporal_upsample(dim, stride)

"""Embeddings of numbers and captions: vectors and tokens."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..images import Size
from .attention import Attention, FeedForward
from .initial import normal, normal_parameter


class FourierFeatures(nn.Module):
    """``[s, sin 2 pi w s, cos 2 pi w s]`` of a scalar, with learned frequencies w drawn from N(0, 1).

    Raises:
        ValueError: an odd number of features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"learned_sinu_pos_emb_dim must be even, got {dim}")
        self.weights = normal_parameter(dim // 2)

    def forward(self, s: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return the features of each scalar, ``dim + 1`` of them, in the precision of the weights."""
        # half precision would round the phase away
        dtype = torch.promote_types(self.weights.dtype, torch.float32)
        s = s.to(dtype)[:, None]
        angle = s * self.weights.to(dtype) * (2 * math.pi)
        return torch.cat([s, angle.sin(), angle.cos()], dim=-1).to(self.weights.dtype)


def masked_mean(tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b d"]:
    """Return the mean over the tokens whose mask is true, or over all without a mask."""
    if mask is None:
        return tokens.mean(dim=1)
    weight = mask.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def pixel_coordinates(window: Float[Tensor, "b 4"], size: Size) -> Float[Tensor, "b 2 h w"]:
    """Return x and y of the centre of every pixel, in coordinates that go from -1 to 1 over the full image.

    Args:
        window: top, left, height and width of the visible region, as fractions of the full image.
        size: height and width of the visible region in pixels.
    """
    corner, extent = (2 * part.double() for part in window.split(2, dim=1))
    height, width = (
        corner[:, axis, None] + extent[:, axis, None] * (torch.arange(side, device=window.device) + 0.5) / side - 1
        for axis, side in enumerate(size)
    )
    shape = (len(window), *size)
    return torch.stack([width[:, None, :].expand(shape), height[:, :, None].expand(shape)], dim=1).to(window.dtype)


class PerceiverResampler(nn.Module):
    """Resample any number of tokens to a fixed number of latents (Alayrac et al. 2022, arXiv 2204.14198, section
    3.1.1).

    Args:
        dim: width of tokens and latents.
        num_latents: learned latents. Four more are computed from the mean of the tokens.
        max_len: number of learned positions.
        heads, dim_head, kv_heads: as for `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_latents: int,
        max_len: int,
        heads: int,
        dim_head: int,
        depth: int = 2,
        mean_latents: int = 4,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding.from_pretrained(normal(max_len, dim), freeze=False)
        self.latents = normal_parameter(num_latents, dim, std=dim**-0.5)
        self.mean_latents = mean_latents
        self.to_mean_latents = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * mean_latents))
        given = {"context_dim": dim, "zero": False, "kv_heads": kv_heads}
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, dim_head, **given), FeedForward(dim, 4)]) for _ in range(depth)
        )

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b m d"]:
        """Return the latents after they have attended to the tokens whose mask is true."""
        batch, count, dim = tokens.shape
        means = self.to_mean_latents(masked_mean(tokens, mask)).view(batch, self.mean_latents, dim)
        latents = torch.cat([means, self.latents.expand(batch, -1, -1)], dim=1)
        placed = tokens + self.positions(torch.arange(count, device=tokens.device))
        for attention, feed_forward in self.layers:
            latents = latents + attention.tokens(latents, [attention.context(placed)], mask)
            latents = latents + feed_forward(latents)
        return latents

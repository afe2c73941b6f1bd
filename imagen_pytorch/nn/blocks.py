"""Blocks of the U-Net: residual block, gate, transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .attention import Attention, FeedForward, KeysValues, LinearAttention, repeat_frames, to_map, to_tokens
from .frames import Frames
from .geometry import Geometry
from .norms import group_norm
from .plain import is_plain


@dataclass(frozen=True)
class Context:
    """The context of one forward pass, for all layers.

    Attributes:
        emb: the modulation of the blocks: SiLU of the sum of the noise level's embedding and the text's, ``(b, d)``,
            one row per map.
        time_tokens: computed from the noise level, ``(b, m, d)``; None if no layer reads tokens.
        static: keys and values of all other tokens, per attention layer; computed once per sampling call.
        mask: true at valid tokens, time tokens first; None if all are valid.
        frames: the maps that are frames of one clip; None if all are independent.
    """

    emb: Tensor
    time_tokens: Tensor | None = None
    static: tuple[KeysValues, ...] = ()
    mask: Tensor | None = None
    frames: Frames | None = None

    def downsampled(self, stride: int, causal: bool) -> Context:
        """Return the context for maps of which ``stride`` frames were merged into one."""
        if self.frames is None or stride == 1:
            return self
        return replace(self, emb=self.emb[::stride], frames=self.frames.downsampled(stride, causal))

    def read(
        self, layer: Attention | LinearAttention, index: int
    ) -> tuple[list[KeysValues], Bool[Tensor, "b m"] | None]:
        """Return the keys and values for one layer, those of the time tokens first, and the mask over all of them."""
        return [layer.context(self.time_tokens), *self.static[index : index + 1]], self.mask


class ContextAttention(nn.Module):
    """Base of modules with one attention layer that reads the context. The U-Net numbers them."""

    attention: Attention | LinearAttention
    context_index: int = -1

    def attend(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c *space"]:
        """Return the update of a feature map from the context."""
        return self.attention(x, *context.read(self.attention, self.context_index))


class GlobalContext(nn.Module):
    """Gate channels by an attention-pooled summary of a map: of the same map (Cao et al. 2020, arXiv 2012.13375) or of
    a smaller one ("skip-layer excitation", Liu et al. 2021, arXiv 2101.04775).

    Args:
        dim: channels of the map that is gated.
        source: channels of the map that is summarised, if it is another one.
    """

    def __init__(self, dim: int, source: int | None = None) -> None:
        super().__init__()
        hidden, source = max(3, dim // 2), source or dim
        self.to_weight = nn.Linear(source, 1, bias=False)  # softmax would cancel a bias
        self.net = nn.Sequential(nn.Linear(source, hidden), nn.SiLU(), nn.Linear(hidden, dim), nn.Sigmoid())

    def gate(self, source: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c2"]:
        """Return a factor in (0, 1) per channel."""
        flat = source.flatten(2)
        logits = (
            self.to_weight.weight @ flat
            if is_plain(self.to_weight)
            else self.to_weight(flat.transpose(1, 2)).transpose(1, 2)
        )
        weight = logits.softmax(dim=-1)
        return self.net((weight @ flat.transpose(1, 2)).squeeze(1))

    def forward(
        self, x: Float[Tensor, "b c *space"], source: Float[Tensor, "b c2 *space2"] | None = None
    ) -> Float[Tensor, "b c *space"]:
        """Return the gated map."""
        gate = self.gate(x if source is None else source)
        return x * gate.reshape(*gate.shape, *(1,) * (x.ndim - 2))


@dataclass(frozen=True)
class BlockOptions:
    """Options that all blocks of one U-Net share."""

    geometry: Geometry
    groups: int
    hidden_dim: int
    cond_dim: int
    heads: int
    dim_head: int
    dropout: float = 0.0
    cosine: bool = False
    kv_heads: int | None = None

    @property
    def attention_shape(self) -> tuple[int, int, bool, int | None]:
        """Heads, their width, cosine similarity, and the number of key and value heads."""
        return self.heads, self.dim_head, self.cosine, self.kv_heads


class CrossAttention(ContextAttention):
    """Attention of a map to the context tokens only."""

    def __init__(self, dim: int, options: BlockOptions, linear: bool) -> None:
        super().__init__()
        shape = (dim, options.heads, options.dim_head, options.cond_dim)
        given = {"attend_self": False, "zero": False, "kv_heads": options.kv_heads}
        self.attention = (
            LinearAttention(*shape, geometry=options.geometry, **given)
            if linear
            else Attention(*shape, cosine=options.cosine, **given)
        )

    def forward(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c *space"]:
        """Return the map plus its update."""
        return x + self.attend(x, context)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution over pixels and then frames, twice. It is modulated by the noise level and the pooled
    text (Perez et al. 2017, arXiv 1709.07871), with optional cross-attention between the convolutions and a gate after
    them. It starts as its shortcut.

    Args:
        dim_in, dim_out: channels.
        options: shared by all blocks.
        cross: "", "full" or "linear" cross-attention to the context.
        gated: gate channels by the global context.
    """

    def __init__(self, dim_in: int, dim_out: int, options: BlockOptions, cross: str = "", gated: bool = False) -> None:
        super().__init__()
        self.norm1 = group_norm(dim_in, options.groups)
        self.conv1 = options.geometry.conv(dim_in, dim_out, 3)
        self.temporal1 = options.geometry.temporal_conv(dim_out, 3)
        self.cross = CrossAttention(dim_out, options, cross == "linear") if cross else None
        self.norm2 = group_norm(dim_out, options.groups)
        self.to_scale_shift = nn.Linear(options.hidden_dim, dim_out * 2)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = options.geometry.conv(dim_out, dim_out, 3)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self.temporal2 = options.geometry.temporal_conv(dim_out, 3)
        self.gate = GlobalContext(dim_out) if gated else nn.Identity()
        self.shortcut = options.geometry.conv(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c2 *space"]:
        """Return the updated map."""
        h = self.temporal1(self.conv1(F.silu(self.norm1(x))), context.frames)
        if self.cross is not None:
            h = self.cross(h, context)
        modulation = self.to_scale_shift(context.emb)
        scale, shift = modulation.reshape(*modulation.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        h = self.temporal2(self.conv2(self.dropout(h)), context.frames)
        return self.shortcut(x) + self.gate(h)


class TransformerLayer(ContextAttention):
    """Attention, then a feed-forward, both residual."""

    def __init__(self, dim: int, options: BlockOptions, ff_mult: float, linear: bool, reads: bool) -> None:
        super().__init__()
        shape = (dim, options.heads, options.dim_head, options.cond_dim if reads else None)
        self.reads = reads
        self.attention = (
            LinearAttention(*shape, geometry=options.geometry, dropout=options.dropout, kv_heads=options.kv_heads)
            if linear
            else Attention(*shape, cosine=options.cosine, kv_heads=options.kv_heads)
        )
        self.feed_forward = FeedForward(dim, ff_mult, options.dropout, True, options.geometry.token_shift)

    def forward(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c *space"]:
        """Return the updated map."""
        x = x + (self.attend(x, context) if self.reads else self.attention(x))
        return x + to_map(self.feed_forward(to_tokens(x), context.frames), x)


class Transformer(nn.Module):
    """Transformer layers over the positions of a map.

    Args:
        dim: channels.
        depth: number of layers.
        linear: attention of linear cost.
        reads: attend to the context tokens too.
    """

    def __init__(
        self, dim: int, options: BlockOptions, depth: int, ff_mult: float, linear: bool = False, reads: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(dim, options, ff_mult, linear, reads) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c *space"]:
        """Return the updated map."""
        for layer in self.layers:
            x = layer(x, context)
        return x


class TemporalBlock(nn.Module):
    """Attention between the frames of each pixel, after a convolution that encodes positions."""

    def __init__(self, dim: int, options: BlockOptions) -> None:
        super().__init__()
        self.peg = options.geometry.temporal_peg(dim)
        self.attention = options.geometry.temporal_attention(dim, *options.attention_shape)

    def forward(self, x: Float[Tensor, "b c *space"], context: Context) -> Float[Tensor, "b c *space"]:
        """Return the mixed map."""
        return self.attention(self.peg(x, context.frames), context.frames)


class UpsampleCombiner(nn.Module):
    """Concatenate the maps of all levels of the upward path, each projected to ``dim`` channels, full size and full
    frame rate."""

    def __init__(self, widths: list[int], dim: int, options: BlockOptions) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(group_norm(width, options.groups), nn.SiLU(), options.geometry.conv(width, dim, 3))
            for width in widths
        )
        self.extra = dim * len(widths)

    def forward(self, x: Float[Tensor, "b c *space"], maps: list[Tensor]) -> Float[Tensor, "b c2 *space"]:
        """Return the full-size map and all projections."""
        sized = [
            repeat_frames(F.interpolate(projection(item), x.shape[2:], mode="nearest"), x.shape[0])
            for projection, item in zip(self.projections, maps, strict=True)
        ]
        return torch.cat([x, *sized], dim=1)

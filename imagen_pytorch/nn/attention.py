"""Attention over positions and context tokens by the fused kernel, and attention of linear cost for large maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from .frames import Frames, shift_tokens
from .geometry import IMAGE, Geometry
from .initial import normal_parameter
from .norms import GroupNorm
from .plain import is_plain
from .softmax_attention import attend

#: Keys and values of context tokens, each ``(b, kv_heads, n, d)``: computed once per sampling call.
KeysValues = tuple[Tensor, Tensor]


def to_tokens(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n c"]:
    """Flatten a feature map to a sequence of positions."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Float[Tensor, "b n c"], like: Float[Tensor, "b c2 *space"]) -> Float[Tensor, "b c *space"]:
    """Reshape a sequence of positions to a feature map with the space of ``like``."""
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


def l2norm(x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """Scale vectors to length one. Zeros stay zeros, in half precision too."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


def repeat_frames(x: Shaped[Tensor, "b *rest"], batch: int) -> Shaped[Tensor, "b2 *rest"]:
    """Repeat per-clip rows for every frame; images pass through."""
    return x if x.shape[0] == batch else x.repeat_interleave(batch // x.shape[0], dim=0)


def concat_kv(groups: Sequence[KeysValues]) -> KeysValues:
    """Concatenate the keys and values of several groups of tokens."""
    keys, values = (torch.cat([group[part] for group in groups], dim=2) for part in (0, 1))
    return keys, values


def split_heads(x: Float[Tensor, "b n c"], *heads: int) -> tuple[Tensor, ...]:
    """Split fused projections into tensors ``(b, count, n, d)``, one for each count of ``heads``."""
    width = x.shape[-1] // sum(heads)
    parts = x.split([count * width for count in heads], dim=-1)
    return tuple(part.unflatten(-1, (count, width)).transpose(1, 2) for part, count in zip(parts, heads, strict=True))


class FeedForward(nn.Module):
    """Norm, linear, GELU, linear, per token.

    Args:
        dim: width.
        mult: expansion.
        zero: initialise the output layer to zero, so that the update starts at zero.
        token_shift: between frames, shift half of the inner features to the next one, by a learned fraction that starts
            at 0.
    """

    def __init__(
        self, dim: int, mult: float = 2, dropout: float = 0.0, zero: bool = False, token_shift: bool = False
    ) -> None:
        super().__init__()
        self.shift_share = nn.Parameter(torch.zeros(())) if token_shift else None
        inner = int(dim * mult)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, inner)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(inner, dim)
        if zero:
            nn.init.zeros_(self.contract.weight)
            nn.init.zeros_(self.contract.bias)

    def forward(self, x: Float[Tensor, "b n d"], frames: Frames | None = None) -> Float[Tensor, "b n d"]:
        """Return the update, to be added to ``x``."""
        hidden = F.gelu(self.expand(self.norm(x)))
        if self.shift_share is not None and frames is not None:
            hidden = shift_tokens(hidden, frames, self.shift_share.reshape(()))  # of shape (1,) in sharded training
        return self.contract(self.dropout(hidden))


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves, to context tokens and to one learned null token.

    The null token lets a position attend to nothing. It keeps the softmax defined when every context token is masked.

    Where tokens are not wider than heads, the CPU attends in the width of the tokens, which computes the same function:
    with queries ``q = Wq x``, ``q . k = x . (Wq' k)``, and ``Wo (p v) = p (Wo v)``. Maps of high resolution are narrow,
    and attention costs half or less there. This reads the weights of ``to_qkv`` and ``to_out`` directly. Layers that
    are more than their weights (adapters, hooks, parametrizations) are called instead.

    Args:
        dim: width of the tokens.
        heads, dim_head: number and width of the heads.
        context_dim: width of context tokens; None without context.
        attend_self: true if tokens attend to each other.
        cosine: normalise queries and keys to length one and scale by 16.
        zero: initialise the output layer to zero. Not needed inside a block that already starts as its shortcut.
        kv_heads: number of key and value heads. Each serves ``heads / kv_heads`` consecutive query heads (Ainslie et
            al. 2023, arXiv 2305.13245). None: as many as ``heads``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        attend_self: bool = True,
        cosine: bool = False,
        zero: bool = True,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        inner, shared = heads * dim_head, 2 * self.kv_heads * dim_head
        self.attend_self, self.cosine = attend_self, cosine
        self.scale = 16.0 if cosine else dim_head**-0.5
        self.narrow = not cosine and dim <= dim_head
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner + shared if attend_self else inner, bias=False)
        self.null_kv = normal_parameter(2, self.kv_heads, dim_head, std=0.02)
        self.norm_context = None if context_dim is None else nn.LayerNorm(context_dim)
        self.to_context = None if context_dim is None else nn.Linear(context_dim, shared, bias=False)
        self.to_out = nn.Linear(inner, dim)
        if zero:
            nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def _narrows(self, device: torch.device) -> bool:
        """Return true if attention works in the width of the tokens."""
        return self.narrow and device.type == "cpu" and is_plain(self.to_qkv) and is_plain(self.to_out)

    def _to_token_weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights from the width of the heads to that of the tokens, for keys and values: ``(heads,
        dim_head, dim)``."""
        dim = self.to_out.out_features
        queries = self.to_qkv.weight[: self.to_out.in_features]
        return queries.view(self.heads, -1, dim), self.to_out.weight.view(dim, self.heads, -1).permute(1, 2, 0)

    def _repeated(self, x: Shaped[Tensor, "*b heads n d"]) -> Shaped[Tensor, "*b heads2 n d"]:
        """Repeat keys or values, or their weights, for every query head that they serve."""
        groups = self.heads // self.kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=-3)

    def _to_token_width(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Bring keys and values to the width in which they are attended to."""
        if not self._narrows(keys.device):
            return keys, values
        to_keys, to_values = self._to_token_weights()
        keys, values = self._repeated(keys), self._repeated(values)
        return keys @ to_keys.to(keys.dtype), values @ to_values.to(values.dtype)

    def context(self, tokens: Float[Tensor, "b n d"]) -> KeysValues:
        """Return the keys and values of context tokens."""
        keys, values = split_heads(self.to_context(self.norm_context(tokens)), self.kv_heads, self.kv_heads)
        return self._to_token_width(l2norm(keys) if self.cosine else keys, values)

    def _project(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, list[KeysValues]]:
        """Project normed tokens to queries, one for all heads where these share it, and to their own keys and values if
        they attend to each other."""
        if not self._narrows(x.device):
            query, *own = split_heads(self.to_qkv(x), self.heads, *(self.kv_heads,) * (2 * self.attend_self))
            if self.cosine:
                query, own = l2norm(query), [l2norm(own[0]), own[1]] if own else own
            return query, [(own[0], own[1])] if own else []
        query = x[:, None]
        if not self.attend_self:
            return query, []
        outward = self.to_qkv.weight[self.to_out.in_features :].view(2, self.kv_heads, -1, x.shape[-1])
        weight = torch.stack(self._to_token_weights()).transpose(-1, -2) @ self._repeated(outward)
        keys, values = split_heads(F.linear(x, weight.flatten(0, 2)), self.heads, self.heads)
        return query, [(keys, values)]

    def tokens(
        self,
        x: Float[Tensor, "b n d"],
        context: Sequence[KeysValues] = (),
        mask: Bool[Tensor, "b2 m"] | None = None,
        bias: Float[Tensor, "b2 heads n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the update of tokens ``x``.

        Args:
            context: keys and values of other tokens. They may have fewer items than ``x``: those of a clip serve all of
                its frames.
            mask: true at the valid tokens of all context groups.
            bias: added to the logits of the null token, of the context and of the tokens. Only without a mask.
        """
        shape = x.shape
        if context and not self.attend_self:  # the frames of a clip share their context: no copies of it
            x = x.reshape(context[0][0].shape[0], -1, shape[-1])
        elif context:
            context = [(repeat_frames(keys, x.shape[0]), repeat_frames(values, x.shape[0])) for keys, values in context]
            mask = None if mask is None else repeat_frames(mask, x.shape[0])
        batch, count, _ = x.shape
        query, own = self._project(self.norm(x))
        null = self._to_token_width(*self.null_kv.to(query.dtype)[:, :, None])
        null = tuple(part.expand(batch, -1, -1, -1) for part in null)
        keys, values = concat_kv([null, *context, *own])
        if mask is not None:
            mask = F.pad(mask, (1, count if self.attend_self else 0), value=True)[:, None, None]
        out = attend(query, keys, values, self.scale, mask, bias)
        if self._narrows(x.device):
            return (out.sum(1) + self.to_out.bias.to(out.dtype)).reshape(shape)
        return self.to_out(out.transpose(1, 2).reshape(*shape[:2], -1))

    def forward(
        self,
        x: Float[Tensor, "b c *space"],
        context: Sequence[KeysValues] = (),
        mask: Bool[Tensor, "b2 m"] | None = None,
    ) -> Float[Tensor, "b c *space"]:
        """Return the update of a feature map, whose positions are the tokens."""
        return to_map(self.tokens(to_tokens(x), context, mask), x)


class LinearAttention(nn.Module):
    """Attention of linear cost (Shen et al. 2018, arXiv 1812.01243): softmax of queries over features and of keys over
    positions. It attends to the map itself with 3x3 depthwise convolutions after the projections (So et al. 2021, arXiv
    2109.08668), or, as cross-attention, to context tokens only.

    Args:
        dim, heads, dim_head, context_dim, attend_self, kv_heads: as for `Attention`.
        geometry: rank of the maps.
        dropout: of channels, before the projections.
        zero: as for `Attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        attend_self: bool = True,
        geometry: Geometry = IMAGE,
        dropout: float = 0.0,
        zero: bool = True,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        inner, shared = heads * dim_head, 2 * self.kv_heads * dim_head
        self.attend_self = attend_self
        self.norm = GroupNorm(1, dim)
        fused = inner + shared if attend_self else inner
        self.dropout = nn.Dropout(dropout)
        self.to_qkv = nn.Sequential(geometry.conv(dim, fused, 1), geometry.depthwise(fused, 3))
        self.norm_context = None if context_dim is None else nn.LayerNorm(context_dim)
        self.to_context = None if context_dim is None else nn.Linear(context_dim, shared, bias=False)
        self.to_out = geometry.conv(inner, dim, 1)
        if zero:
            nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def context(self, tokens: Float[Tensor, "b n d"]) -> KeysValues:
        """Return the keys and values of context tokens."""
        keys, values = split_heads(self.to_context(self.norm_context(tokens)), self.kv_heads, self.kv_heads)
        return keys, values

    def forward(
        self,
        x: Float[Tensor, "b c *space"],
        context: Sequence[KeysValues] = (),
        mask: Bool[Tensor, "b2 m"] | None = None,
    ) -> Float[Tensor, "b c *space"]:
        """Return the update of a feature map."""
        if self.attend_self:
            context = [(repeat_frames(keys, x.shape[0]), repeat_frames(values, x.shape[0])) for keys, values in context]
            mask = None if mask is None else repeat_frames(mask, x.shape[0])
        projected = self.to_qkv(self.dropout(self.norm(x))).flatten(2)
        query, *own = split_heads(projected.transpose(1, 2), self.heads, *(self.kv_heads,) * (2 * self.attend_self))
        keys, values = concat_kv([*context, *([tuple(own)] if own else [])])
        if mask is not None:
            seen = F.pad(mask, (0, keys.shape[2] - mask.shape[1]), value=True)[:, None, :, None]
            keys = keys.masked_fill(~seen, torch.finfo(keys.dtype).min)
            values = values * seen
        summary = repeat_frames(keys.softmax(dim=2).transpose(-1, -2) @ values, x.shape[0])
        if self.kv_heads < self.heads:
            summary = summary.repeat_interleave(self.heads // self.kv_heads, dim=1)
        out = (query.softmax(dim=-1) * query.shape[-1] ** -0.5) @ summary
        return self.to_out(F.silu(to_map(out.transpose(1, 2).flatten(2), x)))

"""Softmax attention by the fastest kernel available: torch's fused one, or on a CPU in half precision the matrix
products of its library."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Number of logits that are held at once, so that they stay in the cache of a core.
_AT_ONCE = 2**19

_FOUND = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
#: True if this CPU multiplies bfloat16, but not in tiles. Torch's fused kernel is faster only with tiles.
PRODUCTS_ARE_FASTER = all(_FOUND) and _FOUND[0]() and not _FOUND[1]()


def attend(
    query: Float[Tensor, "b heads2 n d"],
    keys: Float[Tensor, "b heads3 m d"],
    values: Float[Tensor, "b heads3 m d2"],
    scale: float,
    mask: Bool[Tensor, "b 1 1 m"] | None = None,
    bias: Float[Tensor, "b2 heads n m"] | None = None,
) -> Float[Tensor, "b heads n d2"]:
    """Compute ``softmax(scale query keys' + bias) values``.

    Args:
        query: of each head, or one for all.
        keys, values: of each head, or of each group of consecutive heads.
        mask: true at valid keys, of which there is at least one.
        bias: added to the logits. Only without a mask.
    """
    query = query.to(keys.dtype)
    if query.shape[1] > keys.shape[1]:
        return _grouped(query, keys, values, scale, mask, bias)
    if bias is not None and _outgrows(query, keys, bias):
        return _recomputed(query, keys, values, scale, bias)
    plain = bias is not None or torch.is_grad_enabled() or query.device.type != "cpu"
    if plain or keys.dtype != torch.bfloat16 or not PRODUCTS_ARE_FASTER:
        query = query.expand(-1, keys.shape[1], -1, -1)
        added = mask if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=added, scale=scale)
    given = (query, keys, values, scale, mask)
    return _opaque(*given) if torch.compiler.is_compiling() else by_products(*given)


def _grouped(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Compute `attend` for fewer keys and values than queries. The queries of a group form one longer sequence, so
    nothing is repeated."""
    shape = (keys.shape[1], query.shape[1] // keys.shape[1])
    query = query.unflatten(1, shape).flatten(2, 3)
    bias = None if bias is None else bias.unflatten(1, shape).flatten(2, 3)
    out = attend(query, keys, values, scale, mask, bias)
    return out.unflatten(2, (shape[1], -1)).flatten(1, 2)


def _outgrows(query: Tensor, keys: Tensor, bias: Tensor) -> bool:
    """Return true if torch's kernel for CPUs would store a matrix of queries by keys, larger than the keys, of every
    item. It does so if the bias needs a gradient."""
    trained = torch.is_grad_enabled() and bias.requires_grad and bias.shape[0] == 1
    if not trained or query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    count, known, width = query.shape[2], keys.shape[2], keys.shape[3]
    return count > width and keys.shape[0] * keys.shape[1] * count * known > _AT_ONCE


def _recomputed(query: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor) -> Tensor:
    """Compute `attend` for a few items at a time, and recompute their matrices in the backward pass."""

    def few(*parts: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*parts[:3], attn_mask=parts[3], scale=scale)

    query, bias = query.expand(-1, keys.shape[1], -1, -1), bias.to(query.dtype)
    size = max(1, _AT_ONCE // (keys.shape[1] * query.shape[2] * keys.shape[2]))
    pieces = zip(query.split(size), keys.split(size), values.split(size), strict=True)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(few, *piece, bias, **options) for piece in pieces])


def by_products(
    query: Float[Tensor, "b heads2 n d"],
    keys: Float[Tensor, "b heads m d"],
    values: Float[Tensor, "b heads m d2"],
    scale: float,
    mask: Bool[Tensor, "b 1 1 m"] | None = None,
) -> Float[Tensor, "b heads n d2"]:
    """Compute `attend` by two matrix products and a softmax between, for as many queries at once as fit."""
    batch, heads, known, _ = keys.shape
    count = query.shape[2]
    added = None
    if mask is not None:
        added = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        added = added.expand(-1, heads, -1, -1).flatten(0, 1)
    query = (query * scale).expand(-1, heads, -1, -1).flatten(0, 1)
    keys, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    rows = math.ceil(count / math.ceil(count * known / _AT_ONCE))  # blocks of one size
    group = max(1, _AT_ONCE // (rows * known))
    out = values.new_empty(len(query), count, values.shape[2])
    for first in range(0, len(query), group):
        some = slice(first, first + group)
        across = keys[some].contiguous()
        for row in range(0, count, rows):
            block = slice(row, row + rows)
            logits = torch.bmm(query[some, block], across)
            if added is not None:
                logits += added[some]
            torch.bmm(logits.softmax(-1), values[some], out=out[some, block])
    return out.unflatten(0, (batch, heads))


@torch.library.custom_op(
    "imagen_pytorch::attend_by_products",
    mutates_args=(),
    schema="(Tensor query, Tensor keys, Tensor values, float scale, Tensor? mask) -> Tensor",
)
def _opaque(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """`by_products` as one operator, because `torch.compile` would unroll its loops, again for every size."""
    return by_products(query, keys, values, scale, mask)


@_opaque.register_fake
def _(query: Tensor, _keys: Tensor, values: Tensor, *_: object) -> Tensor:
    return values.new_empty(*values.shape[:2], query.shape[2], values.shape[3])

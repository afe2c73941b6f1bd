"""One resolution of the U-Net: its block on the way down and its block on the way up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors import per_stage
from .blocks import BlockOptions, Context, GlobalContext, ResnetBlock, TemporalBlock, Transformer
from .geometry import Geometry


@dataclass(frozen=True)
class LevelSpec:
    """All options of one resolution level of the U-Net.

    Attributes:
        dim_in, dim_out: channels above and below.
        width: channels of the blocks on the way down.
        halves: halve height and width.
        first: downsample before the blocks (the memory-efficient form).
        top: the level with the largest maps.
        attention, cross: "full", "linear" or "" for none: over the map, and to the context in the first block.
        reads: ``attention`` sees the context too.
        skip_layer_excitation: the map below gates the one above on the way up.
        stride: number of frames that are merged into one.
        temporal: attend between frames.
    """

    dim_in: int
    dim_out: int
    width: int
    halves: bool
    first: bool
    top: bool
    num_blocks: int
    attention: str
    depth: int
    cross: str
    groups: int
    reads: bool
    ff_mult: float
    gated: bool
    pixel_shuffle: bool
    skip_layer_excitation: bool
    stride: int
    temporal: bool
    cross_embed_kernels: tuple[int, ...] | None

    @property
    def attends(self) -> bool:
        """Return true if some layer of the level reads context tokens."""
        return bool(self.cross) or (bool(self.attention) and self.reads and self.depth > 0)


def level_specs(given: Mapping[str, Any], init_dim: int, geometry: Geometry) -> list[LevelSpec]:
    """Return the arguments of a U-Net and of its geometry, one `LevelSpec` per level.

    Raises:
        ValueError: a per-level argument with another number of entries than ``dim_mults``.
    """
    widths = [init_dim, *(int(given["dim"] * mult) for mult in given["dim_mults"])]
    count = len(widths) - 1
    per_level = {
        name: _per_level(given[name], count, name)
        for name in (
            "num_resnet_blocks",
            "layer_attns",
            "layer_attns_depth",
            "layer_cross_attns",
            "use_linear_attn",
            "use_linear_cross_attn",
            "resnet_groups",
        )
    }
    per_level["stride"] = _per_level(geometry.strides, count, "temporal_strides")
    per_level["temporal"] = _per_level(geometry.attends, count, "layer_temporal_attns")
    efficient = given["memory_efficient"]
    kernels = tuple(given["cross_embed_downsample_kernel_sizes"]) if given["cross_embed_downsample"] else None
    specs = []
    for index in range(count):
        row = {name: values[index] for name, values in per_level.items()}
        specs.append(
            LevelSpec(
                dim_in=widths[index],
                dim_out=widths[index + 1],
                width=widths[index + 1] if efficient else widths[index],
                halves=efficient or index < count - 1,
                first=efficient,
                top=index == 0,
                num_blocks=row["num_resnet_blocks"],
                attention="full" if row["layer_attns"] else "linear" if row["use_linear_attn"] else "",
                depth=row["layer_attns_depth"],
                cross="linear" if row["use_linear_cross_attn"] else "full" if row["layer_cross_attns"] else "",
                groups=row["resnet_groups"],
                reads=given["layer_attns_add_text_cond"],
                ff_mult=given["ff_mult"],
                gated=given["use_global_context_attn"],
                pixel_shuffle=given["pixel_shuffle_upsample"],
                skip_layer_excitation=given["skip_layer_excitation"],
                stride=row["stride"],
                temporal=row["temporal"],
                cross_embed_kernels=kernels,
            )
        )
    return specs


def _per_level(value: Any, count: int, name: str) -> tuple[Any, ...]:
    if isinstance(value, list | tuple) and len(value) != count:
        raise ValueError(f"{name} needs one value or {count}, one for each of dim_mults; got {len(value)}: {value!r}")
    return per_stage(value, count, name)


class _UnetBlock(nn.Module):
    """The common part of both directions: a conditioned block, more blocks, attention."""

    def _build(self, spec: LevelSpec, width: int, skip: int, options: BlockOptions) -> None:
        options = replace(options, groups=spec.groups)
        self.init_block = ResnetBlock(width + skip, width, options, cross=spec.cross)
        self.blocks = nn.ModuleList(
            ResnetBlock(width + skip, width, options, gated=spec.gated) for _ in range(spec.num_blocks)
        )
        self.attention = (
            Transformer(width, options, spec.depth, spec.ff_mult, spec.attention == "linear", spec.reads)
            if spec.attention
            else None
        )
        self.temporal = TemporalBlock(width, options) if spec.temporal else None

    def _attend(self, x: Tensor, context: Context) -> Tensor:
        x = x if self.attention is None else self.attention(x, context)
        return x if self.temporal is None else self.temporal(x, context)


class _Edge(nn.Module):
    """The last level of the ordinary form, which changes the width but not the size: the sum of a 3x3 and a 1x1
    convolution."""

    def __init__(self, dim_in: int, dim_out: int, options: BlockOptions) -> None:
        super().__init__()
        self.wide = options.geometry.conv(dim_in, dim_out, 3)
        self.narrow = options.geometry.conv(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of another width."""
        return self.wide(x) + self.narrow(x)


def _downsample(spec: LevelSpec, options: BlockOptions) -> nn.Module:
    if spec.cross_embed_kernels is not None:
        return options.geometry.cross_embed(spec.dim_in, spec.dim_out, spec.cross_embed_kernels, stride=2)
    return options.geometry.downsample(spec.dim_in, spec.dim_out)


class DownBlock(_UnetBlock):
    """The downward half of a level: blocks, each of which adds a skip, and the downsampling to the next size."""

    def __init__(self, spec: LevelSpec, options: BlockOptions) -> None:
        super().__init__()
        self.squeeze = options.geometry.temporal_downsample(spec.dim_in, spec.stride)
        self.before = _downsample(spec, options) if spec.first else None
        self._build(spec, spec.width, 0, options)
        self.after = None
        if not spec.first:
            self.after = _downsample(spec, options) if spec.halves else _Edge(spec.dim_in, spec.dim_out, options)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """Return the map for the next level, and the skips. ``context`` has the frames of this level."""
        x = self.squeeze(x, context.frames)
        x = x if self.before is None else self.before(x)
        x = self.init_block(x, context)
        skips = []
        for block in self.blocks:
            x = block(x, context)
            skips.append(x)
        x = self._attend(x, context)
        skips.append(x)
        return (x if self.after is None else self.after(x)), skips


class UpBlock(_UnetBlock):
    """The upward half of a level: blocks, each of which takes a skip, and the upsampling to the previous size.

    Attributes:
        dim_out: channels of the output.
    """

    def __init__(self, spec: LevelSpec, options: BlockOptions, skip_scale: float) -> None:
        super().__init__()
        self.skip_scale = skip_scale
        self._build(spec, spec.dim_out, spec.width, options)
        grows = spec.first or not spec.top
        self.dim_out = spec.dim_in if grows else spec.dim_out
        self.after = (
            options.geometry.upsample(spec.dim_out, spec.dim_in, spec.pixel_shuffle) if grows else nn.Identity()
        )
        self.stretch = options.geometry.temporal_upsample(self.dim_out, spec.stride)
        self.excite = GlobalContext(self.dim_out, spec.dim_out) if spec.skip_layer_excitation and grows else None

    def forward(self, x: Tensor, skips: list[Tensor], context: Context) -> Tensor:
        """Return the map for the next level. The skips are taken the latest first."""
        below, (first, *rest) = x, reversed(skips)
        x = self.init_block(self._join(x, first), context)
        for block, skip in zip(self.blocks, rest, strict=True):
            x = block(self._join(x, skip), context)
        x = self.after(self._attend(x, context))
        x = x if self.excite is None else self.excite(x, below)
        return self.stretch(x, context.frames)

    def _join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip * self.skip_scale], dim=1)

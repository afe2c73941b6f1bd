"""The image U-Net of Imagen (Saharia et al. 2022, arXiv 2205.11487, appendix B)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..construction import records_construction
from ..images import RESIZE_MODES
from .arguments import UNUSED, check_arguments
from .blocks import BlockOptions, Context, ResnetBlock, Transformer, UpsampleCombiner
from .conditioning import Conditioning, ConditioningEncoder
from .geometry import IMAGE, Geometry
from .persistence import UNETS
from .unet_blocks import DownBlock, LevelSpec, UpBlock, level_specs


@UNETS.register("Unet")
class Unet(ConditioningEncoder):
    """A U-Net for images of any height and width.

    "per-level" arguments are one value or one per entry of ``dim_mults``.

    Args:
        dim: base width.
        text_embed_dim: width of the text embeddings.
        num_resnet_blocks: per-level number of residual blocks after the first, conditioned one.
        cond_dim: width of the conditioning tokens; ``dim`` by default.
        num_time_tokens: tokens computed from the noise level.
        learned_sinu_pos_emb_dim: even number of learned Fourier features of the noise level.
        dim_mults: widths of the levels, in units of ``dim``.
        cond_images_channels: channels of a conditioning image. Above 0 it must be given.
        channels, channels_out: of the image and of the prediction.
        attn_dim_head, attn_heads: attention size.
        attn_kv_heads: number of key and value heads of all attention layers; it divides ``attn_heads``. Each serves a
            group of query heads, which saves parameters. None: as many as ``attn_heads``; 1: one for all.
        ff_mult: expansion of the feed-forwards.
        lowres_cond: take a low-resolution image and its noise level.
        layer_attns, layer_attns_depth: per-level self-attention and its depth.
        layer_mid_attns_depth, attend_at_middle: the same at the bottleneck.
        layer_attns_add_text_cond: self-attention sees the conditioning tokens too.
        layer_cross_attns, mid_cross_attn: per-level cross-attention in the level's first block, and at the bottleneck.
        use_linear_attn, use_linear_cross_attn: per-level attention of linear cost, where the full one is off.
        cond_on_text, max_text_len: take text, and the largest number of its tokens.
        text_film: the pooled text modulates the blocks, in addition to the tokens that attention reads.
        init_dim, init_conv_kernel_size, init_cross_embed, init_cross_embed_kernel_sizes: the first convolution, with
            kernels of several sizes or one. At full resolution the 15x15 kernel is most of the cost of a small network.
        cross_embed_downsample, cross_embed_downsample_kernel_sizes: downsample with kernels of several sizes.
        attn_pool_text, attn_pool_num_latents: Perceiver resampler over the text tokens.
        dropout: in residual blocks and feed-forwards.
        memory_efficient: downsample at the start of a level and upsample at its end.
        init_conv_to_final_conv_residual: concatenate the first convolution's output to the input of the last block.
        use_global_context_attn: gate the additional residual blocks.
        skip_layer_excitation: on the way up, each map gates the one that is computed from it.
        scale_skip_connection: multiply skips by ``2**-0.5``.
        final_resnet_block, final_conv_kernel_size: the end; the last convolution starts at zero.
        self_cond: take an earlier estimate of the image.
        crop_coordinates: take x and y of every pixel in the full image, for training on crops (Wang et al. 2023, "Patch
            Diffusion", arXiv 2304.12526).
        augment_dim: length of a label that describes how a training image was augmented; 0 for networks without. The
            label is zero in sampling (Karras et al. 2022, arXiv 2206.00364, appendix F.2).
        resize_mode: of conditioning images.
        combine_upsample_fmaps: concatenate the maps of all upward levels before the end.
        pixel_shuffle_upsample: sub-pixel upsampling instead of nearest and convolution.
        resnet_groups: groups of the norms.
        cosine_sim_attn: attention by cosine similarity.
        gradient_checkpointing: recompute levels in the backward pass instead of storing them.
        image_embed_dim, num_image_tokens, out_dim: accepted for old code and without effect.

    Raises:
        ValueError: contradicting or impossible choices, named in the message.
        TypeError: an argument that is not a number, a switch or a list where one is needed.
    """

    geometry: Geometry = IMAGE
    #: channels of the first convolution that mark given frames
    _mask_channels = 0
    #: classes of modules that sharded training gathers as a unit; Accelerate and others look for this name
    _no_split_modules = ("ResnetBlock", "TransformerLayer", "TemporalBlock", "PerceiverResampler")

    @records_construction
    def __init__(
        self,
        *,
        dim: int,
        text_embed_dim: int | None = 768,
        num_resnet_blocks: int | Sequence[int] = 1,
        cond_dim: int | None = None,
        num_image_tokens: int | None = None,
        num_time_tokens: int = 2,
        learned_sinu_pos_emb_dim: int = 16,
        out_dim: int | None = None,
        dim_mults: Sequence[float] = (1, 2, 4, 8),
        cond_images_channels: int = 0,
        channels: int = 3,
        channels_out: int | None = None,
        attn_dim_head: int = 64,
        attn_heads: int = 8,
        attn_kv_heads: int | None = None,
        ff_mult: float = 2.0,
        lowres_cond: bool = False,
        layer_attns: bool | Sequence[bool] = True,
        layer_attns_depth: int | Sequence[int] = 1,
        layer_mid_attns_depth: int = 1,
        layer_attns_add_text_cond: bool = True,
        attend_at_middle: bool = True,
        mid_cross_attn: bool = True,
        layer_cross_attns: bool | Sequence[bool] = True,
        use_linear_attn: bool | Sequence[bool] = False,
        use_linear_cross_attn: bool | Sequence[bool] = False,
        cond_on_text: bool = True,
        max_text_len: int = 256,
        text_film: bool = True,
        init_dim: int | None = None,
        init_conv_kernel_size: int = 7,
        init_cross_embed: bool = True,
        init_cross_embed_kernel_sizes: Sequence[int] = (3, 7, 15),
        cross_embed_downsample: bool = False,
        cross_embed_downsample_kernel_sizes: Sequence[int] = (2, 4),
        attn_pool_text: bool = True,
        attn_pool_num_latents: int = 32,
        dropout: float = 0.0,
        memory_efficient: bool = False,
        init_conv_to_final_conv_residual: bool = False,
        use_global_context_attn: bool = True,
        skip_layer_excitation: bool = False,
        scale_skip_connection: bool = True,
        final_resnet_block: bool = True,
        final_conv_kernel_size: int = 3,
        self_cond: bool = False,
        crop_coordinates: bool = False,
        augment_dim: int = 0,
        resize_mode: str = "nearest",
        combine_upsample_fmaps: bool = False,
        pixel_shuffle_upsample: bool = True,
        resnet_groups: int | Sequence[int] = 8,
        cosine_sim_attn: bool = False,
        gradient_checkpointing: bool = False,
        image_embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        given = dict(locals())
        for name in UNUSED:
            if given[name] is not None:
                warnings.warn(f"Unet({name}=...) has no effect and will be removed", DeprecationWarning, stacklevel=3)
        check_arguments(Unet.__init__, given)
        if cond_on_text and text_embed_dim is None:
            raise ValueError("text_embed_dim must be given if cond_on_text is true")
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f'no resize_mode "{resize_mode}"; known: {", ".join(RESIZE_MODES)}')
        self.channels, self.channels_out = channels, channels if channels_out is None else channels_out
        self.lowres_cond, self.self_cond, self.cond_on_text = lowres_cond, self_cond, cond_on_text
        self.crop_coordinates, self.augment_dim = crop_coordinates, augment_dim
        self.cond_images_channels, self.has_cond_image = cond_images_channels, cond_images_channels > 0
        self.text_embed_dim, self.max_text_len, self.resize_mode = text_embed_dim, max_text_len, resize_mode
        self.gradient_checkpointing = gradient_checkpointing
        cond_dim = dim if cond_dim is None else cond_dim
        init_dim = dim if init_dim is None else init_dim
        specs = level_specs(given, init_dim, self.geometry)
        options = BlockOptions(
            self.geometry,
            specs[0].groups,
            dim * (8 if lowres_cond else 4),
            cond_dim,
            attn_heads,
            attn_dim_head,
            dropout,
            cosine_sim_attn,
            attn_kv_heads,
        )
        attends = mid_cross_attn or any(spec.attends for spec in specs)
        self._build_conditions(given, cond_dim, options.hidden_dim, attends)
        self._build_stem(given, init_dim, options, specs[0].temporal)
        self._build_levels(given, specs, options)
        self._build_head(given, init_dim, options)
        self._number_readers()

    # -- construction -----------------------------------------------------------------------------------------------

    def _build_stem(self, given: dict[str, Any], init_dim: int, options: BlockOptions, temporal: bool) -> None:
        taken = self.channels * (1 + self.lowres_cond + self.self_cond) + self.cond_images_channels
        taken += self._mask_channels + 2 * self.crop_coordinates
        self.init_conv = (
            self.geometry.cross_embed(taken, init_dim, given["init_cross_embed_kernel_sizes"])
            if given["init_cross_embed"]
            else self.geometry.conv(taken, init_dim, given["init_conv_kernel_size"])
        )
        between = self.geometry if temporal else IMAGE
        self.init_temporal_peg = between.temporal_peg(init_dim)
        self.init_temporal_attn = between.temporal_attention(init_dim, *options.attention_shape)
        gated = given["use_global_context_attn"]
        efficient = given["memory_efficient"]
        self.init_resnet_block = ResnetBlock(init_dim, init_dim, options, gated=gated) if efficient else None

    def _build_levels(self, given: dict[str, Any], specs: list[LevelSpec], options: BlockOptions) -> None:
        scale = 2**-0.5 if given["scale_skip_connection"] else 1.0
        self.downs = nn.ModuleList(DownBlock(spec, options) for spec in specs)
        width, middle = specs[-1].dim_out, replace(options, groups=specs[-1].groups)
        cross = "full" if given["mid_cross_attn"] else ""
        self.mid_block1 = ResnetBlock(width, width, middle, cross)
        self.mid_attn = (
            Transformer(width, middle, given["layer_mid_attns_depth"], given["ff_mult"], reads=False)
            if given["attend_at_middle"]
            else None
        )
        self.mid_temporal_peg = self.geometry.temporal_peg(width)
        self.mid_temporal_attn = self.geometry.temporal_attention(width, *options.attention_shape)
        self.mid_block2 = ResnetBlock(width, width, middle, cross)
        self.ups = nn.ModuleList(UpBlock(spec, options, scale) for spec in reversed(specs))
        self.stride = 2 ** sum(spec.halves for spec in specs)
        self.strides = tuple(spec.stride for spec in specs)

    def _build_head(self, given: dict[str, Any], init_dim: int, options: BlockOptions) -> None:
        dim = given["dim"]
        width = self.ups[-1].dim_out
        self.upsample_combiner = None
        if given["combine_upsample_fmaps"]:
            self.upsample_combiner = UpsampleCombiner([level.dim_out for level in self.ups], dim, options)
            width += self.upsample_combiner.extra
        self.init_conv_to_final_conv_residual = given["init_conv_to_final_conv_residual"]
        width += init_dim if self.init_conv_to_final_conv_residual else 0
        self.final_res_block = ResnetBlock(width, dim, options, gated=True) if given["final_resnet_block"] else None
        width = dim if self.final_res_block is not None else width
        width += self.channels if self.lowres_cond else 0
        self.final_conv = self.geometry.conv(width, self.channels_out, given["final_conv_kernel_size"])
        nn.init.zeros_(self.final_conv.weight)
        nn.init.zeros_(self.final_conv.bias)

    # -- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        conditioning: Conditioning | None = None,
        *,
        self_cond: Float[Tensor, "b c h w"] | None = None,
        cond_drop_prob: float = 0.0,
        text_embeds: Float[Tensor, "b n d"] | None = None,
        text_mask: Bool[Tensor, "b n"] | None = None,
        text_keep: Bool[Tensor, " b"] | None = None,
        lowres_cond_img: Float[Tensor, "b c h3 w3"] | None = None,
        lowres_noise_times: Float[Tensor, " b"] | None = None,
        cond_images: Float[Tensor, "b c2 h2 w2"] | None = None,
        cond_images_keep: Bool[Tensor, " b"] | None = None,
        crop_window: Float[Tensor, "b 4"] | None = None,
        augment_label: Float[Tensor, "b k"] | None = None,
        inner: Sequence[Tensor] | None = None,
        return_inner: bool = False,
    ) -> Float[Tensor, "b c4 h w"] | tuple[Float[Tensor, "b c4 h w"], list[Tensor]]:
        """Return the prediction for a noisy image.

        Args:
            x: the image, scaled to about unit variance.
            time: the noise condition: log-SNR for `Imagen`, a quarter of log sigma for `ElucidatedImagen`.
            conditioning: from `condition`. Without it, it is computed from the remaining arguments, explained there.
            self_cond: an earlier estimate; zeros if missing. Networks that were built without self_cond ignore it.
            cond_drop_prob: fraction of captions to drop. 0 and 1 are exact. Between them torch's generator decides.
            inner: maps of the inner levels from an earlier call, used in place of this one's (Ma et al. 2024,
                "DeepCache", arXiv 2312.00858). Only the level with the largest maps is computed.
            return_inner: return the prediction and these maps.

        Raises:
            ValueError: as `condition`; images with other channels than the network was built for; a ready conditioning
                together with parts of another one.
        """
        self._check_input(x, time, self_cond, "height, width")
        named = {
            "text_embeds": text_embeds,
            "text_mask": text_mask,
            "text_keep": self._draw_text_keep(x, text_keep, cond_drop_prob),
            "lowres_cond_img": lowres_cond_img,
            "lowres_noise_times": lowres_noise_times,
            "cond_images": cond_images,
            "cond_images_keep": cond_images_keep,
            "crop_window": crop_window,
            "augment_label": augment_label,
        }
        conditioning = self._resolve_conditioning(conditioning, named, batch=x.shape[0], size=tuple(x.shape[-2:]))
        stacked = self._stack(x, self_cond, conditioning)
        answer, inner = self._answer(stacked, conditioning.lowres, self._embed_time(time, conditioning), inner)
        return (answer, inner) if return_inner else answer

    def _check_input(self, x: Tensor, time: Tensor, self_cond: Tensor | None, space: str) -> None:
        """Check that the shapes of the inputs fit each other.

        Raises:
            ValueError: names the given shape and the one that fits.
        """
        if x.ndim != 3 + space.count(",") or x.shape[1] != self.channels:
            raise ValueError(f"x must be (batch, {self.channels}, {space}), got {tuple(x.shape)}")
        if time.ndim != 1 or time.shape[0] != x.shape[0]:
            raise ValueError(f"time must be one number for each of the {x.shape[0]} items, got {tuple(time.shape)}")
        if self.self_cond and self_cond is not None and self_cond.shape != x.shape:
            raise ValueError(f"self_cond must be {tuple(x.shape)} as x is, got {tuple(self_cond.shape)}")

    @staticmethod
    def _draw_text_keep(x: Tensor, keep: Tensor | None, drop_prob: float) -> Tensor | None:
        """Draw which captions are kept. None keeps all."""
        if keep is None and drop_prob > 0:
            return torch.rand(x.shape[0], device=x.device) >= drop_prob
        return keep

    def _resolve_conditioning(self, conditioning: Any, named: dict[str, Any], **place: Any) -> Any:
        """Return the ready conditioning, or compute it from its parts.

        Raises:
            ValueError: both were given.
        """
        given = {name: value for name, value in named.items() if value is not None}
        if conditioning is None:
            return self.condition(**place, **given)
        if given:
            raise ValueError(f"a ready conditioning was given and {', '.join(given)} too; give one or the other")
        return conditioning

    def _answer(
        self, x: Tensor, lowres: Tensor | None, context: Context, inner: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the prediction and the inner maps from all images of an item, concatenated as channels. Both images
        are ``(b, c, h, w)``."""
        height, width = x.shape[-2:]
        x = self._pad(x)
        if not torch.is_grad_enabled():  # the gradient of a wide kernel over few channels would take 40 times as long
            x = x.contiguous(memory_format=torch.channels_last)
        # channels last: convolutions and norms are faster, and maps are tokens without a copy
        stem = x = self.init_conv(x).contiguous(memory_format=torch.channels_last)
        x = self.init_temporal_attn(self.init_temporal_peg(x, context.frames), context.frames)
        if self.init_resnet_block is not None:
            x = self.init_resnet_block(x, context)
        contexts = self._contexts(context)
        x, skips = self._run(self.downs[0], x, contexts[0])
        maps = self._inner(x, contexts) if inner is None else list(inner)
        x = self._run(self.ups[-1], maps[-1], skips, contexts[0])
        return self._head([*maps[1:], x], stem, lowres, context)[..., :height, :width], maps

    def _contexts(self, context: Context) -> list[Context]:
        """Return the context of every level, from the largest maps on. A level may have fewer frames than the one
        above."""
        contexts = []
        for stride in self.strides:
            context = context.downsampled(stride, self.geometry.causal)
            contexts.append(context)
        return contexts

    def _stack(self, x: Tensor, self_cond: Tensor | None, conditioning: Conditioning) -> Tensor:
        parts = [] if conditioning.cond_images is None else [conditioning.cond_images.to(x.dtype)]
        parts.append(x)
        if self.self_cond:
            parts.append(torch.zeros_like(x) if self_cond is None else self_cond.to(x.dtype))
        if conditioning.lowres is not None:
            parts.append(conditioning.lowres.to(x.dtype))
        if conditioning.coordinates is not None:
            parts.append(conditioning.coordinates.to(x.dtype).expand(len(x), -1, -1, -1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else x

    def _pad(self, x: Tensor) -> Tensor:
        """Pad to the next multiple of the levels' total stride. `forward` removes the padding again."""
        bottom, right = (-side % self.stride for side in x.shape[-2:])
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    def _run(self, level: nn.Module, *arguments: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(level, *arguments, use_reentrant=False)
        return level(*arguments)

    def _inner(self, x: Tensor, contexts: list[Context]) -> list[Tensor]:
        """Return the map of the middle, and those of the levels on the way up, without the one with the largest
        maps."""
        skips = []
        for level, context in list(zip(self.downs, contexts, strict=True))[1:]:
            x, found = self._run(level, x, context)
            skips.append(found)
        x = self.mid_block1(x, contexts[-1])
        x = x if self.mid_attn is None else self.mid_attn(x, contexts[-1])
        x = self.mid_temporal_attn(self.mid_temporal_peg(x, contexts[-1].frames), contexts[-1].frames)
        maps = [self.mid_block2(x, contexts[-1])]
        for level, found, context in zip(self.ups, reversed(skips), reversed(contexts[1:]), strict=False):
            maps.append(self._run(level, maps[-1], found, context))
        return maps

    def _head(self, maps: list[Tensor], stem: Tensor, lowres: Tensor | None, context: Context) -> Tensor:
        x = maps[-1]
        if self.upsample_combiner is not None:
            x = self.upsample_combiner(x, maps)
        if self.init_conv_to_final_conv_residual:
            x = torch.cat([x, stem], dim=1)
        if self.final_res_block is not None:
            x = self.final_res_block(x, context)
        if lowres is not None:
            x = torch.cat([x, self._pad(lowres.to(x.dtype))], dim=1)
        return self.final_conv(x)

"""The meaning of a checkpoint's weights: the recorded construction of its model, compared with the model at hand.

Two models may have weights of the same names and shapes and still mean different things by them. Every argument of the
constructors belongs to one of four kinds; an argument that is in no table fails a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..cascade.cascade import Cascade
from ..cascade.options import FAMILIES
from ..construction import plain
from ..imagen import CASCADES, padded_schedules
from ..nn.persistence import UNETS, Persistent
from ..registry import Registry
from ..wording import excerpt

MEANING, TRAINING, SAMPLING, SHAPES = "meaning", "training", "sampling", "shapes"


def _table(**kinds: str) -> dict[str, str]:
    """Turn names by kind into a kind by name."""
    return {name: kind for kind, names in kinds.items() for name in names.split()}


#: what each argument of a cascade decides: the meaning of its weights, how they are trained, how they are sampled from,
#: or the shapes of the weights, which are compared themselves
CASCADE = _table(
    meaning="text_encoder_name text_encoder self_cond noise_schedules pred_objectives lowres_noise_schedule "
    "lowres_residual condition_on_text auto_normalize_img sigma_data",
    training="image_sizes cond_drop_prob cond_images_drop_prob loss_type random_crop_sizes "
    "per_sample_random_aug_noise_level lowres_max_noise_level only_train_unet_number temporal_downsample_factor "
    "resize_cond_video_frames temporal_resize_mode fps_drop_prob given_frames_prob resize_mode min_snr_loss_weight "
    "min_snr_gamma p2_loss_weight_gamma p2_loss_weight_k weighting noise_levels P_mean P_std spectral_loss augment "
    "loss_space perceptual_loss",
    sampling="timesteps sampler cond_scale guidance lowres_sample_noise_level dynamic_thresholding "
    "dynamic_thresholding_percentile video_frames fps num_sample_steps sigma_min sigma_max rho S_churn S_tmin S_tmax "
    "S_noise",
    shapes="unets text_embed_dim channels crop_coordinates",
)

#: and of a network; what a cascade may change when it takes a network in shows in the shapes
NETWORK = _table(
    meaning="num_image_tokens num_time_tokens learned_sinu_pos_emb_dim attn_dim_head attn_heads attend_at_middle "
    "use_linear_attn use_linear_cross_attn max_text_len attn_pool_text attn_pool_num_latents memory_efficient "
    "init_conv_to_final_conv_residual use_global_context_attn skip_layer_excitation scale_skip_connection resize_mode "
    "combine_upsample_fmaps pixel_shuffle_upsample resnet_groups cosine_sim_attn text_film "
    "layer_attns_add_text_cond cross_embed_downsample time_rel_pos_bias_depth time_causal_attn layer_temporal_attns "
    "temporal_strides ff_time_token_shift",
    training="dropout gradient_checkpointing",
    shapes="dim text_embed_dim num_resnet_blocks cond_dim out_dim dim_mults cond_images_channels channels channels_out "
    "ff_mult lowres_cond layer_attns layer_attns_depth layer_mid_attns_depth mid_cross_attn layer_cross_attns "
    "cond_on_text init_dim init_conv_kernel_size init_cross_embed init_cross_embed_kernel_sizes "
    "cross_embed_downsample_kernel_sizes final_resnet_block final_conv_kernel_size self_cond image_embed_dim "
    "crop_coordinates attn_kv_heads augment_dim",
)


#: arguments of which a pair can be one value
_SIZES = ("image_sizes", "random_crop_sizes")


class Changes(NamedTuple):
    """Lines such as "pred_objectives of U-Net 1: 'v' (the checkpoint has 'noise')".

    Attributes:
        meaning: the weights would be taken for something else than they were trained for.
        rest: only how they are trained from now on, or sampled from, is another.
    """

    meaning: list[str]
    rest: list[str]


def changes(contents: Mapping[str, Any], cascade: Cascade, numbers: Sequence[int]) -> Changes:
    """Return how a cascade differs from the one that a checkpoint describes, as far as it is about the U-Nets (1-based)
    that the checkpoint holds; nothing if one of the two cannot be described."""
    found = contents.get("imagen_params")
    try:
        own = cascade.to_config()
    except TypeError:  # made with an object that a file cannot hold
        return Changes([], [])
    kind, result = contents.get("imagen_type", "original"), Changes([], [])
    if not isinstance(found, Mapping) or not isinstance(found.get("unets"), list | tuple):
        return result
    try:
        found = plain(found)
    except TypeError:
        return Changes(["the checkpoint describes its model by more than names, numbers, lists and dicts"], [])
    if kind != own["type"]:
        result.meaning.append(_line("type of model", own["type"], kind))
    for line, group in _differing(found, own, numbers, kind):
        (result.meaning if group == MEANING else result.rest).append(line)
    return result


def _differing(
    found: Mapping[str, Any], own: Mapping[str, Any], numbers: Sequence[int], kind: Any
) -> Iterator[tuple[str, str]]:
    """Return lines about all arguments that differ, each with its kind."""
    models, kinds = (own, found), (own["type"], kind)
    usual = [_defaults(CASCADES[each]) if isinstance(each, str) and each in CASCADES else {} for each in kinds]
    of_captions = any(model.get("condition_on_text", True) for model in models)
    for name, group in CASCADE.items():
        unused = name == "text_encoder_name" and not of_captions
        if group == SHAPES or unused or not all(name in each for each in usual):
            continue
        mine, theirs = (
            _per_unet(name, model.get(name, default[name]), len(model["unets"]))
            for model, default in zip(models, usual, strict=True)
        )
        yield from ((line, group) for line in _lines(name, mine, theirs, numbers))
    for number in numbers:
        pair = [model["unets"][number - 1] for model in models if number <= len(model["unets"])]
        if len(pair) == 2 and all(isinstance(unet, Mapping) for unet in pair):
            yield from _network_lines(number, *pair)


def _network_lines(number: int, own: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    usual = [_network_defaults(unet.get("type")) for unet in (own, found)]
    for name, group in NETWORK.items():
        if group == SHAPES or not all(name in each for each in usual):
            continue
        mine, theirs = (unet.get(name, default[name]) for unet, default in zip((own, found), usual, strict=True))
        levels = len({**usual[0], **own}["dim_mults"])
        if _repeated(mine, levels) != _repeated(theirs, levels):
            yield _line(f"{name} of U-Net {number}", mine, theirs), group


def _lines(name: str, own: Sequence[Any], found: Sequence[Any], numbers: Sequence[int]) -> Iterator[str]:
    """Return one line about all U-Nets if they differ alike, else one for each that differs."""
    pairs = {number: (own[number - 1], found[number - 1]) for number in numbers if number <= min(len(own), len(found))}
    alike = all(pair == next(iter(pairs.values())) for pair in pairs.values())
    for number, pair in list(pairs.items())[: 1 if alike else None]:
        if pair[0] != pair[1]:
            yield _line(name if alike else f"{name} of U-Net {number}", *pair)


def _line(name: str, own: Any, found: Any) -> str:
    return f"{name}: {excerpt(repr(own), 80)} (the checkpoint has {excerpt(repr(found), 80)})"


def _defaults(target: type) -> dict[str, Any]:
    """Return the named arguments of a constructor with their defaults; None where there is none."""
    parameters = list(inspect.signature(target.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = [item for item in parameters if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)]
    return {item.name: None if item.default is item.empty else item.default for item in named}


def _network_defaults(kind: Any) -> dict[str, Any]:
    """Return the arguments of a registered network with their defaults, those of a preset included."""
    result: dict[str, Any] = {}
    for base in reversed(UNETS[kind].__mro__ if isinstance(kind, str) and kind in UNETS else ()):
        if issubclass(base, Persistent) and "__init__" in vars(base):
            result |= _defaults(base)
        result |= vars(base).get("defaults", {})
    return result


def _repeated(value: Any, count: int) -> list[Any]:
    """Return one value for each place: a list of as many, or a single one for all."""
    return list(value) if isinstance(value, list | tuple) and len(value) == count else [value] * count


def _per_unet(name: str, value: Any, count: int) -> list[Any]:
    """Return the value of an argument for each U-Net, in one spelling."""
    listed = value if isinstance(value, list | tuple) else [value]
    if name == "noise_schedules" and value is not None and len(listed) <= count:
        value = padded_schedules(value, count)
    if name in _SIZES:
        single = count == 1 and isinstance(value, list | tuple) and len(value) == 2
        values = [value] if single else _repeated(value, count)
        return [[each, each] if isinstance(each, int) else each for each in values]
    return [_spelled(FAMILIES.get(name), each) for each in _repeated(value, count)]


def _spelled(family: Registry[Any] | None, value: Any) -> Any:
    """Return a member of a family with its parameters in one spelling, as far as it is known; tuples as lists."""
    if family is not None and isinstance(value, str | Mapping):
        with suppress(ValueError, TypeError):
            return family.spell(family.make(value))
    return list(value) if isinstance(value, tuple) else value

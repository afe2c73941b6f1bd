"""Checks of the numbers and switches that a network is built with, before anything is allocated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ranges import check_number, check_whole

#: largest width, number of tokens and number of channels
_MAX_SIZE = 2**20
#: largest number of layers of a kind, heads, groups and merged frames; largest kernel
_MAX = 2**10

#: Integers, one value or one per level: the smallest and the largest allowed value. None may stand for a default.
WHOLE = {
    **dict.fromkeys(("dim", "text_embed_dim", "cond_dim", "init_dim", "channels", "channels_out"), (1, _MAX_SIZE)),
    **dict.fromkeys(("attn_dim_head", "max_text_len", "num_time_tokens"), (1, _MAX_SIZE)),
    **dict.fromkeys(("num_resnet_blocks", "layer_attns_depth", "layer_mid_attns_depth"), (0, _MAX)),
    **dict.fromkeys(("init_conv_kernel_size", "init_cross_embed_kernel_sizes", "final_conv_kernel_size"), (1, _MAX)),
    **dict.fromkeys(("resnet_groups", "temporal_strides", "time_rel_pos_bias_depth"), (1, _MAX)),
    "attn_heads": (2, _MAX),
    "attn_kv_heads": (1, _MAX),
    "attn_pool_num_latents": (1, _MAX_SIZE),
    "cond_images_channels": (0, _MAX_SIZE),
    "augment_dim": (0, _MAX_SIZE),
    "cross_embed_downsample_kernel_sizes": (2, _MAX),
    "learned_sinu_pos_emb_dim": (2, _MAX_SIZE),
}

#: Lists of any length. All other arguments are one value, or one per level.
LISTS = ("dim_mults", "init_cross_embed_kernel_sizes", "cross_embed_downsample_kernel_sizes")

#: Accepted for old code and not used.
UNUSED = ("num_image_tokens", "out_dim", "image_embed_dim")


def _entries(value: Any, name: str) -> Sequence[Any]:
    """Return one or several values as a sequence."""
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= _MAX:
            raise ValueError(f"{name} must have 1 to {_MAX:,} entries, got {len(value):,}")
        return value
    if name in LISTS:
        raise TypeError(f"{name} must be a list or a tuple, got {value!r}")
    return (value,)


def check_arguments(init: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Check that a network can be built with these numbers and switches.

    Args:
        init: the constructor. Arguments annotated with bool are switches.
        given: its arguments.

    Raises:
        TypeError: not a number, not a switch, or not a list; the message names the argument.
        ValueError: a number outside of its range; the message names the argument.
    """
    for name, parameter in inspect.signature(init).parameters.items():
        kind = str(parameter.annotation)
        if kind.startswith("bool"):
            _check_switches(name, given[name])
        elif name in given and given[name] is None and "None" not in kind:
            raise TypeError(f"{name} must be given, got None")
    for name, (low, high) in WHOLE.items():
        if given.get(name) is not None:
            for item in _entries(given[name], name):
                check_whole(item, name, low, high)
    kv_heads = given.get("attn_kv_heads")
    if kv_heads is not None and given["attn_heads"] % kv_heads:
        heads = given["attn_heads"]
        fits = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        raise ValueError(f"attn_kv_heads must divide attn_heads={heads} ({fits}), got {kv_heads}")
    if "dim" in given:
        _check_widths(given)


def _check_switches(name: str, value: Any) -> None:
    for item in _entries(value, name):
        if not isinstance(item, int) or item not in (0, 1):
            raise TypeError(f"{name} must be true or false, got {item!r}")


def _check_widths(given: Mapping[str, Any]) -> None:
    """Check the widths that depend on that of the network, and the fractions."""
    for mult in _entries(given["dim_mults"], "dim_mults"):
        width = int(given["dim"] * check_number(mult, "dim_mults", 0, _MAX_SIZE, above=True))
        if not 1 <= width <= _MAX_SIZE:
            made = f"{mult} times dim={given['dim']} is {width:,}"
            raise ValueError(f"dim_mults must give widths of 1 to {_MAX_SIZE:,}; {made}")
    check_number(given["ff_mult"], "ff_mult", 0, _MAX, above=True)
    narrowest = min(given["dim"], *(int(given["dim"] * mult) for mult in given["dim_mults"]))
    if int(narrowest * given["ff_mult"]) < 1:
        raise ValueError(f"ff_mult={given['ff_mult']} leaves nothing of a level {narrowest} wide: take a larger number")
    if check_number(given["dropout"], "dropout", 0, 1) == 1:
        raise ValueError("dropout must be below 1: a network that drops everything learns nothing")

"""Whether the entries of a checkpoint are what a trainer can take over, known before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def alike(found: Any, own: Any) -> bool:
    """Whether a value can stand in for one's own: numbers for numbers, a list for a list, as many for a tuple, at least
    its names for a mapping.
    """
    if own is None or isinstance(own, int | float):
        return isinstance(found, int | float) or (own is None and found is None)
    if isinstance(own, Mapping):
        return isinstance(found, Mapping) and all(name in found and alike(found[name], own[name]) for name in own)
    if isinstance(own, tuple):
        same = isinstance(found, list | tuple) and len(found) == len(own)
        return same and all(map(alike, found, own))
    if isinstance(own, list):
        return isinstance(found, list | tuple) and all(alike(item, own[0]) for item in found)
    return isinstance(found, type(own))


def are_counts(values: Any) -> bool:
    """Whether these are whole numbers from 0 on: a list or a vector of them."""
    if isinstance(values, Tensor):
        whole = values.ndim == 1 and not values.is_floating_point() and not values.is_complex()
        return whole and bool((values >= 0).all())
    return isinstance(values, list | tuple) and all(isinstance(item, int) and item >= 0 for item in values)


def are_tensors(values: Any) -> bool:
    """Whether these are tensors by name."""
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and isinstance(item, Tensor) for name, item in values.items()
    )


def _is_random_state(value: Any) -> bool:
    try:
        torch.Generator().set_state(value)
    except (TypeError, RuntimeError):
        return False
    return True


def _is_position(value: Any) -> bool:
    """Whether this is a state of a `BatchStream`."""
    numbers = {"epoch", "position", "seen"}
    return (
        isinstance(value, Mapping)
        and {"seed", "epoch", "position", "orders"} <= value.keys()
        and isinstance(value["seed"], int)
        and are_counts([value[name] for name in numbers & value.keys()])
        and isinstance(value["orders"], list | tuple)
        and all(map(_is_random_state, value["orders"]))
    )


def _wrong_in_run(run: Mapping[str, Any]) -> Iterator[str]:
    randomness = run.get("randomness", {})
    if not isinstance(randomness, Mapping) or not _is_random_state(randomness.get("seeds", torch.get_rng_state())):
        yield "state.randomness"
    if run.get("data") is not None and not _is_position(run["data"]):
        yield "state.data"
    for name in ("skipped_steps", "skipped_in_a_row", "unet_numbers"):
        if not are_counts(run.get(name, [])):
            yield f"state.{name}"


#: what a group of parameters needs, and what versions of torch add to it
_GROUP = {"lr": 0.0, "betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}
_SWITCHES = ("amsgrad", "maximize", "decoupled_weight_decay")


def _is_group(found: Any) -> bool:
    if not isinstance(found, Mapping) or not are_counts(found.get("params")) or not alike(found, _GROUP):
        return False
    return all(isinstance(found.get(name, False), bool) for name in _SWITCHES)


def is_adams(found: Any) -> bool:
    """Whether this is a state dict of Adam, for whatever parameters."""
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        return False
    groups, moments = found.get("param_groups"), found["state"]
    if not isinstance(groups, list | tuple) or not all(map(_is_group, groups)):
        return False
    indices = [index for group in groups for index in group["params"]]
    return indices == list(range(len(indices))) and all(
        index in indices and _are_moments(items, any(group.get("amsgrad") for group in groups))
        for index, items in moments.items()
    )


def _are_moments(found: Any, amsgrad: bool) -> bool:
    names = {"exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())
    known = isinstance(found, Mapping) and names | {"step"} <= found.keys()
    return known and all(isinstance(found[name], Tensor) for name in names)


def wrong_entries(contents: Mapping[str, Any], only_model: bool) -> list[str]:
    """The names of a checkpoint's entries that are something else than a trainer writes, or missing.

    Args:
        contents: of the checkpoint.
        only_model: whether nothing but weights and averages matters.
    """
    wrong = [] if are_tensors(contents.get("model")) else ["model"]
    wrong += [] if are_tensors(contents.get("ema", {})) else ["ema"]
    run = contents.get("state", {})
    if not isinstance(run, Mapping):
        return [*wrong, "state"]
    wrong += _wrong_in_run(run)
    return wrong if only_model or are_counts(contents.get("steps", [])) else [*wrong, "steps"]

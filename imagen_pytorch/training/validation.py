"""Validate the entries of a checkpoint before anything is changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import nonfinite_tensors
from ..checkpoints.contents import overflowing_tensors
from .arguments import NUMBERS, check_number
from .optim import PERIODS
from .posthoc import WIDEST
from .settings import AVERAGES

#: counts beyond this are not exact as floating-point numbers, in which optimizers keep theirs
_COUNTABLE = 2**53


def is_number(value: Any, least: float = -math.inf, below: float = math.inf) -> bool:
    """Return whether this is a finite number with ``least <= value < below``, and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value < below and abs(value) <= sys.float_info.max


def are_counts(values: Any) -> bool:
    """Return whether these are whole numbers from 0 to 2**53: a list or a vector of them."""
    if isinstance(values, Tensor) and values.ndim == 1:
        values = values.tolist()
    return isinstance(values, list | tuple) and all(type(item) is int and 0 <= item < _COUNTABLE for item in values)


def are_tensors(values: Any) -> bool:
    """Return whether these are tensors by name."""
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and isinstance(item, Tensor) for name, item in values.items()
    )


def _is_random_state(value: Any) -> bool:
    with suppress(TypeError, RuntimeError):
        torch.Generator().set_state(value)
        return True
    return False


def _is_position(value: Any) -> bool:
    """Return whether this is a state of a `BatchStream`."""
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
    if "settings" in run and not _are_settings(run["settings"]):
        yield "state.settings"


def _are_settings(found: Any) -> bool:
    """Return whether these are the settings that a trainer writes down beside those of its optimizers."""
    if not isinstance(found, Mapping) or not isinstance(found.get("averages", {}), Mapping):
        return False
    periods, norm = [found.get(name, []) for name in PERIODS], found.get("max_grad_norm")
    return (
        isinstance(found.get("optimizer", ""), str)
        and all(isinstance(items, list | tuple) for items in periods)
        and all(item is None or (are_counts([item]) and item > 0) for items in periods for item in items)
        and (norm is None or (is_number(norm, 0) and norm > 0))
        and all(name in AVERAGES and _fits(f"ema_{name}", value) for name, value in found.get("averages", {}).items())
    )


def _fits(name: str, value: Any) -> bool:
    """Return whether a trainer accepts this number."""
    with suppress(TypeError, ValueError):
        check_number(value, name, NUMBERS[name])
        return True
    return False


#: the numbers of a group of Adam's parameters, its switches, and what other optimizers may lack
_GROUP, _SWITCHES = ("lr", "eps", "weight_decay"), ("amsgrad", "decoupled_weight_decay")
_OPTIONAL = {"eps": 0.0, "weight_decay": 0.0, "betas": (0.0, 0.0)}
#: moments of Adam that are sums of squares
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")


def is_optimizer_state(found: Any, of_adam: bool) -> bool:
    """Return whether this is a state dict of an optimizer, for whatever parameters: groups of parameters with rates,
    and finite tensors for each parameter; of Adam with the moments that it needs."""
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        return False
    groups = found.get("param_groups")
    if not isinstance(groups, list | tuple) or not all(_is_group(group, of_adam) for group in groups):
        return False
    indices = [index for group in groups for index in group["params"]]
    needed = ("exp_avg", *_SQUARES[: 1 + any(group.get("amsgrad") for group in groups)]) if of_adam else None
    return indices == list(range(len(indices))) and all(
        index in indices and _are_moments(each, needed) for index, each in found["state"].items()
    )


def _is_group(found: Any, of_adam: bool) -> bool:
    """Return whether this is a group of parameters within the limits of Adam; options such as ``foreach`` pass."""
    if not isinstance(found, Mapping) or not are_counts(found.get("params")):
        return False
    found = found if of_adam else {**_OPTIONAL, **found}
    betas = found.get("betas")
    return (
        all(is_number(found.get(name), 0) for name in _GROUP)
        and is_number(found.get("initial_lr", 0.0), 0)
        and isinstance(betas, list | tuple)
        and len(betas) == 2
        and all(is_number(beta, 0, 1) for beta in betas)
        and (not of_adam or all(isinstance(found.get(name, False), bool) for name in _SWITCHES))
    )


def _are_moments(found: Any, needed: Sequence[str] | None) -> bool:
    """Return whether these are finite tensors for one parameter; with ``needed``, those of Adam and a step count."""
    if not isinstance(found, Mapping):
        return False
    if needed is None:
        tensors = [item for item in found.values() if isinstance(item, Tensor) and item.is_floating_point()]
        return not nonfinite_tensors(tensors)
    if not {*needed, "step"} <= found.keys() or not _is_step(found["step"]):
        return False
    return all(
        isinstance(item, Tensor)
        and item.is_floating_point()
        and not nonfinite_tensors(item)
        and (item.is_meta or not (name in _SQUARES and bool((item < 0).any())))
        for name, item in found.items()
        if name != "step"
    )


def are_averages(found: Any) -> bool:
    """Return whether this is a state of `PowerAverages`: a count, widths, and finite tensors by name for each width."""
    if not isinstance(found, Mapping) or not are_counts([found.get("count")]) or found["count"] == 0:
        return False
    widths, averages = found.get("widths"), found.get("averages")
    if not isinstance(widths, list | tuple) or not isinstance(averages, list | tuple) or len(widths) != len(averages):
        return False
    return (
        len(widths) > 0
        and all(is_number(width, 0, WIDEST) and width > 0 for width in widths)
        and all(are_tensors(each) for each in averages)
        and not nonfinite_tensors(averages)
    )


def is_schedule(found: Any, optimizer: Any) -> bool:
    """Return whether this is the state of a learning-rate schedule for an optimizer's state, which may be absent."""
    if not isinstance(found, Mapping) or not are_counts([found.get("last_epoch", 0)]):
        return False
    rates, groups = found.get("base_lrs", [0.0]), (optimizer or {}).get("param_groups")
    known = isinstance(rates, list | tuple) and bool(rates) and all(is_number(rate, 0) for rate in rates)
    return known and (groups is None or len(groups) == len(rates))


def is_scale(found: Any) -> bool:
    """Return whether this is the state of a loss scaler; missing entries are as in a new one."""
    return (
        isinstance(found, Mapping)
        and is_number(found.get("scale", 1.0), sys.float_info.min)
        and is_number(found.get("growth_factor", 2.0), 1 + sys.float_info.epsilon)
        and is_number(found.get("backoff_factor", 0.5), sys.float_info.min, 1)
        and are_counts([found.get("growth_interval", 1), found.get("_growth_tracker", 0)])
        and found.get("growth_interval", 1) > 0
    )


def _is_step(value: Any) -> bool:
    """Return whether this is a number of steps: a number, or a tensor of real ones."""
    if not isinstance(value, Tensor):
        return is_number(value, 0, _COUNTABLE)
    real = value.dtype != torch.bool and not value.is_complex()
    return real and (value.is_meta or all(is_number(item, 0, _COUNTABLE) for item in value.flatten().tolist()))


def are_gradients(found: Any) -> bool:
    """Return whether these are gradients that wait for an update: tensors by name, and counts of their batches."""
    return (
        isinstance(found, Mapping)
        and (isinstance(found.get("finite"), bool) or is_number(found.get("finite")))
        and are_tensors(found.get("values"))
        and are_counts([found.get("batches", 0)])
    )


def unusable_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that cannot take the place of those of the same name: whole or complex numbers
    for real ones, values that are not finite in the wanted precision, or too large to be multiplied.
    """
    common = {name: item for name, item in found.items() if name in wanted}
    other = [name for name, item in common.items() if not _is_usable(item, wanted[name])]
    return other or overflowing_tensors(common)


def _is_usable(item: Tensor, wanted: Tensor) -> bool:
    if item.is_complex() or item.is_floating_point() != wanted.is_floating_point():
        return False
    narrower = wanted.is_floating_point() and torch.finfo(item.dtype).max > torch.finfo(wanted.dtype).max
    return not nonfinite_tensors(item.to(wanted.dtype) if narrower else item)


def wrong_entries(contents: Mapping[str, Any], only_model: bool) -> list[str]:
    """Return the names of a checkpoint's entries that are something else than a trainer writes, or missing; with
    ``only_model`` nothing but weights and averages matters."""
    wrong = [] if are_tensors(contents.get("model")) else ["model"]
    wrong += [] if are_tensors(contents.get("ema", {})) else ["ema"]
    run = contents.get("state", {})
    if not isinstance(run, Mapping):
        return [*wrong, "state"]
    wrong += _wrong_in_run(run)
    return wrong if only_model or are_counts(contents.get("steps", [])) else [*wrong, "steps"]

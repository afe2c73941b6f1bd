"""Verdicts on a training, from the losses that it logged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Curve = list[tuple[int, float]]

#: the validation loss of each quarter of the noise levels, from the least noise to the most
LEVELS = ("valid_low_noise", "valid_lower_noise", "valid_higher_noise", "valid_high_noise")
#: least points of a training curve and of a validation curve that allow a verdict
LEAST, LEAST_VALID = 12, 6
#: last training loss over the lowest one: diverged from the first number on, restless from the second on
_DIVERGED, _RESTLESS = 2.0, 1.25
#: a spike is this far above the median around it, relative to that, and this many standard deviations of the noise
_SPIKE, _UNUSUAL = 0.6, 5.0
#: fraction of spikes that is too much; standard errors by which a loss must have risen
_SPIKES, _SURE = 0.05, 5.0
#: parts of a training curve whose means are compared
_PARTS = 8
#: a validation loss that ends this much above its lowest value has turned
_TURNED = 1.08
#: fraction and number of standard errors by which a loss that still falls has fallen over the last quarter
_FALLING, _CERTAIN = 0.05, 2.5


@dataclass(frozen=True)
class Finding:
    """A verdict on the training of one U-Net.

    Attributes:
        unet: 1-based number of the U-Net.
        verdict: "diverged", "rate too high", "overfitting", "underfitting" or "fine".
        text: the verdict in one sentence with the numbers that it rests on.
    """

    unet: int
    verdict: str
    text: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**63) < value < 2.0**63


def _drop(curve: Curve, step: float) -> None:
    """Remove the points from a step on."""
    while curve and curve[-1][0] >= step:
        curve.pop()


def curves(rows: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> dict[tuple[int, str], Curve]:
    """Return the numbers of a log as curves of (step, value), by U-Net and entry.

    What a run learned and lost, because it ended before it was saved, is left out: rows of an earlier run that are
    beyond the step at which a later run went on.

    Args:
        rows: of ``metrics.jsonl``, in order; those without a step and a U-Net are passed over.
        keys: entries of the rows.
    """
    keys = tuple(keys)
    found: dict[tuple[int, str], Curve] = {}
    began: dict[tuple[int, str], float] = {}
    for row in rows:
        if not (_is_number(row.get("step")) and _is_number(row.get("unet"))):
            continue
        for key in keys:
            if key not in row:
                continue
            name = (row["unet"], key)
            curve = found.setdefault(name, [])
            first = row.get("from_step")
            if _is_number(first) and first != began.get(name):  # another run
                began[name] = first
                _drop(curve, first + 1)
            _drop(curve, row["step"])
            if _is_number(row[key]):
                curve.append((row["step"], row[key]))
    return {name: curve for name, curve in found.items() if curve}


def losses_by_level(times: Tensor, losses: Tensor) -> dict[str, float]:
    """Return the mean loss of each quarter of the noise levels, by the names of `LEVELS`; nothing for fewer than eight
    items. The times of the schedule ``(n,)`` grow with the noise; the losses are of the same items."""
    if len(times) < 2 * len(LEVELS):
        return {}
    parts = losses[times.argsort(stable=True)].double().tensor_split(len(LEVELS))
    return {name: float(part.mean()) for name, part in zip(LEVELS, parts, strict=True)}


def diagnose(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Judge a training from its log, one finding for each U-Net with `LEAST` points or more, in their order.

    Args:
        rows: of ``metrics.jsonl``, in order: objects with "unet", "step", "loss" and, where there is validation,
            "valid_loss" and the entries of `LEVELS`.
    """
    rows = list(rows)
    found = curves(rows, ("loss", "valid_loss", *LEVELS))
    numbers = sorted({unet for unet, key in found if key == "loss"})
    return [
        _judge(unet, found, sum(row.get("unet") == unet and "loss" in row and row["loss"] is None for row in rows))
        for unet in numbers
        if len(found[unet, "loss"]) >= LEAST
    ]


def _parts(values: Sequence[float], count: int) -> list[list[float]]:
    """Parts of nearly one length."""
    bounds = [len(values) * part // count for part in range(count + 1)]
    return [list(values[first:last]) for first, last in zip(bounds, bounds[1:], strict=False)]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Medians of windows of about a tenth of the curve."""
    half = max(1, len(values) // 20)
    return [statistics.median(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]


def _noise(values: Sequence[float]) -> float:
    """Return the relative standard deviation of neighbouring values, from the median of their differences."""
    steps = [2 * abs(b - a) / (a + b) for a, b in zip(values, values[1:], strict=False) if a + b]
    return statistics.median(steps) / 0.954 if steps else 0.0  # 0.954: that median for a normal distribution


def _judge(unet: int, found: Mapping[tuple[int, str], Curve], lost: int) -> Finding:
    """Return the first verdict that applies, from the worst to the best."""
    training, valid = found[unet, "loss"], found.get((unet, "valid_loss"), [])
    values = [value for _, value in training]
    smooth = _smoothed(values)
    ratios = [value / level - 1 for value, level in zip(values, smooth, strict=True) if level]
    noise = _noise(values)
    means = [statistics.fmean(part) for part in _parts(values, _PARTS)]
    lowest, last = min(means), means[-1]
    at = training[len(values) * (means.index(lowest) + 1) // _PARTS - 1][0]
    error = noise * last * (2 * _PARTS / len(values)) ** 0.5  # of the difference of two means
    rise = last / lowest if last - lowest > _SURE * error else 1.0
    if rise > _DIVERGED or lost > len(values) // 4:
        beside = f"; {lost} logged losses were not finite" if lost else ""
        text = (
            f"the training loss was lowest at step {at} ({lowest:.3g}) and is {last:.3g} now{beside}: it diverged; "
            "lower the learning rate or set max_grad_norm, and go on from an earlier checkpoint"
        )
        return Finding(unet, "diverged", text)
    spikes = sum(ratio > max(_SPIKE, _UNUSUAL * noise) for ratio in ratios)
    if rise > _RESTLESS or spikes > max(2, _SPIKES * len(values)):
        text = (
            f"the training loss was lowest at step {at} ({lowest:.3g}), is {last:.3g} now and had {spikes} spikes in "
            f"{len(values)} points: the learning rate looks too high; try half of it"
        )
        return Finding(unet, "rate too high", text)
    return _overfitting(unet, found, training, valid) or _underfitting(unet, values, valid)


def _overfitting(unet: int, found: Mapping[tuple[int, str], Curve], training: Curve, valid: Curve) -> Finding | None:
    """Find a validation loss that rises again while the training loss does not."""
    if len(valid) < LEAST_VALID:
        return None
    smooth = _smoothed([value for _, value in valid])
    lowest = min(smooth)
    place = smooth.index(lowest)
    if smooth[-1] <= _TURNED * lowest or place >= len(valid) - max(2, len(valid) // 4):
        return None
    step = valid[place][0]
    then = [value for at, value in training if at <= step][-max(3, len(training) // 10) :]
    now = [value for _, value in training][-max(3, len(training) // 10) :]
    if not then or statistics.fmean(now) > 1.02 * statistics.fmean(then):
        return None
    rises = {}
    for name in LEVELS:
        curve = [value for at, value in found.get((unet, name), []) if at >= step]
        if len(curve) > 1 and curve[0] > 0:
            rises[name] = curve[-1] / curve[0]
    worst = max(rises, key=rises.__getitem__, default=None)
    where = "" if worst is None else f", most at {worst.removeprefix('valid_').replace('_', ' ')}"
    text = (
        f"the validation loss was lowest at step {step} ({lowest:.3g}) and is {smooth[-1]:.3g} now{where}, while the "
        f"training loss went from {statistics.fmean(then):.3g} to {statistics.fmean(now):.3g}: it overfits; stop "
        f"near step {step}, or train on more images"
    )
    return Finding(unet, "overfitting", text)


def _underfitting(unet: int, values: list[float], valid: Curve) -> Finding:
    """Find a training loss that still falls at the end; else all is well."""
    before, last = _parts(values, 4)[2:]
    fell = 1 - statistics.fmean(last) / statistics.fmean(before)
    error = math.hypot(*(statistics.stdev(part) / len(part) ** 0.5 for part in (before, last)))
    certain = statistics.fmean(before) - statistics.fmean(last) > _CERTAIN * error
    gap = f"; validation loss {valid[-1][1]:.3g}" if valid else ""
    if fell > _FALLING and certain:
        text = (
            f"the training loss still fell by {fell:.0%} over the last quarter of its steps, to "
            f"{statistics.fmean(last):.3g}{gap}: it underfits; more steps help"
        )
        return Finding(unet, "underfitting", text)
    text = f"the training loss has levelled off at {statistics.fmean(last):.3g}{gap}: no sign of overfitting"
    return Finding(unet, "fine", text if valid else f"{text.rpartition(':')[0]} (--valid shows whether it overfits)")

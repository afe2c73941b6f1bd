"""The tables of ``imagen info``, from the facts that its JSON has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..profiling.advice import scaled
from ..wording import printable
from ._tables import table

#: what the weights of a mixed precision are computed in
_COMPUTED = {"no": "float32", "fp16": "float16 (weights float32)", "bf16": "bfloat16 (weights float32)"}


def _size(size: Sequence[int] | None) -> str:
    """Height and width; one number for a square."""
    return "" if size is None else f"{size[0]}x{size[1]}"


def _bytes(count: int) -> str:
    return scaled(count, "B")


def _checkpoint(facts: Mapping[str, Any]) -> list[str]:
    """The lines on the training of a checkpoint."""
    version = facts["version"]
    by = f"written by version {version}" if version else "it does not say what wrote it"
    made = [f"file      {facts['format']}, {_bytes(facts['bytes'])}, {by}"]
    made.append(f"averages  {'of the weights, too' if facts['averages'] else 'none'}")
    if not facts["unets"]:
        return [*made, f"weights   {scaled(facts['numbers'])} numbers, of no model of this package"]
    rows = [
        [
            str(unet["number"]),
            "?" if unet["steps"] is None else f"{unet['steps']:,}",
            scaled(unet["numbers"]),
            "yes" if unet["optimizer"] else "no",
        ]
        for unet in facts["unets"]
    ]
    return [*made, "", *table(("U-Net", "steps taken", "numbers", "optimizer state"), rows)]


def _model(facts: Mapping[str, Any], count: int) -> list[str]:
    noun = "clips" if facts["video"] else "images"
    sizes = " -> ".join(_size(size) for size in facts["image_sizes"])
    made = [f"model     {facts['type']}: {count} U-Net{'s' * (count > 1)} for {noun}, {sizes}"]
    if facts["text_encoder"] is None:
        return [*made, "captions  none"]
    what = f"{facts['text_embed_dim']} numbers a token, at most {facts['max_text_len']} tokens"
    return [*made, f"captions  {facts['text_encoder']}, {what}"]


def _networks(unets: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> list[str]:
    rows = []
    for unet in unets:
        size = _size(unet["image_size"])
        rows.append(
            [
                str(unet["number"]),
                unet["type"],
                "" if unet["dim"] is None else str(unet["dim"]),
                ",".join(f"{mult:g}" for mult in unet["dim_mults"]),
                size if unet["frames"] is None else f"{unet['frames']} x {size}",
                _size(unet["lowres_size"]) or "noise",
                _size(unet["crop_size"]) + " crops" if unet["crop_size"] else "whole",
                scaled(unet["parameters"]),
                _bytes(unet["weight_bytes"]),
            ]
        )
    if len(unets) > 1:
        last = [scaled(total["parameters"]), _bytes(total["weight_bytes"])]
        rows.append(["total", *[""] * 6, *last])
    header = ("U-Net", "network", "dim", "dim_mults", "makes", "from", "trains on", "parameters", "weights")
    return table(header, rows, left=(1, 3, 4, 5, 6))


def _flops(unets: Sequence[Mapping[str, Any]], total: Mapping[str, Any], noun: str, batch: int) -> list[str]:
    rows = []
    for unet in unets:
        sampling = unet["sampling"]
        halves = " x 2 halves (guided)" if sampling["passes"] == 2 else ""
        rows.append(
            [
                str(unet["number"]),
                scaled(unet["forward_flops"]),
                scaled(unet["training"]["flops"]),
                scaled(sampling["flops"]),
                f"{sampling['evaluations']} evaluations{halves}",
            ]
        )
    if len(unets) > 1:
        rows.append(["total", "", "", scaled(total["sampling_flops"]), ""])
    header = ("U-Net", "forward pass", f"training step of {batch}", f"one {noun}", "")
    return ["FLOPs, 2 for a multiply-add, without the encoder of captions", *table(header, rows, left=(4,))]


def _memory(facts: Mapping[str, Any], noun: str) -> list[str]:
    plan, machine = facts["plan"], facts["machine"]
    names = ("weights", "averages", "gradients", "moments", "activations", "total")
    rows = [
        [
            str(unet["number"]),
            *(_bytes(unet["training"][name]) for name in names),
            _bytes(unet["sampling"]["total"]),
        ]
        for unet in facts["unets"]
    ]
    rows_at_once = min(plan["batch_size"], plan["max_batch_size"] or plan["batch_size"])
    title = (
        f"memory for training with {rows_at_once} {noun}{'s' * (rows_at_once > 1)} at once in "
        f"{_COMPUTED[plan['precision']]}, and for sampling one"
    )
    there = f"({machine['name']} has {_bytes(machine['memory'])}; weights and averages are those of all U-Nets)"
    header = ("U-Net", *names[:-1], "training", "sampling")
    return [title, there, *table(header, rows)]


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The whole report, line by line."""
    made = [f"{facts['kind']} {printable(facts['target'])}"]
    if "checkpoint" in facts:
        made += _checkpoint(facts["checkpoint"])
    if "model" not in facts:
        return [*made, "", "it does not say how its model was made, so nothing more is known about it"]
    if "checkpoint" in facts:
        made.append("")
    unets, total = facts["unets"], facts["total"]
    noun = "clip" if facts["model"]["video"] else "image"
    made += [*_model(facts["model"], len(unets)), "", *_networks(unets, total), ""]
    made += [*_flops(unets, total, noun, facts["plan"]["batch_size"]), "", *_memory(facts, noun)]
    if unets and not facts["warnings"]:
        most = max(unet["training"]["total"] for unet in unets)
        made += ["", f"it fits: training takes {_bytes(most)} of the {_bytes(facts['machine']['memory'])} of memory"]
    return made

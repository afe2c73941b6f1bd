"""Short digests of model, data and checkpoint: compared between processes, and with a saved position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..data.cache import digest_of

#: Numbers of a tensor that its digest looks at, at most, evenly spread: two trainings differ in all of them.
SAMPLED = 4096


def data_digest(dataset: Any) -> str | None:
    """Return a digest of which items a data set has, in their order; None if it does not tell.

    It may be a source of this package, whose method ``identity`` gives the names of its items, or a ``Subset``, a
    ``ConcatDataset`` or another wrapper of one.
    """
    own = getattr(dataset, "identity", None)
    if callable(own):
        return digest_of((type(dataset).__name__, *own()))
    parts = getattr(dataset, "datasets", None)
    if parts is not None:
        each = [data_digest(part) for part in parts]
        return None if None in each else digest_of(each)
    inner = getattr(dataset, "dataset", None)
    found = None if inner is None else data_digest(inner)
    chosen = getattr(dataset, "indices", None)
    return found if found is None or chosen is None else digest_of((found, *chosen))


def items_of(loader: Any) -> dict[str, Any]:
    """Return the number and digest of the items of a loader, as far as it tells."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None:  # one that wraps another, or any iterable
        inner = getattr(loader, "loader", None)
        return {} if inner is None else items_of(inner)
    found = {"items": len(dataset) if hasattr(dataset, "__len__") else None, "names": data_digest(dataset)}
    return {name: value for name, value in found.items() if value is not None}


def facts_of_data(loader: Any, seed: int) -> dict[str, Any]:
    """Return the values that processes must have in common to share the batches of a loader."""
    batches = getattr(loader, "batch_sampler", None)
    batches = getattr(batches, "batches", batches)  # of one process's share
    order = {name: getattr(batches, name, None) for name in ("batch_size", "shuffle", "drop_last")}
    order["the seed of the order"] = getattr(batches, "seed", None)
    items = items_of(loader)
    names = str(items.get("names", "unknown"))[:12]
    facts = {"the number of items": items.get("items"), "the digest of their names": names, "the seed": seed}
    return facts | {name: value for name, value in order.items() if isinstance(value, int)}


def facts_of_model(model: nn.Module, seed: int | None) -> dict[str, Any]:
    """Return the values that processes must have in common to train one model."""
    weights = [(name, tuple(item.shape), str(item.dtype)) for name, item in model.state_dict().items()]
    facts = {"its class": type(model).__name__, "the digest of its weights' names and shapes": digest_of(weights)[:12]}
    with suppress(AttributeError, TypeError):  # made of parts that cannot be written down
        facts["the digest of its construction"] = digest_of((model.to_config(),))[:12]  # type: ignore[operator]
    return {**facts, "the seed": seed}


def facts_of_trainer(trainer: Any, averages: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that processes must have in common to take the same steps: the arguments of a trainer, whose
    optimizers are made, and the options of its averages."""
    facts = {
        f"{name} of U-Net {unet_trainer.number}": value
        for unet_trainer in trainer.unet_trainers
        for name, value in unet_trainer.settings.items()
    }
    facts |= {f"ema_{name}": value for name, value in averages.items()}
    names = ("use_ema", "max_grad_norm", "split_batches", "checkpoint_every", "on_save_error", "posthoc_ema")
    return facts | {"precision": trainer.precision.name} | {name: getattr(trainer, name, None) for name in names}


def facts_of_checkpoint(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that processes must have in common to go on from a checkpoint."""
    steps = contents.get("steps")
    taken = steps.tolist() if isinstance(steps, Tensor) else steps
    return {"the number of its steps": taken, "the digest of its contents": contents_digest(contents)[:12]}


def contents_digest(contents: Mapping[str, Any]) -> str:
    """Return a digest of what a checkpoint holds: names, numbers and a part of every tensor."""
    made = hashlib.sha256()
    stack: list[tuple[str, Any]] = [("", contents)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(f"{path}/{name}", item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            stack += [(f"{path}/{index}", item) for index, item in enumerate(value)]
        elif isinstance(value, Tensor) and not value.is_meta:
            made.update(f"{path} {tuple(value.shape)} {value.dtype}".encode())
            part = value.detach().reshape(-1)[:: max(1, value.numel() // SAMPLED)].cpu().contiguous()
            made.update(part.view(torch.uint8).numpy().tobytes() if len(part) else b"")
        else:
            made.update(f"{path} {value!r}".encode("utf-8", "surrogatepass"))
    return made.hexdigest()

"""The entries of a batch by name, checked before any computation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cascade.batch import TrainingBatch
from ..cascade.cascade import Cascade
from ..registry import suggestion

#: arguments of a batch that are of the trainer, not of the caller
_OWN = ("self", "unet_number", "generator")


def named_batch(batch: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the entries of a batch as keyword arguments of the trainer.

    Args:
        batch: a dict, a tuple or list in the order of ``names``, or images alone. An entry that is a list of strings
            is always ``texts``.
        names: of the entries of a tuple.

    Raises:
        ValueError: a tuple with more entries than names.
        TypeError: something else than a batch.
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor | np.ndarray):
        return {"images": batch}
    if not isinstance(batch, list | tuple):
        raise TypeError(f"a loader yields tensors, tuples or dicts, got {type(batch).__name__}")
    if len(batch) > len(names):
        raise ValueError(
            f"the loader yields {len(batch)} values, but only {len(names)} names are known: {', '.join(names)}; "
            "name them all in dl_tuple_output_keywords_names"
        )
    return {"texts" if _are_texts(value) else name: value for name, value in zip(names, batch, strict=False)}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


def entries_of(batch: Any, cascade: Cascade, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries of a batch of a loader as keywords of `Cascade.training_batch`. Arguments as for
    `named_batch`.

    Raises:
        ValueError, TypeError: as `named_batch` and `check_keywords`; no ``images``; or an entry of a tuple that cannot
            be what its place makes it, such as a label.
    """
    named = named_batch(batch, names)
    if "images" not in named:
        came = ", ".join(f'"{name}"' for name in named) or "nothing"
        near = suggestion("images", tuple(str(name) for name in named))
        raise ValueError(
            f'the loader yields {came} and no "images"{near}; rename its entries in the data set or with collate_fn, '
            "or let it yield tuples and name these in dl_tuple_output_keywords_names"
        )
    check_keywords(cascade, named)
    embeds = named.get("text_embeds")
    if isinstance(batch, list | tuple) and embeds is not None and getattr(embeds, "ndim", 3) != 3:
        raise ValueError(
            f"entry {names.index('text_embeds') + 1} of the loader's tuple was taken for text_embeds, which are "
            f"(batch, tokens, width), got {tuple(embeds.shape)}: name the entries in dl_tuple_output_keywords_names, "
            "or leave labels out with collate_fn"
        )
    return named


def check_keywords(cascade: Cascade, names: Mapping[str, Any]) -> None:
    """Raise a TypeError for a name that `Cascade.training_batch` does not take."""
    known = [name for name in inspect.signature(type(cascade).training_batch).parameters if name not in _OWN]
    for name in names:
        if name not in known:
            raise TypeError(f'a batch has no "{name}"{suggestion(name, tuple(known))}; it has {", ".join(known)}')


@contextmanager
def apart_from_its_graph(batch: TrainingBatch) -> Iterator[TrainingBatch]:
    """A batch for several backward passes, though a graph in front of the network, such as that of an encoder that is
    trained along, allows one: that graph gets the gradient of all passes together when the block ends.
    """
    made = {name: item for name, item in vars(batch).items() if isinstance(item, Tensor) and item.grad_fn is not None}
    leaves = {name: item.detach().requires_grad_() for name, item in made.items()}
    yield replace(batch, **leaves) if leaves else batch
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None]
    if reached:
        torch.autograd.backward([made[name] for name in reached], [leaves[name].grad for name in reached])

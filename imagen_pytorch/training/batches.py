"""Checks of the entries of a batch, before any computation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cascade.batch import TrainingBatch
from ..cascade.cascade import Cascade
from ..registry import suggestion
from .loaders import named_batch

#: arguments of a batch that are of the trainer, not of the caller
_OWN = ("unet_number", "generator")


def entries_of(batch: Any, cascade: Cascade, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries of a batch of a loader as keywords of `Cascade.training_batch`.

    Args:
        batch: as for `named_batch`.
        cascade: the model.
        names: of the entries of a tuple.

    Raises:
        ValueError, TypeError: as `named_batch`, `check_images` and `check_tuple`.
    """
    named = named_batch(batch, names)
    check_images(cascade, named)
    if isinstance(batch, list | tuple):
        check_tuple(named, names)
    return named


def check_keywords(cascade: Cascade, names: Mapping[str, Any]) -> None:
    """Refuse what no batch has.

    Raises:
        TypeError: a name that `Cascade.training_batch` does not take.
    """
    known = [name for name in inspect.signature(type(cascade).training_batch).parameters if name not in (*_OWN, "self")]
    for name in names:
        if name not in known:
            raise TypeError(f'a batch has no "{name}"{suggestion(name, tuple(known))}; it has {", ".join(known)}')


def check_images(cascade: Cascade, batch: Mapping[str, Any]) -> None:
    """Refuse a batch of a loader that has no images, or names that nothing here has.

    Raises:
        ValueError: there are no ``images``.
        TypeError: as `check_keywords`.
    """
    if "images" not in batch:
        came = ", ".join(f'"{name}"' for name in batch) or "nothing"
        near = suggestion("images", tuple(str(name) for name in batch))
        raise ValueError(
            f'the loader yields {came} and no "images"{near}; rename its entries in the data set or with collate_fn, '
            "or let it yield tuples and name these in dl_tuple_output_keywords_names"
        )
    check_keywords(cascade, batch)


def check_tuple(batch: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse entries of a loader's tuple that cannot be what their place makes them, such as labels.

    Args:
        batch: by name, as `named_batch` gives it.
        names: of the entries of a tuple.

    Raises:
        ValueError: ``text_embeds`` that are no embeddings.
    """
    embeds = batch.get("text_embeds")
    if embeds is not None and getattr(embeds, "ndim", 3) != 3:
        place = names.index("text_embeds") + 1 if "text_embeds" in names else 0
        raise ValueError(
            f"entry {place} of the loader's tuple was taken for text_embeds, which are (batch, tokens, width), got "
            f"{tuple(embeds.shape)}: name the entries in dl_tuple_output_keywords_names, or leave labels out with "
            "collate_fn"
        )


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

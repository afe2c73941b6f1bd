"""Which part of a tensor a process holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local_part(tensor: Any) -> tuple[Tensor, tuple[int, ...]]:
    """What this process holds of a tensor, sharing its memory, and where that begins; all of an ordinary tensor.

    Args:
        tensor: an ordinary one, or a ``DTensor`` whose rows are shared out as ``torch.chunk`` would: as many for each
            process until none are left.

    Raises:
        ValueError: it is shared out in another way.
    """
    if not hasattr(tensor, "placements"):
        return tensor, (0,) * tensor.ndim
    with torch.no_grad():
        local = tensor.to_local()
    start, shape = [0] * tensor.ndim, list(tensor.shape)
    for axis, placement in enumerate(tensor.placements):
        if placement.is_shard():
            dim, count = placement.dim, tensor.device_mesh.size(axis)
            chunk, rank = -(-shape[dim] // count), tensor.device_mesh.get_local_rank(axis)
            first = min(rank * chunk, shape[dim])
            start[dim], shape[dim] = start[dim] + first, min(chunk, shape[dim] - first)
        elif not placement.is_replicate():
            raise ValueError(f"a tensor must be shared out by rows or copied to all processes, got {placement}")
    if list(local.shape) != shape:
        raise ValueError(f"this process should hold {tuple(shape)} of {tuple(tensor.shape)}, got {tuple(local.shape)}")
    return local, tuple(start)

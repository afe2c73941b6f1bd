"""Tensors that are shared out among processes, in a single one."""

from __future__ import annotations

import fsspec
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

LOCAL = fsspec.filesystem("file")


class Mesh:
    """The processes of a tensor, of which this is one."""

    def __init__(self, *axes: tuple[int, int]) -> None:
        self.axes = axes

    def size(self, axis: int) -> int:
        return self.axes[axis][1]

    def get_local_rank(self, axis: int) -> int:
        return self.axes[axis][0]


class Shared(Tensor):
    """A tensor of which there is a part, in place of a DTensor of several real processes."""

    @classmethod
    def of(cls, whole: Tensor, rank: int, count: int, dim: int = 0) -> Shared:
        parts = whole.chunk(count, dim)
        made = whole.as_subclass(cls)
        made.part = parts[rank].clone() if rank < len(parts) else whole.narrow(dim, 0, 0).clone()
        # a second axis whose processes have copies
        made.placements, made.device_mesh = (Replicate(), Shard(dim)), Mesh((1, 2), (rank, count))
        return made

    def to_local(self) -> Tensor:
        return self.part

"""Divide what is to be sampled among processes of torchrun or accelerate launch, without communication."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Process(NamedTuple):
    """This process among those that were started together: its rank, their number, and its rank on this machine."""

    rank: int
    count: int
    local: int

    def items(self, everything: Iterable[Item], before: int = 0) -> Iterator[Item]:
        """Every ``count``-th item, starting at the rank: all processes together have each of them once.

        Args:
            everything: the items.
            before: how many other items came before these, so that their division goes on.
        """
        return islice(everything, (self.rank - before) % self.count, None, self.count)

    def file_name(self, path: Path, seed: int) -> Path:
        """A file name that no other process uses: with several processes, it contains the seed."""
        return path if self.count == 1 else path.with_stem(f"{path.stem}-{seed}")

    def device(self, name: str) -> str:
        """The GPU of this process where one of them is meant and there are several processes."""
        if self.count == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        return f"cuda:{self.local}" if torch.cuda.is_available() else name


def this_process() -> Process:
    """Read the environment variables of the launcher; without one, this process is alone."""
    rank, count, local = (int(os.environ.get(name, default)) for name, default in
                          (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    return Process(rank, count, local)

"""Checkpoints that many processes write together: a folder with a file of each, in the format of torch's
``distributed.checkpoint``, read by any number of processes and without running anything.

Tensors have a path as a name: "optim0/state/3/exp_avg" is ``contents["optim0"]["state"][3]["exp_avg"]`` when the whole
is read, with numbers for keys that are numbers. What is no tensor of a model is an ordinary checkpoint file in it.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError, CheckpointMismatch
from .manifest import PLAIN, Entry, Manifest, Part, read_manifest, reading, sha256_of
from .parts import local_part
from .places import check_room, is_local
from .ptfiles import read_pt
from .remote import get_file

#: steps of a path; those of an optimizer's state have four
_MOST_STEPS = 16
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


class ShardedCheckpoint:
    """A sharded checkpoint that is there to be read, by one process or by many without talking to each other.

    Args:
        fs: fsspec filesystem.
        folder: as that filesystem spells it.

    Attributes:
        shapes: of all tensors by name.

    Raises:
        CheckpointMissing: no folder, or one that was never finished.
        CheckpointError: a file is missing or cut off.
    """

    def __init__(self, fs: Any, folder: str) -> None:
        self.fs, self.folder = fs, folder.rstrip("/")
        self.manifest: Manifest = read_manifest(fs, self.folder)
        self.shapes = {name: entry.shape for name, entry in self.manifest.tensors.items()}

    @contextmanager
    def _checked(self, names: Iterable[str]) -> Iterator[dict[str, str]]:
        """Local paths of some of the files, whose checksums are right."""
        with tempfile.TemporaryDirectory() as temporary:
            paths = {}
            for name in names:
                path = place = f"{self.manifest.place(self.folder)}/{name}"
                if not is_local(self.fs):
                    path = os.path.join(temporary, name)
                    check_room(temporary, self.manifest.files[name].size)
                    get_file(self.fs, place, path)
                if sha256_of(path) != self.manifest.files[name].sha256:
                    raise CheckpointError(f"the checksum of its file {name} is wrong")
                paths[name] = path
            yield paths

    def plain(self) -> dict[str, Any]:
        """Everything but the tensors that were given by name.

        Raises:
            CheckpointError: the file is damaged, or holds more than tensors and plain containers.
        """
        with reading(self.fs, self.folder), self._checked([PLAIN]) as paths, open(paths[PLAIN], "rb") as file:
            contents = read_pt(file)
            if not isinstance(contents, dict):
                raise CheckpointError(f"its file {PLAIN} holds a {type(contents).__name__} instead of a dict")
            return contents

    def verify(self) -> None:
        """See that the checksums of all files are right.

        Raises:
            CheckpointError: one is not; it names the file.
        """
        with reading(self.fs, self.folder), self._checked(self.manifest.files):
            pass

    def read(self) -> dict[str, Any]:
        """The whole contents, nested, every tensor on the CPU; all checksums are verified.

        Raises:
            CheckpointError: damaged, or it holds more than tensors and plain containers.
        """
        contents = self.plain()
        wholes = {name: torch.zeros(entry.shape, dtype=entry.dtype) for name, entry in self.manifest.tensors.items()}
        self.load(wholes)
        return nested(wholes, contents)

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, each process what it holds of them. Nothing is changed if they do not fit.

        The checksums of those files are verified that this process reads.

        Args:
            targets: by name; ordinary tensors or ``DTensor``, shared out among any number of processes.

        Raises:
            CheckpointMismatch: a name that it does not hold, or another shape.
            CheckpointError: damaged.
        """
        wanted = [(name, *self._entry(name, target), target) for name, target in targets.items()]
        needed = {
            part.file: None
            for _, entry, start, shape, _ in wanted
            for part in entry.parts
            if _overlap(part, start, shape) is not None
        }
        with reading(self.fs, self.folder), self._checked(needed) as paths, ExitStack() as stack:
            files = {file: stack.enter_context(open(path, "rb")) for file, path in paths.items()}
            for name, entry, start, shape, target in wanted:
                local = local_part(target)[0].detach().view(shape)
                for part in entry.parts:
                    common = _overlap(part, start, shape)
                    if common is not None:
                        here, there = common
                        piece = _tensor(_slice(files[part.file], part), part, entry, name)
                        local[there].copy_(piece[here])

    def _entry(self, name: str, target: Tensor) -> tuple[Entry, tuple[int, ...], tuple[int, ...]]:
        """The saved tensor, and which box of it is wanted.

        Raises:
            CheckpointMismatch: there is none, or of another shape.
        """
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise CheckpointMismatch(f"the checkpoint {self.folder} has no {name}; nothing was loaded")
        local, start = local_part(target)
        if entry.shape == tuple(target.shape):
            return entry, start, tuple(local.shape)
        if entry.shape == () and tuple(target.shape) == (1,):  # a number that sharded training keeps as a vector
            return entry, (), () if local.numel() else (0,)
        raise CheckpointMismatch(
            f"{name} is {tuple(entry.shape)} in the checkpoint {self.folder} and {tuple(target.shape)} in the model; "
            "nothing was loaded"
        )


def read_sharded(fs: Any, folder: str) -> dict[str, Any]:
    """The whole contents of a sharded checkpoint, as `read_checkpoint` gives those of a file; in one process.

    Raises:
        CheckpointMissing: no folder, or one that was never finished.
        CheckpointError: damaged, or it holds more than tensors and plain containers; nothing of it was executed.
    """
    return ShardedCheckpoint(fs, folder).read()


def load_sharded(fs: Any, folder: str, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors in place from a sharded checkpoint, on any number of processes; see `ShardedCheckpoint.load`.

    Raises:
        CheckpointMissing, CheckpointMismatch, CheckpointError: as there.
    """
    ShardedCheckpoint(fs, folder).load(targets)


def _key(step: str) -> int | str:
    """A step of a path as a key: a number where it is written as one of up to 15 digits, without leading zeros."""
    return int(step) if _NUMBER.fullmatch(step) else step


def nested(tensors: Mapping[str, Any], contents: dict[str, Any] | None = None) -> dict[str, Any]:
    """Tensors by path as nested dicts, put into others.

    Raises:
        CheckpointError: two things under one name.
    """
    result: dict[Any, Any] = {} if contents is None else contents
    for name, item in tensors.items():
        if name.count("/") >= _MOST_STEPS:
            raise CheckpointError(f"it holds {name[:100]}, which has more than {_MOST_STEPS} steps")
        *outer, last = (_key(step) for step in name.split("/"))
        place = result
        for step in outer:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise CheckpointError(f"it holds {name} and something else under a part of that name")
        if last in place:
            raise CheckpointError(f"it holds {name} twice")
        place[last] = item
    return result


# -- bytes to tensors -------------------------------------------------------------------------------------------------


def _slice(file: BinaryIO, part: Part) -> BinaryIO:
    """The bytes of a part, as a file of their own."""
    file.seek(part.at)
    return io.BytesIO(file.read(part.size))


def _overlap(part: Part, start: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any] | None:
    """Where a part and a box of the same tensor meet, as indices into each; None if nowhere."""
    if 0 in shape:
        return None
    here, there = [], []
    for mine, count, first, size in zip(part.start, part.shape, start, shape, strict=True):
        low, high = max(mine, first), min(mine + count, first + size)
        if low >= high:
            return None
        here.append(slice(low - mine, high - mine))
        there.append(slice(low - first, high - first))
    return tuple(here) or ..., tuple(there) or ...


def _tensor(file: BinaryIO, part: Part, entry: Entry, name: str) -> Tensor:
    """A part of a tensor from the bytes of a file that ``torch.save`` wrote.

    Raises:
        CheckpointError: anything else.
    """
    try:
        found = read_pt(file)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if not isinstance(found, Tensor) or found.dtype != entry.dtype or tuple(found.shape) != part.shape:
        raise CheckpointError(f"{name} is not the tensor that the manifest describes")
    return found

"""Checkpoints that many processes write together, and that any number of processes reads.

A folder holds a file of safetensors per rank with the parts that this rank has, an ordinary checkpoint file with
everything else, and a manifest that is written last. Tensors have a path as a name: "optim0/state/3/exp_avg" is
``contents["optim0"]["state"][3]["exp_avg"]`` in the complete contents, with numbers for keys that are numbers.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..io.atomic import note, noted, second_name, sync_folder, write_bytes
from ..io.errors import CheckpointError, CheckpointMismatch, CheckpointNotWritten, CheckpointUnreachable, reason
from ..io.files import check_disk_space, get_file, is_local, kind_of, make_folder, names_in, put_file, sizes_in
from ..io.locks import check_locks
from .contents import DTYPES, local_part, plain_contents
from .format_pt import read_pt, write_pt
from .format_safetensors import write_safetensors
from .manifest import Entry, File, Manifest, Part, read_manifest
from .paths import MANIFEST, is_sharded, previous_of, reading, set_aside

#: name of the file with everything that is not a tensor of a model
PLAIN = "state.pt"
#: steps of a path; those of an optimizer's state have four
_MOST_STEPS = 16
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
#: what writes leave in the folder of a checkpoint; everything else there belongs to others
_OURS = re.compile(r"^(shards-[0-9a-f]{12}|__\d+_\d+\.distcp|\.metadata|state\.pt|\.imagen-.*\.tmp)$")

Box = tuple[tuple[int, ...], tuple[int, ...]]


# -- reading ----------------------------------------------------------------------------------------------------------


class ShardedCheckpoint:
    """A sharded checkpoint to be read, by one process or by many independently of each other. ``shapes`` are those of
    all tensors by name.

    A CheckpointMissing for no folder, or one that was never finished; a CheckpointError if a file is missing or cut
    off.
    """

    def __init__(self, fs: Any, folder: str) -> None:
        self.fs, self.folder = fs, folder.rstrip("/")
        with reading(fs, self.folder):
            self.manifest: Manifest = read_manifest(fs, self.folder)
        self.shapes = {name: entry.shape for name, entry in self.manifest.tensors.items()}

    @contextmanager
    def _verified(self, names: Iterable[str]) -> Iterator[dict[str, str]]:
        """Local paths of some of the files, whose checksums are right."""
        with reading(self.fs, self.folder), tempfile.TemporaryDirectory() as temporary:
            paths = {}
            for name in names:
                path = place = f"{self.manifest.place(self.folder)}/{name}"
                if not is_local(self.fs):
                    path = os.path.join(temporary, name)
                    get_file(self.fs, place, path)
                if _sha256_of(path) != self.manifest.files[name].sha256:
                    raise CheckpointError(f"the checksum of its file {name} is wrong")
                paths[name] = path
            yield paths

    def plain(self) -> dict[str, Any]:
        """Return everything but the tensors that were given by name."""
        with self._verified([PLAIN]) as paths, open(paths[PLAIN], "rb") as file:
            contents = read_pt(file)
            if not isinstance(contents, dict):
                raise CheckpointError(f"its file {PLAIN} holds a {type(contents).__name__} instead of a dict")
            return contents

    def described(self) -> dict[str, Any]:
        """Return the complete contents with tensors on the device "meta" in place of those given by name."""
        tensors = self.manifest.tensors.items()
        return nested({n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in tensors}, self.plain())

    def verify(self) -> None:
        """Check that the checksums of all files are right and the rest can be read; raise a CheckpointError if not."""
        with self._verified(self.manifest.files):
            pass
        self.plain()

    def read(self) -> dict[str, Any]:
        """Return the complete contents, nested, every tensor on the CPU; all checksums are verified."""
        contents = self.plain()
        tensors = {name: torch.zeros(entry.shape, dtype=entry.dtype) for name, entry in self.manifest.tensors.items()}
        self.load(tensors)
        return nested(tensors, contents)

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, each process what it holds of them. Nothing is changed if they do not fit.

        The targets by name are ordinary tensors or ``DTensor``, divided among any number of processes. The checksums of
        those files are verified that this process reads.

        Raises:
            CheckpointMismatch: a name that it does not hold, or another shape.
            CheckpointError: damaged.
        """
        wanted = [(name, target, *self._wanted(name, target)) for name, target in targets.items()]
        parts = [(*each, part) for each in wanted for part in each[2].parts]
        needed = dict.fromkeys(part.file for *_, box, part in parts if _overlap(part, box) is not None)
        with self._verified(needed) as paths:
            for name, target, entry, box, part in parts:
                if (common := _overlap(part, box)) is not None:
                    here, there = common
                    local = local_part(target)[0].detach().view(box[1])
                    local[there].copy_(_read(paths[part.file], name, entry, part)[here])

    def _wanted(self, name: str, target: Tensor) -> tuple[Entry, Box]:
        """The saved tensor, and which box of it is wanted."""
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise CheckpointMismatch(f"the checkpoint {self.folder} has no {name}; nothing was loaded")
        local, start = local_part(target)
        if entry.shape == tuple(target.shape):
            return entry, (start, tuple(local.shape))
        if entry.shape == () and tuple(target.shape) == (1,):  # a number that sharded training keeps as a vector
            return entry, ((), () if local.numel() else (0,))
        raise CheckpointMismatch(
            f"{name} is {tuple(entry.shape)} in the checkpoint {self.folder} and {tuple(target.shape)} in the model; "
            "nothing was loaded"
        )


def _overlap(part: Part, box: Box) -> tuple[Any, Any] | None:
    """Return the intersection of a part and a box of the same tensor, as indices into each; None if empty."""
    if 0 in box[1]:
        return None
    here, there = [], []
    for mine, count, first, size in zip(part.start, part.shape, *box, strict=True):
        low, high = max(mine, first), min(mine + count, first + size)
        if low >= high:
            return None
        here.append(slice(low - mine, high - mine))
        there.append(slice(low - first, high - first))
    return tuple(here) or ..., tuple(there) or ...


def _read(path: str, name: str, entry: Entry, part: Part) -> Tensor:
    """A part of a tensor, mapped from the file where it is: only the bytes that are used are read."""
    from safetensors import SafetensorError, safe_open

    try:
        if part.span is not None:  # the first formats
            with open(path, "rb") as file:
                file.seek(part.span[0])
                found = read_pt(io.BytesIO(file.read(part.span[1])))
        else:
            with safe_open(path, "pt") as file:
                found = file.get_tensor(name)
    except (CheckpointError, SafetensorError) as error:
        raise CheckpointError(f"{name}: {error}") from error
    if not isinstance(found, Tensor) or found.dtype != entry.dtype or tuple(found.shape) != part.shape:
        raise CheckpointError(f"{name} is not the tensor that the manifest describes")
    return found


def read_sharded(fs: Any, folder: str) -> dict[str, Any]:
    """Return the complete contents of a sharded checkpoint, as `read_checkpoint` gives those of a file."""
    return ShardedCheckpoint(fs, folder).read()


def nested(tensors: Mapping[str, Any], contents: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return tensors by path as nested dicts, put into others; a CheckpointError for two things under one name."""
    result: dict[Any, Any] = {} if contents is None else contents
    for name, item in tensors.items():
        if name.count("/") >= _MOST_STEPS:
            raise CheckpointError(f"it holds {name[:100]}, which has more than {_MOST_STEPS} steps")
        *outer, last = (int(step) if _NUMBER.fullmatch(step) else step for step in name.split("/"))
        place = result
        for step in outer:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise CheckpointError(f"it holds {name} and something else under a part of that name")
        if last in place:
            raise CheckpointError(f"it holds {name} twice")
        place[last] = item
    return result


# -- writing ----------------------------------------------------------------------------------------------------------


def write_sharded(
    fs: Any,
    folder: str,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    overwrite: bool = True,
    keep_previous: bool = False,
) -> None:
    """Write a folder that `read_sharded` reads. All processes call it; an error on one is raised on all.

    Each process writes what it holds into a new folder inside that of the checkpoint. Then the manifest, one small
    file, names that one instead of the one before. So a process that dies leaves nothing that is taken for complete,
    and the checkpoint before as it was.

    Args:
        fs: fsspec file system; a local one has to be shared by all machines that take part.
        folder: as that file system spells it. A checkpoint that is there is replaced.
        tensors: by path such as "model/final_conv.bias", see this module; ``DTensor``, or ordinary tensors that are the
            same on every process.
        plain: tensors and plain containers for the rest; that of the first process is written.
        overwrite: whether a checkpoint that is there may be replaced.
        keep_previous: leave the checkpoint that is replaced as ``<folder>.previous``. One that cannot be read does not
            take that name: it is kept as ``<folder>.unreadable``, and a warning says so.

    Raises:
        TypeError: something else than tensors, or plain contents that are not plain.
        CheckpointLocked: another run has taken a lock that this process held for the place.
        CheckpointNotWritten: something is there that may not be replaced, or it could not be written.
    """
    ranks = _Ranks()
    folder = os.path.realpath(folder) if is_local(fs) else folder.rstrip("/")
    boxes = ranks.each(lambda: _boxes(fs, tensors, plain))
    own = ranks.first(lambda: _prepare(fs, folder, overwrite))
    try:
        written = ranks.each(lambda: _write_files(fs, f"{folder}/{own}", tensors, plain, boxes, ranks.rank))
        files = {name: file for each in written for name, file in each.items()}
        entries = {
            name: Entry(
                tensor.dtype,
                tuple(tensor.shape),
                tuple(Part(*boxes[rank][name], _file_of(rank)) for rank in _writers(boxes, name)),
            )
            for name, tensor in tensors.items()
        }
        ranks.first(lambda: _commit(fs, folder, Manifest(files, entries, own), keep_previous))
    except BaseException:
        if ranks.rank == 0:
            with suppress(Exception):  # what cannot be removed now is removed by a later write
                fs.rm(f"{folder}/{own}", recursive=True)
                if is_local(fs):
                    os.rmdir(folder)  # if nothing else is there
        raise


class _Ranks:
    """The processes that write, and what they exchange; each call waits for all of them."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if joined else (1, 0)

    def each(self, action: Callable[[], Any]) -> list[Any]:
        """The answers of all processes; the error of any of them on all."""
        answer, error = None, None
        try:
            answer = action()
        except Exception as caught:  # whatever it is, the others must not wait for ever
            error = caught
        answers = [(answer, None if error is None else reason(error))] * self.count
        if self.count > 1:
            dist.all_gather_object(answers, answers[0])
        if isinstance(error, CheckpointError | TypeError):
            raise error
        for rank, (_, text) in enumerate(answers):
            if text is not None:
                text = f"process {rank} could not write its part of a checkpoint: {text}"
                raise CheckpointNotWritten(text) from error
        return [item for item, _ in answers]

    def first(self, action: Callable[[], Any]) -> Any:
        """The answer of the first process, which alone acts, on all."""
        return self.each(lambda: action() if self.rank == 0 else None)[0]


def _file_of(rank: int) -> str:
    return f"rank{rank}.safetensors"


def _writers(boxes: Sequence[Mapping[str, Box]], name: str) -> list[int]:
    """The ranks that write a part of a tensor: of those that hold the same box the first."""
    found: dict[Box, int] = {}
    for rank, held in enumerate(boxes):
        found.setdefault(held[name], rank)
    filled = {box: rank for box, rank in found.items() if 0 not in box[1]}
    return sorted((filled or dict([next(iter(found.items()))])).values())


def _boxes(fs: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Box]:
    """Check that all can be saved, and that there is disk space for it; the box of each tensor on this process."""
    found, needed = {}, 0
    for name, item in tensors.items():
        if not isinstance(item, Tensor) or str(item.dtype).removeprefix("torch.") not in DTYPES:
            raise TypeError(f"{name} must be a tensor of numbers, got {getattr(item, 'dtype', type(item).__name__)}")
        local, start = local_part(item)
        found[name] = start, tuple(local.shape)
        needed += local.nbytes
    plain_contents(plain)
    if not is_local(fs):
        check_disk_space(tempfile.gettempdir(), needed)
    return found


def _prepare(fs: Any, folder: str, overwrite: bool) -> str:
    """Make a folder for the files of this write; its name."""
    kind = kind_of(fs, folder)
    complete = kind == "directory" and is_sharded(fs, folder)
    if complete and not overwrite:
        raise CheckpointNotWritten(f"{folder} exists already; allow overwrite=True or choose another path")
    others = kind == "directory" and not complete and any(not _OURS.match(name) for name in names_in(fs, folder))
    if others or kind not in (None, "directory"):
        raise CheckpointNotWritten(f"could not write {folder}: what is there is not a checkpoint; choose another name")
    check_locks(fs, folder)
    own = f"shards-{uuid.uuid4().hex[:12]}"
    make_folder(fs, f"{folder}/{own}")
    return own


def _write_files(
    fs: Any, where: str, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], boxes: Sequence[Any], rank: int
) -> dict[str, File]:
    """Write the files of this process; what they are."""
    mine = {name: local_part(item)[0] for name, item in tensors.items() if rank in _writers(boxes, name)}
    with tempfile.TemporaryDirectory() as temporary:
        place = where if is_local(fs) else temporary
        if is_local(fs):
            check_disk_space(place, sum(item.nbytes for item in mine.values()))
        with open(os.path.join(place, _file_of(rank)), "w+b") as file:
            write_safetensors(mine, file)
        if rank == 0:
            with open(os.path.join(place, PLAIN), "w+b") as file:
                write_pt(plain_contents(plain), file)
        found = {}
        for name in (_file_of(rank), *([PLAIN] if rank == 0 else [])):
            local = os.path.join(place, name)
            found[name] = File(os.path.getsize(local), _sha256_of(local))
            if not is_local(fs):
                put_file(fs, local, f"{where}/{name}")
        if is_local(fs):
            sync_folder(place)
    return found


def _sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _commit(fs: Any, folder: str, manifest: Manifest, keep_previous: bool) -> None:
    """Name the new files in the manifest, which is one small file, and remove those before."""
    manifest.check()
    sizes = sizes_in(fs, manifest.place(folder))
    if lost := [name for name, file in manifest.files.items() if sizes.get(name) != file.size]:
        raise CheckpointNotWritten(
            f"{', '.join(lost)} did not arrive complete in {manifest.place(folder)}: all processes must see the same "
            "folder; with several machines checkpoint_path has to be on a shared disk or an object store"
        )
    check_locks(fs, folder)
    if is_sharded(fs, folder):
        problem = _problem(fs, folder)
        if problem is not None:
            aside = set_aside(fs, folder, problem)
            if is_local(fs):
                os.mkdir(folder)
                os.rename(manifest.place(aside), manifest.place(folder))
        elif keep_previous:
            _copy(fs, folder, previous_of(folder))
    write_bytes(fs, f"{folder}/{MANIFEST}", manifest.to_bytes())
    _remove_others(fs, folder, manifest)
    note(fs, folder)


def _problem(fs: Any, folder: str) -> str | None:
    """Return why training cannot continue from a folder; None if it can."""
    known, problem = noted(fs, folder)
    try:
        checkpoint = ShardedCheckpoint(fs, folder)
        if is_local(fs) and not known:  # what this process wrote is trusted, anything else read once
            checkpoint.verify()
    except CheckpointError as error:
        if isinstance(error, CheckpointUnreachable) and not is_local(fs):
            raise CheckpointNotWritten(f"could not write {folder}: {error}") from error  # not damage
        return problem or str(error)
    return problem


def _copy(fs: Any, folder: str, other: str) -> None:
    """Give a checkpoint another name as well; what is there is replaced when everything has arrived."""
    before = read_manifest(fs, folder)
    make_folder(fs, before.place(other))
    for name in before.files:
        second_name(fs, f"{before.place(folder)}/{name}", f"{before.place(other)}/{name}")
    second_name(fs, f"{folder}/{MANIFEST}", f"{other}/{MANIFEST}")
    _remove_others(fs, other, before)


def _remove_others(fs: Any, folder: str, manifest: Manifest) -> None:
    """Remove what other writes left in a folder; what cannot be removed is named in a warning."""
    stays = {manifest.folder} if manifest.folder else {".metadata", *manifest.files}
    try:
        for name in names_in(fs, folder):
            if name not in stays and _OURS.match(name):
                with suppress(FileNotFoundError):  # a folder without files is nothing in some stores
                    fs.rm(f"{folder}/{name}", recursive=True)
    except Exception as error:  # every store has errors of its own; the new checkpoint is safe
        warnings.warn(f"cannot remove old files in {folder}: {reason(error)}", stacklevel=2)

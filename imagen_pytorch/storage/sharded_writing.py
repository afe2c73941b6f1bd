"""Writing a checkpoint by many processes together: whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .claims import check_claims
from .contents import plain_contents
from .dtypes import DTYPES
from .errors import CheckpointError, CheckpointNotWritten, CheckpointUnreachable, reason
from .keeping import previous_of, set_aside
from .locks import check_locks
from .manifest import PLAIN, Entry, File, Manifest, Part, read_manifest, sha256_of, sizes_in
from .own_files import is_own, note_replaced, remember, why_unusable
from .parts import local_part
from .places import check_room, is_local, make_folder, parent_of, sync_folder
from .reading import MANIFEST, is_sharded
from .remote import attempts, forget_listings, kind_of, put_file
from .sharded import ShardedCheckpoint
from .writing import write_checkpoint

_PARTIAL = re.compile(r"^\.(.+)\.[0-9a-f]{8}\.partial$")
#: what earlier writes to an object store left in its folder; everything else there belongs to others
_OURS = re.compile(r"^(shards-[0-9a-f]{12}|__\d+_\d+\.distcp|\.metadata|state\.pt)$")


def write_sharded(
    fs: Any,
    folder: str,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    group: Any = None,
    overwrite: bool = True,
    keep_previous: bool = False,
) -> None:
    """Write a folder that `read_sharded` reads. All processes of the group call it; an error on one is raised on all.

    Each process writes what it holds. Locally everything goes into a folder beside, which gets its name in the end. On
    an object store it goes into a folder of its own in the checkpoint's, and then the manifest, one small object, names
    that one instead of the one before. So a process that dies leaves nothing that is taken for whole, and the
    checkpoint before as it was.

    Args:
        fs: fsspec filesystem; a local one has to be shared by all machines that take part.
        folder: as that filesystem spells it. A checkpoint that is there is replaced.
        tensors: by path such as "model/final_conv.bias", see the module `sharded`; ``DTensor``, or ordinary tensors
            that are the same on every process.
        plain: tensors and plain containers for the rest; that of the first process is written.
        group: process group; by default all processes. On GPUs one of the kind "gloo" costs them nothing.
        overwrite: whether a checkpoint that is there may be replaced.
        keep_previous: leave the checkpoint that is replaced as ``<folder>.previous``. One that cannot be read does not
            take that name: it is kept as ``<folder>.unreadable``, and a warning says so.

    Raises:
        TypeError: something else than tensors, or plain contents that are not plain.
        CheckpointLocked: another run has taken a lock that this process held for the place.
        CheckpointNotWritten: something is there that may not be replaced, or it could not be written.
    """
    processes = _Processes(group)
    folder = folder.rstrip("/")
    if is_local(fs):
        folder = os.path.realpath(folder)
    needed = processes.each(lambda: _check(fs, tensors, plain))
    where = processes.first(lambda: _prepare(fs, folder, sum(needed), overwrite))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            place = where if is_local(fs) else temporary
            metadata = _save(place, tensors, processes)
            written = processes.each(lambda: _finish_files(fs, place, where, plain, processes.rank))
        files = {name: file for found in written for name, file in found.items()}
        commit = _commit_local if is_local(fs) else _commit_remote
        processes.first(lambda: commit(fs, where, folder, files, _entries(metadata), keep_previous))
    except BaseException:
        if processes.rank == 0:
            with suppress(Exception):  # what cannot be removed now is removed by a later write
                fs.rm(where, recursive=True)
        raise


class _Processes:
    """Those who write, and what they tell each other; each call waits for all of them."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1)
        self.rank = 0 if self.alone else dist.get_rank(group)

    def each(self, action: Callable[[], Any]) -> list[Any]:
        """The answers of all processes; the error of any of them on all."""
        answer, error = None, None
        try:
            answer = action()
        except Exception as caught:  # whatever it is, the others must not wait for ever
            error = caught
        told = [(answer, None if error is None else reason(error))]
        if not self.alone:
            told *= dist.get_world_size(self.group)
            dist.all_gather_object(told, told[0], group=self.group)
        if isinstance(error, CheckpointError | TypeError):
            raise error
        for rank, (_, text) in enumerate(told):
            if text is not None:
                raise CheckpointNotWritten(
                    f"process {rank} could not write its part of a checkpoint: {text}"
                ) from error
        return [item for item, _ in told]

    def first(self, action: Callable[[], Any]) -> Any:
        """The answer of the first process, which alone acts, on all."""
        return self.each(lambda: action() if self.rank == 0 else None)[0]


def _check(fs: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> int:
    """See that all can be saved, and on an object store that there is room for this process's files; their bytes."""
    needed = 0
    for name, item in tensors.items():
        if not isinstance(item, Tensor) or str(item.dtype).removeprefix("torch.") not in DTYPES:
            raise TypeError(f"{name} must be a tensor of numbers, got {getattr(item, 'dtype', type(item).__name__)}")
        needed += local_part(item)[0].nbytes
    plain_contents(plain)
    if not is_local(fs):
        check_room(tempfile.gettempdir(), needed)
    return needed


def _prepare(fs: Any, folder: str, needed: int, overwrite: bool) -> str:
    """The folder where everything goes for now."""
    outer, name = parent_of(folder), folder.rsplit("/", 1)[-1]
    kind = kind_of(fs, folder)
    whole = kind == "directory" and is_sharded(fs, folder)
    if whole and not overwrite:
        raise CheckpointNotWritten(f"{folder} exists already; allow overwrite=True or choose another path")
    if kind is not None and not whole and (kind != "directory" or _has_others(fs, folder)):
        raise CheckpointNotWritten(f"could not write {folder}: what is there is no checkpoint; choose another name")
    make_folder(fs, outer)
    if not is_local(fs):
        where = f"{folder}/shards-{uuid.uuid4().hex[:12]}"
        make_folder(fs, where)
        return where
    check_locks(folder)
    check_room(outer or ".", needed)
    where = os.path.join(outer, f".{name}.{uuid.uuid4().hex[:8]}.partial")
    make_folder(fs, where)
    return where


def _has_others(fs: Any, folder: str) -> bool:
    """Whether a folder that is no checkpoint holds anything that a write that was not finished did not leave there."""
    return any(not _OURS.match(name) for name in _names_in(fs, folder))


def _names_in(fs: Any, folder: str) -> list[str]:
    forget_listings(fs, folder)
    listed = attempts(lambda: fs.ls(folder, detail=False))
    paths = [str(path).rstrip("/") for path in listed]
    return [path.rsplit("/", 1)[-1] for path in paths if path != folder]  # some stores list the folder in itself


def _save(place: str, tensors: Mapping[str, Tensor], processes: _Processes) -> Any:
    """Let torch write what each process holds; its index of all of it."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    # a process that has no rows of a tensor has nothing to say about it
    mine = {name: item.detach() for name, item in tensors.items() if local_part(item)[0].numel() or not item.numel()}
    writer = checkpoint.FileSystemWriter(place, single_file_per_rank=True, sync_files=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            return checkpoint.save(mine, storage_writer=writer, process_group=processes.group, no_dist=processes.alone)
    except CheckpointException as error:
        causes = "; ".join(f"process {rank}: {reason(failure[0])}" for rank, failure in error.failures.items())
        raise CheckpointNotWritten(f"could not write the sharded checkpoint: {causes}") from error


def _finish_files(fs: Any, place: str, where: str, plain: Mapping[str, Any], rank: int) -> dict[str, File]:
    """Bring the files of this process to where they belong, and say what they are."""
    if rank == 0:
        write_checkpoint(plain, os.path.join(place, PLAIN))
    own = re.compile(rf"^__{rank}_\d+\.distcp$")
    names = [name for name in sorted(os.listdir(place)) if own.match(name)]
    names += [".metadata", PLAIN] if rank == 0 else []
    found = {}
    for name in names:
        local = os.path.join(place, name)
        found[name] = File(os.path.getsize(local), sha256_of(local))
        if not is_local(fs):
            put_file(fs, local, f"{where}/{name}")
    return found


def _entries(metadata: Any) -> dict[str, Entry]:
    """Torch's index as ours."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    found = {}
    for name, item in metadata.state_dict_metadata.items():
        parts = []
        for chunk in item.chunks:
            saved = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            box = tuple(chunk.offsets), tuple(chunk.sizes)
            parts.append(Part(*box, saved.relative_path, saved.offset, saved.length))
        found[name] = Entry(item.properties.dtype, tuple(item.size), tuple(parts))
    return found


def _complete(fs: Any, where: str, manifest: Manifest) -> bytes:
    """The manifest of files that have all arrived, as it is written."""
    manifest.check()
    sizes = sizes_in(fs, where)
    lost = [name for name, file in manifest.files.items() if sizes.get(name) != file.size]
    if lost:
        raise CheckpointNotWritten(
            f"{', '.join(lost)} did not arrive whole in {where}: all processes must see the same folder; with several "
            "machines checkpoint_path has to be on a shared disk or an object store"
        )
    return manifest.to_bytes()


def _commit_local(
    fs: Any, where: str, folder: str, files: Mapping[str, File], entries: Mapping[str, Entry], keep_previous: bool
) -> None:
    """Write the manifest and give the folder its name."""
    data = _complete(fs, where, Manifest(files, entries))
    with open(os.path.join(where, MANIFEST), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(where)
    check_locks(folder)
    removed = []
    if os.path.exists(folder):
        error = _unreadable(fs, folder)
        if error is not None:
            set_aside(fs, folder, error)
        else:
            removed.append(_partial(where))
            os.rename(folder, removed[0])
    os.rename(where, folder)
    remember(folder)
    if removed and keep_previous:
        before = previous_of(folder)
        if os.path.lexists(before):
            removed.append(_partial(where))
            os.rename(before, removed[1])
        os.rename(removed.pop(0), before)
    for name in removed:
        fs.rm(name, recursive=True)
    sync_folder(parent_of(folder))


def _partial(where: str) -> str:
    """Another name for a folder that is on its way."""
    return where.rsplit(".", 2)[0] + f".{uuid.uuid4().hex[:8]}.partial"


def _unreadable(fs: Any, folder: str) -> CheckpointError | None:
    """Why a folder is no checkpoint from which one can go on; None if it is one, or empty."""
    if why := why_unusable(fs, folder):
        return CheckpointError(why)
    try:
        if is_sharded(fs, folder):
            checkpoint = ShardedCheckpoint(fs, folder)
            if is_local(fs) and not is_own(folder):  # what this process wrote is believed, anything else read once
                checkpoint.verify()
    except CheckpointError as error:
        if isinstance(error, CheckpointUnreachable) and not is_local(fs):
            raise CheckpointNotWritten(f"could not write {folder}: {error}") from error  # no damage
        return error
    return None


def _commit_remote(
    fs: Any, where: str, folder: str, files: Mapping[str, File], entries: Mapping[str, Entry], keep_previous: bool
) -> None:
    """Name the new files in the manifest, which is one object, and remove those before."""
    own = where.rsplit("/", 1)[-1]
    data = _complete(fs, where, Manifest(files, entries, own))
    check_claims(fs, folder)
    error = _unreadable(fs, folder)
    if error is not None:
        set_aside(fs, folder, error)
    elif keep_previous and is_sharded(fs, folder):
        _copy(fs, folder, previous_of(folder))
    attempts(lambda: fs.pipe_file(f"{folder}/{MANIFEST}", data))
    note_replaced(fs, folder)
    _remove_all_but(fs, folder, own)


def _copy(fs: Any, folder: str, other: str) -> None:
    """Copy a checkpoint in an object store to another folder; what is there is replaced when all has arrived."""
    before = read_manifest(fs, folder)
    own = f"shards-{uuid.uuid4().hex[:12]}"
    for name in before.files:
        attempts(lambda name=name: fs.cp_file(f"{before.place(folder)}/{name}", f"{other}/{own}/{name}"))
    copied = Manifest(before.files, before.tensors, own)
    data = _complete(fs, copied.place(other), copied)
    attempts(lambda: fs.pipe_file(f"{other}/{MANIFEST}", data))
    _remove_all_but(fs, other, own)


def _remove_all_but(fs: Any, folder: str, own: str) -> None:
    """Remove what other writes left in a folder of an object store; what cannot be removed is named in a warning."""
    try:
        for name in _names_in(fs, folder):
            if name != own and _OURS.match(name):
                with suppress(FileNotFoundError):  # a folder without files is nothing in some stores
                    fs.rm(f"{folder}/{name}", recursive=True)
    except Exception as error:  # every store has errors of its own; the new checkpoint is safe
        warnings.warn(f"cannot remove old files in {folder}: {reason(error)}", stacklevel=2)


def remove_unfinished(fs: Any, parent: str) -> list[str]:
    """Remove what processes left in a local folder that died while they wrote sharded checkpoints; its names.

    One process calls it while nobody writes there. A checkpoint that lacks nothing but its name gets it. On an object
    store `CheckpointStore.prune` removes folders that never became whole.
    """
    if not is_local(fs) or not os.path.isdir(parent):
        return []
    removed = []
    for name in sorted(os.listdir(parent)):
        place, partial = os.path.join(parent, name), _PARTIAL.match(name)
        if partial is None or os.path.islink(place) or not os.path.isdir(place):
            continue
        meant = os.path.join(parent, partial[1])
        if not os.path.exists(meant):
            with suppress(CheckpointError):
                read_manifest(fs, place)
                os.rename(place, meant)
                continue
        fs.rm(place, recursive=True)
        removed.append(name)
    return removed

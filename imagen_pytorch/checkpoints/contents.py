"""The contents of a checkpoint: tensors, plain values and containers of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..io.errors import CheckpointError

#: levels of containers in one another that are written and read
MAX_DEPTH = 100
#: bytes of a description beyond those of the data that it describes: decoded, it takes up to 64 times the memory
FREE_DESCRIPTION = 1 << 23
#: tuples can be made to collide as keys; few of them cost little
MAX_TUPLE_KEYS, MAX_KEY_LENGTH = 1000, 16
#: more elements than any machine holds
LARGEST_TENSOR = 1 << 48
SCALARS = (type(None), bool, int, float, str, bytes)
#: element types by the names that they have in Python
DTYPES = {
    name: getattr(torch, name)
    for name in "bool uint8 int8 uint16 int16 float16 bfloat16 uint32 int32 float32 uint64 int64 float64 complex64 "
    "float8_e4m3fn float8_e5m2 complex128 float8_e4m3fnuz float8_e5m2fnuz".split()
}


def is_plain_key(key: Any) -> bool:
    """Return whether a dict key is a number below 2**60, a string, None, or a short flat tuple of them.

    Larger numbers can be chosen so that all of them collide, which makes a dict quadratic.
    """
    items = key if type(key) is tuple else (key,)
    return len(items) <= MAX_KEY_LENGTH and all(
        type(item) in SCALARS and (type(item) is not int or abs(item) < 1 << 60) for item in items
    )


def are_counts(values: object) -> bool:
    """Return whether these are a few whole numbers that are neither negative nor absurd, as sizes of a tensor are."""
    if not isinstance(values, list | tuple) or len(values) > 64:
        return False
    return all(type(value) is int and 0 <= value <= LARGEST_TENSOR for value in values)


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    tensor = value.detach()
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "tensor that is sparse, quantized or without data" if type(tensor) is Tensor else type(tensor).__name__
        raise TypeError(f"{where} is a {kind}: checkpoints hold only plain tensors; make it one before saving")
    tensor = tensor.resolve_conj().resolve_neg()
    # an expanded tensor repeats elements; files hold as many as it shows
    return tensor.contiguous() if tensor.nbytes > tensor.untyped_storage().nbytes() else tensor


def plain_contents(value: Any, where: str = "checkpoint", depth: int = 0) -> Any:
    """Return a copy of nested containers that holds nothing but tensors, numbers, strings, dicts, lists and tuples; a
    TypeError for anything else names the place."""
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if type(value) in SCALARS:
        return value
    if depth >= MAX_DEPTH:
        raise TypeError(f"{where[:200]} ... is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not is_plain_key(key):
                shown = (hex(key) if type(key) is int else repr(key))[:200]
                raise TypeError(
                    f"{where} has the key {shown}, a {type(key).__name__}; use strings or numbers below 2**60"
                )
        if sum(type(key) is tuple for key in value) > MAX_TUPLE_KEYS:
            raise TypeError(f"{where} has more than {MAX_TUPLE_KEYS:,} tuples as keys; use strings or numbers")
        return {key: plain_contents(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_contents(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{where} is a {type(value).__name__}: checkpoints hold only tensors, numbers, strings, dicts, lists and tuples"
    )


def check_tensor(tensor: Tensor) -> None:
    """Check that a tensor from a file has a possible size, and no more elements than the memory that it was given."""
    if not are_counts(list(tensor.shape)):
        raise CheckpointError("one of its tensors is of impossible size")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError("one of its tensors claims more than the file holds for it")


_PLAIN = (*SCALARS, Tensor, nn.Parameter, torch.dtype, torch.device)


def check_plain(root: Any, most: int) -> None:
    """Check nested containers that were decoded from a file: plain values only, bounded in depth, and at most ``most``
    of them; shared containers count wherever they are referred to. A CheckpointError for anything else."""
    known: dict[int, tuple[int, int] | None] = {}  # values and levels of each container, None while it is entered

    def measure(node: Any, depth: int) -> tuple[int, int]:
        if isinstance(node, Tensor):
            check_tensor(node)
        if type(node) in _PLAIN:
            return 1, 0
        if not isinstance(node, dict | list | tuple):
            raise CheckpointError(f"it holds a {type(node).__name__}, more than tensors and plain containers")
        if id(node) not in known:
            if depth >= MAX_DEPTH:
                raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
            known[id(node)] = None
            inner = [measure(item, depth + 1) for item in (node.values() if isinstance(node, dict) else node)]
            levels = 1 + max((height for _, height in inner), default=0)
            known[id(node)] = 1 + len(node) + sum(count for count, _ in inner), levels
        count, height = known[id(node)] or (0, 0)
        if not height:
            raise CheckpointError("its contents hold themselves")
        if depth + height > MAX_DEPTH:
            raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        if count > most:
            raise CheckpointError("its contents amount to far more than the file")
        return count, height

    measure(root, 0)


# -- tensors ----------------------------------------------------------------------------------------------------------


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a copy of nested containers with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers with its path, such as "optim0/state/3/exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from named_tensors(item, f"{name}/{key}" if name else str(key))


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    return sum(tensor.nbytes for _, tensor in named_tensors(value))


def room_for(value: Any) -> int:
    """Return the bytes that a file of nested containers takes, rather more than less; shared memory counts once."""
    tensors = [tensor for _, tensor in named_tensors(value)]
    storages = {(str(item.device), item.untyped_storage().data_ptr()): item.untyped_storage() for item in tensors}
    return sum(storage.nbytes() for storage in storages.values()) + 512 * len(tensors) + 4096


def snapshot(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested contents on the CPU, which training does not change: safe to write later. Memory that
    several tensors share is copied once and shared by the copies too. A TypeError for contents that are not plain."""
    copies: dict[tuple[str, int, int], torch.UntypedStorage] = {}

    def copied(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = (str(storage.device), storage.data_ptr(), storage.nbytes())
        if key not in copies:
            copies[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())

    return map_tensors(plain_contents(contents), copied)


def local_part(tensor: Any) -> tuple[Tensor, tuple[int, ...]]:
    """Return what this process holds of a tensor, sharing its memory, and where that begins; all of an ordinary tensor.
    A ``DTensor`` may be sharded as ``torch.chunk`` does or replicated; a ValueError for any other."""
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
            raise ValueError(f"a tensor must be sharded by rows or replicated, got {placement}")
    if list(local.shape) != shape:
        raise ValueError(f"this process should hold {tuple(shape)} of {tuple(tensor.shape)}, got {tuple(local.shape)}")
    return local, tuple(start)


# -- finite numbers ---------------------------------------------------------------------------------------------------


def nonfinite_tensors(contents: Any) -> list[str]:
    """Return the paths of all tensors in nested containers that hold NaN or an infinity.

    Reads every floating or complex tensor once. Of a ``DTensor`` the local part is read; tensors without data pass.
    """
    return [name for name, tensor in named_tensors(contents) if not _is_finite(local_part(tensor)[0].detach())]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.dtype.itemsize == 1:  # no arithmetic for 8-bit floats
        tensor = tensor.float()
    # the sum needs no memory; finite values can add up to an infinity, so only a finite sum is an answer
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def overflowing_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not finite, or whose squares are not: beyond 1e19 products overflow.

    Of a ``DTensor`` the local part is read; tensors without data pass.
    """
    local = {name: local_part(item)[0].detach() for name, item in tensors.items()}
    local = {
        name: item.float() if item.dtype.itemsize in (1, 8) else item  # no arithmetic for 8-bit floats
        for name, item in local.items()
        if item.is_floating_point() and item.numel() and not item.is_meta
    }
    # one number for all of them, for which a GPU is waited for once; it is finite in all but rare cases
    if not local or bool(torch.isfinite(torch.nn.utils.get_total_norm(list(local.values())))):
        return []
    norms = ((name, torch.linalg.vector_norm(item, dtype=torch.float32)) for name, item in local.items())
    return [name for name, norm in norms if not bool(torch.isfinite(norm))]


def ruined_tensors(weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights (averages among them) and moments from which no training can go on: not finite, or
    weights too large to be multiplied."""
    suspects = {name: moments[name] for name in overflowing_tensors(moments)}
    return overflowing_tensors(weights) + nonfinite_tensors(suspects)

"""What a checkpoint may hold: tensors and plain containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .parts import local_part

#: levels of containers in one another that are written and read
MAX_DEPTH = 100
#: bytes of a description beyond those of the data that it describes: decoded, it takes up to 64 times the memory
FREE_DESCRIPTION = 1 << 23
#: tuples of numbers that are keys of one dict in a file: they can be made to collide too, and few cost little
MAX_TUPLE_KEYS, MAX_KEY_LENGTH = 1000, 16
#: kinds of values besides tensors and containers, and of keys besides flat tuples of them
SCALARS = (type(None), bool, int, float, str, bytes)


def is_plain_key(key: Any) -> bool:
    """Whether a key of a dict can be written and read: a number below 2**60, a string, None, or a short flat tuple.

    Larger numbers can be chosen so that all of them collide, which makes a dict quadratic, and long tuples are hashed
    anew at each look.
    """
    items = key if type(key) is tuple else (key,)
    return (
        len(items) <= MAX_KEY_LENGTH
        and all(type(item) in SCALARS for item in items)
        and all(abs(item) < 1 << 60 for item in items if type(item) is int)
    )


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    tensor = value.detach()
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "tensor that is sparse, quantized or without data" if type(tensor) is Tensor else type(tensor).__name__
        raise TypeError(f"{where} is a {kind}: checkpoints hold only plain tensors; make it one before saving")
    tensor = tensor.resolve_conj().resolve_neg()
    # an expanded tensor repeats elements; files hold as many as it shows
    return tensor.contiguous() if tensor.numel() * tensor.element_size() > _stored(tensor) else tensor


def plain_contents(value: Any, where: str = "checkpoint", depth: int = 0) -> Any:
    """A copy of nested containers that holds nothing but tensors, numbers, strings, dicts, lists and tuples.

    Raises:
        TypeError: anything else; the message says where it was found.
    """
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if type(value) in SCALARS:
        return value
    if depth >= MAX_DEPTH:
        raise TypeError(f"{where[:200]} ... is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not is_plain_key(key):
                shown = hex(key) if type(key) is int else repr(key)
                raise TypeError(
                    f"{where} has the key {shown[:200]}, a {type(key).__name__}; use strings or numbers below 2**60"
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def size_of(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def _stored(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def room_for(value: Any) -> int:
    """Bytes that a file of nested containers takes, a little more rather than less; shared memory counts once."""
    tensors = list(tensors_in(value))
    storages = {(str(item.device), item.untyped_storage().data_ptr()): _stored(item) for item in tensors}
    return sum(storages.values()) + 512 * len(tensors) + 4096


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested containers with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def snapshot(contents: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested contents on the CPU that nobody else changes, safe to write later.

    Memory that several tensors share is copied once and shared by the copies too.

    Raises:
        TypeError: contents that are not plain.
    """
    copies: dict[tuple[str, int, int], torch.UntypedStorage] = {}

    def copied(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = (str(storage.device), storage.data_ptr(), storage.nbytes())
        if key not in copies:
            copies[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())

    return map_tensors(plain_contents(contents), copied)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers with its path, such as "optim0/state/3/exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from named_tensors(item, f"{name}/{key}" if name else str(key))


def nonfinite_tensors(contents: Any) -> list[str]:
    """The paths of all tensors in nested containers that hold NaN or an infinity.

    Reads every floating or complex tensor once. Of a ``DTensor`` the local part is read; tensors without data pass.

    Args:
        contents: a tensor, or nested dicts, lists and tuples of tensors.
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
    """The names of tensors that are not finite, or whose squares are not: beyond 1e19 numbers cannot be multiplied.

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

"""Element types under the names that file formats give them, and tensors on memory that was read from a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

#: names in a safetensors header
SAFETENSORS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

#: classes that stand for a storage with elements of one kind in files of torch.save
STORAGES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}

#: element types by the names that they have in Python
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*SAFETENSORS.values(), torch.complex128, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
}

#: more than any machine holds; products of sizes below it do not overflow where they are checked
LARGEST_TENSOR = 1 << 48
_MOST_AXES = 64


def are_counts(values: object) -> bool:
    """Whether these are a few whole numbers that are neither negative nor absurd, as sizes of a tensor are."""
    if not isinstance(values, list | tuple) or len(values) > _MOST_AXES:
        return False
    return all(type(value) is int and 0 <= value <= LARGEST_TENSOR for value in values)


def elements(size: Sequence[int]) -> int:
    """The number of elements of a tensor of this size."""
    count = 1
    for length in size:
        count *= length
    return count


def fits(numel: int, offset: int, size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor lies inside a storage of ``numel`` elements and has no more elements than it."""
    if len(size) != len(stride) or offset > numel:
        return False
    if elements(size) == 0:
        return elements([max(length, 1) for length in size]) <= LARGEST_TENSOR
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    return last < numel and elements(size) <= numel


def tensor_on(
    memory: UInt8[Tensor, " bytes"], dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """A tensor whose elements are these bytes; nothing is copied."""
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), offset, tuple(size), tuple(stride))


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU; nothing is copied."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())

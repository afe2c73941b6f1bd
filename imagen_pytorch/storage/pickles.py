"""The description inside files of torch.save, read by a small machine of our own that can call nothing.

torch.save describes nested contents as a pickle: a program that builds them. Here its instructions are read with
`pickletools`, those that build plain containers are followed, and the few calls that make tensors and the like are
recorded as notes. Anything else is refused. Tensors are made from the notes when all of them have been checked.
"""

from __future__ import annotations

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .contents import MAX_DEPTH, MAX_TUPLE_KEYS, is_plain_key
from .dtypes import DTYPES, STORAGES, are_counts, fits, tensor_on
from .errors import CheckpointError

#: bytes of a description; those of large models have a few million
MAX_PICKLE = 1 << 28
#: values that a description may stand for, per byte: shared containers count wherever they are referred to
MAX_NODES_PER_BYTE = 8
#: bytes that the calls of a description may make, per byte: one text can be turned into bytes again and again
MAX_MADE_PER_BYTE = 4
UNSAFE = "it holds more than tensors and plain containers, which could run code; nothing was executed"


class _Name(NamedTuple):
    """Something that the pickle refers to by module and name; it is never imported."""

    module: str
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class StorageNote:
    """Memory of ``numel`` elements in the entry ``data/<key>``."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, eq=False, slots=True)
class TensorNote:
    """A tensor to be made on a storage."""

    storage: StorageNote
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    parameter: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class _Made:
    """A harmless value that no container and no number is: a size, a device."""

    value: Any


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"its contents cannot be decoded ({what})")


# -- calls that a description may make, each from its arguments to a note ---------------------------------------------


def _grad(flag: Any, dtype: torch.dtype) -> bool:
    return flag is True and (dtype.is_floating_point or dtype.is_complex)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *rest: Any) -> Any:
    if not isinstance(storage, StorageNote) or not all(are_counts(item) for item in ([offset], size, stride)):
        raise _damaged("a tensor of impossible size")
    if hooks or any(rest):
        raise CheckpointError(UNSAFE)
    if not fits(storage.numel, offset, size, stride):
        raise CheckpointError("one of its tensors claims more than the file holds for it")
    # copies: lists could still be changed by later instructions
    return TensorNote(storage, storage.dtype, offset, tuple(size), tuple(stride), _grad(requires_grad, storage.dtype))


def _typed_tensor(storage: Any, *arguments: Any) -> Any:
    """A tensor whose storage counts bytes; the offset counts elements."""
    *place, dtype = arguments
    kind = DTYPES.get(dtype.name) if isinstance(dtype, _Name) else None
    if kind is None or not isinstance(storage, StorageNote):
        raise _damaged("a tensor of unknown elements")
    numel = storage.numel * storage.dtype.itemsize // kind.itemsize
    return _tensor(StorageNote(storage.key, kind, numel), *place)


def _parameter(data: Any, requires_grad: Any, hooks: Any, *state: Any) -> Any:
    if not isinstance(data, TensorNote) or hooks or any(state):
        raise CheckpointError(UNSAFE)
    grad = _grad(requires_grad, data.dtype)
    return TensorNote(data.storage, data.dtype, data.offset, data.size, data.stride, grad, parameter=True)


def _ordered() -> Any:
    return OrderedDict()


def _size(lengths: Any) -> Any:
    if not are_counts(lengths):
        raise _damaged("an impossible size")
    return _Made(torch.Size(lengths))


def _device(kind: Any, index: Any = None) -> Any:
    if type(kind) is not str or (index is not None and not are_counts([index])):
        raise _damaged("an impossible device")
    return _Made(torch.device(kind) if index is None else torch.device(kind, index))


def _encoded(text: Any, coding: Any) -> Any:
    """Bytes, which early pickles describe as text."""
    if type(text) is not str or coding != "latin1":
        raise CheckpointError(UNSAFE)
    return text.encode("latin1")


def _bytes_of(made: Any) -> int:
    """Bytes that a call has made, apart from an object of fixed size."""
    if isinstance(made, TensorNote):
        return 8 * (len(made.size) + len(made.stride))
    value = made.value if isinstance(made, _Made) else made
    return 8 * len(value) if isinstance(value, torch.Size) else len(value) if isinstance(value, bytes) else 0


def _no_bytes() -> Any:
    return b""


_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    _Name("collections", "OrderedDict"): _ordered,
    _Name("torch", "Size"): _size,
    _Name("torch", "device"): _device,
    _Name("_codecs", "encode"): _encoded,
    _Name("__builtin__", "bytes"): _no_bytes,
    _Name("builtins", "bytes"): _no_bytes,
}
_STORAGES = {_Name("torch", name): dtype for name, dtype in STORAGES.items()}
_STORAGES |= {_Name("torch.storage", "UntypedStorage"): torch.uint8, _Name("torch", "UntypedStorage"): torch.uint8}
_DTYPES = {_Name("torch", name): dtype for name, dtype in DTYPES.items()}
_KNOWN = _CALLS.keys() | _STORAGES.keys() | _DTYPES.keys()


# -- the machine ------------------------------------------------------------------------------------------------------


class _Machine:
    """Follows the instructions of a pickle. Each method is one of them and takes its argument, if it has one.

    Args:
        budget: bytes that calls may make together.
    """

    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[Any, Any] = {}
        self.tuples: dict[int, int] = {}  # numbers of tuples that are keys, by the dict
        self.budget = budget

    def push(self, value: Any) -> None:
        """A number, a string or bytes."""
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        """What follows belongs together."""
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """What was put there since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def join(self, count: int | None) -> None:
        """A tuple of the last values, or of those since the mark."""
        if count is None:
            items = self.since_mark()
        else:
            items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def append(self, items: Sequence[Any]) -> None:
        """Put values into the list before them."""
        if type(self.stack[-1]) is not list:
            raise _damaged("items outside of a list")
        self.stack[-1].extend(items)

    def set(self, items: Sequence[Any]) -> None:
        """Put keys and values into the dict before them."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise _damaged("entries outside of a dict")
        place = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not is_plain_key(key):
                raise _damaged(f"an odd {type(key).__name__} as a key")
            if type(key) is tuple:
                self.tuples[id(place)] = self.tuples.get(id(place), 0) + 1
                if self.tuples[id(place)] > MAX_TUPLE_KEYS:
                    raise _damaged("too many tuples as keys")
            place[key] = value

    def name(self, module: Any, name: Any) -> None:
        """Something that has a name elsewhere."""
        found = _Name(str(module), str(name))
        if found not in _KNOWN:
            raise CheckpointError(UNSAFE)
        self.stack.append(found)

    def call(self, _: Any) -> None:
        """A call, which becomes a note."""
        arguments, function = self.stack.pop(), self.stack.pop()
        known = _CALLS.get(function) if type(function) is _Name else None
        if known is None or type(arguments) is not tuple:
            raise CheckpointError(UNSAFE)
        try:
            made = known(*arguments)
        except (TypeError, RuntimeError, UnicodeError) as error:
            raise _damaged("wrong arguments") from error
        self.budget -= _bytes_of(made)
        if self.budget < 0:
            raise CheckpointError("its contents amount to far more than the file")
        self.stack.append(made)

    def build(self, _: Any) -> None:
        """Attributes of the value before them; a state_dict has some, which nobody needs."""
        if type(self.stack.pop()) is not dict or type(self.stack[-1]) is not OrderedDict:
            raise CheckpointError(UNSAFE)

    def storage(self, _: Any) -> None:
        """A storage by its key, which becomes a note."""
        word, kind, key, *_, numel = self.stack.pop()
        if word != "storage" or type(kind) is not _Name or kind not in _STORAGES:
            raise CheckpointError(UNSAFE)
        if type(key) is not str or not are_counts([numel]):
            raise _damaged("a storage of impossible size")
        self.stack.append(StorageNote(key, _STORAGES[kind], numel))


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.join(None),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memo.update({index: machine.stack[-1]})),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, names: machine.name(*str(names).split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*[machine.stack.pop(), machine.stack.pop()][::-1]),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}


class Described(NamedTuple):
    """Nested containers with notes in place of tensors, and the notes of all storages by the keys of their entries."""

    tree: Any
    storages: dict[str, list[StorageNote]]


class _Extent(NamedTuple):
    """How many values contents amount to, and how many levels of containers they have."""

    count: int
    height: int


def read_pickle(data: bytes) -> Described:
    """What a description says, with notes in place of tensors. Nothing is imported, called or allocated for them.

    Raises:
        CheckpointError: it is damaged, would do anything else, or stands for far more than it is long.
    """
    machine, stream = _Machine(MAX_MADE_PER_BYTE * len(data) + 1000), io.BytesIO(data)
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            follow = _INSTRUCTIONS.get(instruction.name)
            if follow is None:
                raise CheckpointError(UNSAFE)
            follow(machine, argument)
        tree = machine.stack.pop()
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise _damaged(type(error).__name__) from error
    if machine.stack or machine.marks or stream.read(1):
        raise _damaged("something is left over")
    storages: dict[str, list[StorageNote]] = {}
    _Measure(MAX_NODES_PER_BYTE * len(data) + 1000, storages).measure(tree, 0)
    return Described(tree, storages)


class _Measure:
    """Sees what contents amount to when shared parts count wherever they are, and collects the storages."""

    def __init__(self, most: int, storages: dict[str, list[StorageNote]]) -> None:
        self.most, self.storages = most, storages
        self.known: dict[int, _Extent | None] = {}

    def measure(self, node: Any, depth: int) -> _Extent:
        """The number of values in and below this one, and how deep they are nested."""
        if isinstance(node, TensorNote):
            self.storages.setdefault(node.storage.key, []).append(node.storage)
        if isinstance(node, StorageNote) or (isinstance(node, _Name) and node not in _DTYPES):
            raise CheckpointError(UNSAFE)
        if isinstance(node, _Name) or not isinstance(node, dict | list | tuple):
            return _Extent(1, 0)
        if id(node) not in self.known:
            self.known[id(node)] = None
            self.known[id(node)] = self._measured(node, depth)
        extent = self.known[id(node)]
        if extent is None:
            raise CheckpointError("its contents hold themselves")
        if depth + extent.height > MAX_DEPTH:
            raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        if extent.count > self.most:
            raise CheckpointError("its contents amount to far more than the file")
        return extent

    def _measured(self, node: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> _Extent:
        if depth >= MAX_DEPTH:
            raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        items = node.values() if isinstance(node, dict) else node
        extents = [self.measure(item, depth + 1) for item in items]
        count = 1 + len(node) + sum(extent.count for extent in extents)
        return _Extent(count, 1 + max((extent.height for extent in extents), default=0))


# -- contents from notes ----------------------------------------------------------------------------------------------


class Builder:
    """Puts real tensors in the place of notes; what was one object stays one object.

    Args:
        memory: uint8 tensors with the bytes of the storages, by the keys of their entries.
    """

    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        self.memory = memory
        self.done: dict[int, Any] = {}

    def build(self, node: Any) -> Any:
        """The contents that a tree of notes stands for."""
        if id(node) not in self.done:
            self.done[id(node)] = self._built(node)
        return self.done[id(node)]

    def _built(self, node: Any) -> Any:
        if isinstance(node, TensorNote):
            return self._tensor(node)
        if isinstance(node, _Name):
            return _DTYPES[node]
        if isinstance(node, _Made):
            return node.value
        if isinstance(node, dict):
            return type(node)((key, self.build(item)) for key, item in node.items())
        if isinstance(node, list):
            return [self.build(item) for item in node]
        return tuple(self.build(item) for item in node) if isinstance(node, tuple) else node

    def _tensor(self, note: TensorNote) -> Tensor:
        tensor = tensor_on(self.memory[note.storage.key], note.dtype, note.offset, note.size, note.stride)
        if note.parameter:
            return nn.Parameter(tensor, requires_grad=note.requires_grad)
        return tensor.requires_grad_(note.requires_grad) if note.requires_grad else tensor

"""A look at the pickle inside a file of torch.save, before anything in it is loaded.

Its instructions are followed with `pickletools` and nothing is built: names, calls, keys, storages and nesting that
torch.save does not write for tensors and plain containers are refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..io.errors import ODD, CheckpointError, errors_as
from .contents import DTYPES, MAX_DEPTH, MAX_TUPLE_KEYS, are_counts, is_plain_key

UNSAFE = "it holds more than tensors and plain containers, which could run code; nothing was executed"
_SIZES = {"Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Int": 4, "Long": 8, "Half": 2, "BFloat16": 2, "Float": 4,
          "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}  # fmt: skip
_STORAGES = {f"torch {kind}Storage": size for kind, size in _SIZES.items()} | {"torch.storage UntypedStorage": 1}
_BYTES = {"builtins bytes", "__builtin__ bytes"}
#: everything that a pickle may name
NAMES = {
    *_STORAGES, *_BYTES, *(f"torch {name}" for name in DTYPES), "torch Size", "torch device", "_codecs encode",
    "collections OrderedDict", *(f"torch._utils _rebuild_{name}" for name in ("tensor_v2", "tensor_v3", "parameter")),
}  # fmt: skip


class _Item(NamedTuple):
    """A value that a pickle has built, other than a constant: kind, items of a tuple, levels of containers."""

    kind: str
    value: Any = ()
    height: int = 0


def undecodable(what: str) -> CheckpointError:
    """Return the error of contents that cannot be decoded."""
    return CheckpointError(f"its contents cannot be decoded ({what})")


class _Scan:
    """Follows the instructions of a pickle without building what they describe.

    Args:
        sizes: bytes of its storages by key.
        most: bytes that its calls may make together.
    """

    def __init__(self, sizes: Mapping[str, int], most: int) -> None:
        self.sizes, self.most, self.weights_only, self.tuple_keys = sizes, most, True, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, count: int | None) -> list[Any]:
        """The last items, or those since the mark."""
        if count is None:
            items, self.stack = self.stack, self.marks.pop()
            return items
        return [self.stack.pop() for _ in range(count)][::-1]

    def remember(self, index: int | None) -> None:
        index = len(self.memo) if index is None else index
        if index > 2 * len(self.memo) + 1000:  # Python's unpickler makes a table of that length
            raise undecodable("an odd index")
        self.memo[index] = self.stack[-1]

    def join(self, count: int | None) -> None:
        items = self.pop(count)
        self._fill(_Item("tuple", tuple(items)), "tuple", items)

    def append(self, count: int | None) -> None:
        items = self.pop(count)
        self._fill(self.stack.pop(), "list", items)

    def set(self, count: int | None) -> None:
        items = self.pop(count)
        for key in items[::2]:
            is_tuple = isinstance(key, _Item) and key.kind == "tuple"
            self.tuple_keys += is_tuple
            if not is_plain_key(key.value if is_tuple else key):
                raise undecodable("an odd value as a key")
        if self.tuple_keys > MAX_TUPLE_KEYS:
            raise undecodable("too many tuples as keys")
        self._fill(self.stack.pop(), "dict", items[1::2])

    def _fill(self, target: _Item, kind: str, items: Sequence[Any]) -> None:
        height = max([target.height, *(1 + item.height for item in items if isinstance(item, _Item))])
        if target.kind != kind:
            raise undecodable(f"entries outside of a {kind}")
        if height > MAX_DEPTH:
            raise CheckpointError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        self.stack.append(_Item(kind, target.value, height))

    def name(self, words: str | None) -> None:
        words = " ".join(self.pop(2)) if words is None else words
        if words not in NAMES:
            raise CheckpointError(UNSAFE)
        self.weights_only &= words not in _BYTES
        self.stack.append(_Item(words))

    def storage(self, _: Any) -> None:
        word, kind, key, *_, numel = self.stack.pop().value
        if word != "storage" or not isinstance(kind, _Item) or kind.kind not in _STORAGES:
            raise CheckpointError(UNSAFE)
        if not are_counts([numel]):
            raise undecodable("a storage of impossible size")
        if key not in self.sizes:
            raise CheckpointError(f"the bytes of its tensor storage {str(key)[:100]} are missing")
        if self.sizes[key] // _STORAGES[kind.kind] != numel:
            raise CheckpointError(f"its entry data/{key} is not as long as its tensors need")
        self.stack.append(_Item("storage"))

    def call(self, _: Any) -> None:
        """A call, whose arguments torch checks, but for what they amount to."""
        function, arguments = self.pop(2)
        values, name = arguments.value, function.kind
        if arguments.kind != "tuple" or name not in NAMES or name in _STORAGES or ("Ordered" in name and values):
            raise CheckpointError(UNSAFE)
        for value in values:
            self.most -= len(value) if isinstance(value, str) else 8 * len(getattr(value, "value", ()))
        if self.most < 0:
            raise CheckpointError("its contents amount to far more than the file")
        if name == "_codecs encode" and (type(values[0]) is not str or values[1:] != ("latin1",)):
            raise CheckpointError(UNSAFE)
        made = _Item("dict" if "Ordered" in name else name)
        self.stack.append(b"" if name in _BYTES or name == "_codecs encode" else made)

    def build(self, _: Any) -> None:
        """Attributes of a state_dict."""
        if self.stack.pop().kind != "dict" or self.stack[-1].kind != "dict":
            raise CheckpointError(UNSAFE)

    def protocol(self, number: int) -> None:
        self.weights_only &= number == 2

    def constant(self, value: Any) -> None:
        self.stack.append(value)
        self.weights_only &= type(value) is not int or value.bit_length() < 2000


_CONSTANTS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
              "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "NONE")  # fmt: skip
_EMPTY = {kind: _Item(kind, (), 1) for kind in ("list", "dict", "tuple")}  # one for all: there may be millions
_FOLLOW: dict[str, Callable[[_Scan, Any], Any]] = {
    **dict.fromkeys(_CONSTANTS, _Scan.constant),
    "PROTO": _Scan.protocol, "FRAME": lambda scan, _: None, "STOP": lambda scan, _: None,
    "NEWTRUE": lambda scan, _: scan.constant(True), "NEWFALSE": lambda scan, _: scan.constant(False),
    "EMPTY_LIST": lambda scan, _: scan.stack.append(_EMPTY["list"]),
    "EMPTY_DICT": lambda scan, _: scan.stack.append(_EMPTY["dict"]),
    "EMPTY_TUPLE": lambda scan, _: scan.stack.append(_EMPTY["tuple"]),
    "MARK": _Scan.mark, "BINPUT": _Scan.remember, "LONG_BINPUT": _Scan.remember, "MEMOIZE": _Scan.remember,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda scan, index: scan.stack.append(scan.memo[index])),
    "TUPLE": _Scan.join, "TUPLE1": lambda scan, _: scan.join(1), "TUPLE2": lambda scan, _: scan.join(2),
    "TUPLE3": lambda scan, _: scan.join(3), "APPEND": lambda scan, _: scan.append(1), "APPENDS": _Scan.append,
    "SETITEM": lambda scan, _: scan.set(2), "SETITEMS": _Scan.set, "GLOBAL": _Scan.name, "STACK_GLOBAL": _Scan.name,
    "BINPERSID": _Scan.storage, "REDUCE": _Scan.call, "BUILD": _Scan.build,
}  # fmt: skip


def scan_pickle(data: bytes, sizes: Mapping[str, int]) -> bool:
    """Check the pickle of a file of torch.save without executing or building anything; ``sizes`` are the bytes of its
    storages by key.

    Return whether torch.load(weights_only=True) knows all of it: protocol 2, no empty bytes, no huge numbers. A
    CheckpointError if it is damaged, would do anything but build plain contents, or claims more than the file holds.
    """
    scan, stream = _Scan(sizes, 4 * len(data) + 1000), io.BytesIO(data)
    with errors_as(CheckpointError, "its contents cannot be decoded", ODD):
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name not in _FOLLOW:
                raise CheckpointError(UNSAFE)
            _FOLLOW[instruction.name](scan, argument)
    if len(scan.stack) != 1 or scan.marks or stream.read(1):
        raise undecodable("something is left over")
    return scan.weights_only

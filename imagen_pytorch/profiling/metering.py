"""Counters of FLOPs and memory of a computation. With tensors without memory nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the FLOPs of attention of ``(b, heads, n, d)`` to ``(b, heads, m, d)``: those of its two products."""
    return 2 * query.shape[:3].numel() * key.shape[2] * (key.shape[3] + value.shape[3])


#: FLOPs by operator, from its arguments: torch's formulas, and one for attention on a CPU, which they lack
_FORMULAS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: attention_flops(*given[:3]),
}
_DEVICE, _VALUE = torch.ops.prim.device.default, _ATEN._local_scalar_dense.default


class CostCounter(TorchDispatchMode):
    """A counter of FLOPs of matrix products, convolutions and attention (others are negligible), and of the bytes of
    tensors that are created inside the context and still alive.

    Tensors without memory have no values either. The few values that networks read are answered as for an ordinary
    batch: numbers of tokens with ``tokens``, and false for all unusual conditions.

    Args:
        tokens: of the longest caption.
        given: tensors that exist before and do not count, nor do views of them.

    Attributes:
        flops: so far, two per multiply-add.
        live: bytes now.
        peak: largest number of bytes at once.
    """

    def __init__(self, tokens: int = 0, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.tokens = tokens
        self._sizes: dict[int, int] = {item.untyped_storage()._cdata: 0 for item in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # the most frequent call
            return getattr(args[0], "fake_device", None) or func(*args)
        if func is _VALUE and _has_no_values(args[0]):
            return self._answer(args[0])
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for item in tree_leaves(result):
            if isinstance(item, Tensor):
                self._count(item)
        return result

    def _answer(self, asked: Tensor) -> Any:
        if asked.dtype == torch.bool:
            return False
        return 0.0 if asked.is_floating_point() else self.tokens

    def _count(self, item: Tensor) -> None:
        storage = item.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    @contextmanager
    def without_gradients(self, network: nn.Module) -> Iterator[None]:
        """Exclude the gradients that the parameters of a network get inside the context."""
        with ExitStack() as stack:
            for item in network.parameters():
                if item.requires_grad:
                    handle = item.register_post_accumulate_grad_hook(self._leave_out)
                    stack.callback(handle.remove)
            yield

    def _leave_out(self, parameter: Tensor) -> None:
        key = parameter.grad.untyped_storage()._cdata
        self.live -= self._sizes.get(key, 0)
        self._sizes[key] = 0


def _has_no_values(item: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return item.is_meta or isinstance(item, FakeTensor)


class SavedTensors:
    """A counter of the bytes that are kept for the backward pass of the computations in the context, without weights.

    Args:
        network: whose weights do not count.
    """

    def __init__(self, network: nn.Module) -> None:
        every = [*network.parameters(), *network.buffers()]
        self._own = {item.untyped_storage()._cdata for item in every}
        self._kept: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda item: item)

    def _pack(self, item: Tensor) -> Tensor:
        storage = item.untyped_storage()
        if storage._cdata not in self._own:
            self._kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return item

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def release(self) -> int:
        """Return the number of bytes and release the tensors."""
        total = sum(storage.nbytes() for storage in self._kept.values())
        self._kept.clear()
        return total

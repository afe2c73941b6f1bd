"""Where networks live and in which mode they are, changed for a while and always restored."""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ..nn.temporal import TemporalConv
from .limits import check_compile


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def chosen_device(device: torch.device | str | None) -> torch.device | None:
    """The device that a caller names, if one is named.

    Raises:
        ValueError: no such kind of device, or none that this machine has.
    """
    if device is None:
        return None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be such as "cpu" or "cuda:0", got {device!r}') from error
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f'there is no device "{chosen}" on this machine, or torch was built without it') from error
    return chosen


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of a module's first parameter; single if it has none."""
    parameter = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


#: Modules that are compiled in a mode that remembers no addresses.
_PLAINLY: weakref.WeakSet[nn.Module] = weakref.WeakSet()
#: Modules whose parameters enter products of matrices and convolutions.
_MULTIPLY = (nn.Linear, nn.Conv2d, TemporalConv)
#: Precisions in which networks may compute, by the names of Accelerate.
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_precision(name: str) -> str:
    """The name of a precision.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}")
    return name


@functools.cache
def computes_in(name: str, device_type: str) -> bool:
    """Whether a kind of device has instructions for a precision; of others than CPUs that is assumed."""
    if device_type != "cpu" or PRECISIONS[name] is None:
        return True
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return ask is None or bool(ask())


def warn_if_emulated(name: str, device: torch.device) -> None:
    """Say so where half precision would make things slower."""
    if not computes_in(name, device.type):
        warnings.warn(
            f"this processor has no instructions for {name} and imitates them: precision='no' is several times faster",
            stacklevel=2,
        )


def autocasting(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which matrix products and convolutions run in this precision."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def compile_once(module: nn.Module, mode: bool | str) -> None:
    """Have `torch.compile` compile a module in place, unless it is; names in its state dict stay as they are.

    Args:
        mode: of `torch.compile`; True for its default, False for nothing.

    Raises:
        ValueError: no such mode.
    """
    check_compile(mode)
    if mode and module._compiled_call_impl is None:
        module.compile(mode=None if mode is True else mode)
        if mode in (True, "default"):
            _PLAINLY.add(module)


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Have ``module`` on ``device`` inside the block and back where it was after it, whatever happens."""
    home = device_of(module)
    moved = home != device
    if moved:
        module.to(device)
    try:
        yield module
    finally:
        if moved:
            module.to(home)


@contextmanager
def weights_ready(module: nn.Module, precision: str = "no") -> Iterator[nn.Module]:
    """Have the weights of products and convolutions in memory as they are read, inside the block: kernels channels
    last, as the maps are, and in half precision if that is asked for. Otherwise each call would copy them before it can
    start (autocast keeps what it has rounded, but not in inference mode).

    Not so for training, where gradients would have to follow, nor for shards, which are gathered anew in every call. A
    compiled network on an accelerator arranges its kernels itself, and may have recorded where all weights are.
    """
    dtype = PRECISIONS[precision]
    compiled = module._compiled_call_impl is not None and device_of(module).type != "cpu"
    stay = compiled and (dtype is None or module not in _PLAINLY)
    parts = [part for part in module.modules() if isinstance(part, _MULTIPLY) and not stay]
    with _in_order(parts) if dtype is None else _rounded(parts, dtype):
        yield module


@contextmanager
def _in_order(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Kernels channels last; not as a second copy, which in single precision may be too much."""
    kernels = [part.weight for part in parts if _is_whole(part.weight) and part.weight.ndim == 4]
    kernels = [kernel for kernel in kernels if kernel.is_contiguous()]
    _arrange(kernels, torch.channels_last)
    try:
        yield
    finally:
        _arrange(kernels, torch.contiguous_format)


@torch.inference_mode(False)  # what is made in that mode could never be trained again
def _arrange(kernels: Sequence[nn.Parameter], how: torch.memory_format) -> None:
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=how)


@contextmanager
def _rounded(parts: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Other parameters in the places of the real ones, which stay as they are for whoever else knows them."""
    named = [(part._parameters, name) for part in parts for name in ("weight", "bias")]
    kept = [(where, name, where[name]) for where, name in named if _is_whole(where.get(name))]
    try:
        for where, name, own in kept:
            how = torch.channels_last if own.ndim == 4 else torch.contiguous_format
            where[name] = nn.Parameter(own.detach().to(dtype, memory_format=how), requires_grad=False)
        yield
    finally:
        for where, name, own in kept:
            where[name] = own


def _is_whole(parameter: object) -> bool:
    """Whether this is a parameter with all of its numbers here."""
    return type(parameter) is nn.Parameter


@contextmanager
def alone_on_device(networks: nn.ModuleList, keep: int, device: torch.device) -> Iterator[None]:
    """Keep only network ``keep`` (0-based) on ``device`` inside the block, the others on the CPU."""
    homes = [device_of(network) for network in networks]
    try:
        for index, network in enumerate(networks):
            network.to(device if index == keep else "cpu")
        yield
    finally:
        for network, home in zip(networks, homes, strict=True):
            network.to(home)


class Turn:
    """A lock that one thread holds at a time, as often as it likes. A copy of its owner has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, each back in its own mode after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

"""Devices, modes, precision and compilation of networks. Temporary changes are always undone."""

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
    """Return the device of a module's first parameter, or the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def chosen_device(device: torch.device | str | None) -> torch.device | None:
    """Return the device that a caller names, or None.

    Raises:
        ValueError: an unknown kind of device, or one that this machine does not have.
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
        raise ValueError(f'this machine has no device "{chosen}", or torch was built without it') from error
    return chosen


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's first parameter, or single if it has none."""
    parameter = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


#: Modules that are compiled in the default mode, which records no addresses.
_COMPILED_DEFAULT: weakref.WeakSet[nn.Module] = weakref.WeakSet()
#: Modules whose parameters enter matrix products and convolutions.
_MULTIPLY = (nn.Linear, nn.Conv2d, TemporalConv)
#: Precisions in which networks may compute, by the names of Accelerate.
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_precision(name: str) -> str:
    """Check the name of a precision and return it.

    Raises:
        ValueError: an unknown precision.
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}")
    return name


@functools.cache
def computes_in(name: str, device_type: str) -> bool:
    """Return true if a kind of device has instructions for a precision. This is assumed of all but CPUs."""
    if device_type != "cpu" or PRECISIONS[name] is None:
        return True
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return ask is None or bool(ask())


def fast_precision(device: torch.device) -> str:
    """Return "bf16" for a GPU with instructions for it, else "no"."""
    fast = device.type == "xpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return "bf16" if fast else "no"


def warn_if_emulated(name: str, device: torch.device) -> None:
    """Warn if half precision would be slower.

    Raises:
        ValueError: the device does not have it, and torch would compute in single precision instead.
    """
    if PRECISIONS[name] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with autocasting(device, name):
                works = torch.is_autocast_enabled(device.type)
        if not works:
            raise ValueError(f'precision {name!r} does not exist on the device "{device}": use "no" (fp32)')
    if not computes_in(name, device.type):
        warnings.warn(
            f"this processor has no instructions for {name} and emulates them: precision='no' is several times faster",
            stacklevel=2,
        )


def autocasting(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products and convolutions run in this precision."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def compile_once(module: nn.Module, mode: bool | str) -> None:
    """Compile a module in place with `torch.compile`, if it is not compiled yet. Names in its state dict do not change.

    Args:
        mode: of `torch.compile`; True for its default, False to do nothing.

    Raises:
        ValueError: an unknown mode.
    """
    check_compile(mode)
    if mode and module._compiled_call_impl is None:
        module.compile(mode=None if mode is True else mode)
        if mode in (True, "default"):
            _COMPILED_DEFAULT.add(module)


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Move ``module`` to ``device`` inside the context, and always back after it."""
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
def inference_weights(module: nn.Module, precision: str = "no") -> Iterator[nn.Module]:
    """Prepare the weights of products and convolutions for inference inside the context: kernels channels last, as the
    maps are, and on request in half precision. Otherwise each call would copy them before it can start (autocast caches
    rounded weights, but not in inference mode).

    Not for training, where gradients would have to follow, nor for shards, which are gathered again in every call. A
    compiled network on an accelerator arranges its kernels itself, and may have recorded the addresses of all weights.
    """
    dtype = PRECISIONS[precision]
    compiled = module._compiled_call_impl is not None and device_of(module).type != "cpu"
    stay = compiled and (dtype is None or module not in _COMPILED_DEFAULT)
    parts = [part for part in module.modules() if isinstance(part, _MULTIPLY) and not stay]
    with _in_order(parts) if dtype is None else _rounded(parts, dtype):
        yield module


@contextmanager
def _in_order(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Bring kernels to channels last, in place, because a second copy may not fit in single precision."""
    kernels = [part.weight for part in parts if _is_whole(part.weight) and part.weight.ndim == 4]
    kernels = [kernel for kernel in kernels if kernel.is_contiguous()]
    _arrange(kernels, torch.channels_last)
    try:
        yield
    finally:
        _arrange(kernels, torch.contiguous_format)


@torch.inference_mode(False)  # tensors that are made in that mode could never be trained again
def _arrange(kernels: Sequence[nn.Parameter], how: torch.memory_format) -> None:
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=how)


@contextmanager
def _rounded(parts: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Replace parameters by rounded copies. The real ones are unchanged for other owners."""
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
    """Return true for a parameter that is complete on this process."""
    return type(parameter) is nn.Parameter


@contextmanager
def alone_on_device(networks: nn.ModuleList, keep: int, device: torch.device) -> Iterator[None]:
    """Keep only network ``keep`` (0-based) on ``device`` inside the context, the others on the CPU."""
    homes = [device_of(network) for network in networks]
    try:
        for index, network in enumerate(networks):
            network.to(device if index == keep else "cpu")
        yield
    finally:
        for network, home in zip(networks, homes, strict=True):
            network.to(home)


class Turn:
    """A reentrant lock that one thread holds at a time. A copy of its owner has a lock of its own."""

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
    """Set every submodule to evaluation mode inside the context, and back to its own mode after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

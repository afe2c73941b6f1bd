"""A network whose weights, gradients, averages and optimizer moments are shared out among processes (torch's FSDP2;
Zhao et al. 2023, arXiv 2304.11277).

The order is: make the average (`make_average` copies the network), `shard` the network and the copy alike, then make
the optimizer. From then on every parameter is a ``DTensor`` of which each process holds some rows, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoints.contents import local_part
from ..nn.blocks import ContextAttention

#: methods of a network, beside its forward pass, that use its weights
_ENTRANCES = ("condition", "forward_with_cond_scale")
#: mark of a parameter that has no axis outside of sharded training
_SCALAR = "stands_for_a_scalar"


# -- networks -------------------------------------------------------------------------------------------------------


def shard(unet: nn.Module, mesh: Any) -> None:
    """Shard the weights of a network in place; all processes of the mesh call it, with equal weights.

    Each block is gathered when it is needed and freed after use, as is what belongs to no block. Afterwards
    ``unet(...)``, ``unet.condition(...)`` and the backward pass are collective: every process has to call them equally
    often, with batches that use the same of its parts. Gradients are means over the processes, exchanged in every
    backward pass outside of ``unet.no_sync()``. The network cannot be copied any more, or moved to another device.

    Args:
        unet: on the device where it is trained, in single precision.
        mesh: ``torch.distributed.device_mesh.DeviceMesh`` of one axis.

    Raises:
        ImportError: this torch cannot.
        ValueError: the network is sharded already.
    """
    fully_shard, as_forward = _tools()
    if is_sharded(unet):
        raise ValueError("this network is sharded already; shard() is called once, before the optimizer is made")
    options = {"mesh": mesh, "reshard_after_forward": True}
    scalars = {name for name, item in unet.named_parameters() if item.ndim == 0}
    _give_scalars_an_axis(unet)
    blocks = [part for part in unet.modules() if type(part).__name__ in unet._no_split_modules]
    for part in list(unet.modules()):
        # keys and values of captions are made for all blocks at once, before any block is gathered
        if isinstance(part, ContextAttention) and part.attention.to_context is not None:
            fully_shard([part.attention.norm_context, part.attention.to_context], **options)
            part.attention.narrow = False  # it would take the weights of a block that is not gathered yet
    for block in reversed(blocks):
        fully_shard(block, **options)
    unet.register_forward_hook(_own_memory)
    fully_shard(unet, **options)
    for name, item in unet.named_parameters():
        if name in scalars:
            setattr(item, _SCALAR, True)
    unet.no_sync = partial(_without_exchange, unet)
    _open_entrances(unet, as_forward)


@contextmanager
def _without_exchange(unet: Any) -> Iterator[None]:
    """Gradients of backward passes in the block stay, whole, in the process, and are exchanged with the next one."""
    unet.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        unet.set_requires_gradient_sync(True)


def _tools() -> tuple[Callable[..., Any], Callable[..., None]]:
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise ImportError(
            f"sharded training (strategy fsdp2) needs torch 2.6 or newer with its distributed part, this is torch "
            f"{torch.__version__}; take strategy ddp or install a newer torch"
        ) from error
    return fully_shard, register_fsdp_forward_method


def is_sharded(module: nn.Module) -> bool:
    """Return whether parameters of this module are sharded over processes."""
    return any(is_shared(item) for item in module.parameters())


def is_shared(tensor: Tensor) -> bool:
    """Return whether this is a ``DTensor``, of which a process holds a part."""
    return hasattr(tensor, "placements")


def _give_scalars_an_axis(unet: nn.Module) -> None:
    """Single numbers as vectors of one: there is nothing else to share out. They broadcast alike."""
    for part in unet.modules():
        for name, item in list(part.named_parameters(recurse=False)):
            if item.ndim == 0:
                setattr(part, name, nn.Parameter(item.detach().reshape(1), requires_grad=item.requires_grad))


def _own_memory(_: nn.Module, __: Any, answer: Tensor) -> Tensor:
    """The answer, copied if it is a view: FSDP hangs its hooks on it."""
    return answer if answer._base is None else answer.clone()


def _open_entrances(unet: nn.Module, as_forward: Callable[..., None]) -> None:
    """Have the weights of no block at hand in methods that are called from outside, too."""
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    unet.register_forward_pre_hook(enter)
    unet.register_forward_hook(leave, always_call=True)
    for name in _ENTRANCES:
        if not hasattr(unet, name):
            continue
        inner = getattr(unet, name)
        as_forward(unet, name)
        outer = getattr(unet, name)

        def entrance(*args: Any, inner: Any = inner, outer: Any = outer, **kwargs: Any) -> Any:
            if depth:  # inside a pass they are at hand, and would be let go too early
                return inner(*args, **kwargs)
            enter()
            try:
                return outer(*args, **kwargs)
            finally:
                leave()

        setattr(unet, name, entrance)


# -- gradients ------------------------------------------------------------------------------------------------------


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that this process holds; changes in place change them."""
    with torch.no_grad():
        return [local_part(item.grad)[0] for item in parameters if item.grad is not None]


def _groups(parameters: Iterable[nn.Parameter]) -> list[Any]:
    """The process groups over which the rows of parameters are shared out; none of one process."""
    for item in parameters:
        if is_shared(item):
            axes = enumerate(item.placements)
            return [item.device_mesh.get_group(axis) for axis, placement in axes if placement.is_shard()]
    return []


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """Euclidean norm of all gradients together, the same number on every process; not finite if any of them is not.

    One collective, whatever the number of parameters; for parameters that are not shared out none.
    """
    parameters = [item for item in parameters if item.grad is not None]
    found = local_gradients(parameters)
    if not found:
        return torch.zeros(())
    norm, groups = torch.nn.utils.get_total_norm(found), _groups(parameters)
    if not groups:
        return norm
    squared = norm.double().square()
    for group in groups:
        dist.all_reduce(squared, group=group)
    return squared.sqrt().to(norm)


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Float[Tensor, ""], max_norm: float) -> None:
    """Scale all gradients, whose joint norm is known, down to ``max_norm`` (Pascanu et al. 2012, arXiv 1211.5063)."""
    found = local_gradients(parameters)
    if found:
        torch._foreach_mul_(found, torch.clamp(max_norm / (norm + 1e-6), max=1.0))


# -- tensors by name ------------------------------------------------------------------------------------------------


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``module.state_dict()`` as they are saved: single numbers are numbers again.

    All processes call it.
    """
    return {name: _as_saved(item) for name, item in module.state_dict(keep_vars=True).items()}


def _as_saved(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        whole = hasattr(tensor if like is None else like, _SCALAR)
        return tensor.full_tensor().reshape(()) if whole else tensor.detach()


def optimizer_tensors(optimizer: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state for a sharded checkpoint: its moments, and the rest; all processes call it.

    Args:
        optimizer: of parameters that are shared out or not.
        prefix: its entry in the checkpoint, "optim0".

    Returns:
        Moments called ``optim0/state/<index of the parameter>/exp_avg``, with the indices of ``state_dict()``; and
        ``{"state": {index: {"step": ...}}, "param_groups": [...]}``. Both together are a state dict.
    """
    packed, parameters = optimizer.state_dict(), _parameters(optimizer)
    tensors: dict[str, Tensor] = {}
    rest: dict[int, dict[str, Any]] = {}
    for index, entries in packed["state"].items():
        rest[index] = {}
        for key, value in entries.items():
            if _is_moment(key, value):
                tensors[f"{prefix}/state/{index}/{key}"] = _as_saved(value, parameters[index])
            else:
                rest[index][key] = value
    return tensors, {"state": rest, "param_groups": packed["param_groups"]}


def load_optimizer_tensors(
    optimizer: Optimizer, saved: Mapping[str, Any], prefix: str, names: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Take over the rest of an optimizer's state, and make its moments, zero, to be filled by their names.

    Fill what is returned with `load_sharded` or `fill`. Hyperparameters are the saved ones afterwards.

    Args:
        saved: the second part of what `optimizer_tensors` gave, or a whole state dict.
        prefix: as there.
        names: names of tensors in the checkpoint; those of moments are picked.

    Raises:
        ValueError: parameter groups of other sizes.
    """
    parameters = _parameters(optimizer)
    keys: dict[int, list[str]] = {index: [] for index in saved["state"]}
    for index, entries in saved["state"].items():
        keys[index] += [key for key, value in entries.items() if _is_moment(key, value)]
    for name in names:
        if name.startswith(f"{prefix}/state/"):
            index, key = name.split("/")[-2:]
            keys.setdefault(int(index), []).append(key)
    if any(not 0 <= index < len(parameters) for index in keys):
        raise ValueError(f"{prefix} has moments of parameter {max(keys)}, the network has {len(parameters)}")
    state = {
        index: {
            **{key: value for key, value in saved["state"].get(index, {}).items() if not _is_moment(key, value)},
            **{key: torch.zeros_like(parameters[index], requires_grad=False) for key in found},
        }
        for index, found in keys.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    return {
        f"{prefix}/state/{index}/{key}": optimizer.state[parameters[index]][key]
        for index, found in keys.items()
        for key in found
    }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [item for group in optimizer.param_groups for item in group["params"]]


def _is_moment(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and key != "step"


def fill(targets: Mapping[str, Tensor], contents: Mapping[str, Any]) -> None:
    """Put whole tensors, such as those of `read_checkpoint`, into tensors of which a process holds a part.

    Args:
        targets: by name; "model/final_conv.bias" is ``contents["model"]["final_conv.bias"]``.
        contents: nested dicts; the keys of numbers are numbers.

    Raises:
        KeyError: an entry is missing.
        ValueError: it has another shape.
    """
    for name, target in targets.items():
        source: Any = contents
        for step in name.split("/"):
            source = source[int(step) if step not in source and step.isdigit() else step]
        if source.shape != target.shape and not source.numel() == target.numel() == 1:
            raise ValueError(f"{name} must be {tuple(target.shape)}, got {tuple(source.shape)}")
        with torch.no_grad():
            part, start = local_part(target)
            rows = tuple(slice(first, first + count) for first, count in zip(start, part.shape, strict=True))
            part.copy_(source.reshape(target.shape)[rows])


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after the other, for a checkpoint of one file; all processes call it.

    Args:
        keep: False takes part and keeps nothing, so that only one process needs the memory.
    """
    found = {}
    with torch.no_grad():
        for name, item in tensors.items():
            whole = item.full_tensor() if is_shared(item) else item
            if keep:
                found[name] = whole.detach().cpu()
    return found

"""Networks whose weights, gradients, averages and optimizer moments are sharded over ranks (torch's FSDP2;
Zhao et al. 2023, arXiv 2304.11277).

The order is: make the average (`make_average` copies the network), `shard` the network and the copy alike, then make
the optimizer. From then on every parameter is a ``DTensor`` of which each process holds some rows, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ..cascade.cascade import Cascade
from ..checkpoints.contents import local_part, map_tensors
from ..nn.blocks import ContextAttention
from .distributed import Distributed
from .precision import Precision

#: mark of a parameter that has no axis outside of sharded training
_SCALAR = "stands_for_a_scalar"


# -- networks -------------------------------------------------------------------------------------------------------


def shard_model(cascade: Cascade, averages: nn.ModuleList | None, processes: Distributed, precision: Precision) -> None:
    """Shard every U-Net and its average, before the optimizers are made. A ValueError for fp16, whose loss scaling is
    not made for shards."""
    from torch.distributed.device_mesh import init_device_mesh

    if precision.name == "fp16":
        raise ValueError('strategy fsdp2 does not go with precision "fp16"; take "bf16" or "no"')
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for index, unet in enumerate(cascade.unets):
        if next(unet.parameters(), None) is None:
            continue
        shard(unet, mesh)
        if averages is not None:
            shard(averages[index].ema_model, mesh)


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
        ValueError: the network is sharded already.
    """
    from torch.distributed.fsdp import fully_shard

    if any(map(is_shared, unet.parameters())):
        raise ValueError("this network is sharded already; shard() is called once, before the optimizer is made")
    options = {"mesh": mesh, "reshard_after_forward": True}
    scalars = {name for name, item in unet.named_parameters() if item.ndim == 0}
    for part in unet.modules():  # a vector of one can be sharded and broadcasts alike
        for name, item in list(part.named_parameters(recurse=False)):
            if item.ndim == 0:
                setattr(part, name, nn.Parameter(item.detach().reshape(1), requires_grad=item.requires_grad))
    blocks = [part for part in unet.modules() if type(part).__name__ in unet._no_split_modules]
    for part in list(unet.modules()):
        # keys and values of captions are made for all blocks at once, before any block is gathered
        if isinstance(part, ContextAttention) and part.attention.to_context is not None:
            fully_shard([part.attention.norm_context, part.attention.to_context], **options)
            part.attention.narrow = False  # it would take the weights of a block that is not gathered yet
    for block in reversed(blocks):
        fully_shard(block, **options)
    # FSDP hangs its hooks on the answer, which must not be a view
    unet.register_forward_hook(lambda _, __, answer: answer if answer._base is None else answer.clone())
    fully_shard(unet, **options)
    for name, item in unet.named_parameters():
        if name in scalars:
            setattr(item, _SCALAR, True)
    unet.no_sync = partial(_without_exchange, unet)
    _open_condition(unet)


@contextmanager
def _without_exchange(unet: Any) -> Iterator[None]:
    """Keep complete gradients of backward passes in the process; they are exchanged with those of the next one."""
    unet.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        unet.set_requires_gradient_sync(True)


def is_shared(tensor: Tensor) -> bool:
    """Return whether this is a ``DTensor``, of which a process holds a part."""
    return hasattr(tensor, "placements")


def _open_condition(unet: nn.Module) -> None:
    """Have the weights of no block at hand in ``condition``, when it is called from outside, too."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    passes: list[bool] = []
    unet.register_forward_pre_hook(lambda *_: passes.append(True))
    unet.register_forward_hook(lambda *_: passes.clear(), always_call=True)
    inner = unet.condition
    register_fsdp_forward_method(unet, "condition")
    outer = unet.condition
    # inside a pass they are at hand, and would be let go too early
    unet.condition = lambda *args, **kwargs: (inner if passes else outer)(*args, **kwargs)


# -- gradients ------------------------------------------------------------------------------------------------------


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """Return the Euclidean norm of all gradients together, the same number on every process.

    It is not finite if any of them is not. One collective for all sharded gradients, whatever their number; none for
    ordinary ones.
    """
    norm = torch.nn.utils.get_total_norm([item.grad for item in parameters if item.grad is not None])
    return norm.full_tensor() if is_shared(norm) else norm


# -- state ----------------------------------------------------------------------------------------------------------


def as_saved(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a tensor of a state dict as it is saved: a number that sharding made a vector is a number again. All
    processes call it, for a moment with the parameter ``like`` that it belongs to."""
    with torch.no_grad():
        is_scalar = hasattr(tensor if like is None else like, _SCALAR)
        return tensor.full_tensor().reshape(()) if is_scalar else tensor.detach()


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return ``module.state_dict()`` as it is saved; all processes call it."""
    return {name: as_saved(item) for name, item in module.state_dict(keep_vars=True).items()}


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of an optimizer in the order of its state dict."""
    return [item for group in optimizer.param_groups for item in group["params"]]


def _is_moment(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and key != "step"


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return ``optimizer.state_dict()`` as it is saved; all processes call it.

    torch's ``get_optimizer_state_dict`` names parameters where our checkpoints, like the optimizer itself, number them.
    """
    packed, parameters = optimizer.state_dict(), parameters_of(optimizer)
    state = {
        index: {key: as_saved(item, parameters[index]) if _is_moment(key, item) else item for key, item in each.items()}
        for index, each in packed["state"].items()
    }
    return {**packed, "state": state}


def load_optimizer_state(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    prefix: str,
    load: Callable[[Mapping[str, Tensor]], object],
    order: Sequence[nn.Parameter] | None = None,
) -> None:
    """Load the moments that `optimizer_state` returned; how the optimizer computes stays as it is.

    The largest second moments, which ``amsgrad`` needs, begin at the present ones if they were not saved.

    Moments of sharded parameters are not read from ``saved``, so they may be without memory: ``load`` fills tensors in
    place, given by names such as "optim0/state/3/exp_avg", where ``prefix`` is "optim0". ``order`` are the parameters
    as the saved state numbers them, by default as the optimizer does.
    """
    parameters = parameters_of(optimizer)
    order, places = order or parameters, {item: place for place, item in enumerate(parameters)}
    sharded = any(map(is_shared, parameters))
    state = {
        places[order[index]]: {
            key: torch.zeros_like(order[index], requires_grad=False) if sharded and _is_moment(key, item) else item
            for key, item in each.items()
        }
        for index, each in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    loaded = {index: optimizer.state[order[index]] for index in saved["state"]}
    if sharded:
        moments = ((f"{prefix}/state/{index}", each) for index, each in loaded.items())
        load({f"{name}/{key}": item for name, each in moments for key, item in each.items() if _is_moment(key, item)})
    for group in optimizer.param_groups:
        for each in (optimizer.state[item] for item in group["params"] if item in optimizer.state):
            if group.get("amsgrad"):
                each.setdefault("max_exp_avg_sq", torch.clone(each["exp_avg_sq"]))
            elif "amsgrad" in group:
                each.pop("max_exp_avg_sq", None)


def fill(targets: Mapping[str, Tensor], contents: Mapping[str, Any]) -> None:
    """Copy tensors of a checkpoint into tensors of a training; a process copies what it holds of them.

    The target "model/final_conv.bias" gets ``contents["model"]["final_conv.bias"]``; the keys of numbers are numbers. A
    KeyError if an entry is missing, a ValueError if it has another shape.
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


def split_shared(contents: Mapping[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """Return the sharded tensors of nested dicts by path, and the rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[Any, Any] = {}
    for key, value in contents.items():
        if isinstance(value, Mapping):
            inner, rest[key] = split_shared(value, f"{prefix}{key}/")
            tensors |= inner
        elif isinstance(value, Tensor) and is_shared(value):
            tensors[f"{prefix}{key}"] = value
        else:
            rest[key] = value
    return tensors, rest


def gathered(contents: Mapping[str, Any], keep: bool = True) -> dict[str, Any]:
    """Return nested contents with complete tensors, on the CPU one after the other; all processes call it. Without
    ``keep`` a process takes part and keeps nothing, so that only one needs the memory."""

    def complete(item: Tensor) -> Tensor | None:
        if not is_shared(item):
            return item
        with torch.no_grad():
            whole = item.full_tensor()
        return whole.detach().cpu() if keep else None

    return map_tensors(contents, complete)

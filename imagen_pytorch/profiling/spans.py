"""Names of modules and methods for a profiler: on modules through hooks, on methods through wrappers, temporarily.

The networks themselves are unchanged, and have no cost when no profiler runs.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.profiler import record_function

#: prefix of the names in a profile, to distinguish them from those of operators
PREFIX = "imagen: "
#: parts of a network by its attributes, in the order in which they run; attributes that are None are left out
_PARTS = {
    "noise level": ("to_time_hiddens", "to_time_cond", "to_time_tokens"),
    "stem": ("init_conv", "init_temporal_peg", "init_temporal_attn", "init_resnet_block"),
    "down": ("downs",),
    "middle": ("mid_block1", "mid_attn", "mid_temporal_peg", "mid_temporal_attn", "mid_block2"),
    "up": ("ups",),
    "head": ("upsample_combiner", "final_res_block", "final_conv"),
}


class Spans:
    """Names modules and methods until the end of the context, when everything is restored."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: list[record_function] = []

    def __enter__(self) -> Spans:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def module(self, module: nn.Module, name: str) -> None:
        """Name every call of a module."""

        def begin(*_: Any) -> None:
            span = record_function(PREFIX + name)
            span.__enter__()
            self._open.append(span)

        def end(*_: Any) -> None:
            self._open.pop().__exit__(None, None, None)

        self._stack.callback(module.register_forward_pre_hook(begin).remove)
        self._stack.callback(module.register_forward_hook(end, always_call=True).remove)

    def method(self, owner: Any, method: str, name: str) -> None:
        """Name every call of a method of one object."""
        own = getattr(owner, method)

        @functools.wraps(own)
        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(PREFIX + name):
                return own(*args, **kwargs)

        before = vars(owner).get(method)
        vars(owner)[method] = named
        self._stack.callback(_put_back, owner, method, before)


def _put_back(owner: Any, method: str, before: Any) -> None:
    if before is None:
        del vars(owner)[method]
    else:
        vars(owner)[method] = before


def parts_of(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a U-Net with their names: "stem", "down 1", "down 2" ... "head"."""
    found = []
    for name, attributes in _PARTS.items():
        for attribute in attributes:
            part = getattr(unet, attribute, None)
            if isinstance(part, nn.ModuleList):
                found += [(f"{name} {number}", item) for number, item in enumerate(part, start=1)]
            elif isinstance(part, nn.Module):
                found.append((name, part))
    return found


def name_network(spans: Spans, unet: nn.Module) -> None:
    """Name a U-Net, its parts and its text conditioning."""
    spans.module(unet, "rest of the network")
    spans.method(unet, "condition", "text conditioning")
    for name, part in parts_of(unet):
        spans.module(part, name)


def name_training(spans: Spans, trainer: Any, number: int) -> None:
    """Name the parts of a training step of one U-Net (1-based)."""
    unet_trainer = trainer.unet_trainers[number - 1]
    spans.method(trainer.imagen, "training_batch", "data")
    spans.method(trainer.imagen, "loss", "loss")
    spans.method(unet_trainer, "backward", "backward")
    spans.method(unet_trainer, "update", "update")
    spans.method(unet_trainer.optimizer, "step", "optimizer")
    if unet_trainer.average is not None:
        spans.method(unet_trainer.average, "update", "EMA")
    name_network(spans, trainer.imagen.unets[number - 1])

"""A test for plain linear layers, whose weights may be used without calling them."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(layer: nn.Module) -> bool:
    """Return true if calling a layer is exactly ``x @ weight.T + bias``.

    It is not if the layer was replaced (adapters, quantization), or has a parametrization, hooks, or its own
    ``forward``.
    """
    return type(layer) is nn.Linear and "forward" not in vars(layer) and not any(getattr(layer, it) for it in _HOOKS)

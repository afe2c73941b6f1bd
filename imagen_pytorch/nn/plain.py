"""Whether a layer is only its weights, so that these may be used without calling it."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer is exactly ``x @ weight.T + bias``.

    It is not if the layer was replaced (adapters, quantization), has a parametrization, hooks, or a ``forward`` of its
    own.
    """
    return type(layer) is nn.Linear and "forward" not in vars(layer) and not any(getattr(layer, it) for it in _HOOKS)

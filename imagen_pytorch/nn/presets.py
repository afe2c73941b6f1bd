"""Networks by name: the general one, a placeholder, and the sizes of the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .persistence import UNETS, Persistent
from .unet import Unet


@UNETS.register("NullUnet")
class NullUnet(Persistent):
    """Placeholder for a U-Net that is not used. It is neither trained nor sampled."""

    is_null = True
    lowres_cond = cond_on_text = self_cond = has_cond_image = False

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.dummy_parameter = nn.Parameter(torch.zeros(1))
        self._locals = {}

    def cast_model_parameters(self, **_: Any) -> NullUnet:
        """Return itself: a placeholder fits everywhere."""
        return self

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input."""
        return x


class _Preset(Unet):
    """A `Unet` with other defaults, all of which can be overridden."""

    defaults: dict[str, Any] = {}

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**{**self.defaults, **overrides})
        self._locals = dict(overrides)


@UNETS.register("BaseUnet64")
class BaseUnet64(_Preset):
    """The 64x64 base network (Saharia et al. 2022, appendix F)."""

    defaults = {
        "dim": 512,
        "dim_mults": (1, 2, 3, 4),
        "num_resnet_blocks": 3,
        "layer_attns": (False, True, True, True),
        "layer_cross_attns": (False, True, True, True),
        "attn_heads": 8,
        "ff_mult": 2.0,
        "memory_efficient": False,
    }


@UNETS.register("SRUnet256")
class SRUnet256(_Preset):
    """The 64 to 256 upsampler (Saharia et al. 2022, appendix F)."""

    defaults = {
        "dim": 128,
        "dim_mults": (1, 2, 4, 8),
        "num_resnet_blocks": (2, 4, 8, 8),
        "layer_attns": (False, False, False, True),
        "layer_cross_attns": (False, False, False, True),
        "attn_heads": 8,
        "ff_mult": 2.0,
        "memory_efficient": True,
    }


@UNETS.register("SRUnet1024")
class SRUnet1024(_Preset):
    """The 256 to 1024 upsampler (Saharia et al. 2022, appendix F).

    It has no self-attention, not even at the bottleneck, where an image of 1024x1024 still has 4096 positions.
    """

    defaults = {
        "dim": 128,
        "dim_mults": (1, 2, 4, 8),
        "num_resnet_blocks": (2, 4, 8, 8),
        "layer_attns": False,
        "layer_cross_attns": (False, False, False, True),
        "attn_heads": 8,
        "ff_mult": 2.0,
        "memory_efficient": True,
        "attend_at_middle": False,
    }

"""Networks as functions of tensors: conditioned once, called at every step."""

from . import unet, unet3d, presets  # noqa: F401, I001 - register their networks, in this order

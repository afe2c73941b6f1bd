"""The same once more: in early versions this was the module's place."""

from . import Unet3D

__all__ = ["Unet3D"]

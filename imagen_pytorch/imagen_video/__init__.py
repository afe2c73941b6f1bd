"""The video network under the name by which earlier code imports it."""

from ..nn.unet3d import Unet3D

__all__ = ["Unet3D"]

"""The module under whose name earlier code imports models, networks and the diffusion; all of them live elsewhere."""

from __future__ import annotations

from .compat.gaussian_diffusion import GaussianDiffusionContinuousTimes
from .imagen import ElucidatedImagen, Imagen
from .nn.presets import BaseUnet64, NullUnet, SRUnet256, SRUnet1024
from .nn.unet import Unet

__all__ = [
    "BaseUnet64",
    "ElucidatedImagen",
    "GaussianDiffusionContinuousTimes",
    "Imagen",
    "NullUnet",
    "SRUnet1024",
    "SRUnet256",
    "Unet",
]

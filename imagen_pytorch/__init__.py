"""Imagen-style diffusion cascades: text to image and text to video, stage by stage.

Every public name is imported when it is first used, so that ``import imagen_pytorch`` opens no file and no connection.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:  # what type checkers and editors see; `_HOME` below says the same at run time
    from .checkpoint import load_imagen_from_checkpoint
    from .configs import ElucidatedImagenConfig, ImagenConfig, ImagenTrainerConfig, Unet3DConfig, UnetConfig
    from .extensions import import_file
    from .imagen import ElucidatedImagen, Imagen
    from .nn.network import Network
    from .nn.presets import BaseUnet64, NullUnet, SRUnet256, SRUnet1024
    from .nn.unet import Unet
    from .nn.unet3d import Unet3D
    from .pretrained import load_demo
    from .trainer import ImagenTrainer

__all__ = [
    "BaseUnet64",
    "ElucidatedImagen",
    "ElucidatedImagenConfig",
    "Imagen",
    "ImagenConfig",
    "ImagenTrainer",
    "ImagenTrainerConfig",
    "Network",
    "NullUnet",
    "SRUnet1024",
    "SRUnet256",
    "Unet",
    "Unet3D",
    "Unet3DConfig",
    "UnetConfig",
    "__version__",
    "import_file",
    "load_demo",
    "load_imagen_from_checkpoint",
]

#: the module that defines each public name
_HOME = {
    "BaseUnet64": "nn.presets",
    "ElucidatedImagen": "imagen",
    "ElucidatedImagenConfig": "configs",
    "Imagen": "imagen",
    "ImagenConfig": "configs",
    "ImagenTrainer": "trainer",
    "ImagenTrainerConfig": "configs",
    "Network": "nn.network",
    "NullUnet": "nn.presets",
    "SRUnet1024": "nn.presets",
    "SRUnet256": "nn.presets",
    "Unet": "nn.unet",
    "Unet3D": "nn.unet3d",
    "Unet3DConfig": "configs",
    "UnetConfig": "configs",
    "import_file": "extensions",
    "load_demo": "pretrained",
    "load_imagen_from_checkpoint": "checkpoint",
}

#: modules that users reach as attributes of the package
_MODULES = (
    "checkpoint",
    "cli",
    "configs",
    "data",
    "elucidated_imagen",
    "evaluation",
    "imagen",
    "imagen_pytorch",
    "imagen_video",
    "images",
    "pretrained",
    "t5",
    "testing",
    "text",
    "trainer",
    "utils",
    "version",
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f'module "{__name__}" has no attribute "{name}"')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

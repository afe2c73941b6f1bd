"""The name under which users import `ElucidatedImagen`; it is defined in ``imagen_pytorch.imagen``."""

from __future__ import annotations

from .imagen import ElucidatedImagen

__all__ = ["ElucidatedImagen"]

"""``python -m imagen_pytorch`` is the command ``imagen``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main(prog_name="imagen")

"""Pretrained models that are installed with the package: small, and ready without a connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .registry import suggestion

if TYPE_CHECKING:
    from .cascade.cascade import Cascade

#: One folder per model: its weights, the configuration and log of its training, its figures and its model card.
FOLDER = Path(__file__).parent / "pretrained_models"
WEIGHTS, PROMPTS = "model.safetensors", "prompts.txt"
#: The model that draws where none is named.
DEFAULT = "emoji"


def pretrained_names() -> tuple[str, ...]:
    """Return the names of the installed pretrained models, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def pretrained_path(name: str) -> Path:
    """Return the file with the weights of an installed pretrained model.

    Raises:
        ValueError: no model has this name. The message lists the names.
    """
    known = pretrained_names()
    if name not in known:
        raise ValueError(
            f'no pretrained model is called "{name}", known: {", ".join(known) or "none"}{suggestion(name, known)}'
        )
    return FOLDER / name / WEIGHTS


def pretrained_prompts(name: str) -> list[str]:
    """Return prompts to try with an installed pretrained model.

    Raises:
        ValueError: no model has this name. The message lists the names.
    """
    return (pretrained_path(name).parent / PROMPTS).read_text(encoding="utf-8").splitlines()


def pretrained_name(path: str | Path) -> str | None:
    """Return the name of the pretrained model that a file belongs to, or None for any other file."""
    place = Path(path)
    return place.parent.name if place.name == WEIGHTS and place.parent.parent == FOLDER else None


def load_demo(name: str = DEFAULT) -> Cascade:
    """Load an installed pretrained model, ready to sample on the CPU.

    ``load_demo().sample(texts=["a red heart"])`` draws an image, and
    ``load_demo("moving-digits").sample(texts=["the digit 3 moves left"], video_frames=8)`` a clip. The file
    ``model_card.md`` beside `pretrained_path` says what a model can draw and what it cannot.

    Raises:
        ValueError: no model has this name. The message lists the names.
    """
    from .checkpoint import load_imagen_from_checkpoint

    return load_imagen_from_checkpoint(pretrained_path(name)).eval()

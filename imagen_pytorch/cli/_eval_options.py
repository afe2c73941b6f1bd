"""The options of ``imagen eval``."""

from __future__ import annotations

from dataclasses import dataclass

from ._drawing import DrawingOptions


@dataclass(frozen=True)
class Request(DrawingOptions):
    """The options of ``imagen eval``; the command's help says what they mean."""

    target: str | None
    data: str | None
    split: str | None
    limit: int
    reference: int
    image_size: int | None
    extractor: tuple[str, ...]
    metrics: tuple[str, ...]

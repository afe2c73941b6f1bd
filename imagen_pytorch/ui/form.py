"""The fields of the page, and its interface to the program that opens it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

#: Largest number of images of one call, of sampling steps, and of characters of a prompt.
MAX_COUNT, MAX_STEPS, MAX_PROMPT = 16, 1000, 2000


@dataclass(frozen=True)
class Form:
    """The fields of the page. An empty text takes the model's own choice, an empty seed a random one.

    Attributes:
        prompt, negative: captions.
        model: a name of `Studio.models`.
        count: number of images.
        seed, steps, sampler, guidance: as options of ``imagen sample``: one value, or one per U-Net with commas.
        image: path of a given image; transparent where it is painted if ``task`` is "inpaint".
        task: what the image is for: "init", "inpaint" or "enlarge"; empty without one.
        strength: how far "init" changes the image, from 0 to 1.
    """

    prompt: str
    negative: str
    model: str
    count: int
    seed: str
    steps: str
    sampler: str
    guidance: str
    image: str | None = None
    task: str = ""
    strength: float | None = None

    def check(self) -> None:
        """Refuse what no model can do, or would do for very long.

        Raises:
            ValueError: with a sentence for the page.
        """
        if not self.task and not self.prompt.strip():
            raise ValueError("Type a prompt first.")
        if self.task and self.image is None:
            raise ValueError("Choose an image first.")
        if max(len(self.prompt), len(self.negative)) > MAX_PROMPT:
            raise ValueError(f"A prompt has at most {MAX_PROMPT:,} characters.")
        if any(int(number[:9]) > MAX_STEPS for number in re.findall(r"\d+", self.steps)):
            raise ValueError(f"At most {MAX_STEPS:,} steps are possible here.")


class Studio(Protocol):
    """The models, runs and files of a page."""

    #: names of models, samplers of `Form.sampler`, and the folder of new images
    models: Sequence[str]
    samplers: Sequence[str]
    output: Path

    def make(self, form: Form, callback: Callable[..., Any]) -> tuple[list[tuple[Path, str]], str]:
        """Make images: return their files, each with a caption, and the choices of the model in words."""

    def settings(self, path: str) -> Mapping[str, Any]:
        """Return the fields of the form as the settings in an image state them."""

    def sentence(self, error: Exception) -> str | None:
        """Return an error as a sentence, None for an unexpected one."""

    def runs(self) -> list[str]:
        """Return the folders of trainings, the newest first."""

    def run(self, folder: str) -> tuple[str, Any, Any]:
        """Return the last figures of a training in words, its curve, and its newest sheet, as images or None."""

"""The answers of the page: images, the settings in them, and trainings to watch."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .form import Form, Studio
from .generation import Step, Worker

if TYPE_CHECKING:
    import gradio

#: What the images and status become: the files or estimates, each with a caption, and HTML.
Shown = tuple[list[Any], str]
#: The fields that the settings of an image state, in the order of `Page.settings`.
REFILLED = ("prompt", "negative", "model", "seed", "steps", "sampler", "guidance")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def status(words: str, step: Step | None = None, busy: bool = True) -> str:
    """Return words as HTML, below a progress bar while a call is busy; the bar has no end where no step is known."""
    place = "" if step is None else f' max="{step.total}" value="{step.step}"'
    bar = f'<progress aria-label="Progress"{place}></progress>' if busy else ""
    return f'{bar}<div role="status">{escape(words)}</div>'


class Page:
    """The answers of the page, which are its API as well.

    Args:
        studio: the models, runs and files.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.worker = studio, Worker()

    # -- answers ------------------------------------------------------------------------------------------------------

    def generate(self, **fields: Any) -> Iterator[Shown]:
        """Make images of a prompt. The arguments are fields of `Form`; so they are in the next three."""
        yield from self._answer(fields)

    def vary(self, **fields: Any) -> Iterator[Shown]:
        """Change an image."""
        yield from self._answer({**fields, "task": "init"})

    def inpaint(self, **fields: Any) -> Iterator[Shown]:
        """Paint the part of an image that a mask covers."""
        yield from self._answer({**fields, "task": "inpaint"})

    def enlarge(self, **fields: Any) -> Iterator[Shown]:
        """Enlarge an image by the last U-Nets of a model."""
        yield from self._answer({**fields, "task": "enlarge"})

    def settings(self, image: str) -> list[Any]:
        """Return the fields of the form, without its count, as the settings in an image state them."""
        import gradio

        try:
            found = self.studio.settings(image)
        except Exception as error:
            raise _shown(self._sentence(error)) from error
        return [found.get(name, gradio.skip()) for name in REFILLED]

    def runs(self) -> Any:
        """Return the list of trainings."""
        import gradio

        found = self.studio.runs()
        return gradio.Dropdown(choices=found, value=found[0] if found else None)

    def run(self, run: str | None) -> tuple[str, Any, Any]:
        """Return figures, curve and newest samples of a training."""
        if run is None or run not in self.studio.runs():
            return status("No training here yet: start one with imagen train.", busy=False), None, None
        try:
            words, *images = self.studio.run(run)
        except Exception as error:
            raise _shown(self._sentence(error)) from error
        return status(words, busy=False), *images

    def _answer(self, fields: dict[str, Any]) -> Iterator[Shown]:
        try:
            form = Form(**self._given(fields))
            form.check()
            yield [], status("Opening the model ...")
            files, words = yield from self.worker.watched(partial(self.studio.make, form), self._step)
            yield [(str(path), caption) for path, caption in files], status(words, busy=False)
        except Exception as error:
            sentence = self._sentence(error)
            yield [], status(sentence, busy=False)
            raise _shown(sentence) from error

    def _step(self, step: Step) -> Shown:
        words = f"U-Net {step.unet}: step {step.step} of {step.total}"
        return [(image, "") for image in step.images], status(words, step)

    def _given(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields with the path of the given image, which is kept in the output folder.

        Settings name a given image, and with it `imagen sample --from-png` makes the result again.
        """
        given = fields.get("image")
        if fields.get("task") == "inpaint":
            contents, suffix = _cut(given), ".png"
        elif given is not None:
            contents, suffix = Path(given).read_bytes(), Path(given).suffix.lower()
        else:
            return fields
        name = f"given-{sha256(contents).hexdigest()[:12]}{suffix if suffix in _SUFFIXES else '.png'}"
        self.studio.output.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), open(self.studio.output / name, "xb") as file:
            file.write(contents)
        return {**fields, "image": str(self.studio.output / name)}

    def _sentence(self, error: Exception) -> str:
        """Return an error in words for the page; the traceback of an unexpected one goes to the terminal."""
        sentence = self.studio.sentence(error)
        if sentence is None:
            traceback.print_exception(error, file=sys.stderr)
        return sentence or "Something unexpected went wrong: the terminal shows what."


def _cut(given: dict[str, Any] | None) -> bytes:
    """Return an image as a PNG, transparent where a mask covers it.

    Raises:
        ValueError: an image is missing, or nothing is covered.
    """
    from PIL import Image, ImageChops

    background = None if given is None else given["background"]
    if background is None:
        raise ValueError("Choose an image first, then paint over the part to be made anew.")
    covered = Image.new("L", background.size)
    for layer in given["layers"]:
        covered = ImageChops.lighter(covered, layer.convert("RGBA").getchannel("A").point(lambda a: 255 * (a > 0)))
    if covered.getbbox() is None:
        raise ValueError("Paint over the part of the image to be made anew first.")
    white = Image.new("RGBA", background.size, "white")
    image = Image.alpha_composite(white, background.convert("RGBA"))
    image.putalpha(ImageChops.invert(covered))
    image.save(contents := BytesIO(), "PNG")
    return contents.getvalue()


def _shown(sentence: str) -> gradio.Error:
    """Return an exception that the page shows in a corner, and that programs get."""
    import gradio

    return gradio.Error(escape(sentence, quote=False), print_exception=False)

"""Implementation of ``imagen compare``: the same captions and seeds by two models or settings, and paired metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._drawing import DrawingOptions, Model, write_results
from ._errors import say
from ._files import check_place
from ._judge import EMBEDDED_JUDGE, caption_judge
from ._models import find_model
from ._prompts import read_captions
from ._real import RealData, chosen_source, recorded_source
from ._sampling import Wanted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..evaluation.comparison import Comparison

#: captions of data among which each image's own is looked for, and rows of the sheet, at most
CANDIDATES, ROWS = 2000, 24


@dataclass(frozen=True)
class Request(DrawingOptions):
    """The options of ``imagen compare``; the command's help says what they mean."""

    first: str | None
    second: str | None
    settings_a: dict[str, Any]
    settings_b: dict[str, Any]
    data: str | None
    split: str | None
    limit: int
    prompts: str | None


@dataclass
class Side:
    """One side of the comparison: its model, its settings, and its images."""

    name: str
    model: Model
    request: Request
    images: Tensor | None = None
    words: str = ""
    seconds: float = 0.0

    def draw(self, wanted: list[Wanted]) -> None:
        """Make all images."""
        began = time.monotonic()
        self.images, self.words = self.model.sample(wanted, self.request)
        self.seconds = (time.monotonic() - began) / len(wanted)

    def record(self) -> dict[str, Any]:
        """Return the model, its settings and the time per image, as JSON holds them."""
        return {"model": self.model.record(), "sampling": self.words, "seconds_per_image": round(self.seconds, 4)}


def _sides(request: Request) -> tuple[Side, Side]:
    """Both sides, ready to sample.

    Raises:
        click.UsageError: they are the same, or only one of them takes captions.
    """
    path = find_model(request.first)
    other = path if request.second is None else find_model(request.second)
    if other == path and request.settings_a == request.settings_b:
        raise click.UsageError(
            "A and B are the same: name a second checkpoint, or settings such as --a cond_scale=1 --b cond_scale=3"
        )
    first = Model(path, request)
    second = first if other == path else Model(other, request)
    if first.imagen.unconditional != second.imagen.unconditional:
        raise click.UsageError("one of the models takes captions and the other one does not")
    return (
        Side("A", first, replace(request, **request.settings_a)),
        Side("B", second, replace(request, **request.settings_b)),
    )


def _data(request: Request, model: Model) -> RealData:
    source = chosen_source(request.data, recorded_source(model.path))
    return RealData(source, request.split, model.size, model.imagen.channels)


def _captions(request: Request, real: RealData) -> list[str]:
    """The captions that both sides sample.

    Raises:
        click.UsageError: there are none.
    """
    if request.prompts is not None:
        return read_captions(request.prompts)[: request.limit]
    if not real.captions:
        raise click.UsageError(
            f"the images of {real.source.name} have no captions: --prompts FILE or --data gives some"
        )
    return [real.captions[place] for place in real.evenly_spaced(request.limit)]


def _compared(sides: tuple[Side, Side], captions: list[str], real: RealData, request: Request) -> list[Comparison]:
    """The scores of both sides; none without a judge of captions."""
    from ..evaluation.comparison import compare_images
    from ..evaluation.report import judging_extractors, learned_extractors

    learned = [name for side in sides for name in learned_extractors(side.model.imagen.to_config())]
    own = EMBEDDED_JUDGE if real.embedded == "emoji64" else None
    extractor = judging_extractors((), learned, own)[-1]
    split = request.split
    training = (
        real if split is None else RealData(real.source, None, sides[0].model.size, sides[0].model.imagen.channels)
    )
    judge, _ = caption_judge(real, training, extractor, request.seed)
    if judge is None:
        return []
    candidates = [real.captions[place] for place in real.evenly_spaced(CANDIDATES)] if real.captions else []
    a, b = (side.images for side in sides)
    return compare_images(judge, a, b, captions, candidates=candidates, seed=request.seed)


def _sheet(sides: tuple[Side, Side], captions: list[str]) -> Image.Image:
    """Both sides' images in rows with their caption."""
    from ..evaluation.sheets import labelled_grid
    from ..images import resize, to_pil

    count = min(ROWS, len(captions))
    chosen = [place * len(captions) // count for place in range(count)]
    size = max((side.images.shape[-2:] for side in sides), key=lambda shape: shape[0] * shape[1])
    columns = [to_pil(resize(side.images[chosen], tuple(size), "nearest")) for side in sides]
    labels = [captions[place] for place in chosen]
    heads = [f"{side.name}: {side.words}" for side in sides]
    return labelled_grid(list(zip(*columns, strict=True)), labels, heads)


def run(request: Request) -> None:
    """Sample, compare, print and write.

    Raises:
        click.ClickException: anything that the user can put right.
        ValueError: a setting that the models do not take.
    """
    check_place(Path(request.output, "compare.json"))
    sides = _sides(request)
    text = not sides[0].model.imagen.unconditional
    real = _data(request, sides[0].model) if text else None
    captions = _captions(request, real) if real is not None else [""] * request.limit
    wanted = [Wanted(caption if text else None, request.seed + index) for index, caption in enumerate(captions)]
    for side in sides:
        side.draw(wanted)
        if not request.quiet:
            say(f"{side.name}: {side.model.place}: {side.words}, {side.seconds:.3g} s per image")
    found = _compared(sides, captions, real, request) if real is not None else []
    if not request.quiet:
        for item in found:
            say(f"  {item.sentence()}")
        if not found:
            say("  without captions images have no figures of their own: look at the sheet and at imagen eval")
    facts = {
        "seeds": [request.seed, request.seed + len(wanted) - 1],
        "images": len(wanted),
        "data": None if real is None else real.record,
        "a": sides[0].record(),
        "b": sides[1].record(),
        "figures": {item.name: item.figures() for item in found},
    }
    write_results(request.output, "compare", facts, _sheet(sides, captions))

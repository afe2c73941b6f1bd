"""A complete evaluation: the choice of extractors, all metrics, and a sheet of images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .features import FeatureExtractor, extractors, feature_extractor
from .metrics import METRICS, computed, usual_metrics
from .sheets import labelled_grid
from .subject import Subject

if TYPE_CHECKING:
    from PIL import Image

#: the extractor that sees no objects, used if no other is installed
_LAST_RESORT = "pixels"
#: extractors whose argument is the folder of a model: each folder is a family of its own
_FOLDERS = ("transformers", "dino", "clip")
#: rows of the sheet
ROWS = 12


def family(name: str) -> str:
    """Return the family of an extractor. Networks of one family differ in size alone and see the same features."""
    kind, _, argument = name.partition(":")
    if kind in _FOLDERS:
        return f"{_FOLDERS[0]}:{PurePath(argument).name}"
    return re.split(r"[-\d]", kind, maxsplit=1)[0]


def learned_extractors(construction: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the extractors whose features a model was trained to match.

    Args:
        construction: of the model, as `Cascade.to_config` gives it; its ``perceptual_loss``, one value or one per
            U-Net, is a name or a dict with ``features``.
    """
    given = construction.get("perceptual_loss")
    each = given if isinstance(given, list | tuple) else [given]
    names = [item.get("features") if isinstance(item, Mapping) else item for item in each]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def judging_extractors(
    names: Sequence[str], learned: Iterable[str] = (), own: str | None = None
) -> list[FeatureExtractor]:
    """Return the extractors of an evaluation.

    Args:
        names: requested extractors; without any, the one of the data and the first installed one.
        learned: names of extractors that took part in training.
        own: the extractor that was made for the data, or None.

    Raises:
        ValueError: an unknown extractor, one of a family that took part in training, or none is left.
        ImportError: its packages are missing.
    """
    taken = {family(name): name for name in learned}
    for name in names:
        if family(name) in taken:
            raise ValueError(
                f'the extractor "{name}" took part in training (perceptual_loss with "{taken[family(name)]}", the same '
                "family), so its figures would flatter the model: name another one"
            )
    if names:
        return [feature_extractor(name) for name in dict.fromkeys(names)]
    known = extractors()
    free = [name for name in known if known[name].available() and family(name) not in taken]
    general = [name for name in free if name not in (own, _LAST_RESORT)]
    chosen = [name for name in (own,) if name in free] + general[:1]
    if not chosen and _LAST_RESORT not in free:
        raise ValueError(f"every extractor that is installed took part in training ({', '.join(taken.values())})")
    return [feature_extractor(name) for name in chosen or [_LAST_RESORT]]


@dataclass
class Report:
    """The result of an evaluation.

    Attributes:
        figures: values by name, as in JSON.
        sentences: one per value.
        notes: the metrics that were left out, with the reasons.
    """

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def nearest(self) -> tuple[list[int], list[float]] | None:
        """Return the index of each image's nearest training image and its rank, if they were computed."""
        found = next((each for name, each in self.figures.items() if name.startswith("nearest/")), None)
        return None if found is None else (found["index"], found["rank"])


def evaluate(subject: Subject, metrics: Sequence[str] = ()) -> Report:
    """Compute the metrics of a subject.

    Args:
        subject: the input.
        metrics: names; without any, all usual ones that can be computed.

    Raises:
        ValueError: an unknown metric, or a requested one that cannot be computed.
    """
    report = Report()
    for name in metrics:
        obstacle = METRICS[name]().obstacle(subject)
        if obstacle:
            raise ValueError(f"the metric {name} cannot be computed: it {obstacle}")
    for name, figures, sentence in computed(subject, tuple(metrics) or usual_metrics(), report.notes.append):
        report.figures[name] = figures
        report.sentences.append(sentence)
    return report


def sheet(subject: Subject, report: Report, title: str = "") -> Image.Image:
    """Arrange generated images next to real ones of the same captions and their nearest training images.

    Args:
        subject: the input of the evaluation.
        report: its result.
        title: a line above everything.
    """
    count = min(ROWS, len(subject.generated))
    chosen = [place * len(subject.generated) // count for place in range(count)]
    columns = {"generated": subject.generated[chosen]}
    if subject.real is not None:
        columns["real"] = subject.real[chosen]
    labels = [subject.captions[place] if subject.captions else "" for place in chosen]
    nearest = report.nearest()
    if nearest is not None:
        index, rank = nearest
        places = {number: place for place, number in enumerate(subject.training.indices)}
        columns["nearest training image"] = subject.training.images([places[index[place]] for place in chosen])
        ranks = [f"(distance rank {rank[place]:.0%})" for place in chosen]
        labels = [" ".join(filter(None, pair)) for pair in zip(labels, ranks, strict=True)]
    return labelled_grid(list(zip(*map(_pillow, columns.values()), strict=True)), labels, list(columns), title=title)


def _pillow(images: Any) -> list[Image.Image]:
    from ..images import to_pil

    return to_pil(images.clamp(0, 1))

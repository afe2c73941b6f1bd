"""Metrics of an evaluation: each computes named values of a subject, and a sentence about each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..images import resize
from ..registry import Registry
from .classes import class_accuracy, train_classifier
from .distances import frechet_distance, kid, precision_recall, real_floor
from .features import FeatureExtractor
from .intervals import Estimate, mean_interval
from .nearest import nearest_images
from .retrieval import caption_retrieval
from .subject import Enlarged, Subject

METRICS: Registry[type[Metric]] = Registry("metric")

#: values by name; each is a plain dict for JSON
Figures = dict[str, dict[str, Any]]

#: smallest numbers of images on both sides of a kernel distance, and of neighbourhoods
LEAST_KID, LEAST_NEIGHBOURS = 8, 12


class Metric(ABC):
    """One kind of metric.

    Attributes:
        least: smallest number of generated and of real images.
        usual: computed by default.
    """

    least = 2
    usual = True

    def obstacle(self, subject: Subject) -> str:
        """Return the reason why the metric cannot be computed, or an empty text."""
        if len(subject.generated) < self.least:
            return f"needs {self.least} generated images, there are {len(subject.generated)}"
        if len(subject.reference) < self.least:
            return f"needs {self.least} real images, there are {len(subject.reference)}"
        return ""

    @abstractmethod
    def compute(self, subject: Subject) -> Figures:
        """Compute the values."""

    @abstractmethod
    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return a sentence about a value of `compute`."""


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with at most one decimal."""
    text = f"{100 * fraction:.1f}"
    return f"{text.removesuffix('.0')} %"


def _network(name: str) -> str:
    return name.partition("/")[2]


class _OverExtractors(Metric):
    """A comparison of features, once for each extractor."""

    key: str

    def compute(self, subject: Subject) -> Figures:
        """Compare the features of the generated images with those of the real ones, and halves of the real ones."""
        return {
            f"{self.key}/{extractor.name}": {**self._compared(subject, extractor), **subject.counts()}
            for extractor in subject.extractors
        }

    @abstractmethod
    def _compared(self, subject: Subject, extractor: FeatureExtractor) -> dict[str, Any]:
        """Return the values for one extractor."""


@METRICS.register("kid")
class KID(_OverExtractors):
    """Kernel distance with its interval, and that of halves of the real images (see `kid`)."""

    key, least = "kid", LEAST_KID

    def _compared(self, subject: Subject, extractor: FeatureExtractor) -> dict[str, Any]:
        real = subject.reference.features(extractor)
        value = kid(subject.features(extractor), real, seed=subject.seed)
        return {**asdict(value), "real_halves": asdict(real_floor(real, kid, seed=subject.seed))}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the distance, its interval and that of real images."""
        value, floor = (
            Estimate(**{end: row[end] for end in ("value", "low", "high")}) for row in (figures, figures["real_halves"])
        )
        return f"kernel distance to the real images ({_network(name)}): {value}; between halves of them: {floor}"


@METRICS.register("fd")
class FD(_OverExtractors):
    """Frechet distance, and that of halves of the real images (see `frechet_distance`)."""

    key = "fd"

    def _compared(self, subject: Subject, extractor: FeatureExtractor) -> dict[str, Any]:
        real = subject.reference.features(extractor)
        floor = real_floor(real, frechet_distance, seed=subject.seed) if len(real) > 3 else None
        value = frechet_distance(subject.features(extractor), real)
        return {"value": value, "real_halves": floor, "is_fid": extractor.is_fid}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the distance and that of real images."""
        floor = figures["real_halves"]
        beside = "" if floor is None else f"; between halves of them: {floor:.4g}"
        title = "FID" if figures["is_fid"] else "Frechet distance to the real images"
        return f"{title} ({_network(name)}): {figures['value']:.4g}{beside}"


@METRICS.register("precision")
class Precision(_OverExtractors):
    """Precision, recall, density and coverage, and those of halves of the real images (see `precision_recall`)."""

    key, least = "precision", LEAST_NEIGHBOURS

    def _compared(self, subject: Subject, extractor: FeatureExtractor) -> dict[str, Any]:
        real = subject.reference.features(extractor)
        figures = precision_recall(real, subject.features(extractor))
        return {**figures, "real_halves": real_floor(real, precision_recall, seed=subject.seed)}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return precision, recall and coverage, each with that of real images."""
        floor = figures["real_halves"]
        each = [
            f"{key} {percent(figures[key])} (real {percent(floor[key])})" for key in ("precision", "recall", "coverage")
        ]
        return f"{', '.join(each)}, by {_network(name)}"


@METRICS.register("retrieval")
class Retrieval(Metric):
    """Fraction of images whose own caption is retrieved, with chance, real images and real images with defects."""

    def obstacle(self, subject: Subject) -> str:
        """Return the reason why captions cannot be retrieved, or an empty text."""
        if not subject.captions:
            return "needs captions, and the images have none"
        if subject.judge is None:
            return "needs real images with captions to learn from, and the data have none"
        return super().obstacle(subject)

    def compute(self, subject: Subject) -> Figures:
        """Retrieve the caption of each image among all candidates."""
        figures = caption_retrieval(
            subject.judge,
            subject.generated,
            subject.captions,
            candidates=[*subject.captions, *subject.candidates],
            real=subject.real,
            small_size=subject.small_size if subject.real is not None else None,
        )
        return {"retrieval": {**figures, "judge_learned_real_images": subject.judge_learned}}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the fraction of retrieved captions, with that of real images and of guessing."""
        parts = [f"captions are found for {percent(figures['generated']['R@1'])} of the images"]
        if "ceiling" in figures:
            learned = " (the judge has learned them)" if figures["judge_learned_real_images"] else ""
            parts.append(f"real images reach {percent(figures['ceiling']['R@1'])}{learned}")
        parts.append(f"guessing {percent(figures['chance']['R@1'])}")
        rows = {row: each["R@1"] for row, each in figures.get("references", {}).items() if row != "real"}
        if rows:
            named = {"enlarged": "shrunk and enlarged"}
            each = (f"{named.get(row, row)} {percent(value)}" for row, value in rows.items())
            parts.append(f"real images with defects: {', '.join(each)}")
        return "; ".join(parts)


@METRICS.register("nearest")
class NearestTraining(Metric):
    """Distances of generated images to training images, ranked among distances of these to each other."""

    def compute(self, subject: Subject) -> Figures:
        """Compute the fraction of generated images nearer to a training image than 99 % of these to each other."""
        extractor = subject.extractors[0]
        found = nearest_images(subject.features(extractor), subject.training.features(extractor))
        figures = {
            "copied": found.copied(),
            "expected": 0.01,
            "median_rank": float(found.rank().median()),
            "index": [subject.training.indices[place] for place in found.index.tolist()],
            "rank": [round(value, 4) for value in found.rank().tolist()],
            "generated": len(subject.generated),
            "training": len(subject.training),
        }
        return {f"nearest/{extractor.name}": figures}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the fraction of near copies."""
        return (
            f"{percent(figures['copied'])} of the images are as near to a training image as the nearest "
            f"{percent(figures['expected'])} of these are to each other ({_network(name)})"
        )


@METRICS.register("upsampler")
class Upsampler(Metric):
    """Error and kernel distance of each upsampler on small real images, beside bicubic enlargement."""

    def obstacle(self, subject: Subject) -> str:
        """Return the reason why no upsampler can be compared, or an empty text."""
        return "" if subject.enlarged else "needs a model with a trained second stage"

    def compute(self, subject: Subject) -> Figures:
        """Compute the RMSE and, with enough images, the kernel distance of network and bicubic enlargement."""
        return {f"upsampler/{item.number}": self._compared(item, subject) for item in subject.enlarged}

    def _compared(self, item: Enlarged, subject: Subject) -> dict[str, Any]:
        errors = {"network": _rmse(item.made, item.real), "bicubic": _rmse(item.bicubic, item.real)}
        better = mean_interval(errors["bicubic"] - errors["network"], seed=subject.seed)
        figures: dict[str, Any] = {
            "rmse": {name: float(each.square().mean().sqrt()) for name, each in errors.items()},
            "rmse_gain": asdict(better),
            "images": len(item.real),
        }
        beats = [better.low > 0]
        if len(item.real) >= LEAST_KID:
            for extractor in subject.extractors:
                real = extractor(item.real)
                rows = {name: kid(extractor(getattr(item, field)), real, seed=subject.seed)
                        for name, field in (("network", "made"), ("bicubic", "bicubic"))}  # fmt: skip
                figures[f"kid/{extractor.name}"] = {key: asdict(value) for key, value in rows.items()}
                beats.append(rows["network"].value < rows["bicubic"].value)
        return {**figures, "beats_bicubic": all(beats)}

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return both errors, and a note if the network is not better in every value."""
        rmse = figures["rmse"]
        both = f"RMSE {rmse['network']:.3f}, bicubic enlargement {rmse['bicubic']:.3f}"
        names = [key for key in figures if key.startswith("kid/")]
        both += "".join(
            f"; kernel distance ({_network(key)}) {figures[key]['network']['value']:.3g}, "
            f"bicubic {figures[key]['bicubic']['value']:.3g}"
            for key in names
        )
        start = f"U-Net {_network(name)} on small real images: {both}"
        return start if figures["beats_bicubic"] else f"{start}: it does not beat bicubic enlargement"


def _rmse(one: Tensor, other: Tensor) -> Tensor:
    """Return the root mean squared difference of each pair of images."""
    return (one.double() - other.double()).square().flatten(1).mean(1).sqrt()


@METRICS.register("classes")
class Classes(Metric):
    """Fraction of images whose class is recognised by a classifier trained on real ones (see `class_accuracy`).

    Every fifth real image is held out for the ceiling. Images larger than `SIDE` are shrunk to it.
    """

    #: longest side of the images that the classifier sees
    SIDE = 32

    def obstacle(self, subject: Subject) -> str:
        """Return the reason why no classes can be recognised, or an empty text."""
        if not subject.labels or subject.examples is None:
            return "needs data with classes (emoji64 has styles, a folder has subfolders)"
        return super().obstacle(subject)

    def compute(self, subject: Subject) -> Figures:
        """Train the classifier and count the recognised images."""
        images, labels = subject.examples()  # type: ignore[misc]
        names = sorted({*labels, *subject.labels})
        truth = torch.tensor([names.index(label) for label in labels])
        wanted = torch.tensor([names.index(label) for label in subject.labels])
        held = torch.arange(len(images)) % 5 == 4
        images, generated = self._small(images), self._small(subject.generated)
        net = train_classifier(images[~held], truth[~held], seed=subject.seed)
        found = class_accuracy(net, generated, wanted, held_out=(images[held], truth[held]))
        by_class = {names[number]: value for number, value in found.by_class.items()}
        figures = {**asdict(found.generated), "real": asdict(found.ceiling), "chance": found.chance}
        return {"classes": {**figures, "by_class": by_class, "generated": len(generated)}}

    def _small(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale = min(1.0, self.SIDE / max(height, width))
        return resize(images, (max(1, round(height * scale)), max(1, round(width * scale))), "area")

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the fraction of recognised images, with that of real ones."""
        made, real, guess = (
            percent(value) for value in (figures["value"], figures["real"]["value"], figures["chance"])
        )
        return f"the class is recognised in {made} of the images; in {real} of real ones; guessing {guess}"


@METRICS.register("bpd")
class BitsPerDimension(Metric):
    """Bits per dimension of real images under each U-Net, an upper bound (see `bits_per_dim`)."""

    usual = False

    def obstacle(self, subject: Subject) -> str:
        """Return the reason why there are no bits, or an empty text."""
        return "" if subject.bits is not None else "needs a model"

    def compute(self, subject: Subject) -> Figures:
        """Average the bits of the real images."""
        each = subject.bits()  # type: ignore[misc]
        return {
            f"bpd/{number}": {**asdict(mean_interval(bits, seed=subject.seed)), "images": len(bits)}
            for number, bits in each.items()
        }

    def sentence(self, name: str, figures: dict[str, Any]) -> str:
        """Return the bits with their interval."""
        value = Estimate(**{end: figures[end] for end in ("value", "low", "high")})
        return f"U-Net {_network(name)}: at most {value} bits per dimension of real images"


def usual_metrics() -> tuple[str, ...]:
    """Return the names of the metrics that are computed by default."""
    return tuple(name for name in METRICS if METRICS[name].usual)


def computed(
    subject: Subject, names: tuple[str, ...], note: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the name, the value and the sentence of every metric that can be computed.

    Args:
        subject: the input.
        names: of metrics.
        note: called with one sentence for each metric that cannot be computed.
    """
    with torch.no_grad():
        for name in names:
            metric = METRICS[name]()
            obstacle = metric.obstacle(subject)
            if obstacle:
                note(f"{name} is left out: it {obstacle}")
                continue
            for key, figures in metric.compute(subject).items():
                yield key, figures, metric.sentence(key, figures)

"""Implementation of ``imagen eval``: images of a model or folder, real ones beside them, metrics and a sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ._drawing import EvalOptions, Model, write_results
from ._errors import USAGE, CommandFailed, say
from ._eval_videos import evaluate_videos, judges_clips
from ._files import check_place
from ._judge import EMBEDDED_JUDGE, caption_judge, fingerprint
from ._models import find_model
from ._real import FolderImages, RealData, chosen_source, folder_images, image_files, recorded_source
from ._sampling import Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.features import FeatureExtractor
    from ..evaluation.subject import Enlarged, Subject

#: small real images that are given to an upsampler, real images with classes, and those whose bits are counted, at most
UPSAMPLED, EXAMPLES, COUNTED = 64, 1500, 32


def find_target(given: str | None) -> str | Path:
    """Return the checkpoint that is meant as a text, or a folder of images as a path.

    Raises:
        click.UsageError: a folder that holds neither.
    """
    if given is None or "://" in given or not Path(given).is_dir():
        return find_model(given)
    from ..checkpoints import newest_in

    found = newest_in(given)
    if found is not None:
        return found
    if image_files(Path(given)):
        return Path(given)
    raise click.UsageError(f"the folder {given} holds neither a checkpoint (imagen.pt) nor images")


class Generated(NamedTuple):
    """Images to judge: ``(n, c, h, w)`` in [0, 1], their captions or none, and what JSON says about them.

    ``places`` are the indices of the real images with the same captions, or None.
    """

    images: Tensor
    captions: list[str]
    facts: dict[str, Any]
    places: list[int] | None = None
    enlarged: list[Enlarged] = []
    small_size: tuple[int, int] | None = None


def _drawn(model: Model, real: RealData, request: EvalOptions) -> Generated:
    """Draw captions of the data, each with a seed of its own."""
    text = not model.imagen.unconditional
    if text and not real.captions:
        raise CommandFailed(
            f"the images of {real.source.name} have no captions, and the model needs captions: --data names others",
            USAGE,
        )
    places = real.evenly_spaced(request.limit)
    captions = [real.captions[place] for place in places] if text else []
    count = len(captions) if text else request.limit
    wanted = [Wanted(captions[index] if text else None, request.seed + index) for index in range(count)]
    images, words = model.sample(wanted, request)
    some = places[:: max(1, -(-len(places) // UPSAMPLED))]
    enlarged = []
    if model.last > 1 and (not request.metrics or "upsampler" in request.metrics):
        import torch

        texts = [real.captions[place] for place in some] if text else []
        enlarged = model.enlarged(torch.stack([real.image(place) for place in some]), texts, request)
    below = model.imagen.stages[model.last - 2].size if model.last > 1 else None
    facts = {"model": model.record(), "sampling": words, "seeds": [request.seed, request.seed + count - 1]}
    return Generated(images, captions, facts, places if text else None, enlarged, below)


def _found(folder: FolderImages, real: RealData) -> Generated:
    """The images of a folder, and the real images of the same captions where the data have all of them."""
    places = {caption: place for place, caption in reversed(list(enumerate(real.captions)))}
    known = [places.get(caption) for caption in folder.captions]
    same = None if not known or None in known else known
    return Generated(folder.images, folder.captions, {"files": folder.names}, same)


def _subject(
    made: Generated,
    real: RealData,
    training: RealData,
    extractors: list[FeatureExtractor],
    request: EvalOptions,
    model: Model | None,
) -> Subject:
    """Everything that is compared; what costs time is computed when a metric asks for it."""
    import torch

    from ..evaluation.subject import Pool, Subject

    reference = real.evenly_spaced(request.reference)
    captions = [real.captions[place] for place in reference] if real.captions else []
    pool = Pool(real.image, reference)
    judge, learned = None, False
    if made.captions and (not request.metrics or "retrieval" in request.metrics):
        judge, learned = caption_judge(real, training, extractors[0], request.seed)

    def stack(data: RealData, places: list[int]) -> Tensor:
        return torch.stack([data.image(place) for place in places])

    def examples() -> tuple[Tensor, list[str]]:
        places = training.evenly_spaced(EXAMPLES)
        return stack(training, places), [training.labels[place] for place in places]

    def bits() -> dict[int, Tensor]:
        places = real.evenly_spaced(min(COUNTED, request.limit))
        texts = [real.captions[place] for place in places] if real.captions else []
        return model.bits(stack(real, places), texts, request)  # type: ignore[union-attr]

    places = made.places or []
    return Subject(
        generated=made.images,
        reference=pool,
        training=pool if training is real else Pool(training.image, training.evenly_spaced(request.reference)),
        extractors=extractors,
        captions=made.captions,
        real=stack(real, places) if places else None,
        candidates=captions,
        judge=judge,
        judge_learned=learned,
        small_size=made.small_size,
        enlarged=made.enlarged,
        labels=[real.labels[place] for place in places] if real.labels and training.labels else [],
        examples=examples if training.labels else None,
        bits=None if model is None else bits,
        seed=request.seed,
    )


def run(request: EvalOptions) -> None:
    """Compute, print and write everything.

    Raises:
        click.ClickException: anything that the user can put right.
        ValueError: no extractor or metric of a name, one that cannot be used here, or a setting out of range.
    """
    from ..evaluation.features import extractors
    from ..evaluation.metrics import METRICS
    from ..evaluation.report import evaluate, judging_extractors, learned_extractors, sheet

    for name in request.metrics:
        METRICS[name]
    for name in request.extractor:  # a wrong name is said before anything is loaded
        extractors()[name.partition(":")[0]]
    target = find_target(request.target)
    check_place(Path(request.output, "eval.json"))
    model = Model(target, request, judges_clips(target, request.data)) if isinstance(target, str) else None
    if model is not None and model.imagen.is_video:
        evaluate_videos(model, request)
        return
    if model is None:
        asked = (request.image_size, request.image_size) if request.image_size else None
        folder = folder_images(target, request.limit, asked)
        source, size, channels, learned = chosen_source(request.data, None), folder.images.shape[-2:], 3, ()
    else:
        source, size = chosen_source(request.data, recorded_source(model.path)), model.size
        channels, learned = model.imagen.channels, learned_extractors(model.imagen.to_config())
    real = RealData(source, request.split, tuple(size), channels)
    training = real if request.split is None else RealData(source, None, tuple(size), channels)
    judges = judging_extractors(request.extractor, learned, EMBEDDED_JUDGE if real.embedded == "emoji64" else None)
    if not request.quiet:
        where = str(target) if model is None else model.place
        names = ", ".join(each.name for each in judges)
        say(f"{where}: compared with {real.source.name} ({len(real)} images) by {names}")
    made = _found(folder, real) if model is None else _drawn(model, real, request)
    subject = _subject(made, real, training, judges, request, model)
    report = evaluate(subject, request.metrics)
    if not request.quiet:
        for line in (*report.sentences, *report.notes):
            say(f"  {line}")
    facts = {
        "target": str(target),
        **made.facts,
        "data": real.record,
        "images": subject.counts(),
        "extractors": {each.name: fingerprint(each) for each in judges},
        "figures": report.figures,
        "notes": report.notes,
    }
    title = ": ".join(filter(None, (str(target), made.facts.get("sampling"))))
    write_results(request.output, "eval", facts, sheet(subject, report, title))

"""Judges of captions and of clips, and fingerprints of the networks that compare images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.features import FeatureExtractor
    from ..evaluation.retrieval import CaptionJudge
    from ._real import RealData

#: the extractor and judge that was made for the embedded images
EMBEDDED_JUDGE = "emoji64-probe"
#: real images that a judge of captions learns from, at most
JUDGE_LEARNS = 1200
#: the encoder of a judge that learns: it takes no part in any training
WORDS = "builtin:words"


def caption_judge(
    real: RealData, training: RealData, extractor: FeatureExtractor, seed: int
) -> tuple[CaptionJudge | None, bool]:
    """Return a judge of captions, and whether it has learned the real images it is compared on.

    The embedded images have a judge of their own. For other data one learns the training images in clean and augmented
    versions.

    Args:
        real: the real images beside the generated ones.
        training: images to learn from.
        extractor: whose features a new judge looks at.
        seed: of its training.

    Returns:
        None in its place where the data have no captions.
    """
    import torch

    from ..evaluation.features import extractors, feature_extractor
    from ..evaluation.retrieval import train_probe
    from ..text import text_encoder

    if real.embedded == "emoji64" and EMBEDDED_JUDGE in extractors():
        return feature_extractor(EMBEDDED_JUDGE), real.split in ("train", "all")  # type: ignore[return-value]
    if not training.captions:
        return None, False
    places = training.evenly_spaced(JUDGE_LEARNS)
    images = torch.stack([training.image(place) for place in places])
    captions = [training.captions[place] for place in places]
    encoder = text_encoder(WORDS)
    probe = train_probe(images, captions, extractor=extractor, encoder=encoder, seed=seed, augment=True)
    return probe, real is training


def fingerprint(extractor: FeatureExtractor) -> str | None:
    """Return a digest of the weights of an extractor; None if it has none."""
    from torch import nn

    from ..training.identity import contents_digest

    own = extractor.sha256()
    nets = {name: item.state_dict() for name, item in vars(extractor).items() if isinstance(item, nn.Module)}
    return own if own is not None else contents_digest(nets) if nets else None


def clip_figures(made: Tensor, real: Tensor, captions: Sequence[str], seed: int) -> dict[str, Any]:
    """Compute how many clips move, and show the digit, as their captions say.

    Args:
        made, real: clips ``(n, c, f, h, w)`` of one size in [0, 1], one of each per caption.
        captions: of moving digits.
        seed: of the training of the classifier that recognises digits.

    Returns:
        ``motion`` of `motion_figures` and ``digits`` of `digit_figures`, each only if a caption says something of it.
    """
    from ..evaluation.digits import caption_digit, digit_figures, train_digit_reader
    from ..evaluation.motion import motion_figures

    report = {"motion": motion_figures(made, real, captions)}
    if any(caption_digit(text) is not None for text in captions):
        height, width = made.shape[-2:]
        report["digits"] = digit_figures(train_digit_reader((height, width), seed=seed), made, real, captions)
    return {name: figures for name, figures in report.items() if figures}


def clip_table(report: dict[str, Any]) -> list[str]:
    """Return the figures of `clip_figures` as lines of a table; none without figures."""
    rows = []
    if "motion" in report:
        motion = report["motion"]
        made = {"value": motion["generated"], "low": motion["low"], "high": motion["high"]}
        rows.append(("moves where its caption says", made, motion["chance"], motion["real"]))
    if "digits" in report:
        digits = report["digits"]
        for name, label in (("most_frames", "most frames show its digit"), ("every_frame", "every frame shows it")):
            rows.append((label, digits[name]["generated"], digits["chance"], digits[name]["real"]["value"]))
    if not rows:
        return []
    clips = max(figures["clips"] for figures in report.values())
    title = f"clips ({clips} of each kind)"
    lines = [f"{title:32}{'generated':>11}{'95 % interval':>20}{'chance':>10}{'real clips':>12}"]
    for label, made, chance, real in rows:
        interval = f"({100 * made['low']:.1f} to {100 * made['high']:.1f})"
        lines.append(f"  {label:30}{100 * made['value']:9.1f} %{interval:>20}{100 * chance:8.1f} %{100 * real:10.1f} %")
    return lines

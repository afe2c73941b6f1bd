"""Judges of captions, and fingerprints of the networks that compare images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    places = training.spread(JUDGE_LEARNS)
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

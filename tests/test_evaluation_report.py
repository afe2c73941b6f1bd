"""An evaluation as a whole: which extractors may judge, what identical and different images get, what is left out."""

from __future__ import annotations

import json

import pytest
import torch

from imagen_pytorch.evaluation.features import extractors, feature_extractor
from imagen_pytorch.evaluation.metrics import METRICS, usual_metrics
from imagen_pytorch.evaluation.report import evaluate, family, judging_extractors, learned_extractors, sheet
from imagen_pytorch.evaluation.subject import Enlarged, Pool, Subject

torch.manual_seed(0)
REAL = torch.rand(48, 3, 8, 8)


def pool(images: torch.Tensor) -> Pool:
    return Pool(lambda index: images[index], range(len(images)))


def subject(generated: torch.Tensor, **changes) -> Subject:
    values = {"reference": pool(REAL), "training": pool(REAL), "extractors": [feature_extractor("pixels")]}
    return Subject(generated, **{**values, **changes})


def test_images_of_the_same_distribution_beat_all_others():
    generator = torch.Generator().manual_seed(1)
    same = evaluate(subject(torch.rand(40, 3, 8, 8, generator=generator))).figures
    darker = evaluate(subject(torch.rand(40, 3, 8, 8, generator=generator) * 0.4)).figures
    one = evaluate(subject(REAL[:1].expand(40, -1, -1, -1))).figures
    assert same["kid/pixels"]["low"] <= 0.01 < darker["kid/pixels"]["value"]
    for other in (darker, one):
        assert same["kid/pixels"]["value"] < other["kid/pixels"]["value"]
        assert same["precision/pixels"]["recall"] > other["precision/pixels"]["recall"]
    assert same["fd/pixels"]["value"] < darker["fd/pixels"]["value"]
    assert same["nearest/pixels"]["copied"] < 0.2 and one["nearest/pixels"]["copied"] == 1


def test_every_figure_is_json_and_has_a_sentence():
    made = Enlarged(2, REAL[:10], REAL[10:20], REAL[:10])
    report = evaluate(subject(REAL[:20], enlarged=[made]))
    assert json.loads(json.dumps(report.figures)) == report.figures
    assert len(report.sentences) == len(report.figures) and all(map(str, report.sentences))
    assert report.figures["upsampler/2"]["beats_bicubic"] and report.figures["upsampler/2"]["rmse"]["network"] == 0
    assert [note.split(" is left out")[0] for note in report.notes] == ["retrieval", "classes"]


def test_an_upsampler_that_is_worse_than_bicubic_is_named():
    made = Enlarged(3, REAL[10:20], REAL[:10], REAL[:10])
    report = evaluate(subject(REAL[:20], enlarged=[made]), ["upsampler"])
    assert list(report.figures) == ["upsampler/3"] and report.sentences[0].endswith(
        "it does not beat bicubic enlargement"
    )


@pytest.mark.parametrize("name", usual_metrics())
def test_too_few_images_are_said(name):
    with pytest.raises(ValueError, match=f"the metric {name} cannot be computed: it needs"):
        evaluate(subject(REAL[:1]), [name])


def test_metrics_are_named_and_misspellings_found():
    assert set(evaluate(subject(REAL), ["fd", "kid"]).figures) == {"fd/pixels", "kid/pixels"}
    with pytest.raises(ValueError, match='no metric "fdd".*did you mean "fd"'):
        evaluate(subject(REAL), ["fdd"])
    assert set(usual_metrics()) <= set(METRICS)


def test_features_of_a_pool_are_those_of_its_images_computed_once():
    reads: list[int] = []
    many = Pool(lambda index: reads.append(index) or REAL[index], [*range(0, 48, 2)])
    extractor = feature_extractor("pixels")
    assert torch.equal(many.features(extractor), extractor(REAL[::2])) and many.features(extractor) is not None
    assert reads == list(range(0, 48, 2)) and torch.equal(many.images([1, 3]), REAL[[2, 6]])


def test_families_of_extractors():
    assert family("efficientnet-lite0") == family("efficientnet-lite2") == "efficientnet"
    assert family("inception:/a/b-2.pth") == family("inception") == "inception"
    assert family("dino:/a/x") == family("transformers:x") != family("clip:/a/y")
    different = {"pixels", "efficientnet-lite0", "inception:x", "dino:x", "clip:y", "emoji64-probe"}
    assert len({family(name) for name in different}) == len(different)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ()),
        ({"perceptual_loss": None}, ()),
        ({"perceptual_loss": "pixels"}, ("pixels",)),
        ({"perceptual_loss": {"features": "efficientnet-lite0", "weight": 0.1}}, ("efficientnet-lite0",)),
        ({"perceptual_loss": [None, {"features": "pixels"}, {"features": "pixels"}]}, ("pixels",)),
        ({"perceptual_loss": (None, {"weight": 1})}, ()),
    ],
)
def test_what_took_part_in_training_is_read_from_the_construction(given, names):
    assert learned_extractors(given) == names


def test_an_extractor_of_a_learned_family_is_refused_or_passed_over():
    assert [each.name for each in judging_extractors(["pixels", "pixels"])] == ["pixels"]
    with pytest.raises(ValueError, match='"efficientnet-lite0" took part in training .*"efficientnet-lite2"'):
        judging_extractors(["efficientnet-lite0"], ["efficientnet-lite2"])
    left = [each.name for each in judging_extractors([], ["efficientnet-lite2"])]
    assert left and not any(name.startswith("efficientnet") for name in left)
    with pytest.raises(ValueError, match="every extractor that is installed took part"):
        judging_extractors([], list(extractors()))
    with pytest.raises(ValueError, match='no feature extractor "pixle".*did you mean "pixels"'):
        judging_extractors(["pixle"])


def test_the_sheet_shows_every_kind_of_image():
    whole = subject(REAL[:20], captions=[f"number {i}" for i in range(20)], real=REAL[20:40])
    wide = sheet(whole, evaluate(whole, ["nearest"]), "a title")
    narrow = sheet(subject(REAL[:20]), evaluate(subject(REAL[:20]), ["fd"]))
    assert wide.width > narrow.width + 2 * 128 and wide.height >= 12 * 128

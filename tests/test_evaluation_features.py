"""Feature extractors: every member keeps its word, weights of the user are read, and what does not fit is named."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import nn

from imagen_pytorch.evaluation.features import UserFunction, extractors, feature_extractor
from imagen_pytorch.evaluation.inception import InceptionV3


def images(count: int = 3, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file with the names of FID's, with random weights, a classifier and no counters of batches."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    state = {name: value for name, value in InceptionV3().state_dict().items() if "num_batches" not in name}
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random models of three kinds, each with the settings of its images."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sight = {**small, "image_size": 16, "patch_size": 8}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    models = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**sight)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=sight, text_config=text, projection_dim=12)
        ),
        "convnext": transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, patch_size=2)
        ),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (root / name / "preprocessor_config.json").write_text(json.dumps(settings))
    return root


def check(extract, dim: int) -> None:
    given = images()
    features = extract(given)
    assert features.shape == (3, dim) == (3, extract.dim) and not features.requires_grad
    assert float((features[0] - features[1]).abs().max()) > 0
    extract.batch_size = 2
    torch.testing.assert_close(extract(given), features, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(extract(given.flip(0)), features.flip(0), atol=1e-4, rtol=1e-3)
    grey = given.mean(1, keepdim=True)
    torch.testing.assert_close(extract(grey), extract(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", extractors().names())
def test_members_that_need_no_argument_agree_with_their_word(name):
    member = extractors()[name]
    if not member.available():
        assert member.argument or member.packages  # there is something to give or to install
        pytest.skip(f"{name} needs an argument or packages that are not installed")
    extract = feature_extractor(name)
    assert extract.name == name and not extract.is_fid
    assert extract.weights is None or len(extract.sha256()) == 64
    check(extract, extract.dim)


# -- Inception ---------------------------------------------------------------------------------------------------------


def test_inception_has_the_layers_that_are_known():
    with torch.device("meta"):
        net = InceptionV3()
    names = set(net.state_dict())
    # published counts of the network without its classifier: 94 convolutions, 21,785,568 weights
    assert sum(name.endswith(".conv.weight") for name in names) == 94
    assert sum(item.numel() for item in net.parameters()) == 21_785_568
    assert {"Conv2d_1a_3x3.bn.running_mean", "Mixed_5b.branch5x5_2.conv.weight", "Mixed_6a.branch3x3dbl_3.bn.bias",
            "Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7a.branch7x7x3_4.conv.weight",
            "Mixed_7c.branch3x3dbl_3b.bn.weight", "Mixed_7b.branch_pool.conv.weight"} <= names  # fmt: skip
    assert net.Mixed_6c.branch7x7_2.conv.kernel_size == (1, 7) and net.Mixed_6c.branch7x7_3.conv.kernel_size == (7, 1)


def test_inception_reads_the_weights_that_are_given(inception_file, monkeypatch):
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    extract = feature_extractor(f"inception:{inception_file}")
    assert (extract.name, extract.is_fid, extract.sha256()) == ("inception", False, digest)  # not the weights of FID
    stored = torch.load(inception_file)["Mixed_7c.branch1x1.conv.weight"]
    assert torch.equal(extract.net.Mixed_7c.branch1x1.conv.weight, stored)
    assert extract(images(2)).shape == (2, 2048)
    monkeypatch.setenv("IMAGEN_INCEPTION", str(inception_file))
    monkeypatch.setattr("imagen_pytorch.evaluation.inception.FID_DIGEST", digest[:8])
    assert feature_extractor("inception").is_fid


# -- models of transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, dim", [("vit", 16), ("clip", 12), ("convnext", 8)])
def test_local_models_give_the_vectors_that_are_usual(kind, dim, folders):
    extract = feature_extractor(f"dino:{folders / kind}")
    assert extract.name == f"transformers:{kind}" and len(extract.sha256()) == 64
    check(extract, dim)
    pixels = (images(side=16) - extract.mean) / extract.std
    assert float(extract.mean[2]) == pytest.approx(0.3) and float(extract.std[0]) == pytest.approx(0.2)
    with torch.no_grad():
        if kind == "vit":
            torch.testing.assert_close(extract(images(side=16)), extract.net(pixels).last_hidden_state[:, 0])
        if kind == "clip":
            seen = extract.net.visual_projection(extract.net.vision_model(pixels).pooler_output)
            torch.testing.assert_close(extract(images(side=16)), seen)


def test_local_models_are_the_same_each_time(folders):
    first, second = (feature_extractor(f"transformers:{folders / 'vit'}")(images()) for _ in range(2))
    assert torch.equal(first, second)


# -- functions of the user ---------------------------------------------------------------------------------------------


def test_any_function_or_network_serves():
    def brightness(batch):
        return batch.mean((2, 3))

    extract = feature_extractor(brightness)
    assert isinstance(extract, UserFunction) and extract.name == "brightness" and extract.sha256() is None
    torch.testing.assert_close(extract(images()), images().mean((2, 3)))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 5), nn.Dropout(0.5)).train()
    wrapped = feature_extractor(net)
    check(wrapped, 5)
    assert net.training and wrapped.name == "Sequential"
    assert feature_extractor(wrapped) is wrapped


def test_mistakes_are_named(tmp_path, folders, monkeypatch):
    monkeypatch.delenv("IMAGEN_INCEPTION", raising=False)
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "preprocessor_config.json").write_text('{"size": 16, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    for name, message in (
        ("inceptoin", 'no feature extractor "inceptoin"; known: .*did you mean "inception"'),
        ("pixels:8", 'the feature extractor "pixels" takes no argument, got "8"'),
        ("inception", "inception needs its weights: inception:/path/to/weights.pth, or IMAGEN_INCEPTION"),
        (f"inception:{tmp_path / 'none.pth'}", "needs a file of weights"),
        (f"inception:{tmp_path / 'other.pth'}", r"no Conv2d_1a_3x3.conv.weight and \d+ more of the right shape"),
        (f"inception:{tmp_path / 'text.pth'}", "is not readable as weights"),
        ("clip", "needs its folder"),
        (f"clip:{tmp_path / 'empty'}", "preprocessor_config.json must hold the size"),
        (f"clip:{broken}", "holds no vision model that transformers can open"),
    ):
        with pytest.raises(ValueError, match=message):
            feature_extractor(name)
    with pytest.raises(ValueError, match=r"must return vectors \(3, d\) for a batch, got \(3, 3, 24, 24\)"):
        feature_extractor(lambda batch: batch)(images())

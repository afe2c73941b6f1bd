"""``imagen eval``: figures, sheet and sentences for models and folders, and what it refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import click.testing
import pytest
import torch
from cli_toys import write_model
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch import Imagen, Unet
from imagen_pytorch.checkpoint import read_checkpoint
from imagen_pytorch.cli import _drawing, main
from imagen_pytorch.cli._real import chosen_source, folder_images, image_files, recorded_source
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation import metrics, retrieval
from imagen_pytorch.evaluation.metrics import METRICS
from imagen_pytorch.evaluation.report import learned_extractors

FILES: dict[str, bytes] = {}
COLOURS = ("red", "green", "blue", "gray")
FAST = ("--extractor", "pixels", "--data", "real", "--limit", "12")


def write_images(folder: str, count: int = 16, size: int = 8, captions: bool = True) -> None:
    """Boxes in four colours, all different, with their captions beside them."""
    Path(folder).mkdir()
    for number in range(count):
        image = Image.new("RGB", (size, size), "white")
        image.paste(COLOURS[number % 4], (number % 5, number % 3, 5 + number % 4, 7))
        image.save(f"{folder}/{number:02}.png")
        if captions:
            Path(f"{folder}/{number:02}.txt").write_text(f"a {COLOURS[number % 4]} box, number {number}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen eval`` in a folder with a model and real images."""
    monkeypatch.chdir(tmp_path)
    quick = functools.partial(retrieval.train_probe, steps=10)
    monkeypatch.setattr(retrieval, "train_probe", quick)
    if not FILES:
        write_model("imagen.pt")
        FILES["imagen.pt"] = Path("imagen.pt").read_bytes()
    Path("imagen.pt").write_bytes(FILES["imagen.pt"])
    write_images("real")
    return lambda *arguments: CliRunner().invoke(main, ["eval", *map(str, arguments)])


def figures(done: click.testing.Result) -> dict:
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == ["eval.json", "eval.png"]
    Image.open("eval.png").load()
    return json.loads(Path("eval.json").read_text())


def test_a_model_is_judged_by_every_usual_metric(run):
    done = run("imagen.pt", *FAST, "--seed", 3, "--steps", 1)
    report = figures(done)
    found = {name.partition("/")[0] for name in report["figures"]}
    assert found == {"kid", "fd", "precision", "retrieval", "nearest", "upsampler"}
    assert report["seeds"] == [3, 14] and report["images"] == {"generated": 12, "real": 16, "size": "8x8"}
    assert report["data"]["name"] == "real" and report["data"]["count"] == 16 and report["data"]["digest"]
    assert report["model"]["digest"] and report["extractors"] == {"pixels": None} and report["date"]
    assert "edm, 1 steps" in report["sampling"]
    kid = report["figures"]["kid/pixels"]
    assert kid["low"] <= kid["value"] <= kid["high"] and abs(kid["real_halves"]["value"]) < kid["value"]
    assert {"chance", "ceiling", "generated", "references"} <= set(report["figures"]["retrieval"])
    assert "real images reach" in done.stderr and "guessing 6.2 %" in done.stderr  # 1 of 16
    assert "it does not beat bicubic enlargement" in done.stderr  # its weights are random
    assert not report["figures"]["upsampler/2"]["beats_bicubic"]


def test_the_same_seeds_give_the_same_figures(run):
    one = figures(run(*FAST, "--metrics", "kid,fd", "--steps", 1))["figures"]
    done = run(*FAST, "--metrics", "kid,fd", "--steps", 1, "--batch-size", 5)
    again = json.loads(Path("eval-1.json").read_text())["figures"]
    assert done.stdout.split() == ["eval-1.json", "eval-1.png"] and set(one) == set(again) == {
        "kid/pixels",
        "fd/pixels",
    }
    assert one["fd/pixels"]["value"] == pytest.approx(again["fd/pixels"]["value"], rel=1e-3)


def test_real_images_judged_as_generated_ones_are_perfect(run):
    report = figures(run("real", *FAST, "--limit", 16))["figures"]
    assert report["fd/pixels"]["value"] == pytest.approx(0, abs=1e-6) and report["precision/pixels"]["recall"] == 1
    assert report["retrieval"]["generated"] == report["retrieval"]["ceiling"]
    assert report["nearest/pixels"]["copied"] == 1  # every image is a training image
    assert "upsampler" not in report


def test_images_without_captions_are_judged_without_them(run):
    write_images("plain", captions=False)
    done = run("plain", *FAST)
    report = figures(done)
    assert "retrieval" not in report["figures"] and report["figures"]["kid/pixels"]["generated"] == 12
    assert "retrieval is left out: it needs captions" in done.stderr


def test_a_grey_model_without_captions(run):
    write_model("grey.pt", channels=1, condition_on_text=False)
    write_images("plain", captions=False)
    done = run("grey.pt", *FAST[:2], "--data", "plain", "--limit", 12, "--steps", 1)
    report = figures(done)
    found = {name.partition("/")[0] for name in report["figures"]}
    assert found == {"kid", "fd", "precision", "nearest", "upsampler"}
    assert report["images"]["generated"] == 12 and "retrieval is left out: it needs captions" in done.stderr


def test_the_embedded_images_have_a_judge_of_their_own(run, monkeypatch):
    """It is taken instead of one that learns, and has seen the train split alone."""
    from imagen_pytorch.evaluation.features import Pixels

    monkeypatch.setattr("imagen_pytorch.cli._judge.EMBEDDED_JUDGE", "pixels")
    monkeypatch.setattr(retrieval, "train_probe", lambda *_, **__: pytest.fail("one learned"))
    monkeypatch.setattr(Pixels, "networks", {"extractor": "own", "encoder": "own"}, raising=False)
    monkeypatch.setattr(
        Pixels, "similarity", lambda _, images, texts: torch.ones(len(images), len(texts)), raising=False
    )
    arguments = ("--data", "emoji64", "--limit", 4, "--reference", 12, "--steps", 1, "--extractor", "pixels")
    for number, split in enumerate(("pair", "train")):
        done = run("imagen.pt", *arguments, "--split", split, "--metrics", "retrieval")
        assert done.exit_code == 0, done.stderr
        report = json.loads(Path(f"eval{f'-{number}' if number else ''}.json").read_text())
        found = report["figures"]["retrieval"]
        assert found["extractor"] == "own" and found["generated"]["R@1"] == 0  # ties count against it
        assert found["judge_learned_real_images"] == (split == "train") and report["data"]["split"] == split


def test_images_of_sample_have_their_captions_and_sheets_are_left_out(run):
    Path("captions.txt").write_text("".join(f"a {colour} box, number {i}\n" for i, colour in enumerate(COLOURS)))
    done = CliRunner().invoke(main, ["sample", "--prompts", "captions.txt", "-o", "out/", "--grid", "--save-stages"])
    assert done.exit_code == 0 and len(done.stdout.split()) == 9, done.stderr
    assert len(image_files(Path("out"))) == 4
    found = folder_images(Path("out"), 10, None)
    assert sorted(found.captions) == sorted(Path("captions.txt").read_text().splitlines())
    report = figures(run("out", *FAST, "--metrics", "retrieval,fd"))
    assert set(report["figures"]) == {"retrieval", "fd/pixels"} and "ceiling" in report["figures"]["retrieval"]


def test_data_are_those_of_the_training(run):
    model = {
        "image_sizes": [8],
        "text_encoder_name": "builtin:words",
        "timesteps": 1,
        "unets": [{"dim": 8, "dim_mults": [1], "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}],
    }
    values = {"imagen": model, "dataset_name": "emoji64", "checkpoint_path": "run.pt"}
    values["dataset"] = {"batch_size": 2, "styles": ["3d"], "groups": ["food-drink"]}
    Path("imagen_config.json").write_text(json.dumps(values))
    trained = CliRunner().invoke(main, ["train", "--steps", "1", "-q"])
    assert trained.exit_code == 0, trained.stderr
    source = recorded_source("run.pt")
    assert source.name == "emoji64" and source.arguments == {"styles": ["3d"], "groups": ["food-drink"]}
    assert read_checkpoint("run.pt")["data_source"]["count"] == len(open_source(source.name, **source.arguments))
    assert chosen_source(None, source) == chosen_source("emoji64", source) == source
    assert chosen_source("real", source) == ("real", {}) and chosen_source(None, None) == ("emoji64", {})
    report = figures(run("run.pt", "--limit", 4, "--split", "pair", "--extractor", "pixels", "--metrics", "fd"))
    assert report["data"]["split"] == "pair" and 2 <= report["data"]["count"] < 20


def test_bits_per_dimension_and_classes(run, monkeypatch):
    monkeypatch.setattr(_drawing, "EVALUATIONS", 2)
    monkeypatch.setattr(metrics, "train_classifier", functools.partial(metrics.train_classifier, steps=40))
    Path("folders").mkdir()
    for name in COLOURS[:2]:
        Path(f"folders/{name}").mkdir()
        for number in range(8):
            Image.new("RGB", (8, 8), name).save(f"folders/{name}/{number}.png")
            Path(f"folders/{name}/{number}.txt").write_text(f"{name} {number}")
    arguments = ("--data", "folders", "--limit", 6, "--steps", 1, "--extractor", "pixels", "--metrics", "bpd,classes")
    done = run("imagen.pt", *arguments)
    found = figures(done)["figures"]
    assert set(found) == {"bpd/1", "bpd/2", "classes"} and found["classes"]["real"]["value"] == 1
    assert set(found["classes"]["by_class"]) == {"red", "green"} and found["classes"]["chance"] == 0.5
    for number in (1, 2):
        bits = found[f"bpd/{number}"]
        assert bits["low"] <= bits["value"] <= bits["high"] and bits["images"] == 6
    assert "bits per dimension of real images" in done.stderr and "the class is recognised in" in done.stderr
    refused = run("real", *FAST, "--metrics", "bpd")
    assert refused.exit_code == 2 and "bpd cannot be computed: it needs a model" in refused.stderr
    refused = run("imagen.pt", *FAST, "--metrics", "classes")
    assert refused.exit_code == 2 and "needs data with classes" in refused.stderr


def test_the_construction_of_a_model_names_the_features_it_was_trained_with():
    small = {"dim": 8, "dim_mults": (1,), "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
    loss = {"features": "efficientnet-lite0", "weight": 0.1}
    for given in (loss, (None, loss), "efficientnet-lite0"):
        unets = [Unet(**small) for _ in range(2)]
        imagen = Imagen(unets, image_sizes=(4, 8), condition_on_text=False, perceptual_loss=given)
        assert learned_extractors(imagen.to_config()) == ("efficientnet-lite0",)
    plain = Imagen(Unet(**small), image_sizes=(4,), condition_on_text=False)
    assert learned_extractors(plain.to_config()) == ()


def test_an_extractor_that_took_part_in_training_is_refused(run, monkeypatch):
    own = _drawing.Model.__init__

    def made(self, *arguments):
        own(self, *arguments)
        config = self.imagen.to_config
        self.imagen.to_config = lambda: {**config(), "perceptual_loss": [None, {"features": "pixels", "weight": 0.1}]}

    monkeypatch.setattr(_drawing.Model, "__init__", made)
    done = run(*FAST)
    assert done.exit_code == 2 and 'the extractor "pixels" took part in training' in done.stderr
    assert not Path("eval.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--extractor", "efficientnet-lite9"], 2, ["efficientnet-lite9", "did you mean"]),
        (["--extractor", "pixels,"], 2, ["commas between them"]),
        (["--metrics", "kidd"], 2, ['no metric "kidd"', 'did you mean "kid"']),
        (["plain", *FAST, "--metrics", "retrieval"], 2, ["retrieval cannot be computed", "needs captions"]),
        (["real", *FAST, "--metrics", "upsampler"], 2, ["upsampler cannot be computed"]),
        (["--data", "plain"], 2, ["plain have no captions", "--data"]),
        (["--data", "nowhere"], 2, ["nowhere"]),
        (["--data", "moving-digits"], 2, ["clips"]),
        (["--data", "real", "--split", "pair"], 2, ["real has no splits"]),
        (["--split", "pairs"], 2, ["'pairs'", "pair"]),
        (["mixed", *FAST], 3, ["different sizes", "8x8 (00.png)", "16x16 (big.png)", "--image-size"]),
        (["broken", *FAST], 3, ["cannot read broken/1.png"]),
        (["empty"], 2, ["neither a checkpoint (imagen.pt) nor images"]),
        (["none.pt"], 2, ["no model at none.pt"]),
        (["damaged.pt"], 4, ["damaged.pt"]),
        (["--sampler", "ddmi", *FAST], 2, ["ddmi"]),
        (["--stop-at-unet", "3"], 2, ["2 U-Nets"]),
        ([*FAST, "-o", "imagen.pt/x"], 2, ["imagen.pt/x"]),
        (["imagen.pt", *FAST, "--device", "cuda:63"], 2, ["cuda:63"]),
    ],
)
def test_mistakes(run, arguments, code, words):
    write_images("plain", captions=False)
    write_images("mixed", count=3)
    write_images("broken", count=1)
    Image.new("RGB", (16, 16)).save("mixed/big.png")
    Path("broken/1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("empty").mkdir()
    Path("damaged.pt").write_bytes(FILES["imagen.pt"][:-500])
    done = run(*arguments)
    line = done.stderr.splitlines()[-1]
    assert done.exit_code == code and all(word in line for word in words), done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr and "unexpected" not in done.stderr
    assert not list(Path().glob("eval*"))


def test_mixed_sizes_can_be_brought_to_one(run):
    write_images("mixed", count=12)
    Image.new("RGB", (20, 16)).save("mixed/big.png")
    Path("mixed/big.txt").write_text("a black image")
    done = run("mixed", *FAST, "--limit", 20, "--image-size", 8, "--metrics", "fd")
    assert figures(done)["images"] == {"generated": 13, "real": 16, "size": "8x8"}


def test_a_model_of_videos_is_refused(run):
    from imagen_pytorch import Unet3D
    from imagen_pytorch.imagen import ElucidatedImagen
    from imagen_pytorch.trainer import ImagenTrainer

    small = {"dim": 8, "dim_mults": (1,), "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
    imagen = ElucidatedImagen([Unet3D(**small)], image_sizes=(4,), condition_on_text=False, video_frames=2)
    ImagenTrainer(imagen, use_ema=False).save("video.pt")
    done = run("video.pt")
    assert done.exit_code == 2 and "video.pt makes videos; imagen eval and compare judge images" in done.stderr


def test_the_help_names_every_metric():
    words = CliRunner().invoke(main, ["eval", "--help"]).stdout
    assert all(name in words for name in METRICS)

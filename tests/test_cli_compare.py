"""``imagen compare``: pairs of images from the same captions and seeds, their figures, and what is refused."""

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

from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.cli import main
from imagen_pytorch.evaluation import retrieval
from imagen_pytorch.evaluation.comparison import caption_scores, compare_images
from imagen_pytorch.evaluation.features import EfficientNetLite0, EfficientNetLite2

FILES: dict[str, bytes] = {}
FAST = ("--data", "real", "--limit", "6", "--steps", "1")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen compare`` in a folder with two models and real images."""
    monkeypatch.chdir(tmp_path)
    for kind in (EfficientNetLite0, EfficientNetLite2):  # pixels are enough here, and take no time
        monkeypatch.setattr(kind, "available", classmethod(lambda _: False))
    monkeypatch.setattr(retrieval, "train_probe", functools.partial(retrieval.train_probe, steps=10))
    if not FILES:
        write_model("a.pt")
        write_model("b.pt", image_sizes=(8,), trained=1)
        FILES.update({name: Path(name).read_bytes() for name in ("a.pt", "b.pt")})
    for name, contents in FILES.items():
        Path(name).write_bytes(contents)
    Path("real").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 99, 9)).save(f"real/{number}.png")
        Path(f"real/{number}.txt").write_text(f"image {number}")
    return lambda *arguments: CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def calls(monkeypatch):
    """The arguments of all calls of `Cascade.sample`."""
    made: list[dict] = []
    own = Cascade.sample
    spy = functools.wraps(own)(lambda self, **given: made.append(given) or own(self, **given))
    monkeypatch.setattr(Cascade, "sample", spy)
    return made


def report(done: click.testing.Result) -> dict:
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == ["compare.json", "compare.png"]
    Image.open("compare.png").load()
    return json.loads(Path("compare.json").read_text())


def test_two_models_draw_the_same_captions_with_the_same_seeds(run, calls):
    done = run("a.pt", "b.pt", *FAST, "--seed", 4)
    found = report(done)
    one, other = ((call["texts"], call["seed"]) for call in calls)
    assert one == other
    assert calls[0]["seed"] == [4, 5, 6, 7, 8, 9] and calls[0]["texts"][0] == "image 0"
    assert found["a"]["model"]["path"] == "a.pt" and found["b"]["model"]["path"] == "b.pt" and found["images"] == 6
    assert set(found["figures"]) == {"caption similarity", "R@1"} and found["data"]["count"] == 8
    for figure in found["figures"].values():
        ends = figure["difference"]
        assert ends["low"] <= figure["b"] - figure["a"] <= ends["high"]
    assert "caption similarity: A " in done.stderr and "R@1: A " in done.stderr


def test_two_settings_of_one_model(run, calls):
    found = report(run("a.pt", *FAST, "--a", "cond_scale=1", "--b", "cond-scale=3,2,steps=2,sampler=ddim"))
    assert [(call["cond_scale"], call["steps"], call["sampler"]) for call in calls] == [
        (1.0, 1, None), ([3.0, 2.0], 2, "ddim")
    ]  # fmt: skip
    assert found["a"]["sampling"].startswith("no guidance") and "ddim, 2 steps" in found["b"]["sampling"]


def test_captions_from_a_file(run, calls):
    Path("captions.txt").write_text("one\ntwo\nthree\n")
    report(run("a.pt", "b.pt", *FAST[:2], "--prompts", "captions.txt", "--steps", 1, "-q"))
    assert calls[0]["texts"] == ["one", "two", "three"]


def test_models_without_captions_have_a_sheet_and_no_figures(run):
    write_model("plain.pt", condition_on_text=False)
    done = run("plain.pt", *FAST, "--a", "steps=1", "--b", "steps=2")
    assert report(done)["figures"] == {} and "without captions images have no figures of their own" in done.stderr
    refused = run("plain.pt", "a.pt")
    assert refused.exit_code == 2 and "one of the models takes captions" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.pt"], 2, ["A and B are the same", "--b cond_scale=3"]),
        (["a.pt", "--a", "steps=1", "--b", "steps=1"], 2, ["A and B are the same"]),
        (["a.pt", "none.pt"], 2, ["no model at none.pt"]),
        (["a.pt", "damaged.pt"], 4, ["damaged.pt"]),
        (["a.pt", "--b", "steps=0"], 2, ["--b", "steps", "below 1"]),
        (["a.pt", "--b", "stesp=3"], 2, ['no option "stesp"', 'did you mean "steps"']),
        (["a.pt", "--b", "steps=1,steps=2"], 2, ["steps twice"]),
        (["a.pt", "--b", "3"], 2, ["form cond_scale=3,steps=8"]),
        (["a.pt", *FAST, "--b", "sampler=ddmi"], 2, ["ddmi", "ddim"]),
        (["a.pt", "b.pt", "--data", "plain"], 2, ["plain have no captions", "--prompts"]),
        (["a.pt", "b.pt", "--prompts", "none.txt"], 2, ["none.txt"]),
        (["a.pt", "b.pt", "--data", "real", "--split", "pair"], 2, ["real has no splits"]),
        (["a.pt", "b.pt", *FAST, "-o", "a.pt/x"], 2, ["a.pt/x"]),
    ],
)
def test_mistakes(run, arguments, code, words):
    Path("plain").mkdir()
    Image.new("RGB", (8, 8)).save("plain/a.png")
    Path("damaged.pt").write_bytes(FILES["a.pt"][:-500])
    done = run(*arguments)
    line = done.stderr.splitlines()[-1]
    assert done.exit_code == code and all(word in line for word in words), done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr and not list(Path().glob("compare*"))


class Brightness:
    """A judge to whom captions are numbers: an image fits the one that is its brightness."""

    networks = {"extractor": "mean", "encoder": "float"}

    def similarity(self, images, captions):
        return -(images.mean((1, 2, 3))[:, None] - torch.tensor([float(text) for text in captions])).abs()


def grey(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None].expand(-1, 3, 4, 4)


def test_the_side_that_fits_better_is_named_and_chance_is_said():
    captions = [f"{value:.3f}" for value in torch.linspace(0, 1, 40)]
    truth = torch.tensor([float(text) for text in captions])
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 0.1
    similarity, found = compare_images(Brightness(), grey(truth + noise), grey(truth), captions)
    assert found.name == "R@1" and found.b == 1 and found.difference.low > 0
    assert "B is better by" in similarity.sentence() and "chance" not in similarity.sentence()
    other, _ = compare_images(Brightness(), grey(truth), grey(truth + noise), captions)
    assert other.difference.value == pytest.approx(-similarity.difference.value)
    assert "A is better by" in other.sentence()
    same, _ = compare_images(Brightness(), grey(truth + noise), grey(truth - noise), captions)
    assert same.difference.includes(0) and "so this may be chance" in same.sentence()
    equal, _ = compare_images(Brightness(), grey(truth), grey(truth), captions)
    assert "no difference" in equal.sentence()


def test_scores_know_their_captions_and_refuse_other_numbers():
    values = torch.tensor([0.1, 0.9])
    scores = caption_scores(Brightness(), grey(values), ["0.1", "0.5"], ["0.8"])
    assert scores["R@1"].tolist() == [1, 0] and scores["caption similarity"].tolist() == pytest.approx(
        [0, -0.4], abs=1e-6
    )
    with pytest.raises(ValueError, match="2 images need as many captions, got 1"):
        caption_scores(Brightness(), grey(values), ["0.1"], [])

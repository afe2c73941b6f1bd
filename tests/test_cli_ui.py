"""`imagen ui`: its command, and the models, images and trainings of the page on a model of 8x8 pixels."""

from __future__ import annotations

import json
import os
import socket

import click
import pytest
from cli_toys import write_model
from click.testing import CliRunner
from PIL import Image
from ui_toys import FIELDS

from imagen_pytorch.cli import main
from imagen_pytorch.cli._studio import LocalStudio
from imagen_pytorch.image_metadata import read_settings
from imagen_pytorch.ui.form import Form


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    write_model(str(folder / "imagen.pt"))
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder):
    return LocalStudio(str(folder), str(folder / "images"), "cpu")


def make(studio, callback=lambda *_: None, **fields):
    return studio.make(Form(**{**FIELDS, "model": str(studio.folder) + "/imagen.pt", "seed": "7", **fields}), callback)


def test_the_list_has_the_pretrained_models_and_those_of_the_folder(studio, folder):
    assert studio.models == ("emoji", "moving-digits", str(folder / "imagen.pt"))
    assert "ddpm" in studio.samplers


def test_images_are_written_with_their_settings(studio):
    steps = []
    files, words = make(studio, lambda *step: steps.append(step[:3]), steps="3,2", guidance="1.5", sampler="ddim")
    assert [caption for _, caption in files] == ["seed 7", "seed 8"] and "3,2 steps, seed 7" in words
    assert steps == [(1, 0, 3), (1, 1, 3), (1, 2, 3), (2, 0, 2), (2, 1, 2)]
    assert files[1][0].parent == studio.output and Image.open(files[1][0]).size == (8, 8)
    found = studio.settings(str(files[1][0]))
    expected = {"prompt": "a red heart", "negative": "", "seed": "8", "steps": "3,2", "sampler": "ddim"}
    assert found == {**expected, "guidance": "1.5", "model": studio.models[-1]}


def test_the_same_seed_gives_the_same_image(studio):
    first, again = (make(studio, count=1)[0][0][0] for _ in range(2))
    assert first != again and Image.open(first).tobytes() == Image.open(again).tobytes()


def test_an_empty_seed_draws_one_that_is_said(studio):
    (_, first), (_, again) = (make(studio, count=1, seed="") for _ in range(2))
    assert first != again


def test_given_images(studio, folder):
    red = str(folder / "red.png")
    hole = Image.new("RGBA", (8, 8), "red")
    hole.putpixel((4, 4), (0, 0, 0, 0))
    hole.save(folder / "hole.png")
    (kept, _), *_ = make(studio, task="init", image=red, strength=0.0, count=1)[0]
    assert read_settings(kept)["strength"] == 0.0
    (painted, _), *_ = make(studio, task="inpaint", image=str(folder / "hole.png"), count=1, prompt="")[0]
    assert (
        Image.open(painted).getpixel((0, 0)) == (255, 0, 0) and read_settings(painted)["inpaint"]["name"] == "hole.png"
    )
    (large, _), *_ = make(studio, task="enlarge", image=red, count=1, prompt="")[0]
    assert Image.open(large).size == (8, 8) and read_settings(large)["start_at_unet"] == 2


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"steps": "many"}, "Steps: "),
        ({"guidance": "nan"}, "Guidance: "),
        ({"seed": "-1"}, "Seed: "),
        ({"sampler": "ddmi"}, "ddim"),
        ({"count": 1.5}, "1.5"),
        ({"prompt": "--device"}, None),  # a caption, not an option
    ],
    ids=str,
)
def test_mistakes_are_sentences(studio, fields, sentence):
    if sentence is None:
        assert read_settings(make(studio, count=1, **fields)[0][0][0])["prompt"] == "--device"
        return
    with pytest.raises((click.ClickException, ValueError)) as caught:
        make(studio, **fields)
    assert sentence in studio.sentence(caught.value)


def test_an_unexpected_error_has_no_sentence(studio):
    assert studio.sentence(RuntimeError("secret")) is None
    assert "out of memory" in studio.sentence(MemoryError("x"))
    assert "holds no settings" in studio.sentence(
        pytest.raises(ValueError, studio.settings, str(studio.folder) + "/red.png").value
    )


def test_a_model_is_read_once_until_its_file_changes(studio, folder, monkeypatch):
    import imagen_pytorch.cli._studio as module

    opened = []
    monkeypatch.setattr(module, "open_model", lambda *given: opened.append(given) or open_model(*given))
    from imagen_pytorch.cli._session import open_model

    studio._opened = None
    for _ in range(2):
        make(studio, count=1)
    os.utime(folder / "imagen.pt", (1, 1))
    make(studio, count=1)
    assert len(opened) == 2


def test_trainings(tmp_path):
    for name, age in (("old", 10), ("new", 20)):
        (tmp_path / name).mkdir()
        log = tmp_path / name / "metrics.jsonl"
        rows = [{"unet": 1, "step": step, "from_step": 0, "loss": 1 / step} for step in range(1, age)]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(log, (age, age))
    Image.new("RGB", (8, 8)).save(tmp_path / "new" / "sample-000010.png")
    studio = LocalStudio(str(tmp_path), str(tmp_path / "images"), "cpu")
    assert studio.runs() == [str(tmp_path / "new"), str(tmp_path / "old")]
    words, curve, sheet = studio.run(studio.runs()[0])
    assert words == "U-Net 1: step 19, loss 0.0526" and curve.size[0] > 100 and sheet.size == (8, 8)
    (tmp_path / "old" / "metrics.jsonl").write_text("damaged")
    assert studio.run(studio.runs()[0])[1:] == (None, None)


def run(*words: str):
    return CliRunner().invoke(main, ["ui", *words], standalone_mode=False)


def test_other_machines_need_a_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = run("--host", "0.0.0.0").exception
    assert "lets other machines in: set IMAGEN_UI_PASSWORD" in error.format_message() and error.exit_code == 2


def test_a_missing_package_and_a_taken_port_are_sentences(tmp_path, monkeypatch):
    import imagen_pytorch.ui.server as module

    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(module, "find_spec", lambda name: object())
        assert "port 0 takes a free one" in run("--port", str(taken.getsockname()[1])).exception.format_message()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert 'pip install "gradio' in run("--port", "0").exception.format_message()

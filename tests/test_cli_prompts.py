"""Captions with options beside them, lists that go on where they stopped, and captions from a terminal."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from cli_toys import write_model
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.cli import _session, main
from imagen_pytorch.cli._prompts import STATED, read_line
from imagen_pytorch.image_metadata import read_settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen sample`` in a folder with a model in it."""
    monkeypatch.chdir(tmp_path)
    write_model("imagen.pt")

    def call(*arguments: object, text: str | None = None):
        return CliRunner().invoke(main, ["sample", *(str(item) for item in arguments)], input=text)

    return call


def made(done) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """The arguments of every call of `Cascade.sample`."""
    found: list[dict] = []
    own = Cascade.sample
    spy = functools.wraps(own)(lambda self, **given: found.append(given) or own(self, **given))
    monkeypatch.setattr(Cascade, "sample", spy)
    return found


# -- lines ------------------------------------------------------------------------------------------------------------


COMMAND = main.get_command(click.Context(main), "sample")
CONTEXT = click.Context(COMMAND, parent=click.Context(main, **main.context_settings))


def read(line: str) -> tuple[str | None, dict]:
    return tuple(read_line(line, "line 1", CONTEXT))


@pytest.mark.parametrize(
    ("line", "caption", "options"),
    [
        ("a cat", "a cat", {}),
        ("a cat --n blurry, red --d 7", "a cat", {"negative": "blurry, red", "seed": 7}),
        ("a cat  --s 20 --l 4 --d=7", "a cat", {"steps": 20, "cond_scale": 4.0, "seed": 7}),
        ("a cat --s 4,8 --l 3,1", "a cat", {"steps": [4, 8], "cond_scale": [3.0, 1.0]}),
        ("a cat --w 64 --h 32", "a cat", {"width": 64, "height": 32}),
        ("a cat --guidance_scale 2 --num-inference-steps 5", "a cat", {"cond_scale": 2.0, "steps": 5}),
        ("a cat --sampler ddpm(eta=0.5),heun", "a cat", {"sampler": ["ddpm(eta=0.5)", "heun"]}),
        ("a well-known thing - at night", "a well-known thing - at night", {}),
        ("an arrow --> here", "an arrow --> here", {}),
        ("x -- y", "x -- y", {}),
        ("{curly} hair", "{curly} hair", {}),
        ('{"prompt": "a --d 7", "seed": 4}', "a --d 7", {"seed": 4}),
        ('{"text": "x", "negative_prompt": "y", "guidance": null}', "x", {"negative": "y"}),
        ('{"prompt": "x", "steps": [2, 3], "cond_scale": 2, "num_images": 3}', "x",
         {"steps": [2, 3], "cond_scale": 2.0, "num_images": 3}),
        ('{"prompt": null, "init": "a.png", "fit": "pad"}', None, {"init": "a.png", "fit": "pad"}),
    ],
)  # fmt: skip
def test_lines(line, caption, options):
    assert read(line) == (caption, options)


@given(st.text(max_size=30), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_json_holds_any_caption(caption, seed):
    assert read(json.dumps({"prompt": caption, "seed": seed})) == (caption, {"seed": seed})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a cat --x 3", 'no option "x" of a caption; known: prompt, negative'),
        ("a cat --step 3", 'no option "step" of a caption; did you mean "steps"?'),
        ("a cat --d", "--d has no value"),
        ("a cat --d seven", "'seven' is not a valid integer"),
        ("a cat --d -1", "-1 is not in the range"),
        ("a cat --s 0", "'0' is below 1"),
        ("a cat --l x", "'x' is not one float"),
        ("a cat --output b.png", 'no option "output"'),
        ("a cat --frames 4", 'no option "frames"'),
        ("{'prompt': 'x'}", "it begins with { and is not valid JSON"),
        ('{"prompt": 7}', "it is not a text"),
        ('{"prompt": "\\ud800"}', "is not valid UTF-8"),
        ('{"prompt": "x", "seed": true}', "is not a valid integer"),
        ('{"prompt": "x", "seed": [1, 2]}', "is not a valid integer"),
        ('{"prompt": "x", "fit": "all"}', "'all' is not one of"),
        ('{"a": ' * 2000 + "1" + "}" * 2000, "is not valid JSON"),
    ],
)
def test_wrong_lines_are_one_sentence(line, words):
    with pytest.raises(click.UsageError) as error:
        read(line)
    assert error.value.message.startswith("line 1: ") and words in error.value.message, error.value.message


def test_lines_state_only_what_the_command_has():
    names = {parameter.name for parameter in COMMAND.params}
    assert set(STATED) <= names


# -- lists ------------------------------------------------------------------------------------------------------------


def test_every_line_has_its_own_options(run, calls):
    lines = [
        "a cat --d 7 --s 1",
        "a dog --d 3 --s 1",
        "a fox --n red --l 2 --s 1",
        '{"prompt": "a cow", "num_images": 2}',
    ]
    Path("a.txt").write_text("\n".join(["# comment", "", *lines]))
    done = run("--prompts", "a.txt", "--seed", 5, "--sampler", "ddim")
    assert made(done) == ["a_cat.png", "a_dog.png", "a_fox.png", "a_cow.png", "a_cow-1.png"]
    assert [call.get("texts") for call in calls] == [["a cat", "a dog"], ["a fox"], ["a cow", "a cow"]]
    assert [call["seed"] for call in calls] == [[7, 3], [5], [5, 6]]
    assert [call["negative_texts"] for call in calls] == [None, "red", None]
    found = read_settings("a_fox.png")
    assert (found["negative_prompt"], found["cond_scale"], found["steps"], found["sampler"]) == ("red", 2.0, 1, "ddim")
    assert len(done.stderr.splitlines()) == 3 and "imagen.pt on cpu" in done.stderr.splitlines()[0]
    again = made(
        run(
            "a fox",
            "--negative",
            "red",
            "--cond-scale",
            2,
            "--steps",
            1,
            "--seed",
            5,
            "--sampler",
            "ddim",
            "-o",
            "b.png",
        )
    )
    assert (np.asarray(Image.open(again[0])) == np.asarray(Image.open("a_fox.png"))).all()


def test_a_size_is_that_of_the_model(run):
    Path("a.txt").write_text("a cat --w 8 --h 8\n")
    assert made(run("--prompts", "a.txt")) == ["a_cat.png"]
    Path("a.txt").write_text("one\na cat --w 512 --h 512\n")
    done = run("--prompts", "a.txt")
    assert (
        done.exit_code == 2
        and done.stdout == ""
        and "asks for 512x512 pixels: this model makes images of 8x8" in done.stderr
    )


def test_a_wrong_line_is_refused_before_the_first_image(run, calls):
    for line, words in (
        ("a cat --sampler none", '"none"'),
        ("a --s 1,2,3", "2 U-Nets"),
        ("a --d x", "line 2 of a.txt"),
    ):
        Path("a.txt").write_text(f"one\n{line}\n")
        done = run("--prompts", "a.txt")
        assert done.exit_code == 2 and not calls and words in done.stderr and "Traceback" not in done.stderr


def test_lines_name_images(run):
    Image.new("RGB", (8, 8), "red").save("red.png")
    Path("a.txt").write_text(
        '{"init": "red.png", "strength": [0, 0]}\n{"prompt": "x", "init": "red.png", "strength": [0, 0]}\n'
    )
    first, second = made(run("--prompts", "a.txt"))
    assert (first, second) == ("red-1.png", "x.png") and np.asarray(Image.open(first))[0, 0].tolist()[0] >= 254


def test_a_list_goes_on_where_it_stopped(run, calls):
    Path("a.txt").write_text("one\ntwo --s 1\nthree\nthree\n")
    names = made(run("--prompts", "a.txt", "--seed", 5, "-o", "out/", "-n", 2))
    assert len(names) == len(set(names)) == 8
    before = {name: Path(name).read_bytes() for name in names}
    calls.clear()
    done = run("--prompts", "a.txt", "--seed", 5, "-o", "out/", "-n", 2)
    assert set(made(done)) == set(names[:6]) and not calls and "8 of them existed already" in done.stderr
    Path("out/two.png").unlink()
    Path("out/three-3.png").write_bytes(b"cut off")
    run("--prompts", "a.txt", "--seed", 5, "-o", "out/", "-n", 2)
    assert [call["texts"] for call in calls] == [["two"]]
    assert read_settings("out/two.png")["seed"] == 5
    calls.clear()
    for options in (
        ["--seed", 16],
        ["--seed", 5, "--steps", 3],
        ["--seed", 5, "--grid"],
        ["--seed", 5, "--no-metadata"],
    ):
        made(run("--prompts", "a.txt", "-o", "out/", *options))
        assert calls, options
        calls.clear()
    assert all(
        Path(name).read_bytes() == contents
        for name, contents in before.items()
        if "three-3" not in name and "two" not in name
    )


def test_processes_share_a_list(run, monkeypatch, calls):
    Path("a.txt").write_text("one\ntwo --s 1\nthree --s 1\nfour\nfive\n")
    found = []
    for rank in range(2):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        found += made(run("--prompts", "a.txt", "--seed", 3))
    assert sorted(found) == [f"{name}-3.png" for name in ("five", "four", "one", "three", "two")]


def test_other_commands_take_captions_alone(run):
    Path("a.txt").write_text("one\ntwo --d 7\n")
    write_model("other.pt")
    done = CliRunner().invoke(main, ["compare", "imagen.pt", "other.pt", "--prompts", "a.txt"])
    assert done.exit_code == 2 and "line 2 of a.txt: only imagen sample takes options" in done.stderr


# -- a terminal -------------------------------------------------------------------------------------------------------


def test_captions_are_asked_for_until_an_empty_line(run, monkeypatch, calls):
    monkeypatch.setattr(_session, "_asks", lambda imagen, request: True)
    done = run("--steps", 1, text="a cat --d 7\na dog --step 3\na dog --s 2 --d 9\n\nnot drawn\n")
    assert done.exit_code == 0, done.stderr
    assert [call["texts"] for call in calls] == [["a cat"], ["a dog"]] and [call["steps"] for call in calls] == [1, 2]
    assert 'did you mean "steps"' in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("imagen.pt on cpu") >= 1 and Path("a_cat.png").exists() and Path("a_dog.png").exists()
    done = run("--steps", 1, text="a fox")
    assert done.exit_code == 0 and Path("a_fox.png").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="terminals as POSIX has them")
def test_a_terminal_is_asked_and_a_pipe_is_not(run):
    import pty

    done = run(text="a cat\n")
    assert done.exit_code == 2 and "what to draw" in done.stderr
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "imagen_pytorch", "sample", "--steps", "1", "--quiet"]
    os.write(main_end, b"a cat --d 7\n\n")
    streams = {"stdin": terminal, "stdout": terminal, "stderr": subprocess.PIPE}
    done = subprocess.run(command, **streams, env=environment, timeout=600)
    os.close(terminal)
    shown = os.read(main_end, 10_000).decode()
    os.close(main_end)
    assert done.returncode == 0, done.stderr.decode()
    assert "a_cat.png" in shown and read_settings("a_cat.png")["seed"] == 7

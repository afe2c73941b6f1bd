"""``imagen info``: what a configuration or a checkpoint is and costs, read without running or allocating anything."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from imagen_pytorch.checkpoints import describe_checkpoint, newest_in, read_checkpoint, write_checkpoint
from imagen_pytorch.checkpoints.sharded import write_sharded
from imagen_pytorch.cli import _info, main
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.profiling import advice, estimates
from imagen_pytorch.profiling.advice import Machine
from imagen_pytorch.signatures import parse

UNET = {
    "dim": 8,
    "dim_mults": [1],
    "num_resnet_blocks": 0,
    "layer_attns": False,
    "layer_cross_attns": False,
    "attend_at_middle": False,
    "mid_cross_attn": False,
    "use_global_context_attn": False,
    "attn_pool_text": False,
    "init_cross_embed": False,
    "attn_heads": 2,
    "max_text_len": 8,
}
CONFIG = {
    "imagen": {"image_sizes": [4, 8], "unets": [UNET, UNET], "timesteps": 3, "text_encoder_name": "builtin:words:16"},
    "trainer": {"precision": "bf16"},
    "dataset": {"batch_size": 6},
}
MADE = {}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen info`` in a folder with a configuration, on a machine with hardly any memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advice, "this_machine", lambda: Machine("cpu", "this machine", 400_000))
    Path("mine.json").write_text(json.dumps(CONFIG))
    return lambda *arguments: CliRunner().invoke(main, ["info", *(str(item) for item in arguments)])


@pytest.fixture
def contents(tmp_path) -> dict:
    """What a trainer has saved after a step of its first U-Net."""
    if not MADE:
        trainer = parse(TrainingConfig, {**CONFIG, "trainer": {}}).create()
        trainer(torch.rand(2, 3, 8, 8), text_embeds=torch.randn(2, 3, 16), unet_number=1)
        trainer.update(1)
        trainer.save(tmp_path / "made.pt")
        MADE.update(read_checkpoint(tmp_path / "made.pt"))
    return MADE


def save(contents: dict, path: str | Path) -> None:
    write_checkpoint(contents, path)


def shapes(value):
    """Contents with shapes in place of tensors."""
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def test_tables_and_json_say_the_same(run, monkeypatch):
    known, own = {}, estimates.estimate
    monkeypatch.setattr(
        estimates, "estimate", lambda model, plan: known.get(plan) or known.setdefault(plan, own(model, plan))
    )
    done, data = run("mine.json"), run("mine.json", "--json")
    assert done.exit_code == data.exit_code == 0
    facts = json.loads(data.stdout)
    made = parse(TrainingConfig, CONFIG).imagen.create()
    counts = [sum(item.numel() for item in unet.parameters()) for unet in made.unets]
    assert [unet["parameters"] for unet in facts["unets"]] == counts
    assert facts["plan"]["batch_size"] == 6 and facts["plan"]["precision"] == "bf16"
    assert facts["unets"][0]["sampling"]["evaluations"] == 3 and facts["unets"][1]["lowres_size"] == [4, 4]
    assert facts["total"]["parameters"] == sum(counts) and facts["kind"] == "configuration"
    lines = done.stdout.splitlines()
    assert (
        len(facts["warnings"]) == 2
        and max(map(len, lines)) <= 100
        and not [line for line in lines if line != line.rstrip()]
    )
    for text in (advice.scaled(counts[0]), "4x4 -> 8x8", "builtin:words:16", "training step of 6", "bfloat16"):
        assert text in done.stdout


def test_what_fits_is_said_to_fit(run, monkeypatch):
    known, own = {}, estimates.estimate
    monkeypatch.setattr(
        estimates, "estimate", lambda model, plan: known.get(1) or known.setdefault(1, own(model, plan))
    )
    assert "it fits" not in run("mine.json").stdout
    monkeypatch.setattr(advice, "this_machine", lambda: Machine("cpu", "this machine", 400_000_000))
    assert re.search(r"\nit fits: training takes [\d.]+ [kM]B of the 400 MB of memory\n$", run("mine.json").stdout)


@pytest.mark.parametrize("name", ["imagen.pt", "a.safetensors", "memory://info/a.pt", "checkpoint.7.pt"])
def test_checkpoints(run, contents, name, monkeypatch):
    monkeypatch.setattr(estimates, "estimate", lambda *_: [])  # takes the time, and is the same for all
    save(contents, name)
    done = run(name, "--json", "--batch-size", 3)
    facts = json.loads(done.stdout)
    file = facts["checkpoint"]
    assert file["averages"] and file["describes_model"] and file["version"] == contents["version"]
    assert [(unet["number"], unet["steps"], unet["optimizer"]) for unet in file["unets"]] == [
        (1, 1, True),
        (2, 0, False),
    ]
    assert file["numbers"] == sum(item.numel() for item in contents["model"].values())
    assert facts["plan"]["batch_size"] == 3 and facts["target"].endswith(name)


def test_a_checkpoint_for_people(run, contents, monkeypatch):
    monkeypatch.setattr(estimates, "estimate", lambda *_: [])
    save(contents, "imagen.pt")
    done = run()  # of this folder, as `imagen sample` takes it
    assert done.stdout.startswith("checkpoint imagen.pt\nfile      pt, ") and "optimizer state" in done.stdout
    assert "\n    1            1 " in done.stdout and max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_only_descriptions_are_read(tmp_path, contents, monkeypatch, kind):
    path, url, read = tmp_path / f"a.{kind}", f"memory://{tmp_path.name}/a.{kind}", []
    write_checkpoint({**contents, "model": {**contents["model"], "large": torch.zeros(1 << 20)}}, path)
    write_checkpoint(read_checkpoint(path), url)

    class Counted(MemoryFile):
        def read(self, *arguments):
            data = super().read(*arguments)
            read.append(len(data))
            return data

        def readinto(self, target):
            read.append(super().readinto(target))
            return read[-1]

    opened = MemoryFileSystem.open
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *a, **k: Counted(data=opened(*a, **k).getvalue()))
    for place in (path, url):
        info = describe_checkpoint(place, ("steps",))
        assert info.size == path.stat().st_size and sum(read) < info.size / 8 and bool(read) == (place == url)
        assert info.contents["steps"].tolist() == [1, 0] and info.contents["model"]["large"].is_meta


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_an_outline_has_the_shapes_of_the_contents(tmp_path, contents, name):
    save(contents, tmp_path / name)
    assert shapes(describe_checkpoint(tmp_path / name).contents) == shapes(read_checkpoint(tmp_path / name))


def test_shards_and_folders(run, tmp_path, contents):
    tensors = {f"model/{name}": item for name, item in contents["model"].items()}
    plain = {name: value for name, value in contents.items() if name != "model"}
    for steps in (3, 12):
        write_sharded(LocalFileSystem(), str(tmp_path / f"checkpoint.{steps}"), tensors, plain)
    (tmp_path / "checkpoint.20").mkdir()  # never finished
    assert newest_in(tmp_path) == str(tmp_path / "checkpoint.12")
    info = describe_checkpoint(tmp_path / "checkpoint.12")
    assert info.format == "shards" and shapes(info.contents["model"]) == shapes(contents["model"])
    assert _info._checkpoint_of(str(tmp_path)) == str(tmp_path / "checkpoint.12")
    files = [path for path in (tmp_path / "checkpoint.12").rglob("*") if path.is_file()]
    assert info.size == sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert run(tmp_path / "checkpoint.20").exit_code == 2 and "holds no checkpoint" in run("checkpoint.20").stderr


def test_a_checkpoint_that_does_not_describe_its_model(run):
    torch.save({"model": {"unets.0.weight": torch.zeros(3, 4)}, "steps": torch.tensor([5])}, "bare.pt")
    done = run("bare.pt")
    assert done.exit_code == 0 and "does not say how its model was made" in done.stdout and " 5 " in done.stdout
    assert json.loads(run("bare.pt", "--json").stdout)["checkpoint"]["unets"][0]["numbers"] == 12


class Malicious:
    """Unpickled by Python, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("broken-into",)


def test_nothing_is_ever_run(run):
    torch.save({"model": Malicious()}, "evil.pt")
    Path("old.pt").write_bytes(pickle.dumps({"model": Malicious()}))
    for name in ("evil.pt", "old.pt"):
        done = run(name)
        assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1 and "cannot read" in done.stderr
    assert "could run code; nothing was executed" in run("evil.pt").stderr
    assert not Path("broken-into").exists()


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("a.txt", b"hello", 2, "neither a checkpoint nor a configuration"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\0", 2, "neither a checkpoint nor a configuration"),
        ("a.json", b"{", 2, "not valid JSON: line 1, column 2"),
        ("a.json", b'{"imagen": {"image_size": 3}}', 2, 'a.json: imagen: .*did you mean "image_sizes"'),
        ("empty.pt", b"", 4, "cut off, damaged or another kind of file"),
        ("a.safetensors", b"\xff" * 40, 4, "cut off, damaged or another kind of file"),
        ("a.pt", b"PK\x03\x04 and so on", 4, "cut off, damaged or another kind of file"),
    ],
)
def test_files_that_are_something_else(run, name, data, code, words):
    Path(name).write_bytes(data)
    done = run(name)
    assert done.exit_code == code and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert re.search(words, done.stderr)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("emojis", "emojis does not exist"),
        ("memory://nowhere/a.pt", "no checkpoint at memory://nowhere/a.pt"),
        (".", "holds no checkpoint"),
        ("mine.json --frames 3", "--frames is for models of videos"),
    ],
)
def test_targets_that_do_not_fit(run, target, words):
    done = run(*target.split())
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_pickle_in_a_whole_file_is_refused(run, contents):
    save(contents, "a.pt")
    data = Path("a.pt").read_bytes()
    at = data.index(b"imagen_params")
    Path("a.pt").write_bytes(data[:at] + b"\0" + data[at + 1 :])
    assert run("a.pt").exit_code == 4 and "checksum" in run("a.pt").stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("version", "3.0\x1b]0;OWNED\x07\x1b[2J", r"written by version 3.0\x1b]0;OWNED\x07\x1b[2J"),
        ("version", "3" * 20_000, f"written by version {'3' * 40} ..."),
        ("version", {"a": "\x1b"}, r"written by version {'a': '\x1b'}"),
        ("version", "\u202e0.3", r"written by version \u202e0.3"),
        ("version", None, "it does not say what wrote it"),
    ],
    ids=["escapes", "long", "a dict", "turned around", "none"],
)
def test_what_a_checkpoint_says_cannot_steer_the_terminal(run, contents, monkeypatch, name, value, words):
    monkeypatch.setattr(estimates, "estimate", lambda *_: [])
    save({**contents, name: value}, "a.pt")
    done = run("a.pt")
    assert done.exit_code == 0 and words in done.stdout and len(done.stdout) < 2000
    assert not re.search(r"[^\n -~]", done.stdout)
    assert len(run("a.pt", "--json").stdout) < 10_000


def test_the_name_of_an_encoder_cannot_steer_the_terminal(run, contents, monkeypatch):
    monkeypatch.setattr(estimates, "estimate", lambda *_: [])
    format_error = {**contents["imagen_params"], "text_encoder_name": "x\x1b[2J\x1b[1;31mFAKE", "text_embed_dim": 16}
    save({**contents, "imagen_params": format_error}, "a.pt")
    for done in (run("a.pt"), run("a.pt", "--json")):
        assert "\x1b" not in done.stdout and "\x1b" not in done.stderr


def test_the_name_of_a_file_cannot_steer_the_terminal(run, contents, monkeypatch):
    monkeypatch.setattr(estimates, "estimate", lambda *_: [])
    save(contents, "a\x1b[2J\u202e.pt")
    done = run("a\x1b[2J\u202e.pt")
    assert done.stdout.startswith(r"checkpoint a\x1b[2J\u202e.pt")
    for missing in ("b\x1b[2J.pt", "\x1b[2J"):
        assert "\x1b" not in run(missing).stderr


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"model": {"unets.\u00b2.x": torch.zeros(2)}}, "2 numbers, of no model"),
        ({"model": {f"unets.{'1' * 5000}.x": torch.zeros(2)}}, "2 numbers, of no model"),
        ({"model": {"unets.\u0663.x": torch.zeros(2)}}, "2 numbers, of no model"),
        ({"model": {"unets.0.x": torch.zeros(2)}, "steps": [10**5000]}, "U-Net"),
        ({"model": {"unets.0.x": torch.zeros(2)}, "steps": [float("nan")]}, "U-Net"),
        ({"model": {"unets.0.x": torch.zeros(2)}, "steps": [-1]}, "U-Net"),
        ({"model": {"unets.0.x": torch.zeros(2)}, "steps": ["many"]}, "U-Net"),
        ({"model": {7: torch.zeros(2)}}, "2 numbers, of no model"),
    ],
    ids=["superscript", "5,000 digits", "arabic", "steps of 5,000 digits", "no number", "negative", "words", "number"],
)
def test_names_and_steps_that_count_nothing(run, contents, words):
    torch.save(contents, "a.pt")
    done = run("a.pt")
    if done.exit_code:  # the reader may refuse it, in a sentence that names the file
        assert done.exit_code == 4 and "a.pt" in done.stderr and "unexpected" not in done.stderr, done.stderr
    else:
        assert words in done.stdout and run("a.pt", "--json").exit_code == 0


@pytest.mark.slow
def test_the_papers_cascade_is_looked_at_without_allocating_it():
    """Three billion parameters, 12 GB of weights."""
    code = (
        "import json, resource, sys\n"
        "from imagen_pytorch.cli import main\n"
        "try: main(['info', 'paper', '--json'])\n"
        "except SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, peak = done.stdout.splitlines()
    facts = json.loads("\n".join(text))
    assert 3.0e9 < facts["total"]["parameters"] < 3.2e9 and int(peak) < 3_000_000  # kilobytes
    assert [unet["image_size"] for unet in facts["unets"]] == [[64, 64], [256, 256], [1024, 1024]]

"""``imagen doctor``: a report that can be pasted, what fails is said with what to do; ``imagen completion``."""

from __future__ import annotations

import json
import socket
import subprocess
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from test_cli_diagnosis import CASES

from imagen_pytorch.cli import _doctor, main

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen doctor`` in an empty folder of a machine whose hub answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(_doctor, "product_seconds", lambda *_: 1.0)
    return lambda *arguments: CliRunner().invoke(main, ["doctor", *(str(item) for item in arguments)])


def report(done) -> dict[str, dict]:
    """The checks of a report in JSON, by name."""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_healthy_machine(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("USER", "planted-user")
    done = run("--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["healthy"] is True
    found = report(done)
    assert {"system", "packages", "device", "memory", "bf16", "fp16", "disk", "this folder", "hub"} <= found.keys()
    assert f"torch {metadata.version('torch')}" in found["packages"]["found"]
    assert found["hub"]["state"] == found["this folder"]["state"] == "ok"
    text = run()
    assert text.exit_code == 0 and len(text.stdout.splitlines()) >= len(found)
    for secret in ("hf_planted", "planted-user", str(tmp_path), str(Path.home()) + "/"):
        assert secret not in done.stdout + text.stdout
    assert not list(tmp_path.iterdir())


def test_what_fails_is_said_with_what_to_do(run, monkeypatch):
    monkeypatch.setattr(_doctor.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    extras = ['nix; extra == "x"', 'nets>=1; extra == "features"']
    monkeypatch.setattr(_doctor.metadata, "requires", lambda _: ["torch>=99", "no-such-pkg>=2", *extras])

    def refused(**_):
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr(_doctor.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: refused())
    done = run("--json")
    found = report(done)
    assert done.exit_code == 1 and json.loads(done.stdout)["healthy"] is False
    assert found["packages"]["advice"] == 'pip install "torch>=99" "no-such-pkg>=2"'
    assert found["extra x"]["state"] == "note" and "nix missing" in found["extra x"]["found"]
    assert found["extra features"]["advice"] == 'pip install --no-deps "nets>=1"'  # their requirements are of no use
    assert found["disk"]["state"] == found["this folder"]["state"] == "fails" and found["hub"]["state"] == "note"
    assert "/secret" not in done.stdout
    assert "fails  this folder: Permission denied\n       go to a folder of your own, or give --output" in run().stdout


def test_a_precision_that_the_device_lacks_is_a_note(run, monkeypatch):
    import torch

    def seconds(_, dtype):
        if dtype == torch.bfloat16:
            raise RuntimeError("not implemented")
        return 2.0 if dtype == torch.float16 else 1.0

    monkeypatch.setattr(_doctor, "product_seconds", seconds)
    done = run("--json")
    found = report(done)
    assert done.exit_code == 0 and found["bf16"]["state"] == found["fp16"]["state"] == "note"
    assert found["bf16"]["advice"] == "leave out --precision bf16" and "no time" in found["fp16"]["advice"]


def test_the_self_test_trains_saves_opens_and_samples(run, monkeypatch):
    (check,) = _doctor._selftest()
    assert check.state == "ok" and "trained, saved, opened and sampled" in check.found
    monkeypatch.setattr("imagen_pytorch.trainer.ImagenTrainer.save", lambda *_: 1 / 0)
    done = run("--selftest")
    assert done.exit_code == 1 and "fails  self-test: ZeroDivisionError" in done.stdout


@pytest.mark.parametrize("verdict", CASES)
def test_a_training_is_judged_by_its_log(run, verdict, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({**row, "reading": 0.1}) + "\n" for row in CASES[verdict]))
    by_folder, by_file = run("."), run(log)
    assert by_folder.stdout == by_file.stdout and len(by_folder.stdout.splitlines()) == 1
    assert by_folder.exit_code == (verdict in ("diverged", "rate too high", "overfitting"))


def test_a_training_that_waits_for_its_data(run, tmp_path):
    rows = [{**row, "reading": 0.8} for row in CASES["fine"]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(".")
    assert done.exit_code == 0 and "note   reading the data: takes 80% of the time" in done.stdout


@pytest.mark.parametrize("rows", [None, [], [{"unet": 1, "step": 1, "loss": 1.0}], ["no", 3], [{"reading": "x"}]])
def test_a_log_that_says_nothing_is_one_sentence(run, rows, tmp_path):
    if rows is not None:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(".")
    assert done.exit_code == 2 and ("no log" if rows is None else "too few losses") in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0 and "_IMAGEN_COMPLETE" in done.stdout


def test_bash_finds_the_completion():
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    done = subprocess.run(["bash", "-c", f"{script}\ncomplete -p imagen"], capture_output=True, text=True, check=True)
    assert "_imagen_completion" in done.stdout


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ([], "do", {"doctor"}),
        (["config", "--preset"], "mov", {"moving-digits"}),
        (["sample", "--model"], "x", {"x"}),  # and the shell's own files
    ],
)
def test_tab_completes_commands_values_and_files(words, begun, expected):
    found = BashComplete(main, {}, "imagen", "_IMAGEN_COMPLETE").get_completions(words, begun)
    assert {item.value for item in found} == expected
    assert words[:1] != ["sample"] or found[0].type == "file"

"""Lines that are printed to be pasted start the very program that printed them."""

from __future__ import annotations

import os
import sys

import pytest

from imagen_pytorch.cli._program import program


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script ``<tmp>/env/bin/imagen``, with ``<tmp>`` as the current folder."""
    path = tmp_path / "env" / "bin" / "imagen"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", [str(path)])
    return path


def test_a_script_that_the_shell_does_not_find_is_named_by_its_path(script, tmp_path, monkeypatch):
    assert program() == os.path.join("env", "bin", "imagen")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert program() == str(script)


def test_a_script_on_the_path_is_named_by_its_name(script, monkeypatch):
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    assert program() == "imagen"


def test_another_program_of_the_same_name_is_not_meant(script, tmp_path, monkeypatch):
    other = tmp_path / "other" / "imagen"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{script.parent}")
    assert program() == os.path.join("env", "bin", "imagen")


def test_a_module_is_started_by_its_interpreter(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/imagen_pytorch/__main__.py"])
    python = tmp_path / "env" / "bin" / "python"
    python.symlink_to("/bin/sh")
    monkeypatch.setattr(sys, "executable", str(python))
    assert program() == os.path.join("env", "bin", "python") + " -m imagen_pytorch"
    monkeypatch.setenv("PATH", str(python.parent))
    assert program() == "python -m imagen_pytorch"


def test_a_space_in_the_path_is_quoted(script, tmp_path, monkeypatch):
    moved = tmp_path / "my env"
    (tmp_path / "env").rename(moved)
    monkeypatch.setattr(sys, "argv", [str(moved / "bin" / "imagen")])
    assert program() == "'my env/bin/imagen'"

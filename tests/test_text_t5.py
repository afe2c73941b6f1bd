"""The functions of `imagen_pytorch.t5`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagen_pytorch import t5

TINY_T5 = str(Path(__file__).parent / "data" / "tiny-t5")
TEXTS = ["a whale breaching from afar", "two dogs"]


def test_constants():
    assert (t5.DEFAULT_T5_NAME, t5.MAX_LENGTH) == ("google/t5-v1_1-base", 256)
    assert t5.get_encoded_dim(t5.DEFAULT_T5_NAME) == 768 and t5.get_encoded_dim(TINY_T5) == 32


def test_tokens_to_states_in_two_steps_equals_one():
    ids, mask = t5.t5_tokenize(TEXTS, name=TINY_T5)
    assert ids.shape == mask.shape and mask.dtype == torch.bool and mask[0].all() and not mask[1].all()
    both = t5.t5_encode_text(TEXTS, name=TINY_T5, return_attn_mask=True)
    embeds = t5.t5_encode_text(TEXTS, name=TINY_T5)
    assert torch.equal(both[0], embeds) and torch.equal(both[1], mask)
    for given in ({"attn_mask": mask}, {"attn_mask": mask.long()}, {"pad_id": 0}):
        states = t5.t5_encode_tokenized_text(ids, **given, name=TINY_T5)
        assert torch.allclose(states, embeds, atol=1e-6) and (states[~mask] == 0).all()


def test_one_string_is_no_list_of_captions():
    for function in (t5.t5_tokenize, t5.t5_encode_text):
        with pytest.raises(TypeError, match=r"write \[text\]"):
            function("two dogs", name=TINY_T5)


def test_a_mask_or_a_padding_id_is_needed():
    with pytest.raises(ValueError, match="attn_mask, or pad_id"):
        t5.t5_encode_tokenized_text(torch.zeros(1, 2, dtype=torch.long), name=TINY_T5)


def test_model_and_tokenizer_are_kept():
    model, tokenizer = t5.get_model_and_tokenizer(TINY_T5)
    assert model is t5.get_model(TINY_T5) and tokenizer is t5.get_tokenizer(TINY_T5)
    assert type(model).__name__ == "T5EncoderModel"


def test_embedded_encoders_work_as_far_as_they_can():
    assert t5.get_encoded_dim("builtin:words") == 128
    assert t5.t5_encode_text(TEXTS, name="builtin:words").shape == (2, 6, 128)
    with pytest.raises(ValueError, match="no tokenizer.*t5_encode_text"):
        t5.get_tokenizer("builtin:words")

"""Functions and objects of the user's program as text encoders."""

from __future__ import annotations

import pytest
import torch
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoints import read_checkpoint
from imagen_pytorch.imagen import imagen_from_config
from imagen_pytorch.text import as_encoder


def letters(texts):
    """Each letter is a token, its number in every feature."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([[float(ord(letter))] * 5 for letter in text or " "]) for text in texts], batch_first=True
    )


def with_mask(texts):
    embeds = letters(texts)
    return embeds.numpy(), (embeds[..., 0] > 0).long().numpy()


class Module(torch.nn.Linear):
    """A network of the user's program, with an odd way to be called."""

    dim = 5

    def encode(self, texts):
        return letters(texts)


@pytest.mark.parametrize("given", [letters, with_mask, lambda texts: letters(texts), Module(2, 2)],
                         ids=["tensor", "numpy and mask", "lambda", "module"])  # fmt: skip
def test_a_function_serves_as_text_encoder(given, tmp_path):
    model = small_imagen(text_encoder=given)
    assert model.text_embed_dim == 5 and model.text_encoder_name.startswith("own:")
    embeds, mask = model.encode_text(["ab", ""], return_attn_mask=True)
    assert embeds.tolist() == [[[97.0] * 5, [98.0] * 5], [[32.0] * 5, [0.0] * 5]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert not [name for name in model.state_dict() if not name.startswith("unets.")]
    trainer = ImagenTrainer(model, verbose=False)
    trainer(pictures(), texts=CAPTIONS), trainer.update()
    trainer.save(tmp_path / "a.pt")
    opened = load_imagen_from_checkpoint(tmp_path / "a.pt")
    assert opened.text_embed_dim == 5 and opened(pictures(), text_embeds=torch.rand(4, 2, 5)).isfinite()
    with pytest.raises(ValueError, match="text encoder of its own program.*text_encoder=.*text_embeds="):
        opened(pictures(), texts=CAPTIONS)
    again = imagen_from_config({**read_checkpoint(tmp_path / "a.pt")["imagen_params"], "text_encoder": given})
    assert torch.equal(again.encode_text(["ab"]), embeds[:1])


def test_one_vector_per_caption_is_one_token_and_a_known_width_asks_nothing():
    asked = []

    def pooled(texts):
        asked.append(texts)
        return torch.ones(len(texts), 5)

    model = small_imagen(text_encoder=pooled, text_embed_dim=5)
    assert not asked
    assert model.encode_text(["a", "b"]).shape == (2, 1, 5) and len(asked) == 1
    with pytest.raises(ValueError, match="width 5, expected were 6"):
        small_imagen(text_encoder=pooled, text_embed_dim=6).encode_text(["a"])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("t5-small", TypeError, 'text_encoder_name="t5-small"'),
        (3, TypeError, "TextEncoder or a function of captions, got int"),
        (Module, TypeError, "got type"),
        (lambda texts: "x", TypeError, "must return a tensor"),
        (lambda texts: torch.ones(3, 2, 5), ValueError, r"for 1 it returned \(3, 2, 5\)"),
        (lambda texts: torch.ones(1, 2, 5, dtype=torch.int64), ValueError, "must return floats"),
        (lambda texts: (torch.ones(1, 2, 5), torch.ones(1, 3)), ValueError, r"must be \(1, 2\)"),
        (lambda texts: (torch.ones(1, 2, 5), torch.tensor([[0.0, -torch.inf]])), ValueError, "pass mask == 0"),
    ],
)
def test_what_cannot_be_a_text_encoder_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        as_encoder(given)


def test_a_model_without_an_encoder_takes_embeddings_only():
    imagen = small_imagen((8,), text_encoder_name=None, text_embed_dim=8)
    assert imagen.to_config()["text_encoder_name"] is None
    assert imagen(torch.rand(2, 3, 8, 8), text_embeds=torch.rand(2, 3, 8)).isfinite()
    with pytest.raises(ValueError, match="no text encoder .*pass text_embeds= instead of texts"):
        imagen.sample(texts=["a cat"], use_tqdm=False)
    with pytest.raises(ValueError, match="and text_embed_dim= when the model is made"):
        small_imagen((8,), text_encoder_name=None)

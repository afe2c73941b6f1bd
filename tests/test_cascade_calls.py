"""Calls of `sample`: how many images they make, in pieces or at once, from several threads, and what they leave."""

from __future__ import annotations

import copy
import io
import threading

import numpy as np
import pytest
import torch
from cascade_toys import KINDS, cascade, clips, pictures, sample, text, video_cascade

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.cascade.counting import images_of
from imagen_pytorch.cascade.stage_sampling import SampleNotFinite
from imagen_pytorch.tensors import widest

WORDS = {"text_encoder_name": "builtin:words", "text_embed_dim": None}


def largest_batch(model):
    """The batches that the first network sees."""
    seen = []
    model.unets[0].register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    return seen


# -- how many images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_caption_serves_a_batch(kind):
    model = cascade(kind, **WORDS)
    four = sample(model, texts=["a cat"], batch_size=4, cond_scale=2.0, negative_texts="a dog")
    assert torch.equal(four, sample(model, texts=["a cat"] * 4, cond_scale=2.0, negative_texts="a dog"))
    pieces = sample(model, texts=["a cat"], batch_size=4, cond_scale=2.0, negative_texts="a dog", max_batch_size=3)
    torch.testing.assert_close(pieces, four, rtol=0, atol=1e-5)
    model = cascade(kind)
    embeds = text(1, 4)
    mask = torch.tensor([[True, True, False, False]])
    one = sample(model, text_embeds=embeds, text_masks=mask, batch_size=3)
    repeated = {"text_embeds": embeds.expand(3, -1, -1), "text_masks": mask.expand(3, -1)}
    assert torch.equal(one, sample(model, **repeated))
    pieces = sample(model, text_embeds=embeds, text_masks=mask, batch_size=3, max_batch_size=2)
    torch.testing.assert_close(pieces, one, rtol=0, atol=1e-5)


def test_captions_and_a_batch_size_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="batch_size=4 does not fit 2 captions"):
        sample(cascade(**WORDS), texts=["a", "b"], batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1),
        ({"batch_size": 3}, 3),
        ({"texts": ["a"]}, 1),
        ({"texts": ["a"], "batch_size": 3}, 3),
        ({"texts": ["a", "b"]}, 2),
        ({"texts": ["a", "b"], "batch_size": 2}, 2),
        ({"texts": ["a"], "text_embeds": torch.zeros(2, 1, 1)}, 2),
        ({"init_images": pictures(5)}, 5),
        ({"init_images": (None, pictures(5))}, 5),
        ({"cond_images": pictures(5)}, 5),
        ({"inpaint_images": pictures(5)}, 5),
        ({"start_image_or_video": pictures(5)}, 5),
        ({"cond_video_frames": clips(5)}, 5),
        ({"cond_images": pictures(1), "batch_size": 3}, 3),
    ],
)
def test_the_number_of_images_of_a_call(arguments, count):
    assert images_of(arguments) == count


def test_pieces_count_what_the_whole_counts():
    model = cascade(condition_on_text=False)
    batches = largest_batch(model)
    init = pictures(10)
    pieces = sample(model, init_images=init, strength=0.5, max_batch_size=2)
    assert set(batches) == {2} and len(pieces) == 10
    torch.testing.assert_close(pieces, sample(model, init_images=init, strength=0.5), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="4 images need as many init_images, got 10"):
        sample(model, init_images=init, batch_size=4)


@pytest.mark.parametrize("seed", [3, np.int64(3), 3.0, torch.tensor(3), np.array([3, 4, 5, 6]), [3, 4, 5, 6]])
def test_pieces_have_the_noise_of_the_whole_for_every_kind_of_seed(seed):
    model = cascade(condition_on_text=False)
    pieces = sample(model, batch_size=4, seed=seed, max_batch_size=2)
    torch.testing.assert_close(pieces, sample(model, batch_size=4, seed=3), rtol=0, atol=1e-5)
    assert not torch.allclose(pieces[:2], pieces[2:], atol=1e-3)


@pytest.mark.parametrize("fps", [8.0, torch.tensor(8.0), torch.tensor([8.0]), [8.0], [8.0, 8.0, 8.0], np.array(8.0)])
def test_pieces_take_every_kind_of_frame_rate(fps):
    model = video_cascade(condition_on_text=False)
    pieces = sample(model, batch_size=3, video_frames=2, fps=fps, max_batch_size=2)
    torch.testing.assert_close(pieces, sample(model, batch_size=3, video_frames=2, fps=8), rtol=0, atol=1e-5)


# -- long videos ------------------------------------------------------------------------------------------------------


def refused(model, *arguments, **options):
    calls = largest_batch(model)
    with pytest.raises(ValueError) as caught:
        model.sample_long(*arguments, use_tqdm=False, **options)
    assert not calls, "known before the first call"
    return str(caught.value)


def test_a_long_video_that_cannot_be_finished_is_not_begun():
    strided = video_cascade(condition_on_text=False, unet_options={"temporal_strides": (1, 2)})
    said = refused(strided, 21, 8)
    assert said.startswith("call 5 of 5 of sample_long makes 1 frames given 4: temporal_strides=")
    assert strided.sample_long(20, 8, use_tqdm=False).shape[2] == 20
    causal = video_cascade(condition_on_text=False, unet_options={"time_causal_attn": True})
    assert "call 2 of" in (said := refused(causal, 9, 4, "hierarchical")) and "is causal" in said
    slower = video_cascade(stages=2, condition_on_text=False, temporal_downsample_factor=(2, 1))
    said = refused(slower, 9, 4)
    assert "U-Net 1 makes one of 2 frames" in said and "call 4 of 4" in said
    assert "image model" in refused(cascade(condition_on_text=False), 9, 4)


# -- results that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_instead_of_black_images(kind, wrong):
    model = cascade(kind, 2, condition_on_text=False)
    model.unets[1].final_conv.weight.data[0, 0, 0, 0] = wrong
    sample(model, stop_at_unet_number=1)
    with pytest.raises(SampleNotFinite, match=r"weights of U-Net 2 are not finite .*final_conv\.weight"):
        sample(model)
    assert not any(part.training for part in model.eval().modules())


def test_results_that_are_not_finite_from_finite_weights_name_a_cure():
    model = cascade(condition_on_text=False)
    model.unets[0].final_conv.bias.data[:] = 3e38
    model.unets[0].final_conv.weight.data[:] = 3e38
    with pytest.raises(SampleNotFinite, match="not finite .*though its weights are: try a smaller cond_scale"):
        sample(model, sampler="ddim")


# -- threads ----------------------------------------------------------------------------------------------------------


def in_threads(calls):
    """The results of functions that run at the same time."""
    results, errors = [None] * len(calls), []

    def run(index):
        try:
            results[index] = calls[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_threads_sample_as_one_would_and_leave_the_model_as_it_was(kind, precision, recwarn):
    model = cascade(kind, condition_on_text=False)
    model.unets[0].mid_block1.eval()
    modes = [part.training for part in model.modules()]
    before = {name: item.clone() for name, item in model.named_parameters()}
    named = dict(model.named_parameters())

    def call(seed):
        return lambda: model.sample(seed=seed, precision=precision, steps=6, use_tqdm=False, batch_size=2)

    alone = [call(seed)() for seed in range(4)]
    together = in_threads([call(seed) for seed in range(4)])
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert [part.training for part in model.modules()] == modes
    for name, item in model.named_parameters():
        assert item is named[name] and item.requires_grad and item.dtype == torch.float32
        assert torch.equal(item, before[name])


def test_threads_sample_averages_and_weights_of_one_trainer():
    trainer = ImagenTrainer(cascade(condition_on_text=False), verbose=False)
    for part in trainer.ema_unets.parameters():
        part.data += 0.01
    weights, averages = list(trainer.imagen.unets), [average.ema_model for average in trainer.ema_unets]

    def call(raw):
        return lambda: trainer.sample(seed=1, steps=6, use_tqdm=False, use_non_ema=raw)

    alone = [call(raw)() for raw in (True, False)]
    together = in_threads([call(raw) for raw in (True, False) * 3])
    assert not torch.equal(*alone)
    assert all(torch.equal(made, alone[index % 2]) for index, made in enumerate(together))
    assert list(trainer.imagen.unets) == weights and averages[0] is not weights[0]


def test_a_copy_of_a_model_has_a_turn_of_its_own():
    model = cascade(condition_on_text=False)
    stream = io.BytesIO()
    with model.turn:
        again = copy.deepcopy(model)
        torch.save(model, stream)
        stream.seek(0)
        for other in (again, torch.load(stream, weights_only=False)):
            assert other.turn is not model.turn
            assert in_threads([lambda other=other: sample(other)])[0].shape == (1, 3, 8, 8)
    assert "turn" not in model.state_dict() and torch.equal(sample(again), sample(model))


def test_a_callback_may_sample_from_the_same_model():
    model = cascade(condition_on_text=False)
    found = []
    sample(model, callback=lambda *_: found.append(sample(model, steps=1)))
    assert len(found) == 3


def test_double_precision_is_not_asked_of_devices_without_it():
    class Elsewhere:
        device = torch.device("mps")

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    apart = Elsewhere()
    assert widest(apart) is apart
    assert widest(torch.zeros(1), torch.device("mps")).dtype == torch.float32
    assert widest(torch.zeros(1)).dtype == torch.float64

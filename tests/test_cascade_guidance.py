"""Laws of guidance in a cascade: what it costs, what it does, and when it is refused."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import DIM, KINDS, cascade, pictures, sample, standing_in, text, unchecked

from imagen_pytorch.diffusion.guidance import GUIDANCE, dynamic_threshold


@pytest.fixture(autouse=True)
def as_users_call():
    """The sentences of the package, not those of the type checker; that one sees all of this in the feature matrix."""
    with unchecked():
        yield


def counted(model, number=1):
    """The batch sizes of the network calls of one stage, filled while sampling."""
    calls = []
    model.unets[number - 1].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


@pytest.mark.parametrize("name", GUIDANCE.names())
def test_every_guidance_method_is_reached_by_name_and_as_an_object(name):
    model, embeds = cascade(), text()
    scale, other = (0.6, 0.9) if name == "cfgpp" else (2.0, 9.0)
    named = sample(model, text_embeds=embeds, cond_scale=scale, guidance=name)
    made = sample(model, text_embeds=embeds, guidance=GUIDANCE[name](scale))
    rescaled = sample(model, text_embeds=embeds, guidance=GUIDANCE[name](other), cond_scale=scale)
    assert torch.equal(named, made) and torch.equal(named, rescaled)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_runs_both_halves_in_one_batch_and_scale_one_is_free(kind):
    model = cascade(kind)
    calls = counted(model)
    for scale, batch in ((3.0, 4), (1.0, 2)):
        calls.clear()
        sample(model, text_embeds=text(), cond_scale=scale, sampler="ddim", steps=4)
        assert calls == [batch] * 4


@pytest.mark.parametrize("guidance", ["cfg", "cfgpp", "apg"])
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_costs_an_unconditional_model_nothing(kind, guidance):
    model = cascade(kind, condition_on_text=False)
    calls = counted(model)
    guided = sample(model, batch_size=2, cond_scale=0.5, guidance=guidance, sampler="ddim", steps=4)
    assert calls == [2] * 4
    assert torch.equal(guided, sample(model, batch_size=2, sampler="ddim", steps=4))


def test_text_is_encoded_once_and_conditioned_once_per_stage():
    model = cascade(stages=2, text_encoder_name="builtin:words", text_embed_dim=None)
    calls, encoded = [], []
    for number, unet in enumerate(model.unets):
        unet.condition = lambda number=number, whole=unet.condition, **named: calls.append(number) or whole(**named)
    encode = model.encode
    model.encode = lambda texts: encoded.append(list(texts)) or encode(texts)
    sample(model, texts=["a cat"], cond_scale=3.0, negative_texts="a dog", steps=4)
    assert calls == [0, 1] and encoded == [["a cat"], ["a dog"]]


@pytest.mark.parametrize("kind", KINDS)
def test_default_guidance_is_plain_and_projection_is_opt_in(kind):
    model, embeds = cascade(kind), text()
    plain = sample(model, text_embeds=embeds, cond_scale=4.0, guidance="cfg")
    assert torch.equal(sample(model, text_embeds=embeds, cond_scale=4.0), plain)
    projected = sample(model, text_embeds=embeds, cond_scale=4.0, cfg_remove_parallel_component=True)
    assert torch.equal(sample(model, text_embeds=embeds, cond_scale=4.0, guidance="apg"), projected)
    assert not torch.equal(projected, plain)
    kept = sample(
        model, text_embeds=embeds, cond_scale=4.0, cfg_remove_parallel_component=True, cfg_keep_parallel_frac=1.0
    )
    torch.testing.assert_close(kept, plain, atol=1e-4, rtol=0)


def test_negative_texts_take_the_place_of_the_empty_condition():
    model = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    named = sample(model, texts=["a red ball"], cond_scale=3.0)
    same = sample(model, texts=["a red ball"], negative_texts="a red ball", cond_scale=3.0)
    free = sample(model, texts=["a red ball"], cond_scale=1.0)
    torch.testing.assert_close(same, free, atol=1e-5, rtol=0)
    assert not torch.allclose(named, free, atol=1e-5)
    away = sample(model, texts=["a red ball"], negative_texts=["the whole blue sky at night"], cond_scale=3.0)
    assert not torch.allclose(away, named, atol=1e-5)


def test_conditioning_pictures_can_be_guided_on():
    model = cascade(condition_on_text=False, unet_options={"cond_images_channels": 3}, cond_images_drop_prob=0.1)
    calls = counted(model)
    guided, free = (sample(model, cond_images=pictures(), cond_scale=scale) for scale in (4.0, 1.0))
    assert not torch.allclose(guided, free, atol=1e-5)
    assert set(calls) == {4, 2}


def test_a_model_forced_to_be_unconditional_samples_with_the_null_caption():
    model = cascade()
    null = sample(model, text_embeds=torch.zeros(2, 3, DIM))
    model.force_unconditional_()
    torch.testing.assert_close(sample(model, batch_size=2, cond_scale=5.0), null)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_without_dropped_captions_is_refused(kind):
    model = cascade(kind, cond_drop_prob=0.0)
    assert not model.can_classifier_guidance
    with pytest.raises(ValueError, match="cond_drop_prob=0"):
        sample(model, text_embeds=text(), cond_scale=2.0)


@pytest.mark.parametrize("dynamic", [True, False])
def test_estimates_are_guided_then_thresholded_then_fed_back_to_both_halves(dynamic):
    model = cascade(
        unet_options={"self_cond": True}, pred_objectives="x_start", dynamic_thresholding=dynamic, timesteps=3
    )
    cond, null, scale = 2 * torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), 3.0
    net = standing_in(model, 1, lambda x, time: torch.cat([cond, null]))
    result = sample(model, text_embeds=text(), cond_scale=scale, sampler="ddim", steps=3)
    guided = null + scale * (cond - null)
    estimate = dynamic_threshold(guided, 0.95) if dynamic else guided.clamp(-1, 1)
    assert guided.abs().max() > 3 and estimate.abs().max() == 1
    assert net.calls[0].self_cond is None
    for call in net.calls[1:]:
        torch.testing.assert_close(call.self_cond, torch.cat([estimate, estimate]))
    t, s, _, _ = model.stages[0].process.schedule.discretize(3, "karras")
    first, second = net.calls[0].x[:2], net.calls[1].x[:2]
    ratio = s.sigma / t.sigma
    torch.testing.assert_close(second, ratio * first + (s.alpha - t.alpha * ratio) * estimate)
    torch.testing.assert_close(result, (estimate + 1) / 2)

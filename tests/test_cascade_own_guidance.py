"""The guidance that a model keeps: used where `sample` is given none, recorded, and checked when the model is made."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import KINDS, cascade, sample, text

from imagen_pytorch.configs import ImagenConfig
from imagen_pytorch.diffusion.guidance import GUIDANCE
from imagen_pytorch.imagen import imagen_from_config


def same_weights(model, **options):
    """The model again, with other constructor options and the same weights."""
    again = cascade(type(model), len(model.unets), **options)
    again.load_state_dict(model.state_dict())
    return again


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_guidance_is_used_where_the_call_states_none(kind):
    plain = cascade(kind, 2)
    own = same_weights(plain, cond_scale=(3.0, 1.5), guidance="apg")
    given = {"text_embeds": text()}
    told = sample(plain, cond_scale=(3.0, 1.5), guidance="apg", **given)
    assert torch.equal(sample(own, **given), told)
    assert not torch.equal(sample(plain, **given), told), "without own values there is no guidance"
    assert torch.equal(sample(plain, **given), sample(plain, cond_scale=1.0, guidance="cfg", **given))
    assert torch.equal(sample(own, cond_scale=1.0, **given), sample(plain, **given)), "the call wins"
    ready = GUIDANCE["cfg"](2.0)
    assert torch.equal(sample(own, guidance=ready, **given), sample(plain, cond_scale=2.0, **given))


@pytest.mark.parametrize("kind", KINDS)
def test_own_guidance_is_recorded_and_built_again(kind):
    model = cascade(kind, 2, cond_scale=(5, 2.0), guidance="rescale")
    config = model.to_config()
    assert (config["cond_scale"], config["guidance"]) == ([5, 2.0], "rescale")
    again = imagen_from_config(config)
    assert (again.cond_scale, again.guidance) == ((5, 2.0), "rescale")
    assert not {"cond_scale", "guidance"} & cascade(kind).to_config().keys(), "what is not stated is not recorded"
    assert cascade(kind).cond_scale == (None,)


def test_own_guidance_from_a_configuration():
    unet = {"dim": 8, "dim_mults": [1, 2], "layer_attns": False, "attn_heads": 2}
    base = {"unets": [unet], "image_sizes": 8, "text_embed_dim": 12}
    model = ImagenConfig(**base, cond_scale=4.0, guidance="apg").create()
    assert (model.cond_scale, model.guidance) == ((4.0,), "apg")
    with pytest.raises(ValueError, match='guidance method "apgg"; known: .*did you mean "apg"'):
        ImagenConfig(**base, guidance="apgg")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"cond_scale": float("nan")}, ValueError, "cond_scale must be a finite number"),
        ({"cond_scale": float("inf")}, ValueError, "cond_scale must be a finite number"),
        ({"cond_scale": 1e308}, ValueError, "cond_scale must be a finite number"),
        ({"cond_scale": "3"}, TypeError, "cond_scale must be a number, got '3'"),
        ({"cond_scale": (1.0, 2.0)}, ValueError, "cond_scale needs one value, or one for each of the 1 U-Nets"),
        ({"guidance": "nothing"}, ValueError, 'no guidance method "nothing"'),
        ({"guidance": 3}, TypeError, "guidance must be a name"),
        ({"cond_scale": 3.0, "cond_drop_prob": 0.0}, ValueError, "cond_scale=3.0 needs cond_drop_prob above 0"),
        ({"cond_scale": 3.0, "guidance": "cfgpp"}, ValueError, r"lies in \[0, 1\] .* got 3"),
    ],
)
def test_impossible_own_guidance_is_refused_when_the_model_is_made(kind, options, error, sentence):
    with pytest.raises(error, match=sentence):
        cascade(kind, **options)


def test_the_weight_of_cfgpp_lies_between_0_and_1():
    for scale in (5.0, 1.01, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
            GUIDANCE["cfgpp"](scale)
    assert GUIDANCE["cfgpp"](1.0).weight == pytest.approx(5.2, abs=0.05)
    model = cascade(cond_scale=7.0)
    strongest = sample(model, text_embeds=text(), guidance="cfgpp", cond_scale=1.0)
    assert torch.equal(sample(model, text_embeds=text(), guidance="cfgpp"), strongest)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\] .* got 5"):
        sample(model, text_embeds=text(), guidance="cfgpp", cond_scale=5.0)


@pytest.mark.parametrize("name", GUIDANCE.names())
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_no_guidance_method_takes_a_weight_that_is_not_finite(name, scale):
    with pytest.raises(ValueError, match="got"):
        GUIDANCE[name](scale)

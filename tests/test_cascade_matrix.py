"""Every switch of networks, models and calls, by itself: trains, samples, and gives pictures."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext

import pytest
import torch
from cascade_toys import KINDS, SMALL, cascade, pictures, sample, stir, text, unchecked, unet

from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.diffusion.guidance import ClassifierFree
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.nn.unet import Unet


def switches(function):
    """Name and default of every argument that is on or off."""
    return {name: item.default for name, item in inspect.signature(function).parameters.items()
            if isinstance(item.default, bool)}  # fmt: skip


@pytest.fixture
def checks(kind):
    """Annotations are checked with `Imagen`; both classes share all that is called, and a second look costs seconds."""
    with nullcontext() if kind is Imagen else unchecked():
        yield


# annotations are checked layer by layer: fewer of them where the network is not the point
BARE = {"dim_mults": (1,), "layer_cross_attns": False, "final_resnet_block": False, "use_global_context_attn": False}
FORCED = {"lowres_cond", "cond_on_text"}  # by the place in the cascade and by the model
NETWORK = sorted(switches(Unet.__init__).keys() - FORCED)


@pytest.mark.parametrize("name", NETWORK)
@pytest.mark.parametrize("kind", KINDS)
def test_every_switch_of_the_network_trains_and_samples(kind, name):
    usual = SMALL.get(name, switches(Unet.__init__)[name])
    flipped = not any(usual) if isinstance(usual, tuple) else not usual
    with unchecked():
        model = cascade(kind, unet_options={name: flipped}, cond_images_drop_prob=0.1)
        assert model.unets[0]._locals[name] == flipped
        model(pictures(), text_embeds=text()).backward()
        assert all(part.grad is None or torch.isfinite(part.grad).all() for part in model.parameters())
        images = sample(model, text_embeds=text(), cond_scale=2.0, steps=2)
    assert images.shape == (2, 3, 8, 8) and bool(((images >= 0) & (images <= 1)).all())


MODEL = sorted({(kind, name) for kind in KINDS for name in switches(kind.__init__)}, key=str)


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize(("kind", "name"), MODEL)
def test_every_switch_of_the_model_trains_and_samples(kind, name):
    model = cascade(kind, 2, BARE, **{name: not switches(kind.__init__)[name]})
    captions = {"text_embeds": text()} if model.condition_on_text else {"batch_size": 2}
    batch = {"text_embeds": text()} if model.condition_on_text else {}
    model(pictures(2, 16), unet_number=2, **batch).backward()
    images = sample(model, cond_scale=2.0, steps=2, **captions)
    low = 0 if model.auto_normalize_img else -1
    assert images.shape == (2, 3, 16, 16) and bool(((images >= low) & (images <= 1)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"self_cond": True, "memory_efficient": True, "cond_images_channels": 2},
        {"layer_attns": True, "attend_at_middle": True, "attn_pool_text": True, "attn_pool_num_latents": 4},
        {"use_linear_attn": True, "use_linear_cross_attn": True, "init_cross_embed": True, "dropout": 0.1},
    ],
)
def test_all_of_a_kind_together_in_a_cascade(kind, options):
    more = {"cond_images": pictures(2, 12, 2)} if "cond_images_channels" in options else {}
    with unchecked():
        model = cascade(kind, stages=2, unet_options=options, random_crop_sizes=(None, 8), lowres_residual=(None, 0.5))
        for number in (1, 2):
            model(pictures(2, 16), text_embeds=text(), unet_number=number, **more).backward()
        images = sample(model, text_embeds=text(), cond_scale=(3.0, 1.0), steps=2, **more)
    assert images.shape == (2, 3, 16, 16) and torch.isfinite(images).all()


# one legal use of every argument of `sample`; those of videos have none in a model of pictures
VIDEO = {"video_frames", "cond_video_frames", "post_cond_video_frames", "inpaint_videos", "frame_times", "fps"}
INIT = pictures(2, 16)
MASK = torch.arange(16).expand(2, 16, 16) < 8
INPAINT = {"inpaint_images": pictures(2, 16), "inpaint_masks": MASK, "inpaint_resample_times": 2}
USES = {
    "texts": {"texts": ["a cat", "a red ball"], "text_embeds": None},
    "text_masks": {"text_masks": torch.tensor([[True, True, False]] * 2)},
    "text_embeds": {"text_embeds": text(2, 5)},
    "cond_images": {"cond_images": pictures(2, 10)},
    **dict.fromkeys(INPAINT, INPAINT),
    **dict.fromkeys(("init_images", "skip_steps"), {"init_images": (None, INIT), "skip_steps": (None, 1), "steps": 2}),
    "strength": {"init_images": INIT, "strength": 0.6, "steps": 2},
    "batch_size": {"batch_size": 2},
    "cond_scale": {"cond_scale": (2.0, 1.5)},
    "cfg_remove_parallel_component": {"cfg_remove_parallel_component": True, "cond_scale": 2.0},
    "cfg_keep_parallel_frac": {"cfg_remove_parallel_component": True, "cfg_keep_parallel_frac": 0.5, "cond_scale": 2.0},
    "lowres_sample_noise_level": {"lowres_sample_noise_level": 0.4},
    **dict.fromkeys(
        ("start_at_unet_number", "start_image_or_video"),
        {"start_at_unet_number": 2, "start_image_or_video": pictures(2, 8)},
    ),
    "stop_at_unet_number": {"stop_at_unet_number": 1},
    "return_all_unet_outputs": {"return_all_unet_outputs": True},
    "return_pil_images": {"return_pil_images": True},
    "device": {"device": "cpu"},
    "use_tqdm": {"use_tqdm": True},
    "use_one_unet_in_gpu": {"use_one_unet_in_gpu": True},
    "sampler": {"sampler": ("ddim", "dpmpp_2m")},
    "steps": {"steps": (2, 1)},
    "max_batch_size": {"max_batch_size": 1},
    "precision": {"precision": "bf16"},
    "compile": {"compile": False},  # compiled ones: test_cascade_fast.py
    "cache_interval": {"cache_interval": (2, 1), "steps": 2, "cond_scale": 2.0},
    **dict.fromkeys(("sigma_min", "sigma_max"), {"sigma_min": 0.01, "sigma_max": (60.0, 20.0)}),
    "image_sizes": {"image_sizes": (8, (12, 16))},
    "seed": {"seed": [4, 2]},
    "generator": {"generator": torch.Generator(), "seed": None},
    "negative_texts": {"negative_texts": "a dog", "cond_scale": 2.0, "text_encoder": True},
    "guidance": {"guidance": ClassifierFree(2.0)},
    "callback": {"callback": lambda number, step, total, picture: None},
}


def test_there_is_a_use_of_every_argument():
    assert USES.keys() | VIDEO | {"self"} == inspect.signature(Cascade.sample).parameters.keys()


@functools.cache
def model_for(kind, words, conditioned):
    options = {"text_encoder_name": "builtin:words", "text_embed_dim": None} if words else {}
    with unchecked():
        return cascade(kind, 2, {"cond_images_channels": 3 * conditioned, **BARE}, **options)


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_sample_works(kind, name, capsys):
    given = dict(USES[name])
    words = given.pop("text_encoder", False) or "texts" in given
    model = model_for(kind, words, name == "cond_images")
    embeds = None if words else text()
    call = {"texts": ["a", "b"] if words else None, "text_embeds": embeds, "steps": 1, **given}
    if kind is Imagen and "sigma_max" in given:
        with pytest.raises(ValueError, match="belong to ElucidatedImagen"):
            sample(model, **call)
        return
    result = sample(model, **call)
    results = result if isinstance(result, list) else [result]
    for images in results:
        if isinstance(images, torch.Tensor):
            assert len(images) == 2 and bool(((images >= 0) & (images <= 1)).all())
    assert ("U-Net" in capsys.readouterr().err) == (name == "use_tqdm")


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_enough_for_a_picture(kind):
    model = stir(kind(unet(), image_sizes=8, condition_on_text=False, **{"timesteps" if kind is Imagen else
                                                                       "num_sample_steps": 1}))  # fmt: skip
    assert torch.isfinite(sample(model)).all()


# other values for the second U-Net, whose usual levels are 80, 2.5 and 0.002
NUMBERS = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.3, "rho": 5.0, "P_mean": 0.0, "P_std": 1.0,
           "S_churn": 0.5, "S_tmin": 3.0, "S_tmax": 2.0, "S_noise": 1.1, "num_sample_steps": 4}  # fmt: skip


@functools.cache
def numbered(**options):
    return cascade(ElucidatedImagen, 2, BARE, condition_on_text=False, **options)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_an_elucidated_model_is_per_unet_and_counts(name):
    with unchecked():
        usual = numbered()
        own, other = getattr(usual.hparams[1], name), NUMBERS[name]
        model = numbered(**{name: (own, other)})
        assert [getattr(row, name) for row in model.hparams] == [own, other]
        start = {"start_at_unet_number": 2, "start_image_or_video": pictures(1)}
        images = [sample(item, **start) for item in (usual, model)]
        draws = [torch.Generator().manual_seed(0) for _ in range(2)]
        batches = [item.training_batch(pictures(2, 16), unet_number=2, generator=draw)
                   for item, draw in zip((usual, model), draws, strict=True)]  # fmt: skip
    assert torch.equal(*images) == name.startswith("P_")
    assert torch.equal(batches[0].t, batches[1].t) != name.startswith("P_")

"""Numbers that a caller states: impossible ones end in a sentence that names them, before any work is done."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from cascade_toys import KINDS, cascade, clips, pictures, sample, text, unet, video_cascade

from imagen_pytorch.diffusion.schedules import SCHEDULES
from imagen_pytorch.imagen import ElucidatedImagen, Imagen, imagen_from_config
from imagen_pytorch.images import as_size
from imagen_pytorch.tensors import seeded, seeds_of

NAN, INF, HUGE = float("nan"), math.inf, 10**30
BAD = [NAN, INF, -INF, "3", 1e308, -1e308, {}, b"1"]
WHOLE = [*BAD, 2.5, 0, -1, HUGE, True]
#: numeric options of `sample`, what is impossible in them, and what else has to be said for them to matter
OPTIONS = {
    "video_frames": (WHOLE, {}),
    "inpaint_resample_times": (WHOLE, {}),
    "skip_steps": ([*BAD, 2.5, -1, HUGE, 4], {"init_images": "clips"}),
    "batch_size": (WHOLE, {}),
    "cond_scale": ([*BAD, HUGE], {}),
    "cfg_keep_parallel_frac": ([*BAD, -0.1, 1.1], {}),
    "lowres_sample_noise_level": ([*BAD, -0.1, 1.1], {}),
    "start_at_unet_number": (WHOLE, {}),
    "stop_at_unet_number": (WHOLE, {}),
    "steps": (WHOLE, {}),
    "sigma_min": ([*BAD, 0, -1], {}),
    "sigma_max": ([*BAD, 0, -1], {}),
    "image_sizes": ([*BAD, (0,), (-8,), (2.5,), (HUGE,), (10**9,), ("8",), ((8, 8, 8),)], {}),
    "seed": ([*BAD, 2.5, HUGE, 2**64, -(2**63) - 1, [0, 1, 2], [0, NAN], ["a", "b"]], {}),
    "strength": ([*BAD, -0.1, 1.1], {"init_images": "clips"}),
    "frame_times": ([*BAD, [[0.0] * 3 + [NAN]], [[0.0, INF, 1.0, 2.0]], [0.0, 1.0]], {}),
    "fps": ([*BAD, 0, -1, [8, NAN], [8, 8, 8], HUGE], {}),
    "max_batch_size": (WHOLE[:-2], {}),
    "cache_interval": (WHOLE, {}),
    # choices by name
    "device": (["nowhere", "cuda:x", 2.5, {}], {}),
    "sampler": (["nothing", 3, {}], {}),
    "guidance": (["nothing", 3, {}], {}),
    "precision": (["half", 16, None], {}),
    "compile": (["bogus", 3, None], {}),
    "generator": ([3, "a", [1, 2]], {}),
    "callback": ([3, "a"], {}),
}
#: what is no number or is checked elsewhere
OTHERS = {
    "self", "texts", "text_masks", "text_embeds", "cond_images", "cond_video_frames", "post_cond_video_frames",
    "inpaint_videos", "inpaint_images", "inpaint_masks", "init_images", "start_image_or_video", "negative_texts",
    "cfg_remove_parallel_component", "return_all_unet_outputs", "return_pil_images", "use_tqdm", "use_one_unet_in_gpu",
}  # fmt: skip
WORDS = {"sampler": "sampler", "guidance": "guidance", "seed": "seed", "image_sizes": "size|image_sizes"}


def test_every_option_of_sample_is_known_here():
    assert set(inspect.signature(Imagen.sample).parameters) == {*OPTIONS, *OTHERS}


@pytest.fixture(scope="module")
def films():
    """Video models of one stage that count the calls of their networks."""
    found = {}
    for kind in KINDS:
        model = found[kind] = video_cascade(kind)
        model.calls = calls = []
        model.unets[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_impossible_options_are_refused_before_the_first_step(kind, name, films):
    model, (values, more) = films[kind], OPTIONS[name]
    more = {key: clips(2, 4, 4) if value == "clips" else value for key, value in more.items()}
    usual = {"text_embeds": text(), "video_frames": 4, "use_tqdm": False, **more}
    model.calls.clear()
    for value in values:
        with pytest.raises((ValueError, TypeError)) as caught:
            model.sample(**{**usual, name: value})
        said = str(caught.value)
        assert any(word in said for word in WORDS.get(name, name).split("|")) or "U-Nets are numbered" in said, said
        assert len(said) < 400 and not model.calls


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_other_kinds_are_taken(kind):
    model = cascade(kind)
    plain = sample(model, text_embeds=text(), steps=2, cond_scale=2.0, seed=3)
    same = sample(model, text_embeds=text(), steps=np.int64(2), cond_scale=np.float32(2), seed=np.int64(3))
    assert torch.equal(plain, same)
    same = sample(model, text_embeds=text(), steps=torch.tensor(2), cond_scale=torch.tensor(2.0), seed=torch.tensor(3))
    assert torch.equal(plain, same)


def test_seeds_are_whole_numbers_that_torch_takes():
    for same in (3, 3.0, torch.tensor(3), [3, 4], torch.tensor([3, 4]), np.array([3.0, 4.0])):
        assert seeds_of(same, 2) == [3, 4]
    assert seeds_of([2**64 - 1, -(2**63)], 2) == [2**64 - 1, -(2**63)]
    for seed in (2**64 - 1, -(2**63), 0):
        seeded(seed, 1)
    for wrong in (2**64, [2**64], 2**64 - 1):
        with pytest.raises(ValueError, match=r"between -2\*\*63 and 2\*\*64 - 1 .*got 18446744073709551616"):
            seeded(wrong, 2 if wrong == 2**64 - 1 else 1)
    with pytest.raises(TypeError, match="a seed is a whole number, or one for each image; got str"):
        seeded("3", 1)


def test_pillow_images_are_known_to_be_impossible_before_the_first_step(monkeypatch):
    model = cascade(channels=5, condition_on_text=False)
    monkeypatch.setattr(model.unets[0], "forward", lambda *_, **__: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match="have 1 .*or 4 .*channels, got 5"):
        sample(model, return_pil_images=True)


# -- constructors -----------------------------------------------------------------------------------------------------

SHARED = {
    "image_sizes": [*BAD, 0, -1, 2.5, HUGE, 10**9, (8, 8, 8)],
    "text_embed_dim": WHOLE,
    "channels": WHOLE,
    "cond_drop_prob": [*BAD, -0.1, 1.1],
    "cond_images_drop_prob": [*BAD, -0.1, 1.1],
    "cond_scale": [*BAD, HUGE],
    "random_crop_sizes": [*BAD, -1, 2.5],
    "lowres_sample_noise_level": [*BAD, -0.1, 1.1],
    "lowres_max_noise_level": [*BAD, -0.1, 1.1],
    "lowres_residual": [*BAD, 0.0, -1.0],
    "dynamic_thresholding_percentile": [*BAD, -0.1, 1.1],
    "only_train_unet_number": [*BAD, 0, 3, 2.5],
    "temporal_downsample_factor": [*BAD, 0, -1, 2.5, HUGE],
    "video_frames": WHOLE,
    "fps": [*BAD, 0, -1, HUGE],
    "fps_drop_prob": [*BAD, -0.1, 1.1],
    "given_frames_prob": [*BAD, -0.1, 1.1],
    "augment": [*BAD[:-2], b"1", {"probability": 1.1}, {"shifts": -1}, {"scales": NAN}, {"rotations": 181}, {"x": 1}],
    "perceptual_loss": [NAN, 3, b"1", "3", {}, {"features": "x"}, {"features": "efficientnet-lite0", "weight": -1}],
    "spectral_loss": [NAN, 3, b"1", "3", {"table": "x"}, {"table": 3}, {"weight": -1}, {"weight": "1"}, {"x": 1}],
}
OWN = {
    Imagen: {
        "timesteps": WHOLE,
        "min_snr_gamma": [*BAD, 0, -1],
        "p2_loss_weight_gamma": [*BAD, -1, 2.1],
        "p2_loss_weight_k": [*BAD, 0, -1],
    },
    ElucidatedImagen: {
        "num_sample_steps": WHOLE,
        "sigma_min": [*BAD, 0, -1],
        "sigma_max": [*BAD, 0, -1, 0.001],
        "sigma_data": [*BAD, 0, -1],
        "rho": [*BAD, 0, -1],
        "P_mean": BAD,
        "P_std": [*BAD, -1],
        "S_churn": [*BAD, -1],
        "S_tmin": [NAN, -INF, "3", -1e308, {}, b"1", -1],
        "S_tmax": [NAN, -INF, "3", -1e308, {}, b"1", -1],
        "S_noise": [*BAD, -1],
    },
}
FLAGS = {
    "self", "unets", "text_encoder_name", "text_encoder", "self_cond", "guidance", "loss_type", "noise_schedules",
    "pred_objectives", "lowres_noise_schedule", "per_sample_random_aug_noise_level", "condition_on_text", "sampler",
    "auto_normalize_img", "dynamic_thresholding", "resize_cond_video_frames", "temporal_resize_mode", "resize_mode",
    "min_snr_loss_weight", "crop_coordinates", "loss_space", "noise_levels", "weighting",
}  # fmt: skip
SAID = {"image_sizes": "size", "random_crop_sizes": "crop|size", "sigma_max": "sigma_max"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_the_constructors_is_known_here(kind):
    names = set(inspect.signature(kind.__init__).parameters)
    assert names <= {*SHARED, *OWN[kind], *FLAGS} and {*SHARED, *OWN[kind]} <= names


@pytest.fixture(scope="module")
def networks():
    return [unet(text_embed_dim=12), unet(text_embed_dim=12, lowres_cond=True)]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in {**SHARED, **OWN[kind]}])
def test_impossible_numbers_are_refused_when_a_model_is_made(kind, name, networks):
    for value in {**SHARED, **OWN[kind]}[name]:
        options = {"image_sizes": (8, 16), "text_embed_dim": 12, name: value}
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(networks, **options)
        said = str(caught.value)
        assert any(word in said for word in SAID.get(name, name).split("|")), said
        assert len(said) < 400


NAMES = {"loss_type", "noise_schedules", "pred_objectives", "lowres_noise_schedule", "sampler", "guidance"}
NAMES |= {"temporal_resize_mode", "resize_mode", "loss_space", "noise_levels", "weighting"}
SWITCHES = FLAGS - NAMES - {"self", "unets", "text_encoder_name", "text_encoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_switches_are_true_or_false_and_names_are_known(kind, networks):
    taken = set(inspect.signature(kind.__init__).parameters)
    usual = {"image_sizes": (8, 16), "text_embed_dim": 12}
    for name in sorted(SWITCHES & taken):
        for value in ("no", "false", 2, NAN, {}):
            with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
                kind(networks, **usual, **{name: value})
        kind(networks, **usual, **{name: 0 if name == "self_cond" else np.bool_(False)})
    for name in sorted(NAMES & taken):
        said = rf"{name} must be a name|no [a-z_ ]+ \"nothing\"|no {name}"
        for value in (3, NAN, {}, "nothing"):
            with pytest.raises((TypeError, ValueError), match=said):
                kind(networks, **usual, **{name: value})


#: arguments of `sample` that hold tensors or captions
HELD = (
    "texts text_masks text_embeds cond_images cond_video_frames post_cond_video_frames inpaint_videos inpaint_images "
    "inpaint_masks init_images start_image_or_video negative_texts"
).split()


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("frames", [False, True])
def test_what_is_no_tensor_and_no_caption_is_refused_by_name(name, frames):
    model = video_cascade() if frames else cascade()
    for value in (3, "x", {}, [3], torch.zeros(()), torch.zeros(2)):
        options = {"text_embeds": text(), "video_frames": 4 if frames else None, name: value}
        if name == "texts":
            options["text_embeds"] = None
        if name == "inpaint_masks":
            options["inpaint_images"] = clips(2, 4, 4) if frames else pictures()
        with pytest.raises((TypeError, ValueError), match=name):
            sample(model, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Imagen, {"timesteps": value}) for value in (1, 100_000)]
    + [(ElucidatedImagen, {name: value}) for name, value in (
        ("P_mean", -10.0), ("P_mean", 10.0), ("P_std", 0.0), ("P_std", 5.0), ("rho", 0.5), ("rho", 100.0),
        ("sigma_min", 1e-6), ("sigma_max", 1e5), ("sigma_data", 1e-4), ("sigma_data", 1e4), ("S_churn", 1e6),
        ("S_tmax", INF), ("S_noise", 10.0),
    )],
)  # fmt: skip
def test_numbers_on_the_edge_train_and_sample(kind, options):
    model = cascade(kind, condition_on_text=False, **options)
    assert torch.isfinite(model(pictures()))
    assert torch.isfinite(sample(model, steps=3)).all()


@pytest.mark.parametrize("steps", [0, -1, 100_001, 10**9, 10**12])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_steps_of_a_recorded_model_are_checked_when_it_is_built(kind, steps):
    name = "timesteps" if kind is Imagen else "num_sample_steps"
    recorded = cascade(kind).to_config()
    with pytest.raises(ValueError, match=f"{name} must be at (least 1|most 100,000), got"):
        imagen_from_config({**recorded, name: steps})


def test_a_side_has_at_most_65536_pixels():
    assert as_size(65_536) == (65_536, 65_536)
    with pytest.raises(ValueError, match="at most 65,536 pixels a side, got 65537"):
        as_size(65_537)


# -- schedules and samplers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedules_are_trained_over_the_times_from_which_they_sample(name):
    if SCHEDULES[name]().time_range() != (1.0, 0.0):
        for argument in ("noise_schedules", "lowres_noise_schedule"):
            with pytest.raises(ValueError, match=rf'{argument}: the times of "{name}"'):
                cascade(stages=2, condition_on_text=False, **{argument: name})
        return
    objective = "v" if name == "flow" else "noise"
    model = cascade(
        stages=2,
        condition_on_text=False,
        noise_schedules=name,
        lowres_noise_schedule=name,
        pred_objectives=objective,
        timesteps=2,
    )
    process = model.stages[0].process
    ratios = process.schedule(process.noise_levels.draw(20_000, torch.Generator().manual_seed(0)).double()).sigma_edm
    first = process.schedule.discretize(4)[0].sigma_edm
    assert ratios.max() > 0.9 * first or ratios.max() > 500, "training reaches the noise from which sampling starts"
    for level in (0.0, 0.2, 1.0):
        assert torch.isfinite(sample(model, lowres_sample_noise_level=level)).all()
    assert torch.isfinite(model(pictures(2, 16), unet_number=2))


def test_churn_numbers_hold_wherever_the_sampler_is_asked_for():
    churned = {}
    for default in ("heun", "edm"):
        for amount in (0.0, 40.0):
            model = cascade(ElucidatedImagen, condition_on_text=False, sampler=default, S_churn=amount)
            churned[default, amount] = sample(model, sampler="edm", steps=3)
    for amount in (0.0, 40.0):
        assert torch.equal(churned["heun", amount], churned["edm", amount])
    assert not torch.equal(churned["heun", 0.0], churned["heun", 40.0])

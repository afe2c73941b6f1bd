"""Cascades of clips: which frames a stage sees, when they are, and that all that works for pictures works for them."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
from cascade_toys import (
    KINDS,
    cascade,
    changed,
    clips,
    pictures,
    sample,
    standing_in,
    text,
    unchecked,
    video_cascade,
)
from video_toys import BARE, MASK, SILENT, checks, in_range  # noqa: F401

from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.diffusion.guidance import ClassifierFree
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.imagen import Imagen

# -- every argument ---------------------------------------------------------------------------------------------------

INPAINT = {"inpaint_images": clips(2, 4, 8), "inpaint_masks": MASK, "inpaint_resample_times": 2}
FRAME_MASK = (torch.arange(4).view(1, 4, 1, 1) < 1).expand(2, 4, 8, 8)
INIT = clips(2, 4, 8)
USES = {
    "texts": {"texts": ["a cat", "a red ball"], "text_embeds": None},
    "text_masks": {"text_masks": torch.tensor([[True, True, False]] * 2)},
    "text_embeds": {"text_embeds": text(2, 5)},
    "video_frames": {"video_frames": 6},
    "cond_images": {"cond_images": pictures(2, 10)},
    "cond_video_frames": {"cond_video_frames": clips(2, 2, 5)},
    "post_cond_video_frames": {"post_cond_video_frames": clips(2, 3, 8), "cond_scale": 2.0},
    "inpaint_videos": {"inpaint_videos": clips(2, 4, 8), "inpaint_masks": FRAME_MASK},
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
        {"start_at_unet_number": 2, "start_image_or_video": clips(2, 2, 6)},
    ),
    "stop_at_unet_number": {"stop_at_unet_number": 1},
    "return_all_unet_outputs": {"return_all_unet_outputs": True},
    "return_pil_images": {"return_pil_images": False},
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
    "image_sizes": {"image_sizes": (4, (6, 8))},
    "seed": {"seed": [4, 2]},
    "generator": {"generator": torch.Generator(), "seed": None},
    "negative_texts": {"negative_texts": "a dog", "cond_scale": 2.0, "texts": ["a", "b"], "text_embeds": None},
    "guidance": {"guidance": ClassifierFree(2.0)},
    "callback": {
        "callback": lambda number, step, total, clip: in_range(clip, 2, 3, 2 * number, 4 * number, 4 * number)
    },
    "frame_times": {"frame_times": torch.tensor([[0.0, 0.1, 0.5, 1.0], [3.0, 4.0, 5.0, 6.0]]), "cond_scale": 2.0},
    "fps": {"fps": [8, 24.0], "cond_scale": 2.0},
}


def test_there_is_a_use_of_every_argument():
    assert USES.keys() | {"self"} == inspect.signature(Cascade.sample).parameters.keys()


@functools.cache
def model_for(kind, words, conditioned):
    options = {"text_encoder_name": "builtin:words", "text_embed_dim": None} if words else {}
    more = {"cond_images_channels": 3 * conditioned, **BARE}
    return video_cascade(kind, 2, more, temporal_downsample_factor=(2, 1), **options)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_sample_works_for_clips(kind, name, capsys):
    given = USES[name]
    with unchecked():
        model = model_for(kind, "texts" in given, name == "cond_images")
    call = {"text_embeds": text(), "video_frames": 4, "steps": 1, **given}
    if kind is Imagen and "sigma_max" in given:
        with pytest.raises(ValueError, match="belong to ElucidatedImagen"):
            sample(model, **call)
        return
    found = sample(model, **call)
    found = found if isinstance(found, list) else [found]
    shapes = {"return_all_unet_outputs": [(2, 4, 4), (4, 8, 8)], "stop_at_unet_number": [(2, 4, 4)]}
    shapes |= {"video_frames": [(6, 8, 8)], "image_sizes": [(4, 6, 8)]}
    for clip, shape in zip(found, shapes.get(name, [(4, 8, 8)]), strict=True):
        assert in_range(clip, 2, 3, *shape)
    assert ("U-Net" in capsys.readouterr().err) == (name == "use_tqdm")


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_makes_clips_around_given_frames_and_into_known_pixels(name):
    model = video_cascade(unet_options={"self_cond": True, **BARE}, **SILENT)
    known = {
        "inpaint_videos": clips(2, 3, 4),
        "inpaint_masks": (torch.arange(3) == 1)[None, :, None, None].expand(2, 3, 4, 4),
    }
    found = sample(model, sampler=name, steps=2, cond_video_frames=clips(2, 2, 4), **known)
    assert in_range(found, 2, 3, 3, 4, 4) and torch.equal(found[:, :, 1], known["inpaint_videos"][:, :, 1])


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_four_stages_of_three_frame_rates_train_and_sample(kind):
    model = video_cascade(kind, 4, BARE, temporal_downsample_factor=(4, 2, 2, 1))
    assert model.is_video and model.temporal_downsample_divisor == 4
    for number, frames in enumerate((2, 4, 4, 8), start=1):
        batch = model.training_batch(clips(2, 8, 8), text_embeds=text(), unet_number=number)
        assert batch.x0.shape == (2, 3, frames, *(4 if number == 1 else 8,) * 2)
        assert number == 1 or batch.lowres_cond_img.shape == batch.x0.shape
        model.loss(batch).backward()
    found = sample(model, text_embeds=text(), video_frames=12, return_all_unet_outputs=True)
    assert [clip.shape[2] for clip in found] == [3, 6, 6, 12]
    assert all(in_range(clip, 2, 3, *clip.shape[2:]) for clip in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_weight_learns_from_clips(kind, number):
    options = {"temporal_downsample_factor": (2, 2, 1), "lowres_residual": (None, None, 0.5), "cond_drop_prob": 0.5}
    model = video_cascade(kind, 3, {"self_cond": True}, **options)
    given = {"cond_video_frames": clips(4, 2, 8), "fps": torch.tensor([8.0, 8.0, 12.0, 24.0]), "text_embeds": text(4)}
    batch = model.training_batch(clips(4, 6, 8), unet_number=number, **given)
    half = torch.tensor([True, False] * 2)
    loss = model.loss(changed(batch, text_keep=half, fps_keep=half.flip(0), self_condition=True))
    loss.backward()
    assert loss.ndim == 0 and loss.item() > 0
    assert [name for name, part in model.unets[number - 1].named_parameters() if part.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_trains_and_samples(kind):
    model = video_cascade(kind, 2, BARE, image_sizes=((5, 3), (10, 6)), channels=1, **SILENT)
    whole = clips(2, 3, (20, 12), channels=1)
    assert model.training_batch(whole, unet_number=2).x0.shape == (2, 1, 3, 10, 6)
    model(whole, unet_number=1).backward()
    assert in_range(sample(model, batch_size=2, video_frames=5), 2, 1, 5, 10, 6)


@pytest.mark.parametrize("normalizes", [True, False])
def test_uint8_clips_equal_floats_wherever_they_are_given(normalizes):
    model = video_cascade(stages=2, unet_options=BARE, auto_normalize_img=normalizes, **SILENT)
    whole = (clips(2, 4, 8) * 255).round().to(torch.uint8)
    part = (clips(2, 2, 8, seed=5) * 255).round().to(torch.uint8)
    as_floats = [item.float() / 255 if normalizes else item.float() / 127.5 - 1 for item in (whole, part)]
    batches, found = [], []
    for clip, given in ((whole, part), as_floats):
        draw = torch.Generator().manual_seed(0)
        batches.append(model.training_batch(clip, unet_number=2, post_cond_video_frames=given, generator=draw))
        mask = torch.arange(8).expand(2, 8, 8) < 4
        found.append(sample(model, inpaint_videos=clip, inpaint_masks=mask, cond_video_frames=given))
    for name in ("x0", "lowres_cond_img", "post_cond_video_frames"):
        torch.testing.assert_close(getattr(batches[0], name), getattr(batches[1], name), atol=1e-6, rtol=0)
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [2, 3])
def test_a_crop_is_the_same_in_all_frames_and_in_all_that_belongs_to_them(number):
    model = video_cascade(
        stages=3,
        unet_options={"cond_images_channels": 1, **BARE},
        image_sizes=(8, 16, 32),
        random_crop_sizes=(None, 8, 16),
        temporal_downsample_factor=(4, 2, 1),
        lowres_residual=(None, 0.5, 0.5),
        **SILENT,
    )
    ramp = torch.linspace(0, 1, 32).expand(4, 3, 8, 32, 32)
    given = {
        "cond_images": ramp[:, :1, 0],
        "cond_video_frames": ramp[:, :, :4],
        "post_cond_video_frames": ramp[:, :, :4],
    }
    batch = model.training_batch(ramp, unet_number=number, **given)
    side, size = model.random_crop_sizes[number - 1], model.image_sizes[number - 1]
    factor = model.temporal_downsample_factor[number - 1]
    assert batch.x0.shape == (4, 3, 8 // factor, side, side)
    assert batch.cond_video_frames.shape == batch.post_cond_video_frames.shape == (4, 3, 4 // factor, side, side)
    picture = batch.base + 0.5 * batch.x0
    assert torch.equal(picture, picture[:, :, :1].expand_as(picture))
    column = picture[:, 0, 0, 0]  # b w
    assert len(column[:, 0].unique()) > 1  # each clip has a crop of its own
    rise = 2 * (side - 1) * (32 / size) / 31
    torch.testing.assert_close(column[:, -1] - column[:, 0], torch.full((4,), rise), atol=0.02, rtol=0)
    torch.testing.assert_close(batch.cond_images[:, 0, 0] * 2 - 1, column, atol=1e-5, rtol=0)
    assert (batch.base[:, 0, 0, 0] - column).abs().max() < 0.1
    assert (batch.cond_video_frames + batch.base[:, :, :1] - picture[:, :, :1]).abs().max() < 0.1
    model.loss(batch).backward()


def test_mean_gradient_over_pieces_is_the_gradient_of_the_whole():
    options = {"temporal_downsample_factor": (2, 1), "lowres_residual": (None, 0.3), "given_frames_prob": 1.0}
    model = video_cascade(stages=2, unet_options={"self_cond": True}, **options).double()
    given = {"text_embeds": text(5).double(), "fps": [4, 8, 8, 12, 24], "cond_video_frames": clips(5, 2, 8).double()}
    batch = model.training_batch(clips(5, 4, 8).double(), unet_number=2, **given)
    apart = torch.tensor([True, False, False, True, False])
    batch = changed(batch, self_condition=True, ignore_time=apart)
    model.loss(batch).backward()
    whole = [part.grad.clone() for part in model.unets[1].parameters()]
    model.zero_grad()
    for piece in batch.split(2):
        (model.loss(piece) * len(piece) / len(batch)).backward()
    for one, part in zip(whole, model.unets[1].parameters(), strict=True):
        torch.testing.assert_close(one, part.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_self_conditioning_shows_the_thresholded_estimate_of_the_noisy_frames(kind):
    model = video_cascade(kind, unet_options={"self_cond": True}, **SILENT)
    batch = model.training_batch(clips(2, 3, 4), cond_video_frames=clips(2, 2, 4))
    answer = torch.randn(2, 3, 3, 4, 4)
    net = standing_in(copy.deepcopy(model), answer=lambda x, time: answer)
    model.loss(changed(batch, self_condition=True), net)
    first, second = net.calls
    assert first.self_cond is None and second.x.shape == second.self_cond.shape == batch.x0.shape
    process = model.stages[0].process
    level = process.level(batch.t, batch.x0)
    x_t = level.alpha.float() * batch.x0 + level.sigma.float() * batch.noise
    estimate = model.stages[0].threshold(process.to_x0(answer, x_t, level).float(), _Identity)
    torch.testing.assert_close(second.self_cond, estimate, rtol=1e-4, atol=1e-4)
    assert second.cond_video_frames is not None and torch.equal(second.cond_video_frames, batch.cond_video_frames)


class _Identity:
    encode = decode = staticmethod(lambda x: x)


# -- pictures among clips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_clips_of_one_frame_and_cost_what_they_cost_an_image_model(kind):
    images = cascade(kind, 2, temporal_downsample_factor=1)
    videos = video_cascade(kind, 2, image_sizes=(8, 16), temporal_downsample_factor=(4, 1))
    for mine, theirs in zip(videos.unets, images.unets, strict=True):
        weights = theirs.state_dict()
        weights["init_conv.weight"] = F.pad(weights["init_conv.weight"], (0, 0, 0, 0, 0, 1))  # the mark
        mine.load_state_dict(weights, strict=False)
    for number in (1, 2):
        losses = []
        for model in (images, videos):
            draw = torch.Generator().manual_seed(3)
            batch = model.training_batch(pictures(2, 16), text_embeds=text(), unet_number=number, generator=draw)
            losses.append(model.loss(batch))
        assert batch.x0.shape[2] == 1 and batch.conditioning()["ignore_time"] is True
        torch.testing.assert_close(*losses)
    losses[1].backward()
    trained = [name for name, part in videos.unets[1].named_parameters() if part.grad is not None]
    assert trained and not [name for name in trained if "temporal" in name or "rate" in name]


def test_a_joint_batch_of_clips_and_stills_is_both():
    model = video_cascade()
    whole, apart = clips(4, 3, 4), torch.tensor([True, False, True, False])
    batch = model.training_batch(whole, text_embeds=text(4), ignore_time=apart)
    assert torch.equal(batch.ignore_time, apart)
    joint = model.loss(batch)
    parts = [changed(batch.rows(slice(i, i + 1)), ignore_time=bool(apart[i])) for i in range(4)]
    torch.testing.assert_close(joint, torch.stack([model.loss(part) for part in parts]).mean())
    assert abs(model.loss(changed(batch, ignore_time=False)) - joint) > 1e-6
    noisy = model.training_batch(whole, text_embeds=text(4), ignore_time=True)
    assert noisy.ignore_time is True and model.loss(noisy) > 0

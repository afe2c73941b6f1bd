"""Cascades of clips: which frames a stage sees, when they are, and that all that works for pictures works for them."""

from __future__ import annotations

import copy
import functools
import inspect
from contextlib import nullcontext

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
    unet,
    video_cascade,
    video_unet,
)

from imagen_pytorch.cascade.cascade import Cascade
from imagen_pytorch.diffusion.guidance import ClassifierFree
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.imagen import ElucidatedImagen, Imagen, imagen_from_config
from imagen_pytorch.images import resample_frames, resize, shrink_known
from imagen_pytorch.tensors import seeded

BARE = {"dim_mults": (1,), "layer_cross_attns": False, "final_resnet_block": False, "use_global_context_attn": False}
SILENT = {"condition_on_text": False}
ABOUT_FRAMES = ("video", "frame_times", "fps", "init_images", "cond_images")


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked where arguments of `Imagen.sample` are used that are about frames, and nowhere else:
    it takes seconds."""
    name = request.node.name
    checked = "every_argument" in name and "Elucidated" not in name and any(word in name for word in ABOUT_FRAMES)
    with nullcontext() if checked else unchecked():
        yield


def in_range(found, *shape):
    return tuple(found.shape) == shape and bool(((found >= 0) & (found <= 1)).all())


def told(clip, size=4):
    """A clip whose frames say which they are: frame i has the value i / 16 everywhere."""
    first, count, batch = clip
    return (torch.arange(first, first + count) / 16).view(1, 1, -1, 1, 1).expand(batch, 3, -1, size, size)


def which(frames):
    """What `told` frames say, from [-1, 1]."""
    return ((frames.mean((1, 3, 4)) + 1) * 8).round().int().tolist()


# -- every argument ---------------------------------------------------------------------------------------------------

MASK = torch.arange(8).expand(2, 8, 8) < 4
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
    estimate = model.stages[0].threshold(process.estimate(answer, x_t, level).float(), _Identity)
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


# -- given frames -----------------------------------------------------------------------------------------------------


def spied(model, **call):
    """What the networks of a sampling call were told, one for each stage."""
    nets = [standing_in(model, number) for number in range(1, len(model.unets) + 1)]
    found = sample(model, steps=1, **call)
    return [net.conditions[0] for net in nets], found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cond_video_frames", "post_cond_video_frames"])
def test_given_frames_are_normalised_and_scaled_like_a_clean_clip(kind, name):
    """0.25 is -0.5 between -1 and 1; an elucidated network takes its input divided by the spread of the data."""
    model = video_cascade(kind, **SILENT)
    scale = {Imagen: 1.0, ElucidatedImagen: 2.0}[kind]
    assert model.stages[0].process.clean_scale == pytest.approx(scale)
    given = {name: torch.full((2, 3, 2, 4, 4), 0.25)}
    batch = model.training_batch(clips(2, 3, 4), **given)
    (seen,), _ = spied(model, video_frames=3, **given)
    for frames in (getattr(batch, name), getattr(seen, name)):
        torch.testing.assert_close(frames, torch.full((2, 3, 2, 4, 4), -0.5 * scale))


def test_given_frames_of_a_residual_stage_are_what_their_own_enlargement_lacks():
    model = video_cascade(stages=2, lowres_residual=(None, 0.25), **SILENT)
    given = clips(2, 2, 8)
    whole = 2 * given - 1
    lack = (whole - resize(resize(whole, 4), 8)) / 0.25
    batch = model.training_batch(clips(2, 3, 8), unet_number=2, cond_video_frames=given)
    (_, seen), _ = spied(model, video_frames=3, cond_video_frames=given)
    torch.testing.assert_close(batch.cond_video_frames, lack)
    torch.testing.assert_close(seen.cond_video_frames, lack)


PLACES = {
    # (given before, behind), thinned: which frames stage 1 (of half the rate) is given
    ((4, 3), True): ([-4, -2], [4, 6]),
    ((4, 3), False): ([-4, -3, -2, -1], [4, 5, 6]),
    ((3, 0), True): ([-2], []),
    ((1, 0), True): ([-1], []),  # none falls on the grid: the nearest, at its own time
    ((0, 2), True): ([], [4]),
}


@pytest.mark.parametrize(("counts", "thin"), PLACES)
@pytest.mark.parametrize("fps", [None, 10.0])
def test_a_stage_of_low_rate_is_given_the_frames_whose_times_match(counts, thin, fps):
    """Unless it was told to leave them alone; either way each keeps its time."""
    model = video_cascade(stages=2, temporal_downsample_factor=(2, 1), resize_cond_video_frames=thin, **SILENT)
    before, behind = counts
    given = {"cond_video_frames": told((8 - before, before, 2)), "post_cond_video_frames": told((12, behind, 2))}
    given = {name: part for name, part in given.items() if part.shape[2]} | ({} if fps is None else {"fps": fps})
    trained = [model.training_batch(told((8, 4, 2), 8), unet_number=number, **given) for number in (1, 2)]
    sampled, _ = spied(model, video_frames=4, **given)
    full = (list(range(-before, 0)), list(range(4, 4 + behind)))
    for index, (early, late) in enumerate((PLACES[counts, thin], full)):
        noisy = [0, 2] if index == 0 else [0, 1, 2, 3]
        times = torch.tensor([*early, *noisy, *late], dtype=torch.float64) / (fps or 8)
        assert which(trained[index].x0) == [[8 + place for place in noisy]] * 2
        for seen in (trained[index], sampled[index]):
            torch.testing.assert_close(seen.frame_times, times.expand(len(seen.frame_times), -1))
            for name, places in (("cond_video_frames", early), ("post_cond_video_frames", late)):
                part = getattr(seen, name, None)
                assert (which(part) if places else part) == ([[8 + place for place in places]] * 2 if places else None)
        assert index == 0 or sampled[index].lowres_cond_img.shape[2] == len(times[0] if times.ndim > 1 else times)
        assert sampled[index].frames == len(noisy)


def test_given_frames_change_what_is_made_and_are_not_part_of_it():
    model = video_cascade(stages=2, temporal_downsample_factor=(2, 1))
    call = {"text_embeds": text(), "video_frames": 4}
    plain = sample(model, **call)
    for name in ("cond_video_frames", "post_cond_video_frames"):
        found = sample(model, **call, **{name: clips(2, 2, 8)})
        assert in_range(found, 2, 3, 4, 8, 8) and not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_frames_that_training_gives_away_are_clean_at_their_time_and_not_learned(causal, number):
    options = {"temporal_downsample_factor": (2, 1), "given_frames_prob": 1.0, "fps": 16.0}
    model = video_cascade(stages=2, unet_options={"time_causal_attn": causal, **BARE}, **options, **SILENT)
    whole, seen = told((0, 12, 2), 8), []
    places = list(range(0, 12, 2 if number == 1 else 1))
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        batch = model.training_batch(whole, unet_number=number, generator=draw)
        given, learned = which(batch.cond_video_frames)[0], which(batch.x0)[0]
        assert given == sorted(given) and learned == sorted(learned) and sorted(given + learned) == places
        torch.testing.assert_close(batch.frame_times[0] * 16, torch.tensor([*given, *learned], dtype=torch.float64))
        assert batch.noise.shape == batch.x0.shape and batch.post_cond_video_frames is None
        if number == 2:
            assert batch.lowres_cond_img.shape[2] == 12
        seen.append((tuple(given), given == places[: len(given)]))
    assert {len(given) for given, _ in seen} == set(range(1, len(places)))
    assert all(leading for _, leading in seen) == causal
    model.loss(batch).backward()


def test_frames_are_given_away_in_training_only_and_by_their_share():
    model = video_cascade(unet_options=BARE, given_frames_prob=0.5, **SILENT)
    draws = [model.training_batch(clips(2, 4, 4), generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert 15 < sum(batch.cond_video_frames is not None for batch in draws) < 45
    kept = [model.training_batch(clips(2, 1, 4)), model.training_batch(clips(2, 4, 4), ignore_time=True)]
    model.eval()
    kept += [model.training_batch(clips(2, 4, 4)) for _ in range(10)]
    assert all(batch.cond_video_frames is None for batch in kept)


def test_given_frames_of_the_caller_come_before_those_that_training_gives_away():
    model = video_cascade(unet_options=BARE, given_frames_prob=1.0, **SILENT)
    around = {"cond_video_frames": told((2, 2, 2)), "post_cond_video_frames": told((8, 1, 2))}
    batch = model.training_batch(told((4, 4, 2)), **around)
    given, learned = which(batch.cond_video_frames)[0], which(batch.x0)[0]
    assert given[:2] == [2, 3] and sorted(given[2:] + learned) == [4, 5, 6, 7]
    assert which(batch.post_cond_video_frames) == [[8]] * 2
    order = torch.tensor([*given, *learned, 8], dtype=torch.float64)
    torch.testing.assert_close(batch.frame_times[0], (order - 4) / 8)


# -- times and rates --------------------------------------------------------------------------------------------------


def test_the_rate_is_told_as_each_stage_has_it_and_hidden_by_its_share():
    for share, kept in ((0.0, True), (1.0, False)):
        model = video_cascade(
            stages=2, unet_options=BARE, temporal_downsample_factor=(2, 1), fps_drop_prob=share, **SILENT
        )
        for number, factor in ((1, 2), (2, 1)):
            batch = model.training_batch(clips(2, 4, 8), unet_number=number, fps=torch.tensor([12.0, 24.0]))
            assert batch.fps.tolist() == [12.0 / factor, 24.0 / factor]
            assert batch.fps_keep.tolist() == [kept] * 2
            steps = batch.frame_times.diff(dim=1)
            torch.testing.assert_close(steps, factor / torch.tensor([[12.0], [24.0]]).double().expand_as(steps))
    assert model.eval().training_batch(clips(2, 4, 8), unet_number=1, fps=12).fps_keep.all()
    silent = model.training_batch(clips(2, 4, 8), unet_number=1)
    assert silent.fps is None and silent.frame_times[0].tolist() == [0.0, 0.25]
    (first, second), _ = spied(model, video_frames=4, batch_size=2, fps=[12, 24])
    assert first.fps.tolist() == [6.0, 12.0] and second.fps.tolist() == [12.0, 24.0]


def test_times_of_the_caller_are_thinned_like_the_frames():
    model = video_cascade(stages=2, unet_options=BARE, temporal_downsample_factor=(2, 1), **SILENT)
    times = torch.tensor([[-0.7, 0.0, 0.3, 0.6, 0.9]])
    given = {"cond_video_frames": clips(1, 1, 8), "frame_times": times}
    sampled, _ = spied(model, video_frames=4, **given)
    for number, places in ((1, [0, 1, 3]), (2, [0, 1, 2, 3, 4])):
        batch = model.training_batch(clips(1, 4, 8), unet_number=number, **given)
        for seen in (batch, sampled[number - 1]):
            torch.testing.assert_close(seen.frame_times, times[:, places].double())


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_frames_of_a_lower_rate_sit_at_their_own_times(mode):
    """Frame j of the stage before is frame 2 j of this one; what lies between is mixed, what lies behind it is held."""
    model = video_cascade(
        stages=2, temporal_downsample_factor=(2, 1), temporal_resize_mode=mode, lowres_residual=(None, 0.5), **SILENT
    )
    between = {"linear": [0, 1, 2, 3, 4, 4], "nearest": [0, 0, 2, 2, 4, 4]}[mode]
    batch = model.training_batch(told((0, 6, 2), 8), unet_number=2)
    assert which(batch.base) == [between] * 2
    start = told((0, 6, 2), 4)[:, :, ::2]
    net = standing_in(model, 2)
    call = {"start_at_unet_number": 2, "lowres_sample_noise_level": 0.0, "steps": 1, "video_frames": 6}
    for clip in (start, told((0, 6, 2), 4)):  # at the rate of the first stage, or the whole
        sample(model, start_image_or_video=clip, **call)
        assert which(net.conditions[-1].lowres_cond_img) == [between] * 2


def test_resampling_frames():
    clip = torch.rand(2, 3, 5, 4, 4)
    for count in (5, 9, 17, 3):
        places = torch.linspace(0, 4, count, dtype=torch.float64)
        expected = F.interpolate(clip, (count, 4, 4), mode="trilinear", align_corners=True)
        torch.testing.assert_close(resample_frames(clip, places), expected)
    motion = torch.arange(5.0).view(1, 1, 5, 1, 1) * torch.rand(1, 3, 1, 4, 4)
    places = torch.tensor([0.0, 0.3, 2.75, 4.0])
    torch.testing.assert_close(resample_frames(motion, places), motion[:, :, 1:2] * places.view(1, 1, -1, 1, 1))
    still = clip[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert torch.equal(resample_frames(still, torch.tensor([-1.0, 0.3, 9.0])), still[:, :, :3])
    back = resample_frames(resample_frames(clip[:, :, :1], torch.zeros(3)), torch.tensor([1.0]))
    assert torch.equal(back, clip[:, :, :1])
    held = resample_frames(clip, torch.tensor([0.0, 0.9, 1.0, 3.99]), "nearest")
    assert torch.equal(held, clip[:, :, [0, 0, 1, 3]])
    with pytest.raises(ValueError, match='no temporal resize mode "cubic"; known: linear, nearest'):
        resample_frames(clip, places, "cubic")


# -- known pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["everywhere alike", "per frame"])
def test_known_pixels_are_kept_at_every_stage(kind, shape):
    """Exactly at the last one; before, wherever all that a pixel and its frame stand for is known, and nothing of what
    is not known comes through."""
    model = video_cascade(kind, 3, BARE, temporal_downsample_factor=(4, 2, 1), image_sizes=(4, 8, 16), **SILENT)
    clip, frames = clips(2, 8, 16), torch.arange(8)
    if shape == "per frame":
        mask = ((frames == 0) | (frames > 4)).view(1, 8, 1, 1).expand(2, 8, 16, 16).clone()
        mask[1, 4, :9] = True
    else:
        mask = torch.zeros(2, 16, 16, dtype=torch.bool)
        mask[:, 3:13, :8] = True
    full = mask if mask.ndim == 4 else mask[:, None].expand(-1, 8, -1, -1)
    given = torch.where(full[:, None], clip, torch.nan)
    found = sample(
        model, inpaint_videos=given, inpaint_masks=mask, return_all_unet_outputs=True, inpaint_resample_times=2
    )
    for made, factor, side in zip(found, (4, 2, 1), (4, 8, 16), strict=True):
        assert in_range(made, 2, 3, 8 // factor, side, side)
        picked = clip[:, :, ::factor], full[:, None, ::factor]
        known, where = shrink_known(*picked, (side, side))
        where = where.expand_as(made)
        assert where.any() and torch.equal(made[where], known[where].clamp(0, 1))
    assert torch.equal(made[where], clip[where]) and not torch.equal(made[~where], clip[~where])


# -- the same clip, whatever is around it -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stub", [True, False])
def test_a_seeded_clip_is_the_same_in_any_batch(kind, stub):
    """Bit for bit as far as the cascade decides; a network may round differently with the size of its batch."""
    options = {"temporal_downsample_factor": (2, 1), "lowres_residual": (None, 0.5), "cond_images_drop_prob": 0.1}
    model = video_cascade(kind, 2, {"self_cond": True, "cond_images_channels": 3}, **options)
    for number in (1, 2):
        if stub:
            standing_in(model, number, lambda x, time: x.sin() * time.view(-1, 1, 1, 1, 1))
    whole = {
        "text_embeds": text(3),
        "cond_video_frames": clips(3, 2, 8),
        "post_cond_video_frames": clips(3, 2, 8, seed=7),
        "cond_images": pictures(3, 6),
        "fps": torch.tensor([8.0, 12.0, 24.0]),
        "inpaint_videos": clips(3, 4, 8, seed=9),
        "inpaint_masks": torch.arange(8).expand(3, 4, 8, 8) < 2,
        "seed": torch.tensor([5, 1, 9]),
    }

    def made(rows):
        some = {name: value[rows] for name, value in whole.items()}
        some |= {"seed": some["seed"].tolist(), "inpaint_resample_times": 2}
        return sample(model, **some, cond_scale=2.0, sampler="ddpm", steps=3)

    together = made(slice(0, 3))
    for rows in (slice(0, 1), slice(1, 3)):
        if stub:
            assert torch.equal(made(rows), together[rows])
        else:
            torch.testing.assert_close(made(rows), together[rows], atol=2e-4, rtol=0)


def test_training_draws_of_a_clip_do_not_depend_on_its_neighbours():
    options = {"random_crop_sizes": (None, 4), "per_sample_random_aug_noise_level": True, "fps_drop_prob": 0.5}
    model = video_cascade(stages=2, unet_options=BARE, **options, **SILENT)
    whole, rates = clips(4, 3, 8), torch.tensor([4.0, 8.0, 12.0, 24.0])

    def batch_of(rows):
        generators = seeded(0, 4)[rows]
        return model.training_batch(whole[rows], unet_number=2, fps=rates[rows], generator=generators)

    all_four, part = batch_of(slice(0, 4)), batch_of(slice(2, 4))
    for name in ("x0", "t", "noise", "lowres_cond_img", "lowres_noise_times", "fps", "fps_keep", "frame_times"):
        assert torch.equal(getattr(all_four, name)[2:], getattr(part, name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_clips_is_described_copied_and_rebuilt(kind):
    options = {"temporal_downsample_factor": (2, 1), "given_frames_prob": 0.5, "fps": 12.0, "video_frames": 4}
    model = video_cascade(kind, 2, BARE, **options)
    again = imagen_from_config(model.to_config())
    again.load_state_dict(model.state_dict())
    expected = sample(model, text_embeds=text())
    assert in_range(expected, 2, 3, 4, 8, 8)
    for other in (again, copy.deepcopy(model)):
        assert other.is_video and other.given_frames_prob == 0.5 and other.fps == 12
        assert torch.equal(sample(other, text_embeds=text()), expected)


# -- mistakes ---------------------------------------------------------------------------------------------------------

CONSTRUCTION = {
    "video and image networks": (
        lambda: Imagen([unet(), video_unet()], image_sizes=(4, 8), text_embed_dim=12),
        r"all Unet \(pictures\) or all Unet3D \(videos\), got both",
    ),
    "rates of pictures": (lambda: cascade(stages=2, temporal_downsample_factor=(2, 1)), "is for video cascades"),
    "rising factors": (
        lambda: video_cascade(stages=3, temporal_downsample_factor=(2, 4, 1)),
        r"never rise from stage to stage and end in 1, such as \(4, 2, 1\); got \(2, 4, 1\)",
    ),
    "last factor": (lambda: video_cascade(stages=2, temporal_downsample_factor=(2, 2)), "and end in 1"),
    "one factor for all": (lambda: video_cascade(stages=2, temporal_downsample_factor=2), "and end in 1"),
    "number of factors": (
        lambda: video_cascade(stages=2, temporal_downsample_factor=(4, 2, 1)),
        "temporal_downsample_factor needs one value, or one for each of the 2 U-Nets; got 3",
    ),
    "shares": (lambda: video_cascade(given_frames_prob=2), "given_frames_prob must lie between 0 and 1, got 2"),
    "rate": (lambda: video_cascade(fps=0), "fps and video_frames must be positive, got 0 and None"),
    "mode": (lambda: video_cascade(temporal_resize_mode="cubic"), 'no temporal_resize_mode "cubic"; known: linear'),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_impossible_models_get_a_sentence(name):
    make, message = CONSTRUCTION[name]
    with pytest.raises(ValueError, match=message):
        make()


SAMPLING = {
    "no frames": ({}, r"video model: say how many frames to make, video_frames=\.\.\."),
    "zero frames": ({"video_frames": 0}, "say how many frames to make"),
    "factor": ({"video_frames": 3}, r"U-Net 1 makes every 2th frame .*must be a multiple of that, got 3"),
    "pillow": ({"video_frames": 4, "return_pil_images": True}, "return_pil_images is for pictures"),
    "frames of a known clip": (
        {"video_frames": 4, "inpaint_videos": clips(2, 6), "inpaint_masks": MASK},
        "inpaint_images must have as many frames as are made, 4; got 6",
    ),
    "frames of a start": (
        {"video_frames": 4, "init_images": (clips(2, 4), clips(2, 2)), "strength": 0.5},
        "init_images must have as many frames as are made, 4; got 2",
    ),
    "masks": (
        {"inpaint_videos": clips(2, 4), "inpaint_masks": torch.ones(2, 3, 8, 8, dtype=torch.bool)},
        r"inpaint_masks must be \(b, h, w\) = \(2, 8, 8\) or \(b, f, h, w\) = \(2, 4, 8, 8\), got \(2, 3, 8, 8\)",
    ),
    "a known picture": (
        {"video_frames": 4, "inpaint_images": pictures(), "inpaint_masks": torch.ones(2, 8, 8, dtype=torch.bool)},
        r"inpaint_images must be \(batch, 3, frames, height, width\), got \(2, 3, 8, 8\)",
    ),
    "two names": (
        {"inpaint_images": clips(), "inpaint_videos": clips(), "inpaint_masks": torch.ones(2, 8, 8, dtype=torch.bool)},
        "two names of the same",
    ),
    "a given picture": (
        {"video_frames": 4, "cond_video_frames": pictures()},
        r"cond_video_frames must be \(batch, 3, frames",
    ),
    "given clips": (
        {"video_frames": 4, "batch_size": 3, "post_cond_video_frames": clips()},
        "3 clips need as many post_cond_video_frames, got 2",
    ),
    "times": (
        {"video_frames": 4, "cond_video_frames": clips(2, 2), "frame_times": torch.zeros(2, 4)},
        r"frame_times must be \(batch, 6\) seconds, one for each frame, given ones included; got \(2, 4\)",
    ),
    "times of clips": ({"video_frames": 4, "batch_size": 3, "frame_times": torch.zeros(2, 4)}, r"got \(2, 4\)"),
    "rates": (
        {"video_frames": 4, "batch_size": 3, "fps": [8, 8]},
        "fps must be positive, one number or one for each of the 3",
    ),
    "no rate": ({"video_frames": 4, "fps": 0}, r"fps must be positive.*got \[0\.0\]"),
    "frames to start from": (
        {"video_frames": 4, "start_at_unet_number": 2, "start_image_or_video": clips(1, 3)},
        "start_image_or_video must have 2 frames, as U-Net 1 makes, or all 4; got 3",
    ),
    "a picture to start from": (
        {"video_frames": 4, "start_at_unet_number": 2, "start_image_or_video": pictures(1)},
        r"start_image_or_video must be \(batch, 3, frames, height, width\)",
    ),
}


@functools.cache
def slow_first():
    return video_cascade(stages=2, unet_options=BARE, temporal_downsample_factor=(2, 1), **SILENT)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_mistakes_get_a_sentence(name):
    call, message = SAMPLING[name]
    with pytest.raises(ValueError, match=message):
        sample(slow_first(), **call)


TRAINING = {
    "rank": (torch.rand(2, 3, 8), {}, r"images must be \(batch, channels, frames, height, width\), got \(2, 3, 8\)"),
    "channels": (clips(channels=1), {}, "the model has 3 channels, the images have 1"),
    "size": (clips(size=6), {}, "U-Net 2 trains on pictures of 8x8, the images are smaller: 6x6"),
    "shape": (clips(size=(8, 12)), {}, "images of 8x12 have other proportions"),
    "range": (clips() * 255, {}, "divide by 255 or pass uint8"),
    "given beside pictures": (
        pictures(),
        {"cond_video_frames": clips()},
        "one frame in which nothing moves: they take no cond_video_frames",
    ),
    "given clips": (clips(), {"cond_video_frames": clips(1)}, "2 clips need as many cond_video_frames, got 1"),
    "times": (clips(), {"frame_times": torch.zeros(1, 3)}, r"frame_times must be \(batch, 4\) seconds"),
    "times of clips": (clips(), {"frame_times": torch.zeros(3, 4)}, r"frame_times must be .*got \(3, 4\)"),
    "rates": (clips(), {"fps": [8, 8, 8]}, "fps must be positive, one number or one for each of the 2 clips"),
    "noise": (
        clips(),
        {"noise": torch.zeros(2, 3, 8, 8)},
        r"noise must be like the training pictures \(2, 3, 4, 8, 8\)",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_mistakes_get_a_sentence(name):
    images, given, message = TRAINING[name]
    with pytest.raises(ValueError, match=message):
        slow_first()(images, unet_number=2, **given)


def test_whole_numbers_that_are_no_uint8_are_refused():
    with pytest.raises(TypeError, match="cond_video_frames must be floating point.*or uint8"):
        slow_first()(clips(), unet_number=1, cond_video_frames=clips().int())


VIDEO_ONLY = {
    "cond_video_frames": clips(),
    "post_cond_video_frames": clips(),
    "frame_times": torch.zeros(1, 4),
    "fps": 8,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*VIDEO_ONLY, "video_frames", "inpaint_videos", "ignore_time"])
def test_models_of_pictures_refuse_what_is_about_frames(kind, name):
    model = cascade(kind, unet_options=BARE, **SILENT)
    message = f"this is an image model: it takes no {name}"
    if name not in ("video_frames", "inpaint_videos"):
        with pytest.raises(ValueError, match=message):
            model(pictures(), **{name: VIDEO_ONLY.get(name, True)})
    if name != "ignore_time":
        value = VIDEO_ONLY.get(name, 4 if name == "video_frames" else pictures())
        with pytest.raises(ValueError, match=message):
            sample(model, **{name: value}, **({"inpaint_masks": MASK} if name == "inpaint_videos" else {}))
    with pytest.raises(ValueError, match=r"images must be \(batch, channels, height, width\), got \(2, 3, 4, 8, 8\)"):
        model(clips())
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        model(pictures(), frames=4)

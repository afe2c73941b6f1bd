"""Frames of a video cascade: given ones, their times and rates, known pixels, and mistakes with all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cascade_toys import (
    KINDS,
    clips,
    sample,
    standing_in,
    text,
    video_cascade,
)
from video_toys import BARE, SILENT, checks, in_range, told, which  # noqa: F401

from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.images import resample_frames, resize, shrink_known

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

"""Clips with a known law: frames that are painted, or made around given ones, have the law of the rest.

Frames are an AR(1) process: the covariance of two of them is ``PHI ** |i - j|``, and at other times than those of a
steady rate its continuation, ``PHI ** (|s - t| FPS)``. Networks are exact denoisers, so that `sample` itself is under
test.
"""

from __future__ import annotations

import pytest
import torch
from cascade_toys import sample, standing_in, unchecked, video_cascade

from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.images import resample_frames
from imagen_pytorch.testing import Gaussian, as_network, moment_exact_noise

PHI, FPS, ROWS = 0.9, 8.0, 24
# standard deviations at which nothing is clipped, and noise levels of the reference: 80 to 0.02 times the data's
NARROW, WIDE = 0.2, 0.45
REFERENCE = {"sigma_min": 0.02 * NARROW, "sigma_max": 80 * NARROW}
MODELS = {"elucidated": (ElucidatedImagen, NARROW, REFERENCE), "cosine": (Imagen, WIDE, {})}


@pytest.fixture(autouse=True)
def fast():
    """Thousands of steps of functions whose annotations shorter tests check."""
    with unchecked():
        yield


def covariance(times):
    """Of frames at these times, in units of the data's variance."""
    return PHI ** ((times[:, None] - times).abs() * FPS)


def given_some(times, known, values):
    """Mean and covariance of the other frames, given these ``(..., known)``."""
    whole = covariance(times)
    other = [index for index in range(len(times)) if index not in known]
    gain = whole[other][:, known] @ torch.linalg.inv(whole[known][:, known])
    return values @ gain.T, whole[other][:, other] - gain @ whole[known][:, other]


def exact_moments():
    """Noise that makes the moments of a batch those of infinitely many draws; the start knows no state yet."""
    started = False

    def noise(x):
        nonlocal started
        state = x.flatten(1) if started else torch.randn(len(x), x[0].numel(), dtype=x.dtype)
        started = True
        return moment_exact_noise(state).reshape(x.shape)

    return noise


def model_of(kind, stages=1, **options):
    """Clips of one pixel in [-1, 1], in double precision."""
    bare = {"dim_mults": (1,), "layer_cross_attns": False}
    plain = {"channels": 1, "auto_normalize_img": False, "dynamic_thresholding": False, "condition_on_text": False}
    return video_cascade(kind, stages, bare, **{"image_sizes": (1,), "fps": FPS, **plain, **options}).double()


def moments(made):
    """Mean and covariance over the batch."""
    flat = made.flatten(1)
    mean = flat.mean(0)
    return mean, (flat - mean).T @ (flat - mean) / len(flat)


def painted(name, frames, known, repeats):
    """Shares of the true means of the frames that were painted, and the relative error of their covariance."""
    kind, std, levels = MODELS[name]
    model, times = model_of(kind), torch.arange(frames, dtype=torch.float64) / FPS
    law = as_network(Gaussian(torch.zeros_like(times), std**2 * covariance(times)), model.stages[0].process)
    standing_in(model, 1, lambda x, time: law(x, time, None)).double()
    clip = torch.full((ROWS, 1, frames, 1, 1), std, dtype=torch.float64)
    mask = torch.tensor([index in known for index in range(frames)]).view(1, -1, 1, 1).expand(ROWS, -1, 1, 1)
    call = {"inpaint_videos": clip, "inpaint_masks": mask, "inpaint_resample_times": repeats, **levels}
    made = sample(model, **call, sampler="ddpm", steps=250, seed=None, generator=exact_moments())
    assert torch.equal(made[:, :, known], clip[:, :, known])
    other = [index for index in range(frames) if index not in known]
    mean, spread = moments(made[:, :, other] / std)
    true_mean, true_spread = given_some(times, known, torch.ones(len(known), dtype=torch.float64))
    return mean / true_mean, float((spread - true_spread).norm() / true_spread.norm())


@pytest.mark.parametrize("name", ["elucidated", pytest.param("cosine", marks=pytest.mark.slow)])
def test_painting_goes_on_from_the_first_frames(name):
    """The first four of eight are known."""
    means, error = painted(name, 8, [0, 1, 2, 3], repeats=10)
    # reference: a separate prototype, whose means were these and whose covariance was 4 % off
    torch.testing.assert_close(means, torch.tensor([0.975, 0.955, 0.942, 0.934]).double(), atol=0.005, rtol=0)
    assert bool((means >= 0.93).all()) and error <= 0.06


def test_painting_once_is_not_enough():
    means, error = painted("elucidated", 8, [0, 1, 2, 3], repeats=1)
    assert 0.5 < float(means.min()) < float(means.max()) < 0.75 and error > 0.3


def test_painting_fills_in_between():
    """Frames k and k + 4 are known."""
    means, error = painted("elucidated", 5, [0, 4], repeats=10)
    assert bool(((means - 1).abs() <= 0.04).all()) and error <= 0.06


# -- given frames -----------------------------------------------------------------------------------------------------


def knows_given_frames(model, number, std):
    """A network that knows the law of the noisy frames given the others, and all of them by their times alone."""

    def answer(x, time):
        told = net.conditions[-1]
        parts = [getattr(told, name, None) for name in ("cond_video_frames", "post_cond_video_frames")]
        before = 0 if parts[0] is None else parts[0].shape[2]
        known = [index for index in range(told.frame_times.shape[1]) if not before <= index < before + told.frames]
        values = torch.cat([part.flatten(1) for part in (*parts, x[:, :, :0]) if part is not None], dim=1)
        mean, spread = given_some(told.frame_times[0], known, values / process.clean_scale)
        mean, law = mean.reshape(x.shape), Gaussian(torch.zeros(told.frames), std**2 * spread)

        def denoise(x_t, level, before):
            return mean + law(x_t - level.alpha * mean, level, before)

        return as_network(denoise, process)(x, time, None)

    process = model.stages[number - 1].process
    net = standing_in(model, number, answer).double()


AROUND = {
    "before": ([1.0, -0.5], []),
    "behind": ([], [0.8, 1.2]),
    "around": ([1.0, -0.5], [1.2]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", AROUND)
@pytest.mark.parametrize("times", ["steady", "uneven", "between"])
def test_clips_made_around_given_frames_have_the_law_of_what_is_missing(name, place, times):
    kind, std, levels = MODELS[name]
    model, frames = model_of(kind), 4
    knows_given_frames(model, 1, std)
    values = [torch.tensor(part, dtype=torch.float64) for part in AROUND[place]]
    before, behind = (len(part) for part in values)
    when = torch.arange(-before, frames + behind, dtype=torch.float64) / FPS
    if times == "uneven":
        when = torch.tensor([-0.7, -0.1, 0.0, 0.05, 0.3, 0.9, 1.0, 2.5]).double()[2 - before : 6 + behind]
    if times == "between":  # given frames lie among those that are made
        when[:before] += 2.5 / FPS
        when[before + frames :] -= 3.25 / FPS
    call = {"cond_video_frames": values[0], "post_cond_video_frames": values[1]}
    call = {
        key: std * part.view(1, 1, -1, 1, 1).expand(ROWS, -1, -1, -1, -1) for key, part in call.items() if len(part)
    }
    call |= {} if times == "steady" else {"frame_times": when[None]}
    made = sample(
        model, video_frames=frames, **call, **levels, sampler="heun", steps=60, seed=None, generator=exact_moments()
    )
    known = [*range(before), *range(before + frames, before + frames + behind)]
    true_mean, true_spread = given_some(when, known, torch.cat(values))
    mean, spread = moments(made / std)
    torch.testing.assert_close(mean, true_mean, atol=0.01, rtol=0)
    assert float((spread - true_spread).norm() / true_spread.norm()) < 0.03


def test_a_stage_of_half_the_rate_knows_when_its_frames_are():
    """Its frames have the law of every second frame, given those that fall on its times; and the next stage is handed
    them at their places."""
    options = {"image_sizes": (1, 1), "temporal_downsample_factor": (2, 1)}
    model = model_of(ElucidatedImagen, 2, **options)
    knows_given_frames(model, 1, NARROW)
    second = standing_in(model, 2).double()
    values = torch.tensor([-0.3, 1.0, 0.2, 1.5], dtype=torch.float64)
    given = NARROW * values.view(1, 1, -1, 1, 1).expand(ROWS, -1, -1, -1, -1)
    call = {"video_frames": 6, "cond_video_frames": given, **REFERENCE, "sampler": "heun"}
    made = sample(model, **call, steps=60, stop_at_unet_number=1, seed=None, generator=exact_moments())
    when = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]).double() / FPS
    true_mean, true_spread = given_some(when, [0, 1], values[[0, 2]])
    mean, spread = moments(made / NARROW)
    torch.testing.assert_close(mean, true_mean, atol=0.01, rtol=0)
    assert float((spread - true_spread).norm() / true_spread.norm()) < 0.03
    sample(model, **call, steps=1, start_at_unet_number=2, start_image_or_video=made, lowres_sample_noise_level=0.0)
    noise = second.conditions[0].lowres_cond_img - torch.cat([given, resample_frames(made, torch.arange(6) / 2)], dim=2)
    assert noise.shape[2] == 10 and 0.005 < float(noise.std()) < 0.015  # what the lowest level adds


# -- long videos ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["autoregressive", "long_range", "hierarchical"])
def test_a_long_video_made_in_parts_has_the_law_of_the_whole(scheme):
    """Every call knows the frames next to those that it makes, and these are all that counts."""
    total, rows = 13, 2000
    model = model_of(ElucidatedImagen)
    knows_given_frames(model, 1, NARROW)
    call = {"batch_size": rows, "sampler": "heun", "steps": 30, "use_tqdm": False, **REFERENCE}
    made = model.sample_long(total, 4, scheme, **call, generator=torch.Generator().manual_seed(0)) / NARROW
    calls = model.unets[0].conditions
    assert sum(told.frames for told in calls) == total and max(told.frame_times.shape[1] for told in calls) <= 4
    root = torch.linalg.cholesky(covariance(torch.arange(total, dtype=torch.float64) / FPS))
    mean, spread = moments(torch.linalg.solve_triangular(root, made.flatten(1).T, upper=False).T)
    # five standard errors of what would be independent frames of variance one
    assert float(mean.abs().max()) < 5 / rows**0.5
    assert float((spread - torch.eye(total)).abs().max()) < 5 * 2**0.5 / rows**0.5

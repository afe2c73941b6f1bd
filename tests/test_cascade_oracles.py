"""Exact answers through the public classes: networks that know the data, and spies on what networks are shown."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from cascade_toys import KINDS, Net, cascade, changed, pictures, sample, standing_in, text, unchecked

from imagen_pytorch.cascade import training_inputs
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import SCHEDULES
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.images import resize
from imagen_pytorch.tensors import seeded

FORMS = [(Imagen, "noise"), (Imagen, "x_start"), (Imagen, "v"), (ElucidatedImagen, "edm")]
SIGMA_DATA = 0.5


@pytest.fixture(autouse=True)
def fast():
    with unchecked():
        yield


def levels(objective, time, x):
    """(alpha, sigma, what the network's input has to be divided by) from the noise condition."""
    time = time.double().reshape(-1, *(1,) * (x.ndim - 1))
    if objective == "edm":
        sigma = torch.exp(4 * time)
        return torch.ones_like(sigma), sigma, 1 / (sigma**2 + SIGMA_DATA**2).sqrt()
    return torch.sigmoid(time).sqrt(), torch.sigmoid(-time).sqrt(), torch.ones_like(time)


def oracle(objective, denoise):
    """The answer of a network of this objective whose estimate is ``denoise(x_t, alpha, sigma)``, in float64."""

    def answer(x, time):
        alpha, sigma, scale = levels(objective, time, x)
        x_t = x.double() / scale
        x0 = denoise(x_t, alpha, sigma)
        total = sigma**2 + SIGMA_DATA**2
        answers = {
            "noise": lambda: (x_t - alpha * x0) / sigma,
            "x_start": lambda: x0,
            "v": lambda: (alpha * x_t - x0) / sigma,
            "edm": lambda: (x0 - SIGMA_DATA**2 / total * x_t) * total.sqrt() / (sigma * SIGMA_DATA),
        }
        return answers[objective]().to(x.dtype)

    return answer


def gaussian(std, mean=0.0):
    """The exact denoiser of independent pixels N(mean, std**2)."""
    return lambda x, alpha, sigma: mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def formed(kind, objective, **options):
    """A cascade of this class and objective, unconditional, without dynamic thresholding."""
    more = {"pred_objectives": objective, "min_snr_loss_weight": False} if kind is Imagen else {}
    return cascade(kind, condition_on_text=False, dynamic_thresholding=False, **more, **options)


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:images should lie")
@pytest.mark.parametrize("crop", [None, 8])
@pytest.mark.parametrize("self_cond", [False, True])
@pytest.mark.parametrize(("kind", "objective"), FORMS)
def test_losses_on_gaussian_data_have_their_closed_form(kind, objective, self_cond, crop):
    """Data of std 0.5 and as much noise as signal: 0.2 for noise and x0, 0.4 for v, 1 for EDM; whole and in pieces."""
    std, log_snr = 0.5, 0.0
    model = formed(kind, objective, stages=2, auto_normalize_img=False, random_crop_sizes=(None, crop))
    images = std * torch.randn(300 if crop is None else 1100, 3, 16, 16)
    batch = model.training_batch(images, unet_number=2)
    t = model.stages[1].process.schedule.inverse(torch.full((len(images),), log_snr, dtype=torch.float64))
    batch = changed(batch, t=t, self_condition=self_cond)
    net = Net(oracle(objective, gaussian(std)))
    expected = {"noise": 0.2, "x_start": 0.2, "v": 0.4, "edm": 1.0}[objective]
    error = 3 * math.sqrt(2 / batch.x0.numel())  # three standard errors of a mean of squares
    whole = model.loss(batch, net).item()
    assert whole == pytest.approx(expected, rel=error)
    pieces = sum(model.loss(piece, net).item() * len(piece) for piece in batch.split(256)) / len(batch)
    assert pieces == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 2.0, 80.0])
def test_a_silent_elucidated_network_loses_one_at_every_level(sigma):
    model = formed(ElucidatedImagen, "edm")
    batch = model.training_batch(pictures(64))
    batch = changed(batch, x0=0.5 * torch.randn(64, 3, 8, 8), t=torch.full((64,), sigma))
    assert model.loss(batch, Net()).item() == pytest.approx(1.0, rel=3 * math.sqrt(2 / batch.x0.numel()))


# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize(("kind", "objective"), FORMS)
def test_a_network_that_knows_the_picture_gives_exactly_it(kind, objective, name):
    model, picture = formed(kind, objective), 2 * pictures(2) - 1
    standing_in(model, 1, oracle(objective, lambda x, alpha, sigma: picture.double()))
    result = sample(model, batch_size=2, sampler=name, steps=4)
    torch.testing.assert_close(result, pictures(2), atol=2e-5, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_thousand_ancestral_steps_leave_no_noise(schedule):
    model, picture = formed(Imagen, "noise", noise_schedules=schedule, timesteps=1000), 2 * pictures(1) - 1
    standing_in(model, 1, oracle("noise", lambda x, alpha, sigma: picture.double()))
    assert float((sample(model) - pictures(1)).std()) < 1e-4


@pytest.mark.parametrize(("name", "steps"), [("ddim", 200), ("dpmpp_2m", 50), ("heun", 50), ("edm", 200)])
@pytest.mark.parametrize(("kind", "objective"), FORMS)
def test_samples_of_gaussian_data_have_its_mean_and_spread(kind, objective, name, steps):
    mean, std = 0.3, 0.1
    model = formed(kind, objective)
    standing_in(model, 1, oracle(objective, gaussian(std, mean)))
    result = 2 * sample(model, batch_size=40, sampler=name, steps=steps, seed=None) - 1
    assert float(result.mean()) == pytest.approx(mean, abs=0.006)
    assert float(result.std()) == pytest.approx(std, rel=0.04)


def test_few_deterministic_steps_do_the_work_of_a_thousand():
    model = formed(Imagen, "v")
    parts = torch.tensor([[-0.6], [0.5]]).double()

    def mixture(x, alpha, sigma):
        """Two narrow peaks per pixel."""
        variance = alpha**2 * 0.05**2 + sigma**2
        means = alpha * parts.reshape(2, 1, 1, 1, 1)
        weights = torch.softmax(-((x - means) ** 2) / (2 * variance), dim=0)
        estimates = parts.reshape(2, 1, 1, 1, 1) + alpha * 0.05**2 / variance * (x - means)
        return (weights * estimates).sum(0)

    standing_in(model, 1, oracle("v", mixture))
    fine = sample(model, batch_size=4, sampler="dpmpp_2m", steps=1000)
    errors = {steps: float((sample(model, batch_size=4, sampler="dpmpp_2m", steps=steps) - fine).square().mean().sqrt())
              for steps in (20, 40)}  # fmt: skip
    assert errors[20] < 0.02 and errors[40] < errors[20] / 2.5


def test_guided_samples_of_gaussian_classes_lie_where_theory_says():
    """Classes of one variance: guidance w moves the mean to w times the class mean and leaves the spread."""
    model = cascade(pred_objectives="x_start", dynamic_thresholding=False)
    std, mean, scale = 0.1, 0.2, 3.0
    net = standing_in(model)

    def answer(x, time):
        alpha, sigma, _ = levels("x_start", time, x)
        keep = net.conditions[-1].text_keep.reshape(-1, 1, 1, 1)
        return gaussian(std, mean * keep)(x.double(), alpha, sigma).to(x.dtype)

    net.answer = answer
    images = sample(model, text_embeds=text(60), cond_scale=scale, sampler="dpmpp_2m", steps=64)
    assert [len(call.x) for call in net.calls] == [120] * 64
    result = 2 * images - 1
    assert float(result.mean()) == pytest.approx(scale * mean, abs=0.005)
    assert float(result.std()) == pytest.approx(std, rel=0.03)


# -- known pixels and starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("kind", KINDS)
def test_known_pixels_are_as_noisy_as_the_level_says_in_every_evaluation(kind, name):
    objective = "noise" if kind is Imagen else "edm"
    model = formed(kind, objective, image_sizes=(24,))
    net, image = standing_in(model), pictures(4, 24)
    mask = torch.zeros(4, 24, 24, dtype=torch.bool)
    mask[:, :16] = True
    sample(model, inpaint_images=image, inpaint_masks=mask, inpaint_resample_times=2, sampler=name, steps=4)
    twice = name in ("heun", "edm", "dpmpp_2s")  # two evaluations a step, and one into the clean end
    assert len(net.calls) == (3 * 2 * 2 + 2 if twice else 4 * 2)
    for call in net.calls:
        alpha, sigma, scale = levels(objective, call.time, call.x)
        noise = ((call.x / scale - alpha * (2 * image - 1)) / sigma)[:, :, :16]
        assert float(noise.mean()) == pytest.approx(0, abs=0.06)
        assert float(noise.std()) == pytest.approx(1, rel=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_under_the_mask_has_no_influence(kind):
    model = cascade(kind, stages=2, condition_on_text=False, lowres_residual=(None, 0.25))
    known, mask = pictures(2, 16), torch.rand(2, 16, 16) < 0.6
    other = torch.where(mask[:, None], known, 1 - known)
    one, two = (
        sample(model, inpaint_images=given, inpaint_masks=mask, inpaint_resample_times=2, return_all_unet_outputs=True)
        for given in (known, other)
    )
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    keep = mask[:, None].expand_as(known)
    assert torch.equal(one[1][keep], known[keep])
    whole = torch.nn.functional.avg_pool2d(mask[:, None].float(), 2) == 1
    averages = torch.nn.functional.avg_pool2d(known, 2)
    keep = whole.expand_as(averages)
    torch.testing.assert_close(one[0][keep], averages[keep], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", ["b h w", "b 1 h w"])
def test_masks_may_have_a_channel_axis_and_a_full_mask_is_warned_of(shape):
    model = cascade(condition_on_text=False)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask = mask[:, None] if shape == "b 1 h w" else mask
    with pytest.warns(UserWarning, match="nothing is left"):
        images = sample(model, inpaint_images=pictures(), inpaint_masks=mask, inpaint_resample_times=1)
    assert torch.equal(images, pictures())


@pytest.mark.slow
def test_inpainting_a_correlated_pair_recovers_the_conditional_distribution():
    """Two pixels of unit variance and correlation 0.9, one of them known to be 1: the other has mean 0.9 and variance
    0.19. As a residual, so that thresholds, which know that pictures lie in [-1, 1], are far away."""
    rho, scale, count = 0.9, 0.15, 8000
    values, vectors = torch.linalg.eigh(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64))

    def denoise(x, alpha, sigma):
        alpha, sigma = (float(part.flatten()[0]) for part in (alpha, sigma))
        return x @ (vectors @ torch.diag(alpha * values / (alpha**2 * values + sigma**2)) @ vectors.T)

    sizes = ((1, 2), (1, 2))
    model = formed(Imagen, "x_start", image_sizes=sizes, channels=1, timesteps=250, lowres_residual=(None, scale))
    standing_in(model, 2, oracle("x_start", denoise))
    image = torch.full((count, 1, 1, 2), (scale + 1) / 2)
    mask = torch.tensor([True, False]).expand(count, 1, 2)
    known = {"inpaint_images": image, "inpaint_masks": mask, "inpaint_resample_times": 10}
    grey = torch.full((count, 1, 1, 2), 0.5)
    generator = torch.Generator().manual_seed(0)
    start = {"start_at_unet_number": 2, "start_image_or_video": grey}
    result = model.sample(use_tqdm=False, generator=generator, **known, **start)
    free = (2 * result[..., 1].double() - 1) / scale
    assert 0.97 <= float(free.mean()) / rho <= 1.0
    assert 0.93 <= float(free.var()) / (1 - rho**2) <= 1.02


@pytest.mark.parametrize("way", [{"skip_steps": 3}, {"strength": 0.4}])
@pytest.mark.parametrize("kind", KINDS)
def test_an_init_picture_starts_at_the_level_that_is_reached(kind, way):
    objective = "noise" if kind is Imagen else "edm"
    model = formed(kind, objective, image_sizes=(32,))
    net, image = standing_in(model), pictures(4, 32)
    sample(model, batch_size=4, init_images=image, steps=5, sampler="ddim", **way)
    assert len(net.calls) == 2
    alpha, sigma, scale = levels(objective, net.calls[0].time, net.calls[0].x)
    noise = (net.calls[0].x / scale - alpha * (2 * image - 1)) / sigma
    assert float(noise.mean()) == pytest.approx(0, abs=0.04) and float(noise.std()) == pytest.approx(1, rel=0.03)
    grid = model.stages[0].process.schedule.discretize(5, "karras")
    assert float(sigma.flatten()[0] / alpha.flatten()[0]) == pytest.approx(float(grid[3].sigma_edm), rel=1e-4)


@pytest.mark.parametrize("residual", [None, (None, 0.25)])
@pytest.mark.parametrize("kind", KINDS)
def test_strength_goes_from_the_picture_itself_to_pure_noise(kind, residual):
    model = cascade(kind, stages=2, condition_on_text=False, lowres_residual=residual)
    image = pictures(2, 16)
    start = {"init_images": image, "start_at_unet_number": 2, "start_image_or_video": pictures(2, seed=5)}
    ways = [{"strength": 0.0}, {"skip_steps": 5}, {"strength": 0.4}, {"strength": 1.0}]
    none, skipped, some, all_ = (
        float((sample(model, steps=5, sampler="ddim", **start, **way) - image).abs().mean()) for way in ways
    )
    assert none < 1e-6 and skipped < 1e-6 < 1e-3 < some < all_


# -- the low-resolution condition -----------------------------------------------------------------------------------


def test_training_and_sampling_show_the_same_low_resolution_picture_for_the_same_noise(monkeypatch):
    model = cascade(stages=2, condition_on_text=False)
    net, images = standing_in(model, 2), pictures(2, 16)
    monkeypatch.setattr(training_inputs, "augmentation_times", lambda batch, *_: torch.full((batch,), 0.35))
    batch = model.training_batch(images, unet_number=2, generator=seeded(7, 2))
    small = resize(images, 8)
    sample(model, start_at_unet_number=2, start_image_or_video=small, lowres_sample_noise_level=0.35, seed=7)
    shown = net.conditions[0]
    torch.testing.assert_close(shown.lowres_cond_img, batch.lowres_cond_img, atol=1e-6, rtol=0)
    assert torch.equal(shown.lowres_noise_times, batch.lowres_noise_times)


@pytest.mark.parametrize("kind", KINDS)
def test_the_augmentation_level_is_chosen_per_unet_in_the_constructor_and_in_the_call(kind):
    model = cascade(kind, stages=3, condition_on_text=False, lowres_sample_noise_level=(0.1, 0.2, 0.4))
    nets = [standing_in(model, number) for number in (2, 3)]
    linear = SCHEDULES["linear"]()

    def told():
        return [net.conditions[-1].lowres_noise_times[0].item() for net in nets]

    def expected(*times):
        return pytest.approx([linear.log_snr(torch.tensor(time)).item() for time in times], rel=1e-5)

    sample(model)
    assert told() == expected(0.2, 0.4)
    sample(model, lowres_sample_noise_level=0.6)
    assert told() == expected(0.6, 0.6)
    sample(model, lowres_sample_noise_level=(None, None, 0.9))
    assert told() == expected(0.2, 0.9)


def test_conditioning_pictures_reach_the_networks_that_take_them_and_no_others():
    model = cascade(stages=2, condition_on_text=False)
    model.unets[1] = Net(lowres_cond=True, has_cond_image=True)
    bare = standing_in(model, 1)
    levels_ = (pictures() * 255).to(torch.uint8)
    sample(model, cond_images=levels_)
    assert "cond_images" not in vars(bare.conditions[0])
    torch.testing.assert_close(model.unets[1].conditions[0].cond_images, levels_ / 255)
    with pytest.raises(ValueError, match="every U-Net was built without"):
        sample(model, cond_images=levels_, stop_at_unet_number=1)


@functools.cache
def residual_model():
    model = cascade(stages=2, condition_on_text=False, lowres_residual=(None, 0.25))
    standing_in(model, 2, oracle("noise", lambda x, alpha, sigma: torch.zeros_like(x)))
    return model


def test_a_residual_stage_without_residual_returns_the_enlargement():
    start = pictures(2, 8)
    result = sample(residual_model(), start_at_unet_number=2, start_image_or_video=start)
    torch.testing.assert_close(result, resize(start, 16), atol=2e-5, rtol=0)

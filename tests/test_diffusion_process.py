"""The process as a whole: training and sampling through one network, starts, choices of sampler and user mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import config

from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS, Inpainting
from imagen_pytorch.diffusion.schedules import SCHEDULES, Cosine
from imagen_pytorch.testing import IsotropicGaussian, affine_response, as_network

ORACLE = IsotropicGaussian(mean=0.1, std=0.4)


def process(schedule="cosine", objective="noise", sampler="ddpm", steps=None, **options):
    return DiffusionProcess(
        SCHEDULES[schedule](),
        OBJECTIVES[objective](),
        NOISE_LEVELS["uniform"](),
        WEIGHTINGS["plain"](),
        SAMPLERS[sampler](**options),
        steps=steps,
    )


IMAGEN, EDM = ("cosine", "noise"), ("karras", "edm")


def picture(batch=2):
    return torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture
def unchecked():
    """Long runs of functions whose annotations shorter tests check."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_a_network_of_any_objective_gives_back_its_denoiser(schedule, objective):
    model = process(schedule, objective)
    denoise = model.denoiser(as_network(ORACLE, model))
    for level in model.schedule.discretize(6)[:-1]:
        x = level.alpha * 0.3 + level.sigma * torch.randn(4, 3, 2, 2, dtype=torch.float64)
        torch.testing.assert_close(denoise(x, level, None), ORACLE(x, level, None), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "heun", "edm"])
@pytest.mark.parametrize("kind", [IMAGEN, EDM], ids=["vp", "edm"])
def test_samples_have_the_law_that_the_sampler_makes_of_the_data(kind, sampler, unchecked):
    model = process(*kind, sampler)
    denoise = model.denoiser(as_network(ORACLE, model))
    for steps in (3, 30):
        levels = model.sampler.discretize(model.schedule, steps)
        response = affine_response(model.sampler, ORACLE, model.schedule, levels)
        generator = torch.Generator().manual_seed(0)
        found = model.sample(denoise, (5000, 2, 2), steps=steps, generator=generator).double()
        law = response.mean(0.0), math.sqrt(response.variance(float(levels[0].sigma ** 2)))
        assert float(found.mean()) == pytest.approx(law[0], abs=4 * law[1] / math.sqrt(20_000) + 1e-3)
        assert float(found.std()) == pytest.approx(law[1], rel=0.02)
    assert law[1] == pytest.approx(0.4, rel=0.35 if sampler == "ddpm" else 0.1)


@pytest.mark.parametrize("kind", [IMAGEN, EDM], ids=["vp", "edm"])
def test_a_perfect_network_is_followed_to_the_picture_itself(kind, unchecked):
    """A thousand ancestral steps end at x0, not at a posterior around it."""
    model, target = process(*kind, "ddpm", steps=1000), picture()
    net = as_network(lambda x, level, before: target.to(x), model)
    found = model.sample(model.denoiser(net), target.shape, generator=torch.Generator().manual_seed(0))
    assert float((found - target).std()) < 1e-3
    assert float((found - target).abs().max()) < 5e-3


@pytest.mark.parametrize("sampler", SAMPLERS.names())
@pytest.mark.parametrize("kind", [IMAGEN, EDM], ids=["vp", "edm"])
def test_items_with_their_own_generators_do_not_depend_on_the_batch(kind, sampler, unchecked):
    model = process(*kind, sampler)
    denoise = model.denoiser(as_network(ORACLE, model))

    def run(items):
        generators = [torch.Generator().manual_seed(item) for item in items]
        return model.sample(denoise, (len(items), 2, 2), steps=5, generator=generators)

    whole = run(range(4))
    assert torch.equal(torch.cat([run([0]), run([1, 2]), run([3])]), whole)
    assert torch.equal(run([2, 0]), whole[[2, 0]])


@pytest.mark.parametrize("sampler", SAMPLERS.names())
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_one_step_is_finite_in_every_precision(schedule, sampler):
    model = process(schedule, "v", sampler)
    denoise = model.denoiser(lambda x, c_noise, before: torch.zeros_like(x))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = model.sample(denoise, (2, 2), steps=1, dtype=dtype)
        assert found.dtype == dtype and torch.isfinite(found).all()


def test_the_network_sees_a_scaled_picture_a_number_per_item_and_the_estimate_before():
    model, calls = process(*EDM, "ddim"), []

    def net(x, c_noise, before):
        calls.append((x, c_noise, before))
        return torch.zeros_like(x)

    model.sample(model.denoiser(net), (500, 2, 2), steps=3, generator=torch.Generator().manual_seed(0))
    levels = model.schedule.discretize(3)
    for (_, c_noise, _), level in zip(calls, levels, strict=False):
        assert c_noise.shape == (500,)
        assert float(c_noise[0]) == pytest.approx(math.log(float(level.sigma)) / 4, rel=1e-5)
    assert float(calls[0][0].std()) == pytest.approx(1, rel=0.05)
    assert calls[0][2] is None
    first = model.to_x0(torch.zeros(500, 2, 2), calls[0][0] * math.hypot(80, 0.5), levels[0])
    torch.testing.assert_close(calls[1][2], first, rtol=1e-4, atol=1e-5)


# -- choices ---------------------------------------------------------------------------------------------------------


def steps_taken(model, **options):
    counts = []
    model.sample(
        lambda x, level, before: torch.zeros_like(x), (1, 2), callback=lambda i, n, x0: counts.append(n), **options
    )
    assert counts == [len(counts)] * len(counts)
    return len(counts)


def test_number_of_steps_belongs_to_the_sampler_unless_said_otherwise():
    model = process(*IMAGEN, "ddpm", steps=40)
    assert steps_taken(model) == 40
    assert steps_taken(model, steps=7) == 7
    assert steps_taken(model, sampler="ancestral") == 40
    assert steps_taken(model, sampler="ddim") == SAMPLERS["ddim"].default_steps
    assert steps_taken(model, sampler=SAMPLERS["heun"](), steps=3) == 3
    assert steps_taken(process(*IMAGEN, "heun")) == SAMPLERS["heun"].default_steps
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        steps_taken(model, steps=0)
    with pytest.raises(ValueError, match='no sampler "dpm"'):
        steps_taken(model, sampler="dpm")


def test_a_sampler_by_name_keeps_the_numbers_of_the_process():
    calm = process(*EDM, "edm", S_churn=0.0)
    denoise = calm.denoiser(as_network(ORACLE, calm))

    def run(**options):
        return calm.sample(denoise, (2, 2), steps=4, generator=torch.Generator().manual_seed(0), **options)

    assert torch.equal(run(sampler="edm"), run())
    torch.testing.assert_close(run(sampler="heun"), run())
    assert not torch.allclose(run(sampler=SAMPLERS["edm"]()), run())


def test_churn_is_spread_over_the_steps_of_the_run():
    sampler = SAMPLERS["edm"](S_churn=4.0, S_tmin=0.0, S_tmax=math.inf, S_noise=1.0)
    levels_seen = []
    model = process(*EDM, "edm", S_churn=4.0, S_tmin=1.0, S_tmax=50.0)

    def denoise(x, level, before):
        levels_seen.append(float(level.sigma))
        return torch.zeros_like(x)

    model.sample(denoise, (1, 2), steps=40)
    planned = [float(level.sigma) for level in model.schedule.discretize(40)][:-1]
    expected = [sigma * 1.1 if 1.0 <= sigma <= 50.0 else sigma for sigma in planned]
    assert levels_seen[::2] == pytest.approx(expected)
    levels_seen.clear()
    sampler.sample(denoise, model.schedule, torch.zeros(1, 2), model.schedule.discretize(40))
    assert levels_seen[::2] == pytest.approx([sigma * 1.1 for sigma in planned])


# -- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IMAGEN, EDM], ids=["vp", "edm"])
@pytest.mark.parametrize("choice", [{"skip_steps": 6}, {"strength": 0.4}, {"skip_steps": 0}, {}])
def test_a_start_picture_gets_the_noise_of_the_level_that_is_reached(kind, choice):
    model, seen = process(*kind, "ddim"), []

    def denoise(x, level, before):
        seen.append((x, level))
        return torch.zeros_like(x)

    init = torch.full((20_000, 2), 0.7)
    generator = torch.Generator().manual_seed(0)
    model.sample(denoise, (20_000, 2), steps=10, init=init, generator=generator, **choice)
    x, level = seen[0]
    expected = model.schedule.discretize(10, "karras")[6 if choice.get("strength") or choice.get("skip_steps") else 0]
    assert float(level.sigma) == float(expected.sigma)
    assert len(seen) == (4 if choice.get("strength") or choice.get("skip_steps") else 10)
    sigma = float(level.sigma)
    assert float(x.mean()) == pytest.approx(float(level.alpha) * 0.7, abs=4 * sigma / 200)
    assert float(x.std()) == pytest.approx(sigma, rel=0.02)


def test_no_strength_returns_the_picture_itself_with_the_known_pixels():
    model, init = process(*IMAGEN, "ddim"), picture()

    def never(x, level, before):
        raise AssertionError("nothing is to be denoised")

    assert torch.equal(model.sample(never, init.shape, steps=10, init=init, strength=0.0), init)
    assert torch.equal(model.sample(never, init.shape, steps=10, init=init, skip_steps=10), init)
    mask = torch.rand(2, 1, 4, 4) < 0.5
    kept = model.sample(never, init.shape, steps=10, init=init, strength=0.0, known=Inpainting(-init, mask))
    assert torch.equal(kept, torch.where(mask, -init, init))


MISTAKES = {
    "not both": {"init": picture(), "strength": 0.5, "skip_steps": 2},
    "between 0 .* and 1 .*, got 1.5": {"init": picture(), "strength": 1.5},
    "need init_images": {"skip_steps": 2},
    "between 0 and the 10 steps of this run, got 11": {"init": picture(), "skip_steps": 11},
    "3 generators cannot serve a batch of 2": {"generator": [torch.Generator() for _ in range(3)]},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_sampling_mistakes_get_a_sentence(message):
    with pytest.raises(ValueError, match=message):
        process(*IMAGEN, "ddim").sample(ORACLE, (2, 3, 4, 4), steps=10, **MISTAKES[message])


def test_training_and_sampling_levels_broadcast_over_any_rank():
    model = process(*IMAGEN)
    t = torch.tensor([0.2, 0.8])
    for shape in ((2, 3), (2, 3, 4, 4), (2, 3, 2, 4, 4)):
        x0, noise = torch.randn(shape), torch.randn(shape)
        level = model.level(t, x0)
        assert level.alpha.shape == (2, *(1,) * (len(shape) - 1)) and level.alpha.dtype == torch.float64
        x_t = model.add_noise(x0, level, noise)
        assert x_t.dtype == torch.float32
        one = Cosine()(t.double()[1])
        torch.testing.assert_close(x_t[1], (one.alpha * x0[1] + one.sigma * noise[1]).float())
        assert model.loss(lambda x, c_noise, before: x, x0, t, noise).shape == (2,)

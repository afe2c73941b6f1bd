"""Every sampler's order, exactness and independence of the process, against analytic denoisers in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import config

from imagen_pytorch.diffusion import multistep
from imagen_pytorch.diffusion.samplers import SAMPLERS, Inpainting, Sampler, Step, ddim_step
from imagen_pytorch.diffusion.schedules import GRIDS, SCHEDULES, Cosine, Flow, Karras, NoiseLevel
from imagen_pytorch.testing import (
    TEST_MIXTURE,
    IsotropicGaussian,
    affine_response,
    log_uniform_levels,
    probability_flow,
)

GAUSSIAN = IsotropicGaussian(mean=0.7, std=0.5)


@pytest.fixture(autouse=True, scope="module")
def unchecked():
    """The same few functions run tens of thousands of times here; other tests check their annotations."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def with_weak_order(name):
    """A sampler as it converges: EDM's churn adds noise of the wrong variance on purpose, and stops at two levels."""
    if name == "edm":
        return SAMPLERS[name](S_churn=2.0, S_tmin=0.0, S_tmax=math.inf, S_noise=1.0)
    return SAMPLERS[name]()


def is_deterministic(name):
    levels = log_uniform_levels(Karras(), 20.0, 0.05, 3)
    return len(affine_response(SAMPLERS[name](), GAUSSIAN, Karras(), levels).noise_gains) == 0


DETERMINISTIC = [name for name in SAMPLERS.names() if is_deterministic(name)]

# rms error at 32, 64 and 128 steps, and the range of the order between 64 and 128: reference values of a separate
# float64 prototype on the same mixture, ratios 20 to 0.05 evenly spaced in their logarithm
ODE_ERRORS = {
    "ddim": (2.8e-2, 1.4e-2, 6.8e-3, 0.9, 1.15),
    "heun": (2.4e-3, 5.8e-4, 1.4e-4, 1.9, 2.2),
    "dpmpp_2m": (2.0e-3, 5.1e-4, 1.3e-4, 1.85, 2.15),
    "dpmpp_2s": (1.6e-3, 4.3e-4, 1.1e-4, 1.85, 2.15),
    "ab2": (2.4e-3, 5.8e-4, 1.5e-4, 1.85, 2.15),
    "ab3": (4.7e-4, 4.8e-5, 5.1e-6, 2.8, 3.7),
    "pc2": (6.0e-4, 7.4e-5, 8.7e-6, 2.8, 3.5),
    "pc3": (9.2e-5, 7.6e-6, 8.0e-7, 3.0, 4.2),
    "lms4": (1.3e-3, 1.2e-4, 9.2e-6, 3.3, 4.2),
}
GUARDS = {("dpmpp_2m", 32): 2.5e-3, ("ab3", 128): 8e-6, ("pc2", 64): 1e-4}


@pytest.fixture(scope="module")
def mixture_flow():
    """64 starts at ratio 20 and where the probability flow takes them at ratio 0.05."""
    start = 20 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return start, probability_flow(TEST_MIXTURE, start, 20.0, 0.05)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_falls_with_the_order_of_the_sampler(name, mixture_flow):
    start, exact = mixture_flow
    schedule, errors = Cosine(), []
    for steps in (32, 64, 128):
        levels = log_uniform_levels(schedule, 20.0, 0.05, steps)
        end = SAMPLERS[name]().sample(TEST_MIXTURE, schedule, levels[0].alpha * start, levels) / levels[-1].alpha
        errors.append(float((end - exact).square().mean().sqrt()))
        assert errors[-1] <= GUARDS.get((name, steps), math.inf)
    slope = math.log2(errors[-2] / errors[-1])
    if name not in ODE_ERRORS:
        assert slope >= 0.9
        return
    *expected, low, high = ODE_ERRORS[name]
    assert low <= slope <= high
    assert errors == pytest.approx(expected, rel=0.15)


# relative error of the variance at 128 and 256 steps from ratio 80 to 0.02, and the weak order
VARIANCE_ERRORS = {
    "ddpm": (0.062, 0.032, 1),
    "ddim": (0.032, 0.016, 1),
    "dpmpp_2m": (5.2e-4, 1.3e-4, 2),
    "dpmpp_2m_sde": (1.4e-3, 3.5e-4, 2),
    "dpmpp_2m_sde_heun": (2.8e-3, 7.0e-4, 2),
    "edm": (1.5e-3, 3.6e-4, 2),
}


def variance_error(sampler, steps, schedule=None):
    schedule = Karras() if schedule is None else schedule
    levels = log_uniform_levels(schedule, 80.0, 0.02, steps)
    response = affine_response(sampler, GAUSSIAN, schedule, levels)
    first, last = ((level.alpha**2 * 0.25 + level.sigma**2).item() for level in (levels[0], levels[-1]))
    assert abs(response.mean(0.7 * levels[0].alpha.item()) - 0.7 * levels[-1].alpha.item()) < 1e-12
    return abs(response.variance(first) / last - 1)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_mean_is_exact_and_variance_converges_on_gaussian_data(name):
    errors = [variance_error(with_weak_order(name), steps) for steps in (128, 256)]
    slope = math.log2(errors[0] / errors[1])
    if name not in VARIANCE_ERRORS:
        assert slope >= 0.85
        return
    *expected, order = VARIANCE_ERRORS[name]
    assert slope == pytest.approx(order, abs=0.15)
    assert errors == pytest.approx(expected, rel=0.05)


def test_churn_of_fixed_strength_loses_the_second_order():
    fixed = [replace(with_weak_order("edm"), S_churn=0.1 * steps) for steps in (128, 256)]
    errors = [variance_error(sampler, steps) for sampler, steps in zip(fixed, (128, 256), strict=True)]
    assert errors == pytest.approx([3.8e-3, 1.7e-3], rel=0.05)
    assert 1.0 < math.log2(errors[0] / errors[1]) < 1.3


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_every_process_gives_the_same_picture_from_the_same_noise(name, dtype, tolerance):
    ends = []
    for schedule in (Cosine(), Karras(), Flow()):
        generator = torch.Generator().manual_seed(1)
        levels = log_uniform_levels(schedule, 80.0, 0.002, 24)
        start = (levels[0].sigma * torch.randn(16, 2, generator=generator, dtype=torch.float64)).to(dtype)
        end = SAMPLERS[name]().sample(TEST_MIXTURE, schedule, start, levels, generator=generator)
        assert end.dtype == dtype
        ends.append(end / levels[-1].alpha)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("grid", GRIDS.names())
def test_any_number_of_steps_is_finite_and_ends_at_the_estimate(name, schedule, grid):
    sampler, place = SAMPLERS[name](), SCHEDULES[schedule]()
    for steps in (1, 2, 3, 7):
        levels = place.discretize(steps, grid)
        assert len(levels) == steps + 1 and float(levels[-1].sigma) == 0 and float(levels[-1].alpha) == 1
        seen = []

        def denoise(x, level, before, seen=seen):
            seen.append(GAUSSIAN(x, level, None))
            return seen[-1]

        end = sampler.sample(denoise, place, levels[0].sigma * torch.randn(4, 3), levels)
        assert torch.isfinite(end).all()
        assert torch.equal(end, seen[-1]) and end.dtype == torch.float32


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_start_of_pure_noise_without_any_signal_keeps_the_mean(name):
    schedule = Flow(clip=(-math.inf, 15.0))
    levels = schedule.discretize(12)
    assert float(levels[0].alpha) == 0
    response = affine_response(SAMPLERS[name](), GAUSSIAN, schedule, levels)
    assert response.mean(0.0) == pytest.approx(0.7, abs=1e-12)
    assert math.isfinite(response.variance(1.0))


def test_zero_steps_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        SAMPLERS["ddim"]().discretize(Cosine(), 0)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_per_item_generators_make_an_item_independent_of_its_batch(name):
    schedule, sampler = Cosine(), SAMPLERS[name]()
    levels = sampler.discretize(schedule, 8)
    known = Inpainting(torch.zeros(1, 2), torch.tensor([[True, False]]), resample_times=2)

    def run(items, **options):
        generators = [torch.Generator().manual_seed(100 + item) for item in items]
        start = torch.stack([torch.randn(2, generator=item) for item in generators])
        return sampler.sample(TEST_MIXTURE, schedule, start, levels, generator=generators, **options)

    for options in ({}, {"known": known}):
        together = run(range(4), **options)
        for split in ([0, 1], [2, 3], [3], [1, 0]):
            assert torch.equal(run(split, **options), together[split])


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_callback_sees_every_step_and_may_stop(name):
    sampler, schedule, seen = SAMPLERS[name](), Cosine(), []
    levels = sampler.discretize(schedule, 6)
    start = torch.randn(2, 2)
    sampler.sample(GAUSSIAN, schedule, start, levels, callback=lambda *news: seen.append(news))
    assert [(index, total) for index, total, _ in seen] == [(index, 6) for index in range(6)]
    stopped = sampler.sample(GAUSSIAN, schedule, start, levels, callback=lambda index, total, x0: index < 2)
    assert torch.isfinite(stopped).all()
    first = GAUSSIAN(start, levels[0], None)
    once = sampler.sample(
        GAUSSIAN, schedule, start, levels, callback=lambda *_: False, generator=lambda x: torch.zeros_like(x)
    )
    torch.testing.assert_close(once, first, atol=0.05, rtol=0.05)  # churn looks from a slightly noisier level


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_the_number_of_evaluations_is_one_or_two_a_step_and_one_at_the_end(name):
    sampler, schedule, calls = SAMPLERS[name](), Cosine(), []

    def denoise(x, level: NoiseLevel, before):
        calls.append(level)
        return GAUSSIAN(x, level, None)

    sampler.sample(denoise, schedule, torch.randn(1, 2), sampler.discretize(schedule, 10))
    assert len(calls) == (19 if name in ("heun", "edm", "dpmpp_2s") else 10)


# -- the contract ----------------------------------------------------------------------------------------------------


def self_conditioned(x, level, before):
    x0 = TEST_MIXTURE(x, level, None)
    return x0 if before is None else x0 + 0.01 * before


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_sampler_keeps_the_past_that_it_reads_and_no_more(name, monkeypatch):
    sampler, schedule = SAMPLERS[name](), Cosine()
    levels, memory = sampler.discretize(schedule, 8), sampler.memory

    def run():
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(2, 2, generator=generator)
        return sampler.sample(self_conditioned, schedule, start, levels, generator=generator)

    found = run()
    monkeypatch.setattr(type(sampler), "memory", 9)
    assert torch.equal(run(), found)
    if memory > 1:  # one estimate is kept in any case, for self-conditioning
        monkeypatch.setattr(type(sampler), "memory", memory - 1)
        assert not torch.equal(run(), found)


def test_the_length_of_the_past_is_the_order_of_the_sampler():
    expected = {"ab2": 1, "ab3": 2, "pc2": 2, "pc3": 3, "lms4": 3, "dpmpp_2m": 1, "ddim": 0, "heun": 0}
    assert {name: SAMPLERS[name]().memory for name in expected} == expected


def test_variants_are_the_same_class_with_other_defaults():
    assert (SAMPLERS["ab3"](), SAMPLERS["pc3"]()) == (SAMPLERS["ab2"](order=3), SAMPLERS["pc2"](order=3))
    assert SAMPLERS["dpmpp_2m_sde_heun"]() == SAMPLERS["dpmpp_2m_sde"](heun=True)
    assert multistep.AB3(order=4) == SAMPLERS["ab2"](order=4)
    for name in SAMPLERS.names():
        assert SAMPLERS.name_of(SAMPLERS[name]()) == name
    assert SAMPLERS.name_of(SAMPLERS["ab2"](order=4)) == "ab2" and SAMPLERS.name_of(Cosine()) is None


def test_a_sampler_with_the_earlier_signature_is_told_the_new_one():
    with pytest.raises(
        TypeError, match=r"Mine.step\(self, denoise, .*: a sampler has step\(self, walk, x, t, s\).*history"
    ):

        class Mine(Sampler):
            def step(self, denoise, schedule, x, t, s, history, generator):
                return Step(x, x)


def test_a_sampler_of_ones_own_reads_the_run_from_its_walk():
    seen = []

    class Euler(Sampler):
        memory = 2

        def step(self, walk, x, t, s):
            seen.append((walk.steps, len(walk.history), walk.schedule))
            return Step(ddim_step(x, walk.x0(x, t), t, s), x)

    schedule, start = Cosine(), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    levels = schedule.discretize(4)
    expected = SAMPLERS["ddim"]().sample(GAUSSIAN, schedule, start, levels)
    assert torch.equal(Euler().sample(GAUSSIAN, schedule, start, levels), expected)
    assert seen == [(4, count, schedule) for count in (0, 1, 2, 2)]

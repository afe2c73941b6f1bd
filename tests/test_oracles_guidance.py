"""Guidance and thresholds on estimates of x0: identities, costs, and exact results on Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import config

from imagen_pytorch.diffusion.guidance import GUIDANCE, dynamic_threshold, guided, static_threshold
from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import Cosine, Karras
from imagen_pytorch.testing import (
    TEST_MIXTURE,
    IsotropicGaussian,
    IsotropicMixture,
    affine_response,
    as_network,
    log_uniform_levels,
)

CONDITIONAL = IsotropicMixture(means=((1.0, 0.2), (0.6, -0.6)), stds=(0.3, 0.2), weights=(0.6, 0.4))
COSINE = Cosine()
LEVEL = COSINE.level(torch.tensor(-1.0, dtype=torch.float64))


@pytest.fixture
def unchecked():
    """Long runs of functions whose annotations shorter tests check."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def counted(cond, null):
    """Both halves as a pair, and the record of what was asked for."""
    asked = []

    def pair(x, level, before, both):
        asked.append(both)
        return cond(x, level, before), null(x, level, before) if both else None

    return pair, asked


def estimates(batch=3):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, batch, 3, 4, 4, generator=generator, dtype=torch.float64))


def strong(name, scale=3.0):
    """A weight that the method takes."""
    return min(scale, GUIDANCE[name].largest_scale)


def combined(name, cond, null, scale, state=None, **options):
    return GUIDANCE[name](scale, **options).combine(cond, null, LEVEL, {} if state is None else state)


def test_classifier_free_guidance_is_the_weighted_difference():
    cond, null = estimates()
    for scale in (0.0, 1.0, 3.0, 7.5):
        torch.testing.assert_close(combined("cfg", cond, null, scale), null + scale * (cond - null), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GUIDANCE.names())
def test_scale_one_is_the_conditional_estimate_and_free(name):
    if name == "cfgpp":
        return  # its scale is another quantity, see below
    pair, asked = counted(CONDITIONAL, TEST_MIXTURE)
    guidance = GUIDANCE[name](1.0)
    x = torch.randn(8, 2)
    assert not guidance.uses_uncond
    assert torch.equal(guided(pair, guidance)(x, LEVEL, None), CONDITIONAL(x, LEVEL, None))
    assert asked == [False]


@pytest.mark.parametrize("name", GUIDANCE.names())
def test_guidance_asks_for_both_halves_once_and_returns_the_shape(name):
    pair, asked = counted(CONDITIONAL, TEST_MIXTURE)
    x = torch.randn(8, 2)
    found = guided(pair, GUIDANCE[name](strong(name)))(x, LEVEL, None)
    assert found.shape == x.shape and found.dtype == x.dtype and torch.isfinite(found).all()
    assert asked == [True] and not torch.equal(found, CONDITIONAL(x, LEVEL, None))


@pytest.mark.parametrize("name", GUIDANCE.names())
def test_items_are_guided_one_by_one(name):
    cond, null = estimates()
    whole = combined(name, cond, null, strong(name))
    parts = [combined(name, cond[i : i + 1], null[i : i + 1], strong(name)) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GUIDANCE.names())
def test_guided_pictures_do_not_depend_on_what_the_network_predicts(name, unchecked):
    ends = []
    for objective in OBJECTIVES.names():
        process = DiffusionProcess(
            COSINE, OBJECTIVES[objective](), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["dpmpp_2m"]()
        )
        halves = [process.denoiser(as_network(oracle, process)) for oracle in (CONDITIONAL, TEST_MIXTURE)]
        pair, _ = counted(*halves)
        options = {"momentum": -0.3, "radius": 2.0} if name == "apg" else {}
        guidance = GUIDANCE[name](strong(name, 2.0), **options)
        generator = torch.Generator().manual_seed(0)
        ends.append(process.sample(guided(pair, guidance), (8, 2), steps=12, generator=generator, dtype=torch.float64))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_guiding_the_prediction_equals_guiding_x0(objective):
    process = DiffusionProcess(
        COSINE, OBJECTIVES[objective](), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["ddim"]()
    )
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    cond, null = estimates()
    of_x0 = combined("cfg", *(process.to_x0(part, x, LEVEL) for part in (cond, null)), 4.0)
    torch.testing.assert_close(process.to_x0(torch.lerp(null, cond, 4.0), x, LEVEL), of_x0, rtol=0, atol=1e-11)


# -- one by one ------------------------------------------------------------------------------------------------------


def test_interval_guides_inside_and_is_free_outside():
    pair, asked = counted(CONDITIONAL, TEST_MIXTURE)
    denoise = guided(pair, GUIDANCE["interval"](3.0, low=-2.0, high=2.0))
    x = torch.randn(8, 2)
    for log_snr, inside in ((-5.0, False), (0.0, True), (5.0, False)):
        level = COSINE.level(torch.tensor(log_snr, dtype=torch.float64))
        halves = CONDITIONAL(x, level, None), TEST_MIXTURE(x, level, None)
        expected = combined("cfg", *halves, 3.0) if inside else halves[0]
        assert torch.equal(denoise(x, level, None), expected)
    assert asked == [False, True, False]


def test_rescaling_brings_the_spread_back():
    cond, null = estimates()
    torch.testing.assert_close(combined("rescale", cond, null, 5.0, phi=0.0), combined("cfg", cond, null, 5.0))
    whole = combined("rescale", cond, null, 5.0, phi=1.0)
    torch.testing.assert_close(whole.flatten(1).std(1), cond.flatten(1).std(1), rtol=1e-6, atol=0)
    half = combined("rescale", cond, null, 5.0, phi=0.5)
    torch.testing.assert_close(half, (whole + combined("cfg", cond, null, 5.0)) / 2)


def test_projected_guidance_with_all_of_the_parallel_part_is_classifier_free():
    cond, null = estimates()
    found = combined("apg", cond, null, 6.0, eta=1.0, radius=math.inf, momentum=0.0)
    torch.testing.assert_close(found, combined("cfg", cond, null, 6.0), rtol=0, atol=1e-12)


def test_projected_guidance_is_the_algorithm_of_its_paper():
    scale, eta, radius, momentum, state = 6.0, 0.25, 2.5, -0.5, {}
    before = torch.zeros(3, 48, dtype=torch.float64)
    for seed in range(3):
        cond, null = (part + seed * 0.1 * part.roll(seed, 0) for part in estimates())
        found = combined("apg", cond, null, scale, state, eta=eta, radius=radius, momentum=momentum)
        for i in range(3):
            c, n = cond[i].flatten(), null[i].flatten()
            before[i] = c - n + momentum * before[i]
            update = before[i] * min(1.0, radius / float(before[i].norm()))
            parallel = (update @ c) / (c @ c) * c
            expected = c + (scale - 1) * (update - parallel + eta * parallel)
            torch.testing.assert_close(found[i].flatten(), expected, rtol=0, atol=1e-12)
    plain = combined("apg", cond, null, scale)
    assert float(((plain - cond) * cond).flatten(1).sum(1).abs().max()) < 1e-10  # orthogonal by default


def test_momentum_lives_as_long_as_one_run():
    pair, _ = counted(CONDITIONAL, TEST_MIXTURE)
    guidance, x = GUIDANCE["apg"](3.0, momentum=-0.5), torch.randn(4, 2)
    first = guided(pair, guidance)
    once, twice = first(x, LEVEL, None), first(x, LEVEL, None)
    assert not torch.equal(once, twice)
    assert torch.equal(guided(pair, guidance)(x, LEVEL, None), once)


def test_cfgpp_is_a_ddim_step_renoised_without_the_condition():
    levels, omega = log_uniform_levels(COSINE, 20.0, 0.1, 10), 0.6
    h = math.log(200.0) / 10
    x = torch.randn(16, 2, dtype=torch.float64)
    pair, _ = counted(CONDITIONAL, TEST_MIXTURE)
    denoise = guided(pair, GUIDANCE["cfgpp"](omega, ref_steps=None, step=h))
    ours = SAMPLERS["ddim"]().sample(denoise, COSINE, x, levels)
    for t, s in zip(levels, levels[1:], strict=False):
        cond, null = CONDITIONAL(x, t, None), TEST_MIXTURE(x, t, None)
        x = s.alpha * (null + omega * (cond - null)) + s.sigma * (x - t.alpha * null) / t.sigma
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)
    assert GUIDANCE["cfgpp"](omega, ref_steps=None, step=h).weight == pytest.approx(omega / (1 - math.exp(-h)))
    with pytest.raises(ValueError, match="needs step"):
        _ = GUIDANCE["cfgpp"](0.5, ref_steps=None).weight


# -- exact results: classes that share a variance ----------------------------------------------------------------------

SPREAD, CENTER = 0.5, 0.8


def guided_law(guidance, sampler, steps, top=80.0, bottom=0.002):
    """Mean and variance of the result for N(CENTER, SPREAD^2) among N(0, SPREAD^2)."""
    pair, _ = counted(IsotropicGaussian(CENTER, SPREAD), IsotropicGaussian(0.0, SPREAD))
    schedule = Karras()
    levels = log_uniform_levels(schedule, top, bottom, steps)
    response = affine_response(SAMPLERS[sampler](), guided(pair, guidance), schedule, levels)
    return response.mean(0.0), response.variance(top**2 + SPREAD**2)


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_guided_gaussians_move_by_the_weight_and_keep_their_variance(scale, unchecked):
    mean, variance = guided_law(GUIDANCE["cfg"](scale), "dpmpp_2m", 128)
    # a start centred at zero never covers the share s / s_max of the way
    assert mean == pytest.approx(scale * CENTER * (1 - SPREAD / 80.0), rel=1e-4)
    assert variance == pytest.approx(SPREAD**2, rel=2e-3)


@pytest.mark.parametrize("sampler, change", [("dpmpp_2m", 0.001), ("ddim", 0.005)])
def test_cfgpp_with_reference_steps_does_not_depend_on_the_number_of_steps(sampler, change, unchecked):
    means = [guided_law(GUIDANCE["cfgpp"](1.0), sampler, steps)[0] for steps in (50, 200)]
    assert means[1] / means[0] == pytest.approx(1, abs=change)


def test_cfgpp_as_published_grows_with_the_number_of_steps(unchecked):
    top, bottom = math.exp(4.6), math.exp(-4.385)  # the ends of the cosine schedule, bounded at a log-SNR of -9.2
    means = {}
    for steps in (10, 25, 50, 100, 200):
        h = math.log(top / bottom) / steps
        mean, _ = guided_law(GUIDANCE["cfgpp"](1.0, ref_steps=None, step=h), "ddim", steps, top, bottom)
        assert mean / CENTER == pytest.approx(1 / (1 - math.exp(-h)), rel=0.01)
        means[steps] = mean / CENTER
    assert [means[steps] for steps in (25, 50, 100, 200)] == pytest.approx([3.3, 6.0, 11.5, 22.6], rel=0.02)


# -- thresholds ------------------------------------------------------------------------------------------------------


def test_static_threshold_clips():
    assert static_threshold(torch.tensor([[-3.0, 0.5, 2.0]])).tolist() == [[-1.0, 0.5, 1.0]]


def test_dynamic_threshold_is_the_formula_of_imagen():
    x0 = 2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x0[0] *= 0.1  # within [-1, 1]: untouched
    bound = torch.quantile(x0.abs().flatten(1), 0.95, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
    found = dynamic_threshold(x0, 0.95)
    torch.testing.assert_close(found, x0.clamp(-bound, bound) / bound)
    assert torch.equal(found[0], x0[0]) and float(found.abs().max()) == 1
    held = dynamic_threshold(x0, 0.95, ceiling=1.5)
    torch.testing.assert_close(held, x0.clamp(-bound.clamp(max=1.5), bound.clamp(max=1.5)) / bound.clamp(max=1.5))


def test_dynamic_threshold_takes_half_precision():
    x0 = 3 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        found = dynamic_threshold(x0.to(dtype))
        assert found.dtype == dtype and float(found.abs().max()) == 1
        torch.testing.assert_close(found.float(), dynamic_threshold(x0), rtol=0.02, atol=0.02)


def test_dynamic_threshold_takes_more_values_than_torch_can_sort():
    x0 = 4 * torch.rand(1, 3, 6, 1024, 1024, generator=torch.Generator().manual_seed(0))
    x0[0, 0, 0, 0, 0] = 0.38
    found = dynamic_threshold(x0, 0.95)
    assert float(found.max()) == 1
    assert float(found[0, 0, 0, 0, 0]) == pytest.approx(0.38 / 3.8, rel=1e-3)  # 95 % of uniform values on [0, 4]

"""Known regions and starts: the right noise everywhere, and what is painted has the law of the data."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import config

from imagen_pytorch.diffusion import process as _registers_all_samplers  # noqa: F401
from imagen_pytorch.diffusion.samplers import SAMPLERS, Inpainting
from imagen_pytorch.diffusion.schedules import Cosine, Karras, NoiseLevel
from imagen_pytorch.testing import TEST_MIXTURE, Gaussian, IsotropicGaussian, moment_exact_noise

# two values that belong together; the first is known to be 1, so the second is N(0.9, 0.19)
PAIR = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
ROWS, BATCH = 8, 10_000
MASK = torch.tensor([[True, False]])


@pytest.fixture
def unchecked():
    """Thousands of steps of functions whose annotations shorter tests check."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def painted(name, schedule, steps, resample_times, jump=1):
    """Mean and variance of the painted value over those of its law, without sampling error."""
    sampler = SAMPLERS[name]()
    levels = schedule.discretize(steps, sampler.grid)
    start = levels[0].sigma * moment_exact_noise(torch.randn(ROWS, 2, dtype=torch.float64))
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(ROWS, 2)
    known = Inpainting(image, MASK, resample_times=resample_times, jump=jump)
    end = sampler.sample(PAIR, schedule, start, levels, generator=moment_exact_noise, known=known)
    assert torch.equal(end[:, 0], image[:, 0])
    return float(end[:, 1].mean()) / 0.9, float(end[:, 1].var(unbiased=False)) / 0.19


GRID = Karras(sigma_min=0.02, sigma_max=80.0)


# reference values of a separate prototype; it resampled the last step without noising it again, which costs variance
@pytest.mark.parametrize(
    "name, steps, repeats, jump, mean, variance",
    [
        ("ddpm", 50, 1, 1, 0.662, 1.47),
        ("ddpm", 50, 10, 1, 0.974, 0.81),
        ("ddpm", 250, 10, 1, 0.979, 0.960),
        pytest.param("ddim", 250, 10, 1, 0.952, 1.033, marks=pytest.mark.slow),
        pytest.param("ddpm", 250, 10, 10, 0.980, 0.938, marks=pytest.mark.slow),
    ],
)
def test_painted_values_have_the_reference_law(name, steps, repeats, jump, mean, variance, unchecked):
    found = painted(name, GRID, steps, repeats, jump)
    assert found[0] == pytest.approx(mean, abs=0.006)
    assert found[1] == pytest.approx(variance, abs=0.045)
    assert abs(found[1] - 1) <= abs(variance - 1) + 0.016


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Cosine(), id="cosine"),
        pytest.param(Karras(), id="edm", marks=pytest.mark.slow),
        pytest.param(GRID, id="coarse end", marks=pytest.mark.slow),
    ],
)
def test_resampling_recovers_the_conditional_law(schedule, unchecked):
    mean, variance = painted("ddpm", schedule, 250, 10)
    assert 0.97 <= mean <= 1.0
    assert 0.93 <= variance <= 1.02


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_resampling_helps_every_sampler(name, unchecked):
    once, often = (painted(name, GRID, 20, repeats) for repeats in (1, 10))
    assert abs(often[0] - 1) < abs(once[0] - 1) / 3
    assert 0.6 <= often[1] <= 1.4


# -- several modes -----------------------------------------------------------------------------------------------------


def distance_to_conditional(y, draws=2000):
    """Wasserstein distance of painted second values, the first being y, to the exact conditional distribution."""
    generator = torch.Generator().manual_seed(0)
    levels = GRID.discretize(250, "karras")
    start = levels[0].sigma * torch.randn(draws, 2, generator=generator, dtype=torch.float64)
    known = Inpainting(torch.full((draws, 2), y, dtype=torch.float64), MASK, resample_times=10)
    end = SAMPLERS["ddpm"]().sample(TEST_MIXTURE, GRID, start, levels, generator=generator, known=known)
    means, stds, weights = (
        torch.tensor(part, dtype=torch.float64)
        for part in (TEST_MIXTURE.means, TEST_MIXTURE.stds, TEST_MIXTURE.weights)
    )
    first, second = (torch.distributions.Normal(means[:, axis], stds) for axis in (0, 1))
    given = weights * first.log_prob(torch.tensor(y, dtype=torch.float64)).exp()
    places = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    exact = (given / given.sum() * second.cdf(places[:, None])).sum(1)
    found = torch.searchsorted(end[:, 1].sort().values, places, right=True) / draws
    return float(torch.trapezoid((found - exact).abs(), places))


# a separate prototype, 4000 draws: 0.058, 0.082, 0.286; noise of the wrong variance gives 0.101, 0.142, 0.227
@pytest.mark.parametrize(
    "y, least, most",
    [
        (0.5, 0.0, 0.08),
        (-0.5, 0.0, 0.09),
        # between the modes, where more repeats would help (40: 0.08) and more steps would not
        (0.0, 0.2, 0.35),
    ],
)
@pytest.mark.slow
def test_where_several_modes_are_possible_resampling_is_biased(y, least, most, unchecked):
    assert least <= distance_to_conditional(y) <= most


# -- what the network sees ---------------------------------------------------------------------------------------------


def spied_run(name, schedule, steps, known):
    """Every state that the denoiser of one run was shown, with its level."""
    sampler = SAMPLERS[name]()
    levels = schedule.discretize(steps, sampler.grid)
    seen = []
    oracle = IsotropicGaussian(0.0, 0.5)

    def denoise(x, level, before):
        seen.append((x, level))
        return oracle(x, level, before)

    generator = torch.Generator().manual_seed(0)
    start = levels[0].sigma * torch.randn(BATCH, 2, generator=generator, dtype=torch.float64)
    end = sampler.sample(denoise, schedule, start, levels, generator=generator, known=known)
    return seen, end


def known_half(repeats=1):
    return Inpainting(torch.full((BATCH, 2), 0.75, dtype=torch.float64), MASK, resample_times=repeats)


@pytest.mark.parametrize("schedule", [Cosine(), Karras()], ids=["vp", "ve"])
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_known_pixels_have_the_noise_of_the_level_in_every_evaluation(name, schedule, unchecked):
    seen, end = spied_run(name, schedule, 5, known_half(repeats=2))
    assert torch.equal(end[:, 0], torch.full_like(end[:, 0], 0.75))
    assert len(seen) == (18 if name in ("heun", "edm", "dpmpp_2s") else 10)
    for x, level in seen:
        residual = (x[:, 0] - level.alpha * 0.75) / level.sigma
        assert float(residual.mean()) == pytest.approx(0, abs=0.04)
        assert float(residual.std()) == pytest.approx(1, rel=0.03)


def test_a_wholly_known_picture_is_seen_at_full_noise_from_the_first_evaluation():
    everything = Inpainting(torch.zeros(BATCH, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool), 1)
    seen, end = spied_run("edm", Karras(), 5, everything)
    x, level = seen[0]
    assert float(level.sigma) == pytest.approx(80) and float(x.std()) == pytest.approx(80, rel=0.02)
    assert torch.equal(end, torch.zeros_like(end))


@pytest.mark.parametrize("jump", [1, 2, 3, 50])
def test_every_stretch_is_walked_as_often_as_asked_and_history_starts_anew(jump):
    calls = []
    schedule = Cosine()
    levels = schedule.discretize(7, "karras")
    known = Inpainting(torch.zeros(1, 2), MASK, resample_times=3, jump=jump)

    def denoise(x, level, before):
        calls.append((levels.index(level), before is None))
        return torch.zeros_like(x)

    SAMPLERS["dpmpp_2m"]().sample(denoise, schedule, torch.randn(1, 2), levels, known=known)
    expected = []
    for start in range(0, 7, jump):
        expected += list(range(start, min(start + jump, 7))) * 3
    assert [index for index, _ in calls] == expected
    after_noise = [False] * len(calls)
    after_noise[0] = True
    for position in range(1, len(calls)):
        after_noise[position] = expected[position] <= expected[position - 1]
    assert [fresh for _, fresh in calls] == after_noise


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_known_pixels_are_exact_in_single_precision_too(name):
    image = torch.rand(3, 1, 4, 4)
    mask = torch.rand(3, 1, 4, 4) < 0.5
    schedule = Cosine()
    levels = SAMPLERS[name]().discretize(schedule, 4)
    oracle = IsotropicGaussian(0.0, 0.5)
    end = SAMPLERS[name]().sample(oracle, schedule, torch.randn(3, 1, 4, 4), levels, known=Inpainting(image, mask, 2))
    assert end.dtype == torch.float32 and torch.equal(end[mask], image[mask])
    assert not torch.equal(end[~mask], image[~mask])


def test_a_clean_level_is_exactly_clean():
    assert NoiseLevel.clean().log_snr == math.inf and float(NoiseLevel.clean().sigma_edm) == 0
